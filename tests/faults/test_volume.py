"""The root goes away, or becomes another, or cannot be read, in the middle of a run: at each point where it is looked at."""

from __future__ import annotations

import datetime as dt
import errno
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest

from tests.conftest import Database
from tests.faults import world
from tests.faults.agents import Line, Nursery, Step
from tests.faults.conftest import Scaled
from tests.faults.world import World

MARKER = "volume-id"
NOBODY = 65_534
ROUNDS = 40  # a fault
DOCUMENTS = 400
# Where a run looks at the root, and how often: while it selects, between that and its batches, before a batch, while it
# looks at the batch's directories again, after the batch was written.
POINTS = {"scan": 30, "look": 40, "written": 3, "selected": 1, "batch": 3}

Fault = Callable[["Disk"], Line | None]


class Disk:
    """Two volumes, and the directory at which one of them is mounted: for real where that may be done here, else moved."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self._volume = folder / "volume"
        self._other = folder / "other"
        for path in (self.root, self._volume, self._other):
            path.mkdir()
        self._real = not mount("-t", "tmpfs", "tmpfs", self._volume).returncode
        self._mounted: Path | None = None
        self._put(self._volume)

    def _put(self, volume: Path | None) -> None:
        """Unmounts what is there, and mounts a volume."""
        if self._real:
            if self._mounted is not None:
                subprocess.run(["umount", "--lazy", self.root], check=True)
            if volume is not None:
                mount("--bind", volume, self.root).check_returncode()
        else:
            self.root.rename(self._mounted) if self._mounted is not None else self.root.rmdir()
            volume.rename(self.root) if volume is not None else self.root.mkdir()
        self._mounted = volume

    def unmount(self) -> None:
        """The volume is away; its mount point is an empty directory."""
        self._put(None)

    def mount(self) -> None:
        """The volume is there."""
        self._put(self._volume)

    def swap(self) -> None:
        """Another volume is there, which has some of the directories as well."""
        self._put(self._other)

    def empty(self) -> None:
        """Somebody removes everything."""
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def forbid(self) -> None:
        """The root may not be read any more."""
        self.root.chmod(0o000)

    def mend(self, directories: Sequence[str]) -> None:
        """All is as it was in the beginning."""
        for mounted, names in ((self._other, directories[::2]), (self._volume, directories)):
            self._put(mounted)
            self.root.chmod(0o755)
            for name in names:
                (self.root / name).mkdir(parents=True, exist_ok=True)
            (self.root / MARKER).write_text(mounted.name)

    def close(self) -> None:
        """Leaves no mount behind."""
        self._put(None)
        if self._real:
            subprocess.run(["umount", "--lazy", self._volume], check=True)


def mount(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Tries to mount something."""
    return subprocess.run(["mount", *arguments], check=False, capture_output=True)


@pytest.fixture
def disk(root: Path) -> Iterator[Disk]:
    """A disk; nothing of it is left behind."""
    made = Disk(root)
    yield made
    made.close()


def fails(code: int) -> Fault:
    """Looks at directories fail with an error."""
    return lambda disk: {"path": str(disk.root), "error": code}


