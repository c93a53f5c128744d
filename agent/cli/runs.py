"""The commands that make runs: run, apply, restore, audit. All answer ``{"runs": [run, ...]}``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

from rich.console import Console
from rich.text import Text

from agent.app import Agent, open_agent
from agent.cli import progress
from agent.cli.output import Answer, Json, counts, plain, say, shown, styled, table
from agent.cli.words import Call, person
from agent.errors import AgentError, ClusterUnavailableError, StoreUnavailableError, UsageError, VolumeError
from agent.job import Job
from agent.runner import Active, Pass
from agent.settings import Settings

AUDIT: Final = "allocation_audit"
DONE, FAILED, FOUND, REFUSED, UNREACHABLE = 0, 1, 3, 4, 5
SAMPLED: Final = 5  # items of a plan that are shown a job; `--json` and the page show more
UNREACHABLE_ERRORS: Final = (StoreUnavailableError, ClusterUnavailableError, VolumeError)


class Started(Protocol):
    """Runs that were started: one, or those of a pass."""

    def records(self) -> list[Json]:
        """The runs as they are now, as JSON."""

    def errors(self) -> Sequence[AgentError]:
        """What made runs fail."""

    async def wait(self, seconds: float) -> bool:
        """Waits for the end, that long at most; says whether it came."""


class StartedPass:
    """A pass that was started."""

    def __init__(self, begun: Pass) -> None:
        self._pass = begun

    def records(self) -> list[Json]:
        """Its runs, those that wait or were skipped included."""
        return self._pass.runs()

    def errors(self) -> list[AgentError]:
        """Of the runs that could not be begun, and of those that failed."""
        failed = [active.error for active in self._pass.actives if active.run.outcome == "failed"]
        return [*self._pass.errors, *(error for error in failed if error is not None)]

    async def wait(self, seconds: float) -> bool:
        """Waits for the end of the last run."""
        ended = await self._pass.wait(seconds)
        if ended:
            self._pass.task.result()  # an error that nobody foresaw is the caller's
        return ended


class StartedRun:
    """A single run that was started."""

    def __init__(self, active: Active) -> None:
        self._active = active

    def records(self) -> list[Json]:
        """It."""
        return [self._active.record()]

    def errors(self) -> list[AgentError]:
        """What made it fail."""
        error = self._active.error
        return [error] if error is not None and self._active.run.outcome == "failed" else []

    async def wait(self, seconds: float) -> bool:
        """Waits for its end."""
        return await self._active.wait(seconds)


# -------------------------------------------------------------------------------------------------------- the commands


async def run(call: Call) -> Answer:
    """Runs jobs as one pass."""
    given = call.given
    async with call.working() as agent:

        async def begin() -> Started:
            names = None if given.all else given.jobs
            begun = await agent.operations.run_pass(
                trigger="cli", requested_by=person(), dry_run=given.dry_run, accept=given.accept, names=names
            )
            return StartedPass(begun)

        return await _made(call, agent, begin)


async def apply(call: Call) -> Answer:
    """Carries out a plan."""
    async with call.working() as agent:

        async def begin() -> Started:
            return StartedPass(await agent.operations.apply(call.given.plan, requested_by=person()))

        return await _made(call, agent, begin)


async def restore(call: Call) -> Answer:
    """Undoes a run."""
    async with call.working() as agent:

        async def begin() -> Started:
            active = await agent.operations.restore(call.given.run, item=call.given.item, requested_by=person())
            return StartedRun(active)

        return await _made(call, agent, begin)


async def audit(call: Call) -> Answer:
    """Runs the audits: a dry run, or with ``--repair`` a real one that repairs."""
    repair: bool = call.given.repair
    settings, names = _audits(call.settings(), repair=repair)
    async with open_agent(settings) as agent:

        async def begin() -> Started:
            begun = await agent.operations.run_pass(
                trigger="cli", requested_by=person(), dry_run=not repair, names=names
            )
            return StartedPass(begun)

        answer = await _made(call, agent, begin)
    if answer.code == DONE and any(_left(record) for record in answer.document["runs"]):
        return Answer(FOUND, answer.document, answer.show)
    return answer


def _audits(settings: Settings[Job], *, repair: bool) -> tuple[Settings[Job], list[str]]:
    """The settings with their audits as they are asked for, and their names. Raises ``UsageError`` for none."""
    audits = {name: job for name, job in settings.jobs.items() if job.kind == AUDIT}
    if not audits:
        raise UsageError(f"no job of the kind {AUDIT} is configured: add one under `jobs` to audit the providers")
    if repair:
        audits = {name: job.model_copy(update={"repair": True}) for name, job in audits.items()}
    return settings.model_copy(update={"jobs": {**settings.jobs, **audits}}), list(audits)


def _left(record: Mapping[str, Json]) -> bool:
    """Whether an audit found more than it repaired."""
    return sum(record["found"].values()) > sum(record["changed"].values())


# -------------------------------------------------------------------------------------------------- from start to end


async def _made(call: Call, agent: Agent, begin: Callable[[], Awaitable[Started]]) -> Answer:
    """Begins runs, waits for their end, and answers with them. The first signal lets each end between two batches."""
    budget = agent.settings.shutdown.budget.total_seconds()
    ending: list[asyncio.Task[None]] = []
    with call.signals.politely(lambda: ending.append(asyncio.create_task(agent.runner.shut_down(budget)))):
        started = await begin()
        await progress.watch(started)
    await asyncio.gather(*ending)
    records = started.records()
    return Answer(exit_code(records, started.errors()), {"runs": records}, lambda to: show(records, to))


def exit_code(records: Sequence[Json], errors: Sequence[AgentError] = ()) -> int:
    """The exit code of runs: of several the first of 5, 1, 4, 3."""
    codes = {_code(record) for record in records}
    codes |= {UNREACHABLE for error in errors if isinstance(error, UNREACHABLE_ERRORS)}
    return next((code for code in (UNREACHABLE, FAILED, REFUSED, FOUND) if code in codes), DONE)


def _code(record: Json) -> int:
    if record["outcome"] == "refused":
        return REFUSED
    if record["outcome"] != "succeeded" or (record["trigger"] == "restore" and record["failed"]):
        return FAILED
    if record["dry_run"] and (any(record["found"].values()) or record["would_refuse"]):
        return FOUND
    return DONE


# ------------------------------------------------------------------------------------------------------ what is shown


def show(records: Sequence[Json], to: Console) -> None:
    """The runs as a table, what is to be said of them, and what can be done next."""
    if not records:
        say(to, "no job is enabled: nothing was run")
        return
    rows = [_row(record) for record in records]
    to.print(table(["job", "outcome", "of", "found", "held", "changed", "s"], rows, right=["of", "s"]))
    for record in records:
        for line in _remarks(record):
            say(to, f"{record['job']}: {line}", style="yellow")
    for record in records:
        _show_sample(record, to)
    for line in _next_steps(records):
        say(to, line, style="dim", whole=True)


def _row(record: Json) -> list[str | Text]:
    seconds = f"{record['seconds']:.1f}" if record["seconds"] is not None else ""
    outcome = styled(record["outcome"] or "running")
    if record["dry_run"]:
        outcome.append(" (dry)", style="dim")
    found, held, changed = (counts(record[name]) for name in ("found", "held", "changed"))
    return [record["job"], outcome, f"{record['population']:,}", found, held, changed, seconds]


def _remarks(record: Json) -> list[str]:
    """What the numbers do not say."""
    remarks = [record["reason"]] if record["reason"] else []
    if record["would_refuse"]:
        remarks.append(f"a real run would be refused ({record['would_refuse']})")
    if record["failed"]:
        remarks.append(f"{record['failed']:,} could not be changed")
    if record["outcome"] == "succeeded" and not record["complete"]:
        remarks.append("there is more to do: the next run goes on")
    return [plain(remark) for remark in remarks]


def _show_sample(record: Json, to: Console) -> None:
    if not record["dry_run"] or not record["sample"]:
        return
    say(to, f"\n{record['job']} found, for example:")
    rows = [[shown(item["id"]), item["action"] or "reported", item["reason"]] for item in record["sample"][:SAMPLED]]
    to.print(table(["_id", "action", "reason"], rows))


def _next_steps(records: Sequence[Json]) -> list[str]:
    """The commands that an operator may want now."""
    planned = [record for record in records if record["dry_run"] and record["outcome"] == "succeeded"]
    undoable = [record for record in records if set(record["changed"]) - {"restored", "evicted"}]
    if any(item["action"] for record in planned for item in record["sample"]):
        return [f"apply this plan: maintenance-agent apply {planned[0]['pass']}"]
    return [f"undo {record['job']}: maintenance-agent restore {record['_id']}" for record in undoable]
