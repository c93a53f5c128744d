"""The edge of the process: words in, an exit code out, and no traceback on the way."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from agent import log
from agent.cli import arguments, demonstration, looking, process, runs, serving, steering
from agent.cli.configuration import Configuration
from agent.cli.output import Answer, complain, tolerate_any_text, write
from agent.cli.words import Call
from agent.errors import AgentError, ConfigurationError, DependencyError, StoreDeniedError, StoreError, UsageError
from agent.errors import StoreUnavailableError as Unavailable

Command = Callable[[Call], Coroutine[Any, Any, Answer]]

COMMANDS: Final[Mapping[str, Command]] = {
    "serve": serving.serve,
    "demo": demonstration.demo,
    "run": runs.run,
    "apply": runs.apply,
    "restore": runs.restore,
    "audit": runs.audit,
    "hold": steering.hold,
    "release": steering.release,
    "pause": steering.pause,
    "resume": steering.resume,
    "status": looking.status,
    "runs": looking.history,
    "explain": looking.explain,
    "check": looking.check,
    "schema": looking.schema,
}

FAILED, USAGE, UNREACHABLE = 1, 2, 5

_log = log.get_logger(__name__)


def run(words: Sequence[str] | None) -> int:
    """Runs the command that the words name; returns the exit code."""
    tolerate_any_text()
    try:
        given = arguments.parse(words)
    except BrokenPipeError:
        return 0  # `--help | head`
    configuration = Configuration(given.config)
    if words is None:
        process.calm_collector()
    runner = asyncio.Runner()
    code = _run(runner, COMMANDS[given.command], Call(given, configuration))
    if words is None:
        process.cut_after(process.PATIENCE_SECONDS, code)
    runner.close()
    return code


def _run(runner: asyncio.Runner, command: Command, call: Call) -> int:
    """Runs a command and writes its answer, or what went wrong."""
    try:
        answer = process.run(runner, lambda signals: command(call.with_signals(signals)))
    except (asyncio.CancelledError, KeyboardInterrupt):
        complain("interrupted")
        return FAILED
    except AgentError as error:
        code, lines = _explained(error, call.configuration)
        complain(*lines)
        return code
    except Exception as error:  # noqa: BLE001 - the edge of the process: a defect ends as a sentence and a code, too
        complain(_defect(error))
        return FAILED
    return write(answer, as_json=call.given.json)


def _explained(error: AgentError, configuration: Configuration) -> tuple[int, list[str]]:
    """The exit code of an error, and what is said of it."""
    if isinstance(error, ConfigurationError):
        return USAGE, error.problems
    if isinstance(error, UsageError):
        return USAGE, [str(error)]
    if isinstance(error, Unavailable):
        return UNREACHABLE, [configuration.unreachable(error)]
    if isinstance(error, StoreDeniedError):
        return FAILED, [f"MongoDB refused: {error}; `check` says which privileges are missing"]
    if isinstance(error, DependencyError) and not isinstance(error, StoreError):
        return UNREACHABLE, [str(error)]
    return FAILED, [str(error)]


def _defect(error: Exception) -> str:
    """What is said of an error that nobody foresaw; the log has its traceback at DEBUG."""
    _log.debug("defect", exc_info=True)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename.rpartition('/')[2]}, line {last.lineno}"
    return f"a defect of the agent: {type(error).__name__}: {error} ({place}); log.level: DEBUG shows more"
