"""The command line for tests: real processes, without the second that each would need to load the program.

A host process loads it once and forks for every command. The child takes the words, the environment and the files that
stand for its output, and is from there on a `maintenance-agent` as the shell would start it, to its very end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

PATIENCE: Final = 60.0  # seconds that a command may take, many at once on a busy machine
POLL: Final = 0.02
REPOSITORY: Final = Path(__file__).parents[1]

# What whoever starts the tests may have set, and a test decides for itself (pytest-xdist sets COLUMNS).
_STRANGE: Final = ("MAINTENANCE_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_")

_HOST: Final = """
import gc, json, os, sys
import agent.cli.edge
from agent.cli import main

gc.collect()
gc.freeze()  # what is loaded stays as it is: a child need not look through it, which halves what a command costs

def become(order):
    for number, path in enumerate([os.devnull, order["out"], order["err"]]):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.update(order["environment"])
    sys.argv = ["maintenance-agent", *order["words"]]
    sys.exit(main())

for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        pid, status = os.waitpid(order["wait"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
    else:
        pid = os.fork()
        if not pid:
            become(order)
        print(json.dumps(pid), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it said to machines."""
        return json.loads(self.out)

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """The runs that it made, by job; there is nothing else on the standard output."""
        document = self.json
        assert set(document) == {"runs"}
        return {run["job"]: run for run in document["runs"]}

    @property
    def logged(self) -> list[dict[str, Any]]:
        """The lines of the log; they stand on the standard error, among sentences."""
        return [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]

    @property
    def sentences(self) -> list[str]:
        """What it said to people on the standard error."""
        return [line for line in self.err.splitlines() if not line.startswith("{")]


class _Ended:
    """The exit code of a child, which the system tells only once."""

    def __init__(self, ask: Callable[[int], int | None]) -> None:
        self._ask = ask
        self._code: int | None = None

    def __call__(self, pid: int) -> int | None:
        """The exit code; nothing while it runs."""
        if self._code is None:
            self._code = self._ask(pid)
        return self._code


@dataclass(frozen=True, slots=True)
class Running:
    """A command that was started."""

    pid: int
    folder: Path
    ended: Callable[[int], int | None]

    @property
    def err(self) -> str:
        """What it has said on the standard error so far."""
        return (self.folder / "err").read_text()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Waits until the condition holds, while the command goes on."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.ended(self.pid) is None, f"it ended: {self.err}"
            assert time.monotonic() < deadline, f"in vain: {self.err}"
            time.sleep(POLL)

    def wait(self) -> Done:
        """Waits for its end."""
        deadline = time.monotonic() + PATIENCE
        while (code := self.ended(self.pid)) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"it did not end: {self.err}")
            time.sleep(POLL)
        return Done(code, (self.folder / "out").read_text(), self.err)


@dataclass
class Cli:
    """Starts commands; ``config`` stands in front of all."""

    host: subprocess.Popen[str]
    folder: Path
    config: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    started: list[Running] = field(default_factory=list)

    def __call__(self, *words: str, **environment: str) -> Done:
        """Runs a command to its end."""
        return self.start(*words, **environment).wait()

    def start(self, *words: str, **environment: str) -> Running:
        """Starts a command."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        order = {
            "words": [*([] if self.config is None else ["--config", str(self.config)]), *words],
            "out": str(place / "out"),
            "err": str(place / "err"),
            "environment": {**self.environment, **environment},
        }
        for name in ("out", "err"):
            (place / name).touch()
        running = Running(int(self._ask(order)), place, _Ended(lambda pid: self._ask({"wait": pid})))
        self.started.append(running)
        return running

    def end_all(self) -> None:
        """Ends what a test that failed has left."""
        for running in self.started:
            if running.ended(running.pid) is None:
                running.signal(signal.SIGKILL)

    def _ask(self, order: Mapping[str, object]) -> Any:
        _pipe(self.host.stdin).write(json.dumps(order) + "\n")
        _pipe(self.host.stdin).flush()
        return json.loads(_pipe(self.host.stdout).readline())


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@contextlib.contextmanager
def usual_ports() -> Iterator[None]:
    """For what takes the usual ports where they are free, as the demonstration does: one at a time."""
    with (Path(tempfile.gettempdir()) / "maintenance-agent-usual-ports.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def host() -> Iterator[Cli]:
    """Runs a host process, and ends it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_STRANGE)}
    with tempfile.TemporaryDirectory(prefix="maintenance-agent-cli-") as folder:
        command = [sys.executable, "-c", _HOST]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process: subprocess.Popen[str]
        with subprocess.Popen(command, text=True, env=environment, cwd=REPOSITORY, **pipes) as process:  # type: ignore[call-overload]
            cli = Cli(process, Path(folder))
            try:
                yield cli
            finally:
                cli.end_all()
                _pipe(process.stdin).close()
                process.wait(PATIENCE)
