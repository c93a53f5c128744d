"""Directories on a volume: what is there, what is not, and what could not be looked at."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from agent import volume as module
from agent.errors import VolumeError
from agent.volume import Parts, Presence, Volume
from tests.harness import unprivileged_threads


@pytest.fixture
def volume() -> Iterator[Volume]:
    """One run's view."""
    with ThreadPoolExecutor(2) as threads:
        yield Volume(threads)


@pytest.fixture
def tree(root: Path, tmp_path: Path) -> Path:
    """A root with one of everything."""
    (root / "apps/model/app1").mkdir(parents=True)
    (root / "apps/Ünïcode/app1").mkdir(parents=True)
    (root / "apps/model/file").write_text("")
    (root / "apps/afile").write_text("")
    (tmp_path / "elsewhere/app1").mkdir(parents=True)
    (root / "apps/model/inside").symlink_to(root / "apps/model/app1")
    (root / "apps/model/outside").symlink_to(tmp_path / "elsewhere")
    (root / "apps/model/dangling").symlink_to(root / "nowhere")
    (root / "apps/model/loop").symlink_to(root / "apps/model/loop")
    (root / "apps/model/filelink").symlink_to(root / "apps/afile")
    (root / "apps/linkin").symlink_to(root / "apps/model")
    (root / "apps/linkout").symlink_to(tmp_path / "elsewhere")
    return root


CASES: list[tuple[str, Presence]] = [
    ("apps/model/app1", "present"),
    ("apps/model", "present"),
    ("apps/Ünïcode/app1", "present"),
    ("apps/model/app2", "absent"),
    ("apps/model/APP1", "absent"),
    ("apps/other/app1", "absent"),
    ("nothing/at/all", "absent"),
    ("apps/model/app1/deeper/still", "absent"),
    ("apps/model/file", "malformed"),
    ("apps/model/file/app1", "malformed"),
    ("apps/afile/app1", "malformed"),
    ("apps/model/inside", "present"),
    ("apps/model/outside", "outside"),
    ("apps/model/dangling", "outside"),
    ("apps/model/loop", "outside"),
    ("apps/model/filelink", "outside"),
    ("apps/linkin/app1", "present"),
    ("apps/linkin/app2", "absent"),
    ("apps/linkout/app1", "outside"),
    ("apps/linkout/app2", "outside"),
    ("apps/" + "x" * 256 + "/app1", "malformed"),
    ("apps/model/" + "x" * 256, "malformed"),
    ("/".join(["apps", *["deep"] * 500]), "absent"),
    ("/".join(["apps", *["deep"] * 1000]), "malformed"),
    ("nothing/" + "x" * 5000, "malformed"),
]


def parts(path: str) -> Parts:
    return tuple(path.split("/"))


@pytest.mark.parametrize("path, presence", CASES)
async def test_each_path_has_one_answer(tree: Path, volume: Volume, path: str, presence: Presence) -> None:
    """Only what the file system itself calls missing is absent."""
    assert await volume.look(tree, [parts(path)]) == [presence]


async def test_many_paths_are_answered_in_order(tree: Path, volume: Volume) -> None:
    """As if each had been asked for alone."""
    paths = [parts(path) for path, _ in CASES]
    expected = [presence for _, presence in CASES]
    assert await volume.look(tree, paths) == expected
    assert await volume.look(tree, paths[::-1]) == expected[::-1]


@pytest.mark.parametrize("path, presence", CASES)
async def test_absence_is_confirmed_only_where_it_was_seen(
    tree: Path, volume: Volume, path: str, presence: Presence
) -> None:
    """What stands at a path, even a file or a link that leads nowhere, is never absent."""
    absent = (await volume.look_again(tree, None, [parts(path)]))[0]
    assert not absent or presence in {"absent", "outside"}
    assert absent == (presence == "absent") or "linkout" in path


