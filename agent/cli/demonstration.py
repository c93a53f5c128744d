"""The command demo: how the replay of the incident is told."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from agent import log
from agent.app import Service, open_agent
from agent.cli import process
from agent.cli.output import Answer, Json, console, counts, say, styled, table
from agent.cli.words import Call
from agent.demo import show
from agent.demo.show import Report, Stage

DONE, FAILED = 0, 1


async def demo(call: Call) -> Answer:
    """Plays the incident: one pass and a report, or the service until a signal says stop."""
    # What is not the answer is told on the standard error where machines read the answer.
    to = console(sys.stderr if call.given.json else sys.stdout)
    log.configure("warning")
    async with show.stage(lambda text: say(to, text)) as stage:
        return await (_once(stage) if call.given.once else _serve(stage, to))


async def _once(stage: Stage) -> Answer:
    plan, done = await show.once(stage)
    ok = not plan.problems and not done.problems
    document = {"ok": ok, "dry_pass": plan.document, "pass": done.document}
    return Answer(DONE if ok else FAILED, document, lambda to: _show_both(stage, plan, done, to))


def _show_both(stage: Stage, plan: Report, done: Report, to: Console) -> None:
    say(to, "\nA dry pass: what would be done. Nothing is changed.", style="bold")
    _show(stage, plan, to)
    say(to, "\nA real pass: the same, done.", style="bold")
    _show(stage, done, to)
    _show_verdict([*plan.problems, *done.problems], to)


def _show(stage: Stage, report: Report, to: Console) -> None:
    rows = [_row(stage, run) for run in report.runs]
    to.print(table(["job", "outcome", "found", "held", "changed", "expected"], rows))


def _row(stage: Stage, run: Json) -> list[str | Text]:
    found, changed = stage.expected[run["job"]]
    expected = counts(found["found"] if run["dry_run"] else changed["changed"])
    numbers = [counts(run[name]) for name in ("found", "held", "changed")]
    return [run["job"], styled(run["outcome"]), *numbers, expected]


def _show_verdict(problems: Sequence[str], to: Console) -> None:
    for problem in problems:
        say(to, problem, style="red")
    if not problems:
        untouched = "every healthy document is byte for byte what it was, and so is every file"
        say(to, f"\nAll as expected: {untouched}.", style="green")


async def _serve(stage: Stage, to: Console) -> Answer:
    async with open_agent(stage.settings()):
        pass  # makes the indexes, before the log tells of everything
    service = Service(stage.settings)
    service.handle_signals(on_second=lambda: process.end_at_once(process.ENDED_BY_SIGNAL))
    telling = asyncio.create_task(_tell(stage, service, to))
    log.configure("info")
    try:
        await service.run(ready=lambda port: _show_places(stage, port, to))
    finally:
        telling.cancel()
    try:
        return Answer(FAILED if (await telling).problems else DONE, None)
    except asyncio.CancelledError:
        return Answer(DONE, None)  # stopped before the pass had ended


def _show_places(stage: Stage, port: int, to: Console) -> None:
    base = f"http://127.0.0.1:{port}"
    say(to, "\nThe agent serves. Look here:", style="bold")
    for name, place in (("page", f"{base}/"), ("metrics", f"{base}/metrics"), ("health", f"{base}/healthz?verbose")):
        say(to, f"  {name:9}{place}", whole=True)
    say(to, f"  token    {stage.token}", whole=True)
    say(to, "\nTry, in another terminal:")
    say(to, f"  curl -H 'Authorization: Bearer {stage.token}' {base}/api/maintenance/status", whole=True)
    say(to, "\nCtrl-C ends it and removes everything.\n")


async def _tell(stage: Stage, service: Service, to: Console) -> Report:
    """Says what the start-up pass did, once it has."""
    report = await show.start_up_pass(stage, service)
    say(to, "\nThe pass at start-up has cleared the incident:", style="bold")
    _show(stage, report, to)
    _show_verdict(report.problems, to)
    return report
