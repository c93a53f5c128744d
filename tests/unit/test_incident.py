"""The incident of the demo: its numbers and shapes, and that its groups keep clear of each other and of all limits."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from itertools import chain, pairwise
from pathlib import Path

import pytest

from agent.demo.incident import (
    BURST,
    BURSTS,
    Document,
    Expected,
    Incident,
    directory_of,
    incident,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
MONTH = timedelta(days=30)
DEMO = timedelta(minutes=30)  # the numbers hold that long after `now`
TASK_FIELDS = [
    "task_id",
    "target_model",
    "target_app_number",
    "status",
    "created_at",
    "started_at",
    "completed_at",
    "error_message",
]


@pytest.fixture(scope="module")
def world() -> Incident:
    return incident(NOW)


def test_the_numbers_are_those_of_the_incident(world: Incident) -> None:
    assert world.expected == Expected(
        orphan_records=28, orphan_tasks=469, stuck_running=37, stuck_pending=12, expired=412
    )
    assert len(world.healthy_records) == 300
    assert len(world.finished_tasks) > 2000
    assert len(world.records) == 328


def test_the_same_now_and_seed_give_the_same_world_and_another_seed_another() -> None:
    assert incident(NOW) == incident(NOW)
    assert incident(NOW, seed=1) != incident(NOW, seed=2)
    assert incident(NOW, seed=1).expected == incident(NOW, seed=2).expected


def test_now_may_be_given_in_any_time_zone() -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert incident(elsewhere) == incident(NOW)


def test_every_instant_is_one_that_mongodb_stores_exactly(world: Incident) -> None:
    """Whole milliseconds in UTC: what is read back compares equal."""
    times = [value for document in world.records + world.tasks for value in document.values() if _is_time(value)]
    assert all(time.microsecond % 1000 == 0 and time.tzinfo is UTC for time in times)
    assert all(time <= world.now for time in times)


def test_documents_have_the_fields_of_the_platform(world: Incident) -> None:
    assert all(list(record) == ["model_slug", "app_number", "created_at"] for record in world.records)
    assert all(list(task) == TASK_FIELDS for task in world.tasks)


def test_fields_that_do_not_apply_are_null(world: Incident) -> None:
    for task in world.tasks:
        active = task["status"] in {"PENDING", "RUNNING"}
        assert (task["completed_at"] is None) == active
        assert (task["error_message"] is None) == (active or task["status"] == "COMPLETED")
        if task["status"] == "PENDING":
            assert task["started_at"] is None
        elif task["status"] != "CANCELLED":  # cancelled while waiting or while running
            assert task["started_at"] is not None
        steps = [time for time in (task["created_at"], task["started_at"], task["completed_at"]) if time is not None]
        assert steps == sorted(steps)


def test_task_ids_and_applications_are_unique_and_groups_disjoint(world: Incident) -> None:
    assert len({task["task_id"] for task in world.tasks}) == len(world.tasks)
    assert len({_target(record) for record in world.records}) == len(world.records)


def test_documents_come_in_the_order_of_their_creation(world: Incident) -> None:
    for documents in (world.records, world.tasks):
        assert all(one["created_at"] <= other["created_at"] for one, other in pairwise(documents))


def test_orphan_tasks_came_in_bursts_of_seven_over_two_days(world: Incident) -> None:
    bursts = [world.orphan_tasks[start : start + BURST] for start in range(0, len(world.orphan_tasks), BURST)]
    assert len(bursts) == BURSTS
    assert all(len({_target(task) for task in burst}) == 1 for burst in bursts)
    assert all(burst[-1]["created_at"] - burst[0]["created_at"] < timedelta(seconds=1) for burst in bursts)
    span = bursts[-1][0]["created_at"] - bursts[0][0]["created_at"]
    assert abs(span - timedelta(days=2)) < timedelta(seconds=1)


def test_orphan_tasks_target_orphans_only_and_every_orphan_has_some(world: Incident) -> None:
    targets = {_target(record) for record in world.orphan_records}
    assert {_target(task) for task in world.orphan_tasks} == targets
    others = chain(world.stuck_running, world.stuck_pending, world.active_tasks, world.finished_tasks)
    healthy = {_target(record) for record in world.healthy_records}
    assert {_target(task) for task in others} <= healthy


def test_orphans_are_past_every_grace(world: Incident) -> None:
    assert all(_age(world, task) > timedelta(minutes=10) for task in world.orphan_tasks)
    assert all(_age(world, record) > HOUR for record in world.orphan_records)


def test_stuck_tasks_are_past_their_limit(world: Incident) -> None:
    assert Counter(task["status"] for task in world.stuck_running) == {"RUNNING": 37}
    assert Counter(task["status"] for task in world.stuck_pending) == {"PENDING": 12}
    assert all(world.now - task["started_at"] > HOUR for task in world.stuck_running)
    assert all(_age(world, task) > HOUR for task in world.stuck_pending)


def test_healthy_active_tasks_stay_healthy_for_the_whole_demo(world: Incident) -> None:
    assert {task["status"] for task in world.active_tasks} == {"PENDING", "RUNNING"}
    later = world.now + DEMO
    assert all(later - (task["started_at"] or task["created_at"]) < HOUR for task in world.active_tasks)


def test_expired_tasks_are_past_the_month_and_the_other_finished_ones_within_it(world: Incident) -> None:
    statuses = {"COMPLETED", "FAILED", "CANCELLED"}
    for group in (world.expired_tasks, world.finished_tasks):
        assert {task["status"] for task in group} == statuses
    assert all(world.now - task["completed_at"] > MONTH for task in world.expired_tasks)
    assert all(world.now + DEMO - task["completed_at"] < MONTH for task in world.finished_tasks)


def test_the_default_caps_let_the_incident_pass(world: Incident) -> None:
    """A quarter of the records, and of the tasks that remain active fifty, are what the guards allow."""
    assert len(world.orphan_records) <= len(world.records) * 0.25
    assert len(world.stuck_running) + len(world.stuck_pending) <= 50


def test_files_lie_in_the_directories_of_healthy_applications_only(world: Incident, root: Path) -> None:
    world.write_files(root)
    assert all((root / directory).is_dir() for directory in world.directories)
    assert all(any((root / directory).rglob("*.json")) for directory in world.directories)
    assert not any((root / directory_of(record)).exists() for record in world.orphan_records)
    written = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
    assert written == world.files


def test_some_models_vanished_as_a_whole_and_others_lost_single_applications(world: Incident, root: Path) -> None:
    """A missing directory may lie in a folder that exists, or in one that is missing itself."""
    world.write_files(root)
    parents = {(root / directory_of(record)).parent.exists() for record in world.orphan_records}
    assert parents == {True, False}


def _target(document: Document) -> tuple[str, int]:
    if "model_slug" in document:
        return document["model_slug"], document["app_number"]
    return document["target_model"], document["target_app_number"]


def _age(world: Incident, document: Document) -> timedelta:
    age: timedelta = world.now - document["created_at"]
    return age


def _is_time(value: object) -> bool:
    return isinstance(value, datetime)
