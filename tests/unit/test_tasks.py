"""What the kinds that work on tasks share: statuses, fields, and what is set on a task that is ended."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from pydantic import ValidationError

from agent.job import Job
from agent.tasks import Statuses, TaskJob
from tests.harness import job_of

NOON = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)
TASK_KINDS = ("orphan_tasks", "stuck_tasks", "retention")


def task_job(kind: str = "stuck_tasks", **settings: Any) -> TaskJob:
    job: Job = job_of(kind=kind, **settings)
    assert isinstance(job, TaskJob)
    return job


def test_a_status_is_one_value_or_a_list_of_which_the_first_is_written() -> None:
    """Text, numbers and booleans, each as it is."""
    statuses = Statuses.model_validate({"pending": ["NEW", "QUEUED"], "running": 2, "cancelled": True})
    assert statuses.active == ("NEW", "QUEUED", 2)
    assert statuses.terminal == ("COMPLETED", "FAILED", True)
    written = task_job(statuses={"failed": ["ERROR", "BROKEN"]})
    assert written.ended(written.statuses.failed, "why", NOON)["status"] == "ERROR"
    assert Statuses.model_validate({"pending": 1}).pending[0] is not True


@pytest.mark.parametrize("bad", [{"pending": []}, {"pending": None}, {"pending": [{}]}, {"waiting": "W"}])
def test_statuses_that_are_none_are_refused(bad: dict[str, Any]) -> None:
    """A status nobody can have would silently select nothing."""
    with pytest.raises(ValidationError):
        Statuses.model_validate(bad)


@pytest.mark.parametrize("kind", TASK_KINDS)
def test_every_task_kind_takes_both_maps(kind: str) -> None:
    """Shown with their defaults, adjusted in part."""
    job = task_job(kind, statuses={"running": "in_progress"}, fields={"started_at": None, "status": "state.now"})
    assert job.statuses.running == ("in_progress",)
    assert job.statuses.pending == ("PENDING",)
    assert job.fields.started_at is None
    assert job.fields.status == "state.now"
    assert job.fields.created_at == "created_at"


def test_an_ended_task_gets_what_the_application_keeps() -> None:
    """A field that the application does not have is not invented."""
    job = task_job(fields={"error_message": "result.error", "completed_at": None})
    assert job.ended(("FAILED",), "why", NOON) == {"status": "FAILED", "result.error": "why"}
    job = task_job()
    assert job.ended(("FAILED",), "why", NOON) == {"status": "FAILED", "error_message": "why", "completed_at": NOON}
