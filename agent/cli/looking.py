"""The commands that only look: status, runs, explain, check, schema."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from agent import check as checks
from agent.app import Agent
from agent.cli.output import Answer, Json, ago, counts, grid, instant, say, shown, styled, table
from agent.cli.words import Call
from agent.errors import ConfigurationError, StoreUnavailableError
from agent.jobs import KINDS
from agent.settings import schema_text

DONE, PROBLEM, CONFIGURATION, UNREACHABLE = 0, 1, 2, 5


# -------------------------------------------------------------------------------------------------------------- status


async def status(call: Call) -> Answer:
    """The jobs at a glance."""
    async with call.looking() as agent:
        document = await agent.operations.status()
    return Answer(DONE, document, lambda to: _show_status(document, to))


def _show_status(document: Json, to: Console) -> None:
    say(to, f"Maintenance Agent {document['version']}, {instant(document['now'])}")
    if document["paused"]:
        say(to, "everything is paused; go on with: maintenance-agent resume", style="yellow")
    columns = ["job", "state", "when", "last run", "outcome", "found", "changed"]
    to.print(table(columns, [_status_row(job, document["now"]) for job in document["jobs"]]))
    totals = {name: value for name, value in document["statistics"].items() if name != "last_run"}
    say(to, "since ever: " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in totals.items()))


def _status_row(job: Json, now: str) -> list[str | Text]:
    last = job["last_run"] or {}
    state = "paused" if job["paused"] else "enabled" if job["enabled"] else "disabled"
    when = job["schedule"]["cron"] or f"every {job['schedule']['every']}"
    outcome = styled(last.get("outcome"))
    if last.get("dry_run"):
        outcome.append(" (dry)", style="dim")
    found, changed = counts(last.get("found", {})), counts(last.get("changed", {}))
    if last.get("held"):
        found = f"{found} (held: {counts(last['held'])})"
    return [
        job["name"],
        Text(state, style="" if state == "enabled" else "yellow"),
        when,
        ago(last.get("ended_at"), now),
        outcome,
        found,
        changed,
    ]


# ---------------------------------------------------------------------------------------------------------------- runs


async def history(call: Call) -> Answer:
    """The history of runs."""
    given = call.given
    async with call.looking() as agent:
        page, following = await agent.operations.runs(
            job=given.job,
            pass_id=given.pass_id,
            outcome=given.outcome,
            trigger=given.trigger,
            before=given.before,
            limit=given.limit,
        )
    return Answer(DONE, {"runs": page, "next": following}, lambda to: _show_history(page, following, to))


def _show_history(page: Sequence[Json], following: str | None, to: Console) -> None:
    if not page:
        say(to, "no runs")
        return
    rows = [_history_row(record) for record in page]
    to.print(table(["run", "job", "trigger", "outcome", "found", "changed"], rows, right=["found", "changed"]))
    if following:
        say(to, f"older ones: --before {following}", style="dim", whole=True)


def _history_row(record: Json) -> list[str | Text]:
    trigger = f"{record['trigger']}, dry" if record["dry_run"] else record["trigger"]
    found, changed = (f"{sum(record[name].values()):,}" for name in ("found", "changed"))
    return [record["_id"], record["job"], trigger, styled(record["outcome"] or "running"), found, changed]


# ------------------------------------------------------------------------------------------------------------- explain


async def explain(call: Call) -> Answer:
    """Why a job would touch a document, or not."""
    async with call.looking() as agent:
        document = await agent.operations.explain(call.given.job, call.given.id)
    return Answer(DONE, document, lambda to: _show_explanation(document, to))


def _show_explanation(document: Json, to: Console) -> None:
    where = f"{document['database']}.{document['collection']} {shown(document['id'])}"
    say(to, f"{document['job']} ({document['kind']}) on {where}")
    say(to, _verdict(document), style="bold")
    for action in document["actions"]:
        say(to, f"\nTo be {action['action']}:")
        to.print(table(["holds", "condition", "value"], [_condition_row(one) for one in action["conditions"]]))
    for proof in document["proofs"]:
        if proof["refusal"]:
            say(to, f"\nThe {proof['guard']} proof would refuse a run: {proof['refusal']}", style="yellow")


def _verdict(document: Json) -> str:
    if document["action"] is None:
        found = f"It is {document['found']}, which is only reported: " if document["found"] else ""
        return f"{found}{document['reason']}"
    held = f", but is held ({', '.join(document['held_by'])})" if document["held_by"] else ""
    return f"It is {document['found']} and would be {document['action']}{held}: {document['reason']}"


def _condition_row(condition: Json) -> list[str | Text]:
    values = ", ".join(f"{name} = {shown(value)}" for name, value in condition["values"].items())
    return [styled("yes" if condition["holds"] else "no"), condition["name"], values]


# --------------------------------------------------------------------------------------------------------------- check


async def check(call: Call) -> Answer:
    """Tests what the agent needs; changes nothing."""
    if call.given.role:
        role = checks.role(call.settings())
        return Answer(DONE, role, lambda to: to.out(json.dumps(role, indent=2), highlight=False))
    findings: list[checks.Finding] = []
    try:
        agent = Agent(call.settings())
    except ConfigurationError as error:
        findings += [checks.Finding("problem", "configuration", problem) for problem in error.problems]
        return _checked(findings, CONFIGURATION)
    try:
        async for finding in checks.check(agent):
            findings.append(finding)
    except StoreUnavailableError as error:
        findings.append(checks.Finding("problem", "connection", call.configuration.unreachable(error)))
        return _checked(findings, UNREACHABLE)
    finally:
        await agent.close()
    return _checked(findings, PROBLEM if any(one.level == "problem" for one in findings) else DONE)


def _checked(findings: Sequence[checks.Finding], code: int) -> Answer:
    document = {"ok": code == DONE, "findings": [finding.document for finding in findings]}
    return Answer(code, document, lambda to: _show_findings(findings, to))


def _show_findings(findings: Sequence[checks.Finding], to: Console) -> None:
    to.print(grid([[styled(one.level), one.topic, one.message] for one in findings]))


# -------------------------------------------------------------------------------------------------------------- schema


async def schema(call: Call) -> Answer:
    """The JSON schema of the configuration."""
    del call
    text = schema_text(KINDS)
    return Answer(DONE, json.loads(text), lambda to: to.out(text, end="", highlight=False))
