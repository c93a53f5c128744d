"""The test's side of ``worker``: agents as processes that can be asked, killed, frozen and continued."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymongo.database import Database

from agent.demo.mongod import spawn
from tests.faults import world

Line = dict[str, Any]

WORKER = Path(__file__).with_name("worker.py")
START_SECONDS = 60.0  # to import everything, on a machine that does a lot beside
ANSWER_SECONDS = 100.0  # to answer; less than after which a hanging test is ended
FINISH_SECONDS = 240.0  # a pass over many documents, tried again while the lease of a dead agent lasts
POLL = 0.02


Step = tuple[str, int, Callable[[], Line | None]]
"""A point of a run, the how manieth time that it is reached from the step before on, and what then happens. What it
returns is how looks at the volume are to break from then on."""


class GoneError(Exception):
    """The agent's process ended instead of answering."""


def until(what: Callable[[], Any], *, seconds: float = 60.0, every: float = POLL) -> Any:
    """Asks again and again until the answer is true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (answer := what()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited for {seconds:g} s")
        time.sleep(every)
    return answer


class Agent:
    """One agent, in a process of its own. As a context manager it is opened on entry, and killed on exit."""

    def __init__(self, nursery: Nursery, settings: Line, *, skew: float = 0.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(nursery.path))
        hello = {"settings": settings, "file": str(nursery.file()), "skew": skew}
        self._socket.sendall(json.dumps(hello).encode() + b"\n")
        self._lines: queue.Queue[Line | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.pid = int(self._next()["pid"])
        self.name = ""

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._socket.makefile("rb") as stream:
            for text in stream:
                self._lines.put(json.loads(text))
        self._lines.put(None)

    def _next(self, seconds: float = ANSWER_SECONDS) -> Line:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"the agent said nothing for {seconds:g} s") from None
        if line is None:
            raise GoneError
        return line

    # --- ask

    def tell(self, what: str, **how: Any) -> None:
        """Asks for something without waiting for the answer."""
        with contextlib.suppress(BrokenPipeError):
            self._socket.sendall(json.dumps({"do": what, **how}).encode() + b"\n")

    def answer(self, seconds: float = ANSWER_SECONDS) -> Line:
        """The next answer, or the next event. Raises ``GoneError`` where the process ended."""
        return self._next(seconds)

    def ask(self, what: str, **how: Any) -> Line:
        """Asks for something and waits for the answer. Raises ``GoneError``."""
        self.tell(what, **how)
        return self.answer()

    def disarm(self) -> None:
        """Takes a trap away; what it told in the meantime is not read as the answer to something else."""
        self.tell("trap")
        while "event" in self.answer():
            pass

    def open(self) -> Self:
        """Opens the agent as a command does."""
        answer = self.ask("open")
        assert "error" not in answer, answer
        self.name = answer["agent"]
        return self

    def runs(self, what: str = "run", **how: Any) -> list[Line]:
        """Does something to its end that makes runs, and returns their records."""
        answer = self.ask(what, **how)
        assert "error" not in answer, answer
        runs: list[Line] = answer["runs"]
        return runs

    def during(self, steps: Sequence[Step], what: str = "run", **how: Any) -> list[Line]:
        """The same, and at each step's point, one after the other, something happens first."""
        waits = [{"point": point, "number": number} for point, number, _ in steps]
        self.ask("at", **waits[0])
        self.tell(what, **how)
        answer = self.answer()
        for (_, _, do), then in zip(steps, [*waits[1:], {}], strict=True):
            if "event" not in answer:
                break
            self.tell("go", breaking=do() or {}, then=then)
            answer = self.answer()
        runs: list[Line] = answer["runs"]
        return runs

    # --- end

    def signal(self, number: signal.Signals) -> None:
        """Sends the process a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the process at once, and waits until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.gone()

    def gone(self) -> None:
        """Waits until the process has ended."""
        self._reader.join(ANSWER_SECONDS)
        self._socket.close()

    def freeze(self) -> None:
        """Stops the process where it is."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends the agent in good order."""
        with contextlib.suppress(GoneError, TimeoutError):
            self.ask("close")
        self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def finish(agent: Agent, db: Database[Line], what: str = "run", **how: Any) -> None:
    """Does something again and again until nothing of it is left out and no run is left open.

    The lease of a dead agent lasts for a while, and a record that could not be closed is closed by the next run.
    """

    def done() -> bool:
        answer = agent.ask(what, **how)
        ended = "runs" in answer and all(run["outcome"] == "succeeded" for run in answer["runs"])
        return ended and not db["maintenance_runs"].count_documents({"ended_at": None})

    until(done, seconds=FINISH_SECONDS, every=0.2)


def check_and_undo(agent: Agent, db: Database[Line], made: world.World) -> None:
    """Holds the ended work against the world, restores every run, and finds the first state byte for byte."""
    world.check(db, made, settled=True)
    world.check_ended(db, made)
    for run in world.newest_first(db):
        finish(agent, db, "restore", run=run)
    assert not world.difference(made.first, world.snapshot(db))
    world.forget_the_agent(db)


class Nursery:
    """The process that agents are forked from: it has imported everything already, which takes seconds."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = 0
        self.path = directory / "agents"
        self._process = spawn([sys.executable, WORKER, self.path], directory / "log")
        until(self._listens, seconds=START_SECONDS)

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.log()
        return self.path.exists()

    def file(self) -> Path:
        """A file for the settings of one agent."""
        self._files += 1
        return self._directory / f"settings-{self._files}.yaml"

    def log(self) -> str:
        """What the agents wrote."""
        return (self._directory / "log").read_text(errors="replace")

    def agent(self, settings: Line, *, skew: float = 0.0) -> Agent:
        """A new process; its agent is not opened yet."""
        return Agent(self, settings, skew=skew)

    def close(self) -> None:
        """Ends the process, and with it those that were forked from it."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery, ended with its block."""
    with tempfile.TemporaryDirectory(prefix="maintenance-agent-faults-") as name:
        started = Nursery(Path(name))
        try:
            yield started
        finally:
            started.close()
