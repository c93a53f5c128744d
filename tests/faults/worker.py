"""Agents as processes of their own, to be killed and frozen: one process that has imported everything, and its forks.

    python worker.py SOCKET

Each connection to the socket is served by a fork, which first tells its process id, then answers one JSON line with
another. A fork is the real agent, made by ``agent.app``, with traps beside it: it can kill or freeze itself at a command
to MongoDB, and wait at a point of a run while the test breaks something.
"""

from __future__ import annotations

import asyncio
import ctypes
import datetime as dt
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pymongo import monitoring

from agent import app, execution, store, volume
from agent.errors import AgentError
from agent.health import Endpoint
from agent.job import Job
from agent.jobs import KINDS
from agent.log import configure
from agent.settings import Settings, load

Line = dict[str, Any]

PR_SET_PDEATHSIG = 1
REAL_DATETIME = dt.datetime
BREAKABLE = ("lstat", "scandir")


# --------------------------------------------------------------------------------------------------------------- traps


@dataclass
class Trap:
    """What happens at a command to MongoDB: the ``number``-th of those of a name, on a collection (any: no name)."""

    act: str = "none"
    number: int = 0
    command: str | None = None
    collection: str | None = None
    when: str = "started"
    delay: float = 0.0
    seen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def meets(self, command: str, collection: object, when: str) -> bool:
        """Whether this is the command."""
        named = self.command in {None, command} and self.collection in {None, collection}
        if when != self.when or not named:
            return False
        with self.lock:  # commands are sent from several threads
            self.seen += 1
            return self.seen == self.number


class Wire:
    """The connection to the test, and what the test has armed."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.trap: Trap | None = None
        self.commands = 0
        self.points: dict[str, int] = {}
        self.passed: Counter[str] = Counter()
        self.going_on = threading.Event()
        self.looks: list[Line] = []
        self._lock = threading.Lock()

    def send(self, line: Line) -> None:
        """Tells the test something; from any thread."""
        with self._lock:
            self.connection.sendall(json.dumps(line, default=str).encode() + b"\n")

    def command(self, name: str, when: str, collection: object = None) -> None:
        """A command to MongoDB is about to be sent, or was answered."""
        self.commands += when == "started"
        trap = self.trap
        if trap is not None and trap.meets(name, collection, when):
            if trap.delay:
                threading.Timer(trap.delay, self._spring, (trap, name)).start()
            else:
                self._spring(trap, name)

    def _spring(self, trap: Trap, name: str) -> None:
        if trap.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.send({"event": trap.act, "command": name})
        if trap.act == "freeze":
            # This very thread: another one that got the signal would let it go on for a moment.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def wait_at(self, point: str | None = None, number: int = 1) -> None:
        """Has the agent wait when a point is reached for the ``number``-th time from now."""
        if point is not None:
            self.points[point] = self.passed[point] + number

    def point(self, name: str) -> None:
        """A point of a run is reached; waits where the test wants to do something there. Blocks its thread."""
        self.passed[name] += 1
        if self.points.get(name) == self.passed[name]:
            self.going_on.clear()
            self.send({"event": "point", "point": name})
            self.going_on.wait()

    async def point_in_loop(self, name: str) -> None:
        """The same, without blocking the event loop."""
        self.passed[name] += 1
        if self.points.get(name) == self.passed[name]:
            self.going_on.clear()
            self.send({"event": "point", "point": name})
            await asyncio.to_thread(self.going_on.wait)


def set_traps(wire: Wire) -> None:
    """Puts the traps beside the agent's code; they do nothing until they are armed."""

    class Listener(store._Listener):
        def started(self, event: monitoring.CommandStartedEvent) -> None:
            wire.command(event.command_name, "started", event.command.get(event.command_name))

        def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
            super().succeeded(event)
            wire.command(event.command_name, "succeeded")

    store._Listener = Listener  # type: ignore[misc]
    _before(execution.Execution, "_act", lambda: wire.point_in_loop("selected"))
    _before(execution.Execution, "_batch", lambda: wire.point_in_loop("batch"))
    _before(execution.Execution, "_look_back", lambda: wire.point_in_loop("written"))
    scan, absent = volume._Tree._scan, volume._absent

    def scanned(tree: volume._Tree, parts: volume.Parts) -> Any:
        wire.point("scan")
        return scan(tree, parts)

    def looked(root: Path, parts: volume.Parts) -> bool:
        wire.point("look")
        gone = absent(root, parts)
        wire.looks.append({"path": "/".join(parts), "absent": gone})
        return gone

    volume._Tree._scan = scanned  # type: ignore[method-assign,assignment]
    volume._absent = looked


def _before(owner: type, name: str, wait: Callable[[], Awaitable[None]]) -> None:
    method = getattr(owner, name)

    async def waiting(*args: Any, **options: Any) -> Any:
        await wait()
        return await method(*args, **options)

    setattr(owner, name, waiting)


class BrokenOs:
    """Stands for the module ``os`` in ``agent.volume``: a file system that fails or hangs below some path."""

    def __init__(self, path: str, error: int | None) -> None:
        self._path = path
        self._error = error
        self.mended = threading.Event()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._breaking(real) if name in BREAKABLE else real

    def _breaking(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any) -> Any:
            if self._path in str(path) and not self.mended.is_set():
                self._fail(path)
            return real(path, *args)

        return call

    def _fail(self, path: Any) -> None:
        if self._error is None:
            self.mended.wait(30)
        else:
            raise OSError(self._error, os.strerror(self._error), str(path))


def break_volume(path: str | None = None, error: int | None = None) -> None:
    """From now on looks at paths that contain ``path`` fail with an error, or hang; with no path all is well again."""
    names = vars(volume)
    if isinstance(names["os"], BrokenOs):
        names["os"].mended.set()
    names["os"] = BrokenOs(path, error) if path is not None else os


