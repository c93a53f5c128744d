"""The incident, as data: what the database and the volume of the analysis platform looked like.

28 applications had lost their directories. Nothing noticed, so a scheduler went on to create analysis tasks for them,
seven at a time, and within two days 469 of them were PENDING. Around them lies a platform as it should be: healthy
applications with their files, tasks that wait or run as they may, finished ones of all ages; and what drifts anywhere:
workers that died and left tasks RUNNING, tasks that nobody fetched, finished tasks that nobody removed.

Pure data, the same for the same ``now`` and ``seed``; no database is needed to make it. Times are far from every limit
of the default settings, so that the numbers stay what they are for half an hour after ``now``.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Final

Document = dict[str, Any]

ORPHANED_APPS: Final = 28
BURSTS: Final = 67
BURST: Final = 7  # tasks that the platform's scheduler creates at a time, one an analysis
BURST_PERIOD: Final = timedelta(days=2)

HEALTHY_APPS_PER_MODEL: Final = 25
STUCK_RUNNING: Final = 37
STUCK_PENDING: Final = 12
WAITING: Final = 58  # healthy and PENDING
WORKING: Final = 24  # healthy and RUNNING
EXPIRED: Final = 412  # finished more than 30 days ago
FINISHED: Final = 2431  # finished since

MODELS: Final = (
    "alder-7b",
    "aspen-14b-instruct",
    "beech-3b",
    "birch-70b-chat",
    "cedar-8b",
    "elm-32b-coder",
    "hazel-1b",
    "larch-13b",
    "maple-9b-instruct",
    "oak-405b",
    "rowan-22b",
    "willow-mini",
)
# These two lost all their directories, the others one or two each.
VANISHED_MODELS: Final = ("juniper-6b", "spruce-2b")
VANISHED_APPS_PER_MODEL: Final = 6

ERRORS: Final = (
    "container did not become healthy",
    "analyzer exited with code 137",
    "report could not be parsed",
    "port was not released in time",
)
CANCELLATION: Final = "Cancelled by the user"
# Of the finished tasks: most succeed.
ENDINGS: Final = {"COMPLETED": 80, "FAILED": 14, "CANCELLED": 6}


@dataclass(frozen=True, slots=True)
class Expected:
    """What one pass of the four cleanup jobs, in cascade order with the default settings, has to find."""

    orphan_records: int
    orphan_tasks: int
    stuck_running: int
    stuck_pending: int
    expired: int


@dataclass(frozen=True, slots=True)
class Incident:
    """The state of the platform at ``now``: disjoint groups of documents, and the files on the volume."""

    now: datetime
    healthy_records: tuple[Document, ...]
    orphan_records: tuple[Document, ...]
    orphan_tasks: tuple[Document, ...]
    stuck_running: tuple[Document, ...]
    stuck_pending: tuple[Document, ...]
    active_tasks: tuple[Document, ...]
    finished_tasks: tuple[Document, ...]
    expired_tasks: tuple[Document, ...]
    files: dict[str, str]  # path below the root -> content

    @property
    def records(self) -> list[Document]:
        """All documents of `generated_applications`, in the order in which they were created."""
        return _in_order(self.healthy_records, self.orphan_records)

    @property
    def tasks(self) -> list[Document]:
        """All documents of `analysis_tasks`, in the order in which they were created."""
        active = (self.orphan_tasks, self.stuck_running, self.stuck_pending, self.active_tasks)
        return _in_order(*active, self.finished_tasks, self.expired_tasks)

    @property
    def directories(self) -> list[str]:
        """The directories of the healthy applications, below the root."""
        return [directory_of(record) for record in self.healthy_records]

    @property
    def expected(self) -> Expected:
        """The numbers that the jobs have to report."""
        return Expected(
            orphan_records=len(self.orphan_records),
            orphan_tasks=len(self.orphan_tasks),
            stuck_running=len(self.stuck_running),
            stuck_pending=len(self.stuck_pending),
            expired=len(self.expired_tasks),
        )

    def write_files(self, root: Path) -> None:
        """Create the directories of the healthy applications, and the files in them, below the root."""
        for name, content in self.files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")


def directory_of(record: Document) -> str:
    """Return the directory of an application, below the root."""
    return f"generated/apps/{record['model_slug']}/app{record['app_number']}"


def incident(now: datetime, seed: int = 28) -> Incident:
    """Return the incident as it stood at ``now``."""
    return _Maker(now, seed).incident()


class _Maker:
    """Draws everything from one random generator; the order of the draws is the order of the lines below."""

    def __init__(self, now: datetime, seed: int) -> None:
        # MongoDB stores milliseconds: what is made here compares equal to what is read back.
        now = now.astimezone(UTC)
        self.now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self.random = random.Random(seed)  # noqa: S311 - made-up data has to be the same every time

    def incident(self) -> Incident:
        healthy = [self.record(model, number + 1) for model in MODELS for number in range(HEALTHY_APPS_PER_MODEL)]
        orphans = self.orphan_records()
        return Incident(
            now=self.now,
            healthy_records=tuple(healthy),
            orphan_records=tuple(orphans),
            orphan_tasks=tuple(self.bursts(orphans)),
            stuck_running=tuple(self.stuck_running(self.one_of(healthy)) for _ in range(STUCK_RUNNING)),
            stuck_pending=tuple(self.stuck_pending(self.one_of(healthy)) for _ in range(STUCK_PENDING)),
            active_tasks=(
                *(self.waiting(self.one_of(healthy)) for _ in range(WAITING)),
                *(self.working(self.one_of(healthy)) for _ in range(WORKING)),
            ),
            finished_tasks=tuple(
                self.finished(self.one_of(healthy), timedelta(minutes=5), timedelta(days=29)) for _ in range(FINISHED)
            ),
            expired_tasks=tuple(
                self.finished(self.one_of(healthy), timedelta(days=31), timedelta(days=120)) for _ in range(EXPIRED)
            ),
            files=dict(chain.from_iterable(self.files(record) for record in healthy)),
        )

    def orphan_records(self) -> list[Document]:
        vanished = [
            self.record(model, number + 1) for model in VANISHED_MODELS for number in range(VANISHED_APPS_PER_MODEL)
        ]
        # Among the healthy ones of a model: their directories lie beside the missing one.
        beside = [
            self.record(MODELS[number % len(MODELS)], HEALTHY_APPS_PER_MODEL + 1 + number // len(MODELS))
            for number in range(ORPHANED_APPS - len(vanished))
        ]
        return [*vanished, *beside]

    def record(self, model: str, number: int) -> Document:
        age = self.between(timedelta(days=3), timedelta(days=150))
        return {"model_slug": model, "app_number": number, "created_at": self.now - age}

    def bursts(self, targets: list[Document]) -> list[Document]:
        """Seven tasks at a time for one lost application after another, the last burst a quarter of an hour ago."""
        first = self.now - timedelta(minutes=15) - BURST_PERIOD
        tasks = []
        for burst in range(BURSTS):
            at = first + BURST_PERIOD * burst / (BURSTS - 1)
            for position in range(BURST):
                created = at + timedelta(milliseconds=position * 40 + self.random.randrange(40))
                tasks.append(self.task(targets[burst % len(targets)], "PENDING", created))
        return tasks

    def stuck_running(self, target: Document) -> Document:
        """A worker took it and died: it started long ago and nothing came after."""
        started = self.now - self.between(timedelta(hours=2), timedelta(days=6))
        created = started - self.between(timedelta(seconds=1), timedelta(minutes=10))
        return self.task(target, "RUNNING", created, started)

    def stuck_pending(self, target: Document) -> Document:
        """It was created long ago and nobody fetched it."""
        return self.task(target, "PENDING", self.now - self.between(timedelta(hours=2), timedelta(days=3)))

    def waiting(self, target: Document) -> Document:
        return self.task(target, "PENDING", self.now - self.between(timedelta(seconds=5), timedelta(minutes=25)))

    def working(self, target: Document) -> Document:
        started = self.now - self.between(timedelta(seconds=5), timedelta(minutes=25))
        created = started - self.between(timedelta(seconds=1), timedelta(minutes=10))
        return self.task(target, "RUNNING", created, started)

    def finished(self, target: Document, youngest: timedelta, oldest: timedelta) -> Document:
        ended = self.now - self.between(youngest, oldest)
        status = self.random.choices(list(ENDINGS), list(ENDINGS.values()))[0]
        started = ended - self.between(timedelta(seconds=20), timedelta(minutes=30))
        created = started - self.between(timedelta(seconds=1), timedelta(minutes=10))
        task = self.task(target, status, created, started)
        if status == "CANCELLED":
            task["error_message"] = CANCELLATION
            if self.random.random() < 1 / 2:
                task["started_at"] = None  # cancelled while it was waiting
        elif status == "FAILED":
            task["error_message"] = self.random.choice(ERRORS)
        task["completed_at"] = ended
        return task

    def task(self, target: Document, status: str, created: datetime, started: datetime | None = None) -> Document:
        return {
            "task_id": f"task_{self.random.getrandbits(48):012x}",
            "target_model": target["model_slug"],
            "target_app_number": target["app_number"],
            "status": status,
            "created_at": _milliseconds(created),
            "started_at": started,
            "completed_at": None,
            "error_message": None,
        }

    def files(self, record: Document) -> list[tuple[str, str]]:
        """Return what lies in the directory of a healthy application: its source and the results of analyses."""
        directory = directory_of(record)
        title = f"{record['model_slug']} / app {record['app_number']}"
        report = {"model": record["model_slug"], "app": record["app_number"], "score": self.random.randrange(101)}
        return [
            (f"{directory}/app.py", f'"""{title}"""\n\nprint("hello")\n'),
            (f"{directory}/README.md", f"# {title}\n"),
            (f"{directory}/results/report.json", json.dumps(report) + "\n"),
        ]

    def one_of(self, records: list[Document]) -> Document:
        return self.random.choice(records)

    def between(self, least: timedelta, most: timedelta) -> timedelta:
        """Draw a duration in whole milliseconds."""
        millisecond = timedelta(milliseconds=1)
        return self.random.randint(least // millisecond, most // millisecond) * millisecond


def _milliseconds(time: datetime) -> datetime:
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def _in_order(*groups: tuple[Document, ...]) -> list[Document]:
    created: list[Document] = sorted(chain.from_iterable(groups), key=lambda document: document["created_at"])
    return created
