"""What may be typed: the commands, their arguments and what is said of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

from agent.job import Outcome, Trigger

PROGRAM: Final = "maintenance-agent"
CONSENTS: Final = ("root", "targets", "cap")
MOST_RUNS: Final = 1000

DESCRIPTION: Final = "Keeps MongoDB records, directories and Kubernetes workloads in step."
EXIT_CODES: Final = """\
exit codes:
  0  done
  1  a run failed, timed out, was interrupted or skipped; a restore met conflicts; check found a problem
  2  wrong usage or configuration
  3  a dry run or an audit found something
  4  a guard refused
  5  a dependency (MongoDB) is unreachable
  of several, the first of 5, 2, 1, 4, 3
"""

_Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it
_Parser = argparse.ArgumentParser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The words as a namespace; exits with 2 where they mean nothing."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command == "run":
        _check_run(parser, given)
    return given


def _check_run(parser: _Parser, given: argparse.Namespace) -> None:
    if given.jobs and given.all:
        parser.error("run: name jobs, or give --all for all that are enabled, not both")
    if not given.jobs and not given.all:
        parser.error("run: name the jobs to run, or give --all for all that are enabled")
    given.accept = frozenset(consent for group in given.accept for consent in group)


def _parser() -> _Parser:
    parser = _Parser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, default=None, metavar="FILE", help="the configuration (YAML)")
    parser.add_argument("--json", action="store_true", default=False, help="JSON for machines instead of a table")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    _add_service(commands)
    _add_runs(commands)
    _add_steering(commands)
    _add_looking(commands)
    _add_setting_up(commands)
    return parser


def _add(commands: _Commands[_Parser], name: str, help: str) -> _Parser:  # noqa: A002 - argparse's word
    """A command; the options of all stand after it as well as before it."""
    command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False)
    command.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="the configuration")
    command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="JSON for machines")
    return command


def _add_service(commands: _Commands[_Parser]) -> None:
    _add(commands, "serve", "serve: the schedule, the API, the page, the metrics")


def _add_runs(commands: _Commands[_Parser]) -> None:
    run = _add(commands, "run", "run jobs now, as one pass")
    run.add_argument("jobs", nargs="*", metavar="JOB", help="a job; also one that is disabled")
    run.add_argument("--all", action="store_true", help="all jobs that are enabled")
    run.add_argument("--dry-run", action="store_true", help="only look: store a plan, change nothing")
    run.add_argument(
        "--accept",
        type=_consents,
        action="append",
        default=[],
        metavar="GUARD",
        help=f"consent to a refusal: {', '.join(CONSENTS)} (several with commas, or repeated)",
    )
    apply = _add(commands, "apply", "carry out exactly the plan of a dry run, or of a dry pass")
    apply.add_argument("plan", metavar="RUN|PASS", help="the dry run, or its pass")
    restore = _add(commands, "restore", "undo what a run changed, and hold what is restored")
    restore.add_argument("run", metavar="RUN", help="the run")
    restore.add_argument("--item", metavar="ID", help="only the document with this _id")
    audit = _add(commands, "audit", "compare what providers have booked, owed and used")
    audit.add_argument("--repair", action="store_true", help="set what is booked to what is owed, where a run may")


def _add_steering(commands: _Commands[_Parser]) -> None:
    for name, help in (("hold", "keep every job off a document"), ("release", "end a hold")):  # noqa: A001 - as above
        command = _add(commands, name, help)
        command.add_argument("collection", metavar="COLLECTION")
        command.add_argument("id", metavar="ID", help="the _id: Extended JSON, a string, or an ObjectId's 24 digits")
        command.add_argument("--database", metavar="NAME", help="its database (default: mongodb.database)")
        command.add_argument("--reason", metavar="TEXT", help="why, for people")
    for name, help in (  # noqa: A001 - as above
        ("pause", "stop the clock of a job, or of everything, on every replica"),
        ("resume", "let the clock go on"),
    ):
        _add(commands, name, help).add_argument("job", nargs="?", metavar="JOB", help="(default: everything)")


def _add_looking(commands: _Commands[_Parser]) -> None:
    _add(commands, "status", "the jobs at a glance")
    runs = _add(commands, "runs", "the history of runs, the newest first")
    runs.add_argument("--job", metavar="JOB", help="only runs of this job")
    runs.add_argument("--pass", dest="pass_id", metavar="PASS", help="only runs of this pass")
    runs.add_argument("--outcome", choices=get_args(Outcome), help="only runs that ended so")
    runs.add_argument("--trigger", choices=get_args(Trigger), help="only runs that were started so")
    runs.add_argument("--before", metavar="RUN", help="only runs older than this one")
    runs.add_argument("--limit", type=_limit, default=20, metavar="N", help="at most so many (default: 20)")
    explain = _add(commands, "explain", "why a job would touch a document, or not")
    explain.add_argument("job", metavar="JOB")
    explain.add_argument("id", metavar="ID", help="the _id: Extended JSON, a string, or an ObjectId's 24 digits")


def _add_setting_up(commands: _Commands[_Parser]) -> None:
    check = _add(commands, "check", "test configuration, connection, volumes, indexes, permissions; changes nothing")
    check.add_argument("--role", action="store_true", help="only print the least MongoDB role that the jobs need")
    _add(commands, "schema", "print the JSON schema of the configuration, for editors")
    demo = _add(commands, "demo", "replay the incident on a private mongod and watch the agent clear it")
    demo.add_argument("--once", action="store_true", help="make one pass, print a report, and exit")


def _consents(text: str) -> list[str]:
    given = [part.strip() for part in text.split(",")]
    for part in given:
        if part not in CONSENTS:
            raise argparse.ArgumentTypeError(f"{part!r} is no guard to consent to; there are: {', '.join(CONSENTS)}")
    return given


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MOST_RUNS and len(text) <= len(str(MOST_RUNS))):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MOST_RUNS}")
    return int(text)
