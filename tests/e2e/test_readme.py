"""Every command of the README, executed: a block is a story, told to a shell in the order in which it is written.

A command that ``WAYS`` has no way for fails here, so that nothing comes into the README untried. What a reader has to
fill in (``PASS``, ``$TOKEN``, the file ``maintenance.yaml``) is filled in; ports are free ones; ``make`` and ``pip`` keep
their hands off the environment that the tests run in. ``make test`` is looked at by its dry run only: it would run
this test again.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from pymongo.database import Database as RawDatabase

from agent.demo.mongod import free_port
from tests.commandline import REPOSITORY, usual_ports
from tests.conftest import Database
from tests.e2e import stack

README: Final = REPOSITORY / "README.md"
FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATIENCE_SECONDS: Final = 90.0
POLL_SECONDS: Final = 0.05
BIN: Final = Path(sys.executable).parent
TOKEN: Final = "a-token-of-sufficient-length"  # noqa: S105 - opens nothing but the agent of this test
# What `make` is told besides: the environment is there, and is the one that runs the tests.
MAKE: Final = f"make --old-file=.venv/.demo --old-file=.venv/.dev BIN={BIN}"
# What the environment of whoever starts the tests must not change.
STRANGE: Final = ("MAINTENANCE_", "MAKE", "MFLAGS", "PYTEST_")


def blocks() -> list[list[str]]:
    """The commands of the README, block by block; a continued line is one command."""
    found = FENCE.findall(README.read_text(encoding="utf-8"))
    return [text.replace("\\\n", " ").splitlines() for language, text in found if language == "sh"]


class Reader:
    """Somebody who does what the README says, in a folder with a ``maintenance.yaml``."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.planned = "none yet"
        self.prefix = folder / "installed"
        self.until_the_end = contextlib.ExitStack()

    def __call__(self, command: str) -> None:
        """Executes a command; a test fails where it has no way to."""
        way = next((way for pattern, way in WAYS.items() if re.fullmatch(pattern, command)), None)
        assert way is not None, f"nobody has said how a test is to execute `{command}` (see WAYS)"
        way(self, command)

    def run(self, command: str, *, code: int = 0) -> str:
        """Runs a command to its end, which has the exit code; what it said."""
        done = subprocess.run(
            ["/bin/bash", "-c", self._filled_in(command)],
            cwd=self._where(command),
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    @contextlib.contextmanager
    def going(self, command: str, until: Callable[[str], object]) -> Iterator[None]:
        """A command that goes on, from when ``until`` holds of what it says, until Ctrl-C."""
        output = self.folder / "output"
        with (
            output.open("wb") as sink,
            subprocess.Popen(
                ["/bin/bash", "-c", f"exec {self._filled_in(command)}"],
                cwd=self._where(command),
                env=self._environment(),
                stdout=sink,
                stderr=subprocess.STDOUT,
                process_group=0,
            ) as process,
        ):
            try:
                deadline = time.monotonic() + PATIENCE_SECONDS
                while not until(output.read_text()):
                    assert process.poll() is None, output.read_text()
                    assert time.monotonic() < deadline, f"{command}: in vain\n{output.read_text()}"
                    time.sleep(POLL_SECONDS)
                yield
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: make and what it started
                process.wait(PATIENCE_SECONDS)
        assert "Traceback" not in output.read_text(), output.read_text()

    def ready(self) -> bool:
        """Whether the agent is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except ConnectionRefusedError:
            return False
        finally:
            connection.close()

    def _filled_in(self, command: str) -> str:
        command = re.sub(r"\bPASS\b", self.planned, command)
        command = command.replace("localhost:9190", f"127.0.0.1:{self.port}")
        if command.startswith("make "):
            command = command.replace("=maintenance.yaml", f"={self.folder / 'maintenance.yaml'}")
            return f"{MAKE} {command.removeprefix('make ')}"
        if command == "pip install .":
            return f"{command} -qq --no-deps --no-build-isolation --target {self.prefix}"
        return command.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)

    def _where(self, command: str) -> Path:
        return REPOSITORY if command.startswith(("make ", "pip ")) else self.folder

    def _environment(self) -> dict[str, str]:
        usual = {name: value for name, value in os.environ.items() if not name.startswith(STRANGE)}
        return usual | {"PATH": f"{BIN}:{usual['PATH']}", "TOKEN": TOKEN, "TMPDIR": str(self.folder)}


# ------------------------------------------------------------------------------------------------------------ the ways


def _demo(reader: Reader, command: str) -> None:
    with usual_ports(), reader.going(command, lambda said: "All as expected" in said):
        pass


def _demo_once(reader: Reader, command: str) -> None:
    assert "All as expected" in reader.run(command)


def _test(reader: Reader, command: str) -> None:
    assert re.search(r"-m pytest -n \d+ *$", reader.run(f"{command} --dry-run"))


def _stack(reader: Reader, command: str) -> None:
    stack.programs_or_skip()
    with usual_ports(), reader.going(command, lambda said: "Ctrl-C ends it" in said):
        pass


def _serve(reader: Reader, command: str) -> None:
    with reader.going(command, lambda _: reader.ready()):
        pass


def _install(reader: Reader, command: str) -> None:
    reader.run(command)
    assert (reader.prefix / "bin" / "maintenance-agent").is_file()
    assert (reader.prefix / "agent" / "web" / "static" / "app.js").is_file()


def _check(reader: Reader, command: str) -> None:
    assert "problem" not in reader.run(command)


def _dry_run(reader: Reader, command: str) -> None:
    said = reader.run(command, code=3)
    (reader.planned,) = set(re.findall(r"maintenance-agent apply (\S+)", said))


def _apply(reader: Reader, command: str) -> None:
    assert "28 deleted" in reader.run(command)


def _curl(reader: Reader, command: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if not reader.ready():  # by the first of them, for all of the block
        serve = "maintenance-agent serve --config maintenance.yaml"
        reader.until_the_end.enter_context(reader.going(serve, lambda _: reader.ready()))
    assert reader.run(command)


WAYS: Final[dict[str, Callable[[Reader, str], None]]] = {
    r"make demo": _demo,
    r"make demo ONCE=1": _demo_once,
    r"make test": _test,
    r"make stack": _stack,
    r"make run CONFIG=maintenance\.yaml": _serve,
    r"pip install \.": _install,
    r"maintenance-agent check --config maintenance\.yaml": _check,
    r"maintenance-agent run --all --dry-run --config maintenance\.yaml": _dry_run,
    r"maintenance-agent apply PASS --config maintenance\.yaml": _apply,
    r"maintenance-agent serve --config maintenance\.yaml": _serve,
    r"curl .*http://localhost:9190/\S+": _curl,
}


# ----------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture
def reader(database: Database, db: RawDatabase[dict[str, Any]], root: Path, tmp_path: Path) -> Iterator[Reader]:
    """A reader with the incident on a real server, and a configuration for it."""
    stack.load_incident(db, root)
    port = free_port()
    (tmp_path / "tokens").write_text(f"ann:{TOKEN}\n")
    told = {
        "mongodb": {"uri": database.uri, "database": database.name},
        "http": {"host": "127.0.0.1", "port": port, "tokens_file": str(tmp_path / "tokens")},
        "jobs": {
            "orphan_apps": {"kind": "orphan_records", "root": str(root)},
            "orphan_tasks": {"kind": "orphan_tasks"},
        },
    }
    (tmp_path / "maintenance.yaml").write_text(yaml.safe_dump(told))
    made = Reader(tmp_path, port)
    with made.until_the_end:
        yield made


@pytest.mark.parametrize("commands", blocks(), ids=lambda commands: re.sub(r"\W+", "-", commands[0])[:40])
def test_the_commands_do_what_they_should(commands: list[str], reader: Reader) -> None:
    for command in commands:
        reader(command)


def test_a_command_that_nobody_knows_to_execute_is_noticed(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="nobody has said how"):
        reader("rm --recursive everything")


def test_every_way_is_used() -> None:
    commands = [command for block in blocks() for command in block]
    assert not [pattern for pattern in WAYS if not any(re.fullmatch(pattern, command) for command in commands)]


def test_no_command_hides_from_this_test() -> None:
    """Not in a block of another language, nor in one that is only indented."""
    text = README.read_text(encoding="utf-8")
    assert {language for language, _ in FENCE.findall(text)} == {"sh"}
    assert not re.findall(r"^(?: {4}|\t)\S.*", FENCE.sub("", text), re.MULTILINE)


def test_every_file_that_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", README.read_text(encoding="utf-8"))
    assert "docs/images/page.png" in links
    assert not [link for link in links if not (REPOSITORY / link).exists()]


def test_the_picture_is_no_burden() -> None:
    picture = (REPOSITORY / "docs" / "images" / "page.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 300_000
