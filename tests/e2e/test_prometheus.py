"""Seen and alarmed, on real servers: Prometheus scrapes the agent while the incident is replayed.

Every expression of every panel and rule is evaluated by Prometheus over its HTTP interface; the alert of the incident,
and that of a refused run, reach Alertmanager and are resolved by the run that finds nothing more. The dashboards are
drawn from the answers, into the temporary folder of the test (``pytest --basetemp=DIR`` keeps it).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import yaml

from agent import app
from agent.demo.mongod import free_port
from agent.demo.stack import FILES, Monitoring
from tests import promql
from tests.conftest import Database
from tests.e2e import stack
from tests.e2e.draw import draw
from tests.e2e.stack import JOB, Answers, Json, Shown
from tests.harness import Db

DASHBOARDS = FILES.parents[1] / "dashboards"
BOARDS = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))]
ORPHANS = f'max(maintenance_found{{job_name="{JOB}", what="orphan"}})'
CANCELLED = f'sum(maintenance_changed_total{{job_name="{JOB}", action="cancelled"}})'
# What only shows where something failed that does not fail here. Everything else has to have data.
WITHOUT_DATA: set[tuple[str, str]] = set()


# What a busy machine may cause, since the test does not wait as the alerts do.
OF_THE_MACHINE = {"MaintenanceEventLoopLagging", "MaintenanceMongoDBSlow"}


async def test_the_incident_is_seen_alarmed_and_over(
    database: Database, db: Db, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first pass through the bursts to the run that finds nothing more."""
    stack.programs_or_skip()
    monkeypatch.setattr(app, "REFRESH_SECONDS", 2.0)
    incident = stack.load_incident(db, root)
    settings = stack.settings(database, root)
    async with stack.cluster(tmp_path) as kubeconfig, stack.serving(settings) as service:
        stack.load_providers(db, kubeconfig)
        ports = (free_port(), free_port())
        agents = [f"127.0.0.1:{service.port}"]
        with Monitoring(tmp_path / "monitoring", agents, ports=ports, seconds=1, patient=False) as monitoring:
            answers = Answers(monitoring)
            await answers.until_value(CANCELLED, 0)

            # The first pass clears what two days have piled up.
            records = await stack.run(service)
            assert {job: record["outcome"] for job, record in records.items()} == dict.fromkeys(records, "succeeded")
            await answers.until_value(ORPHANS, incident.expected.orphan_tasks)
            await answers.until_value(CANCELLED, incident.expected.orphan_tasks)
            assert (await answers.alerts()).get(("MaintenanceOrphansReturning", JOB)) is None

            # But something goes on: seven tasks at a time for what is gone.
            for number in (1, 2):
                stack.burst(db, incident, number)
                assert (await stack.run(service, JOB, "allocations"))[JOB]["changed"] == {"cancelled": 7}
                await answers.until_value(CANCELLED, incident.expected.orphan_tasks + 7 * number)
            told = await answers.until_told("MaintenanceOrphansReturning", JOB)
            assert told["labels"]["severity"] == "critical"
            assert told["annotations"]["summary"] == f"Orphans keep returning to job {JOB}."
            assert Path(urlparse(told["annotations"]["runbook_url"]).path).name == "MaintenanceOrphansReturning.md"

            # And a volume that is away for a moment: refused, and nothing changed.
            away = root.rename(root.with_name(f"{root.name}-away"))
            assert (await stack.run(service, "orphan_apps"))["orphan_apps"]["outcome"] == "refused"
            told = await answers.until_told("MaintenanceRunRefused", "orphan_apps")
            assert told["labels"]["guard"] == "root"

            await everything_answers(answers)
            await dashboards_have_data(answers, tmp_path)

            # Both end with the run that finds nothing more.
            away.rename(root)
            records = await stack.run(service)
            assert records[JOB]["found"] == {}
            assert records["orphan_apps"]["outcome"] == "succeeded"
            await answers.until_told("MaintenanceOrphansReturning", JOB, told=False)
            await answers.until_told("MaintenanceRunRefused", "orphan_apps", told=False)


async def everything_answers(answers: Answers) -> None:
    """No rule errs, in Prometheus' own evaluation or over HTTP, and every recording rule records something."""
    rules = await answers.rules()
    assert {(rule["name"], rule["health"], rule.get("lastError")) for rule in rules} == {
        (rule["name"], "ok", None) for rule in rules
    }
    for name in ("rules.yaml", "alerts.yaml"):
        for group in yaml.safe_load((FILES / name).read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                found = await answers.now(rule["expr"])
                assert found or "alert" in rule, rule
    firing = {rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] == "firing"}
    # What is wrong in this world, and nothing else: without waiting even drift and a blind audit are told at once.
    assert firing - OF_THE_MACHINE == {
        "MaintenanceOrphansReturning",
        "MaintenanceRunRefused",
        "MaintenanceAllocationDrift",
        "MaintenanceProviderOvercommitted",
        "MaintenanceAuditBlind",
    }


async def dashboards_have_data(answers: Answers, folder: Path) -> None:
    """No expression of a panel or an annotation errs; each has data; and the picture of each board is drawn."""
    assert len(BOARDS) == 4
    for board in BOARDS:
        panels = await stack.shown(board, answers)
        assert empty(board, panels) == {(uid, title) for uid, title in WITHOUT_DATA if uid == board["uid"]}
        for annotation in board["annotations"]["list"]:
            if "expr" in annotation:
                expr = promql.substituted(annotation["expr"], {"job_name": JOB})
                assert await answers.since(answers.began, expr), annotation["name"]
        await asyncio.to_thread(draw, board, panels, folder / f"{board['uid']}.png")
        assert (folder / f"{board['uid']}.png").stat().st_size > 10_000


def empty(board: Json, panels: Sequence[Shown]) -> set[tuple[Any, Any]]:
    """The panels of which a query has no number to show."""
    return {
        (board["uid"], shown.panel["title"])
        for shown in panels
        for answer in shown.answers
        if not any(series.finite for series in answer)
    }