FAULTS: dict[str, Fault] = {
    "unmounted": Disk.unmount,
    "emptied": Disk.empty,
    "swapped": Disk.swap,
    "unreadable": Disk.forbid,
    "input output error": fails(errno.EIO),
    "stale file handle": fails(errno.ESTALE),
    "hanging": lambda disk: {"path": str(disk.root / "generated"), "error": None},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_record_is_deleted_whose_directory_was_there_when_the_root_broke(
    database: Database, db: world.Database, disk: Disk, nursery: Nursery, rng: random.Random, scaled: Scaled, fault: str
) -> None:
    """Whenever it happens, what is deleted was missing before; once the root is well the work ends, and is undone."""
    made = world.make(db, disk.root, DOCUMENTS, rng)
    outcomes: Counter[str] = Counter()
    for _, point in zip(range(scaled(ROUNDS, 3)), cycle(POINTS), strict=False):
        steps: list[Step] = [(point, rng.randint(1, POINTS[point]), partial(FAULTS[fault], disk))]
        outcomes[break_and_mend(database, db, disk, nursery, made, rng, steps)] += 1
    print(f"{fault}: {dict(outcomes)}")  # noqa: T201


def test_no_record_is_deleted_whose_directory_was_there_while_the_root_comes_and_goes(
    database: Database, db: world.Database, disk: Disk, nursery: Nursery, rng: random.Random, scaled: Scaled
) -> None:
    """The same where the volume is away for a moment while it is looked at, and once more at a later look."""
    made = world.make(db, disk.root, DOCUMENTS, rng)
    outcomes: Counter[str] = Counter()
    for _ in range(scaled(ROUNDS, 3)):
        steps: list[Step] = [
            ("scan", rng.randint(5, 30), disk.unmount),
            ("scan", rng.randint(1, 10), disk.mount),
            ("look", rng.randint(1, 40), disk.unmount),
            ("look", rng.randint(1, 40), disk.mount),
        ]
        outcomes[break_and_mend(database, db, disk, nursery, made, rng, steps)] += 1
    print(f"comes and goes: {dict(outcomes)}")  # noqa: T201


def test_what_is_away_at_two_looks_and_there_in_between_is_not_deleted(
    database: Database, db: world.Database, disk: Disk, nursery: Nursery
) -> None:
    """All directories exist. The volume is away while some are looked for, back for the proof, away at the second look."""
    names = [f"model-{number:02}" for number in range(30)]
    disk.mend([world.path_of(name, 1) for name in names])
    made = world.server_now(db) - dt.timedelta(days=1)
    records = [{"_id": name, "model_slug": name, "app_number": 1, "created_at": made} for name in names]
    db[world.RECORDS].insert_many(records)
    with nursery.agent(world.settings(database.uri, database.name, disk.root)).open() as agent:
        steps: list[Step] = [
            ("scan", 10, disk.unmount),
            ("scan", 10, disk.mount),
            ("look", 4, disk.unmount),  # the root and a directory that was there before were found again
        ]
        run = agent.during(steps, names=["records"])[0]
    assert run["found"]["orphan"] >= 5, "it looked as if they were missing"
    assert (run["outcome"], run["changed"]) == ("failed", {})
    assert db[world.RECORDS].count_documents({}) == len(records)


def test_what_was_deleted_is_put_back_where_its_directory_cannot_be_looked_for_once_more(
    database: Database, db: world.Database, disk: Disk, nursery: Nursery, rng: random.Random
) -> None:
    """The volume goes away right after a batch was written: that batch is undone, and the run fails."""
    made = world.make(db, disk.root, DOCUMENTS, rng)
    with nursery.agent(world.settings(database.uri, database.name, disk.root, defaults={"batch": 8})).open() as agent:
        run = agent.during([("written", 2, disk.unmount)], names=["records"])[0]
        assert (run["outcome"], run["changed"]) == ("failed", {"deleted": 16, "restored": 8})
        world.check(db, made, settled=True)


def break_and_mend(
    database: Database,
    db: world.Database,
    disk: Disk,
    nursery: Nursery,
    made: World,
    rng: random.Random,
    steps: list[Step],
) -> str:
    """A run with faults in the middle, then one on the mended volume, then its restore; returns the first one's outcome."""
    disk.mend(made.directories)
    marker = rng.choice([None, MARKER])
    settings = world.settings(
        database.uri, database.name, disk.root, defaults={"batch": 8}, jobs={"records": {"marker": marker}}
    )
    with nursery.agent(settings) as agent:
        agent.open()
        agent.ask("become", uid=NOBODY)
        agent.ask("patience", seconds=0.3)
        run = agent.during(steps, names=["records"])[0]
    world.check(db, made, settled=True)
    disk.mend(made.directories)
    with nursery.agent(settings).open() as agent:
        assert agent.runs(names=["records"])[0]["outcome"] == "succeeded"
        world.check(db, made, settled=True)
        world.check_ended(db, made, world.RECORDS)
        for id in world.newest_first(db):
            agent.runs("restore", run=id)
    assert not world.difference(made.first, world.snapshot(db))
    world.forget_the_agent(db)
    outcome: str = run["outcome"]
    return outcome