# --------------------------------------------------------------------------------------------------------------- clock


class Instance(type):
    """Has every real instant pass for one of the class that stands for it."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, REAL_DATETIME)


class SkewedDatetime(dt.datetime, metaclass=Instance):
    """Tells the wrong time, in real instants."""

    off = dt.timedelta()

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
        return REAL_DATETIME.now(tz) + cls.off


def skew(seconds: float) -> None:
    """Sets this process' wall clock wrong: what asks for the time of day gets it ``seconds`` off."""
    real_time = time.time
    time.time = lambda: real_time() + seconds
    SkewedDatetime.off = dt.timedelta(seconds=seconds)
    dt.datetime = SkewedDatetime  # type: ignore[misc]


# --------------------------------------------------------------------------------------------------------------- agent


class Served:
    """The agent of one process, and what the test can ask of it."""

    def __init__(self, wire: Wire, settings: Line, file: Path) -> None:
        self._wire = wire
        self._file = file
        file.write_text(json.dumps(settings), encoding="utf-8")
        self._service: app.Service | None = None
        self._serving: asyncio.Task[None] | None = None
        self._opened: Any = None
        self.agent: app.Agent

    def settings(self) -> Settings[Job]:
        """The settings, read as the command line reads them."""
        return load(KINDS, path=self._file, environ={})

    async def open(self) -> Line:
        """Opens the agent as a command does."""
        self._opened = app.open_agent(self.settings())
        self.agent = await self._opened.__aenter__()
        return {"agent": self.agent.name}

    async def close(self) -> Line:
        """Ends what was opened, in good order."""
        if self._service is not None and self._serving is not None:
            self._service.stop()
            await self._serving
        elif self._opened is not None:
            await self._opened.__aexit__(None, None, None)
        return {}

    async def serve(self) -> Line:
        """Starts the service."""
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._service = app.Service(self.settings)
        self.agent = self._service.agent
        self._serving = asyncio.create_task(self._service.run(ready=ready.set_result))
        waited: set[asyncio.Future[Any]] = {self._serving, ready}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if self._serving.done():
            await self._serving
        return {"port": ready.result(), "agent": self.agent.name}

    async def health(self, endpoint: Endpoint) -> Line:
        """What the service says of its health."""
        assert self._service is not None
        verdict = await self._service.health.ask(endpoint)
        return {"ok": verdict.ok, "text": verdict.text}

    async def run(
        self, *, dry_run: bool = False, accept: list[str] | None = None, names: list[str] | None = None
    ) -> Line:
        """Runs a pass to its end."""
        begun = await self.agent.operations.run_pass(
            trigger="cli", requested_by="test", dry_run=dry_run, accept=frozenset(accept or []), names=names
        )
        await begun.wait()
        return {"runs": begun.runs(), "pass": begun.id}

    async def apply(self, plan: str) -> Line:
        """Applies a plan to its end."""
        begun = await self.agent.operations.apply(plan, requested_by="test")
        await begun.wait()
        return {"runs": begun.runs(), "pass": begun.id}

    async def restore(self, run: str, item: str | None = None) -> Line:
        """Restores a run to its end."""
        active = await self.agent.operations.restore(run, item=item, requested_by="test")
        await active.wait()
        return {"runs": [active.record()]}

    async def metrics(self) -> Line:
        """The exposition of the metrics."""
        body, _ = await self.agent.metrics.render("text/plain", "")
        return {"text": body.decode()}

    # --- traps

    async def trap(self, **trap: Any) -> Line:
        """Arms a trap, and counts the commands anew."""
        self._wire.commands = 0
        self._wire.trap = Trap(**trap)
        return {}

    async def commands(self) -> Line:
        """How many commands were sent since a trap was armed."""
        return {"commands": self._wire.commands}

    async def at(self, **point: Any) -> Line:
        """Waits when a point is reached."""
        self._wire.wait_at(**point)
        return {}

    async def patience(self, seconds: float) -> Line:
        """How long a look at a volume may take."""
        defaults: Line = volume.Volume.__init__.__kwdefaults__ or {}
        defaults["seconds"] = seconds
        return {}

    async def looks(self) -> Line:
        """The looks at single directories since the last time that was asked, in order."""
        looks, self._wire.looks = self._wire.looks, []
        return {"looks": looks}

    async def become(self, uid: int) -> Line:
        """Gives up being root."""
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        return {}


# ---------------------------------------------------------------------------------------------------------------- wire


async def converse(wire: Wire, hello: Line) -> None:
    """Answers the lines of the test until it hangs up."""
    served = Served(wire, hello["settings"], Path(hello["file"]))
    lines: asyncio.Queue[Line | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        with wire.connection.makefile("rb") as stream:
            for text in stream:
                line = json.loads(text)
                if line["do"] == "go":
                    break_volume(**line["breaking"])
                    wire.wait_at(**line["then"])
                    wire.going_on.set()
                else:
                    loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    while (line := await lines.get()) is not None:
        what = line.pop("do")
        try:
            answer = await getattr(served, what)(**line)
        except AgentError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        wire.send(answer)
        if what == "close":
            return


def fork(connection: socket.socket) -> None:
    """Becomes an agent."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with connection.makefile("rb") as stream:
        hello = json.loads(stream.readline())
    wire = Wire(connection)
    set_traps(wire)
    if hello.get("skew"):
        skew(hello["skew"])
    configure(level="info", format="json")
    wire.send({"pid": os.getpid()})
    asyncio.run(converse(wire, hello))


def main(path: str) -> None:
    """Listens, and forks."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                try:
                    fork(connection)
                finally:
                    os._exit(0)
            connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