async def test_each_directory_is_read_once_and_none_on_the_event_loop(
    root: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand records in ten directories cost twelve listings, all of them in the volume's threads."""
    for model in range(10):
        (root / f"apps/m{model}").mkdir(parents=True)
    (root / "apps/m0/app0").mkdir()
    listed: list[str] = []
    threads: set[int] = set()

    def watched(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if str(path).startswith(str(root)):
                threads.add(threading.get_ident())
                if name == "scandir":
                    listed.append(str(path))
            return original(path, *arguments, **options)

        return call

    for name in ("scandir", "lstat", "stat", "readlink"):
        monkeypatch.setattr(os, name, watched(name))
    await volume.inspect(root, None)
    for start in range(0, 1000, 250):
        paths = [("apps", f"m{model}", f"app{app}") for model in range(10) for app in range(start, start + 250)]
        await volume.look(root, paths)
    assert len(listed) == len(set(listed)) + 1  # the root itself once more, for the proof
    assert len(set(listed)) == 12
    assert threading.get_ident() not in threads


async def test_few_listings_are_kept_at_a_time(root: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they would take too much memory the oldest go, and the answers stay right."""
    monkeypatch.setattr(module, "NAMES_KEPT", 5)
    for model in range(20):
        (root / f"apps/m{model}/app1").mkdir(parents=True)
    paths = [("apps", f"m{model}", f"app{app}") for model in range(20) for app in (1, 2)]
    assert await volume.look(root, paths) == ["present", "absent"] * 20
    assert await volume.look(root, paths) == ["present", "absent"] * 20
    assert len(volume._trees[root]._listings) < 6


async def test_a_name_that_the_file_system_knows_by_another_spelling_is_present(
    tree: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems ignore case: the listing shows another name, yet the directory is there."""
    original = os.lstat

    def ignoring_case(path: Any, **options: Any) -> os.stat_result:
        folded = Path(path)
        if folded.name == "APP1":
            folded = folded.with_name("app1")
        return original(folded, **options)

    monkeypatch.setattr(os, "lstat", ignoring_case)
    assert await volume.look(tree, [("apps", "model", "APP1"), ("apps", "model", "APP2")]) == ["present", "absent"]
    assert await volume.look_again(tree, None, [("apps", "model", "APP1")]) == [False]


# --- what denies access


@asynccontextmanager
async def without_rights() -> AsyncIterator[Volume]:
    if sys.platform != "linux":
        pytest.skip("only Linux lets a thread give up its rights")
    with unprivileged_threads() as threads:
        yield Volume(threads)


async def test_below_a_directory_that_denies_access_nothing_is_absent(tree: Path) -> None:
    """Its records are unreadable; those beside it are judged."""
    (tree / "apps/closed/app1").mkdir(parents=True)
    (tree / "apps/closed").chmod(0)
    async with without_rights() as volume:
        looked = await volume.look(
            tree, [("apps", "closed", "app1"), ("apps", "closed", "a", "b"), ("apps", "model", "app2")]
        )
        assert looked == ["unreadable", "unreadable", "absent"]
        assert await volume.look_again(tree, None, [("apps", "closed", "app1")]) == [False]
    (tree / "apps/closed").chmod(0o755)


async def test_a_directory_that_may_be_entered_but_not_listed_is_unreadable(tree: Path) -> None:
    """What cannot be listed is not judged by guessing names."""
    (tree / "apps/closed/app1").mkdir(parents=True)
    (tree / "apps/closed").chmod(0o711)
    async with without_rights() as volume:
        assert await volume.look(tree, [("apps", "closed", "app2")]) == ["unreadable"]


async def test_a_link_into_a_place_that_denies_access_leads_outside(tree: Path, tmp_path: Path) -> None:
    """Nobody knows what is there: it is reported, never deleted."""
    (tmp_path / "closed/app").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    (tree / "apps/model/denied").symlink_to(tmp_path / "closed/app")
    async with without_rights() as volume:
        assert await volume.look(tree, [("apps", "model", "denied")]) == ["outside"]
    (tmp_path / "closed").chmod(0o755)


async def test_a_root_that_denies_access_is_a_problem(tree: Path) -> None:
    """Of the root itself, not of the records below it."""
    tree.chmod(0)
    async with without_rights() as volume:
        assert (await volume.inspect(tree, None)).problem == f"{tree} may not be read"
        with pytest.raises(VolumeError):
            await volume.look(tree, [("apps", "model", "app1")])
    tree.chmod(0o755)


# --- the root


@pytest.mark.parametrize("marker", [None, "apps/marker"])
async def test_a_root_that_is_none_has_a_problem(root: Path, volume: Volume, marker: str | None) -> None:
    """Missing, a file, below a file: each has its own words."""
    (root / "file").write_text("")
    assert (await volume.inspect(root / "missing", marker)).problem == f"{root / 'missing'} does not exist"
    assert (await volume.inspect(root / "file", marker)).problem == f"{root / 'file'} is not a directory"
    assert (await volume.inspect(root / "file/below", marker)).problem == f"{root / 'file/below'} is not a directory"
    assert (await volume.inspect(root, marker)).problem is None


@pytest.mark.parametrize(
    "content, seen",
    [(b"volume-1\n", "volume-1"), (b"", ""), (b"\xff\xfe", "\ufffd\ufffd"), (b"x" * 5000, "x" * 4096)],
)
async def test_a_marker_names_the_volume_by_its_content(root: Path, volume: Volume, content: bytes, seen: str) -> None:
    """Whatever it holds; of a very long one the beginning."""
    (root / ".volume").write_bytes(content)
    assert (await volume.inspect(root, ".volume")).marker == seen


async def test_a_marker_that_is_missing_or_no_file_names_nothing(root: Path, volume: Volume) -> None:
    """That is no problem of the root; the proof says what it means."""
    (root / "folder").mkdir()
    for marker in ("missing", "folder", "missing/below", "folder/x"):
        state = await volume.inspect(root, marker)
        assert (state.problem, state.marker) == (None, None)


async def test_a_root_may_be_a_link(root: Path, tree: Path, volume: Volume, tmp_path: Path) -> None:
    """The volume is what it leads to, and links inside it are inside."""
    link = tmp_path / "link"
    link.symlink_to(tree)
    assert (await volume.inspect(link, None)).problem is None
    looked = await volume.look(link, [("apps", "model", "inside"), ("apps", "model", "outside")])
    assert looked == ["present", "outside"]


# --- a second look


async def test_the_second_look_sees_what_came_and_went(tree: Path, volume: Volume) -> None:
    """It trusts no listing."""
    await volume.look(tree, [("apps", "model", "app1"), ("apps", "model", "app2"), ("apps", "Ünïcode", "app1")])
    (tree / "apps/model/app2").mkdir()
    (tree / "apps/model/app1").rmdir()
    looked = await volume.look_again(tree, None, [("apps", "model", "app1"), ("apps", "model", "app2"), ("apps", "x")])
    assert looked == [True, False, True]


async def test_the_second_look_fails_where_the_volume_was_exchanged(root: Path, tree: Path, volume: Volume) -> None:
    """Another directory in the root's place is another volume."""
    await volume.inspect(tree, None)
    aside = tree.with_name(tree.name + "-aside")
    tree.rename(aside)
    try:
        tree.mkdir()
        with pytest.raises(VolumeError, match="another volume"):
            await volume.look_again(tree, None, [("apps", "model", "app2")])
        tree.rmdir()
        with pytest.raises(VolumeError, match="does not exist"):
            await volume.look_again(tree, None, [("apps", "model", "app2")])
    finally:
        aside.rename(tree)


async def test_the_second_look_fails_where_the_marker_changed(root: Path, volume: Volume) -> None:
    """Its content is part of what the volume is."""
    (root / ".volume").write_text("a")
    await volume.inspect(root, ".volume")
    (root / ".volume").write_text("b")
    with pytest.raises(VolumeError, match="another volume"):
        await volume.look_again(root, ".volume", [("x",)])


async def test_the_second_look_fails_where_all_that_was_there_is_gone(tree: Path, volume: Volume) -> None:
    """A volume that was emptied looks the same, but for what was found on it."""
    await volume.inspect(tree, None)
    assert await volume.look(tree, [("apps", "model", "app1")]) == ["present"]
    assert await volume.look_again(tree, None, [("apps", "model", "app2")]) == [True]
    (tree / "apps/model/app1").rmdir()
    with pytest.raises(VolumeError, match="are gone"):
        await volume.look_again(tree, None, [("apps", "model", "app2")])


# --- what could not be looked at


def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int, below: Path) -> None:
    """Lets a system call fail below a directory."""
    original = getattr(os, name)

    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).startswith(str(below)):
            raise OSError(code, os.strerror(code), str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("name", ["scandir", "lstat"])
async def test_an_error_of_the_volume_is_neither_present_nor_absent(
    tree: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    """It says which path, and ends the look."""
    failing(monkeypatch, name, code, tree / "apps/model")
    with pytest.raises(VolumeError, match="apps/model"):
        await volume.look(tree, [("apps", "Ünïcode", "app1"), ("apps", "model", "app2")])


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
async def test_an_error_in_the_second_look_is_one_too(
    tree: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Nothing is absent because it could not be looked at."""
    failing(monkeypatch, "lstat", code, tree / "apps/model")
    with pytest.raises(VolumeError):
        await volume.look_again(tree, None, [("apps", "model", "app2")])


async def test_an_error_while_a_directory_is_listed_is_one_too(
    tree: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a listing is no listing."""
    original = os.scandir

    class Broken:
        def __init__(self, path: Any) -> None:
            self.path = path

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            with original(self.path) as entries:
                yield next(entries)
            raise OSError(errno.ESTALE, "stale", str(self.path))

    monkeypatch.setattr(os, "scandir", lambda path: Broken(path) if str(path).endswith("model") else original(path))
    with pytest.raises(VolumeError, match="stale"):
        await volume.look(tree, [("apps", "model", "app2")])


async def test_a_file_system_that_does_not_answer_in_time_is_an_error(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread hangs; the caller goes on."""
    answers = threading.Event()
    original = os.scandir

    def hanging(path: Any) -> Any:
        answers.wait(30)
        return original(path)

    monkeypatch.setattr(os, "scandir", hanging)
    with ThreadPoolExecutor(1) as threads:
        try:
            with pytest.raises(VolumeError, match=r"no answer within 0\.05 s"):
                await Volume(threads, seconds=0.05).look(tree, [("apps", "model", "app1")])
        finally:
            answers.set()
