"""The image, built and run for real.

It takes minutes, so it has to be asked for:

    IMAGE_TESTS=1 make test PYTEST_ARGS=tests/e2e/test_image.py WORKERS=1

Needs root, debootstrap, buildah, podman and runc. No registry is asked: the base is made by debootstrap. IMAGE_STORAGE names
a folder that keeps base and layers for the next time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from pymongo.database import Database as RawDatabase

from agent.demo.mongod import free_port
from tests.conftest import Database

REPOSITORY: Final = Path(__file__).parents[2]
PROGRAMS: Final = ("buildah", "debootstrap", "podman", "runc")
BASE: Final = "localhost/debian:bookworm"
IMAGE: Final = "localhost/maintenance-agent:test"
SUITE: Final = "bookworm"
PATIENCE: Final = 60.0  # seconds, for a container to do what it is expected to
GRACE: Final = 30  # seconds, as Kubernetes gives
# As Kubernetes would run it, on the network of the machine, where the test's MongoDB listens.
CONFINED: Final = (
    *("--runtime", "runc", "--network=host", "--no-healthcheck"),
    *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"),
    *("--read-only", "--read-only-tmpfs=false", "--cap-drop=ALL", "--security-opt", "no-new-privileges"),
)
OLD_TASKS: Final = 400
CONFIGURATION: Final = """\
mongodb: {{uri: "{uri}", database: {database}}}
http: {{host: 127.0.0.1, port: {port}}}
# Ten documents a batch, and a long pause after each: a run that lasts until it is asked to end.
throttle: {{pace: 20}}
schedule: {{run_on_startup: {startup}}}
jobs:
  old_tasks: {{kind: retention, batch: 10}}
"""

pytestmark = pytest.mark.skipif(
    os.environ.get("IMAGE_TESTS") != "1", reason="IMAGE_TESTS=1 asks for the image to be built"
)


@dataclass(frozen=True, slots=True)
class Engine:
    """Buildah and podman with a storage of their own."""

    storage: Path

    def __call__(
        self, program: str, *words: str, check: bool = True, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        own = ["--root", f"{self.storage}/R", "--runroot", f"{self.storage}/RR", "--storage-driver", "overlay"]
        done = subprocess.run([program, *own, *words], check=False, capture_output=True, text=True, timeout=seconds)
        assert not check or done.returncode == 0, f"{program} {' '.join(words[:3])}: {done.stderr[-3000:]}"
        return done

    @property
    def described(self) -> dict[str, Any]:
        """What the image says of itself."""
        (description,) = json.loads(self("podman", "image", "inspect", IMAGE).stdout)
        known: dict[str, Any] = description
        return known

    @property
    def health_check(self) -> list[str]:
        """The program of its HEALTHCHECK, with its words."""
        form, *words = self.described["Healthcheck"]["Test"]
        assert form == "CMD"
        return [str(word) for word in words]

    def shell(self, script: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """What a shell says inside the image, confined as the agent is."""
        return self("podman", "run", "--rm", *CONFINED, "--entrypoint", "/bin/sh", IMAGE, "-c", script, check=check)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """The engine with the image built. Skips where it cannot be."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"the image is built by root with {', '.join(PROGRAMS)}; missing: {', '.join(missing) or 'root'}")
    faulthandler.cancel_dump_traceback_later()  # a build lasts longer than a test may hang
    with contextlib.ExitStack() as stack:
        kept = os.environ.get("IMAGE_STORAGE")
        folder = kept or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="maintenance-agent-image-", dir="/var/tmp")
        )
        built = Engine(Path(folder))
        if not kept:
            stack.callback(built, "podman", "system", "reset", "--force", check=False)
        if built("podman", "image", "exists", BASE, check=False).returncode != 0:
            _make_base(built)
        _build(built)
        yield built


def _make_base(engine: Engine) -> None:
    tree, archive = engine.storage / "tree", engine.storage / "tree.tar"
    subprocess.run(["debootstrap", "--variant=minbase", SUITE, str(tree)], check=True, capture_output=True, timeout=900)
    subprocess.run(["tar", "-C", str(tree), "-cf", str(archive), "."], check=True, timeout=300)
    engine("podman", "import", str(archive), BASE, seconds=300)
    shutil.rmtree(tree)
    archive.unlink()


def _build(engine: Engine) -> None:
    authority = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or ""
    secrets = ["--secret", f"id=ca,src={authority}"] if Path(authority).is_file() else []
    options = ["--isolation=chroot", "--layers", "--format", "docker", "--build-arg", f"BASE={BASE}", *secrets]
    engine("buildah", "bud", *options, "--tag", IMAGE, str(REPOSITORY), seconds=1800)


# --- what is in it


def test_it_is_a_numbered_user_who_can_write_nowhere(engine: Engine) -> None:
    said = engine.shell(
        "id -u; id -g; touch /here /tmp/here /opt/agent/here 2>&1; find / -xdev -writable -type f 2>/dev/null; true"
    )
    user, group, *rest = said.stdout.splitlines()
    assert (user, group) == ("10001", "10001")
    assert len(rest) == 3, rest
    assert all("Read-only file system" in line or "Permission denied" in line for line in rest)


def test_there_is_no_pip_no_compiler_and_no_way_up(engine: Engine) -> None:
    programs = "pip pip3 gcc cc g++ make python3-config"
    assert not engine.shell(f"for one in {programs}; do command -v $one; done; true").stdout
    assert engine.shell("python3 -c 'import pip'", check=False).returncode == 1
    assert engine.shell("python3 -c 'import ensurepip'", check=False).returncode == 1
    assert not engine.shell("find / -xdev -type f -perm /6000 2>/dev/null; true").stdout


def test_it_holds_exactly_what_is_locked(engine: Engine) -> None:
    said = engine.shell(
        '/opt/agent/bin/python3 -c "import importlib.metadata as m;'
        " print(*sorted(d.name.lower().replace('_', '-') + '==' + d.version for d in m.distributions()), sep='\\n')\""
    )
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    locked = {line.split(" ")[0] for line in lines if "==" in line and not line.startswith((" ", "#"))}
    installed = set(said.stdout.splitlines())
    assert {line for line in installed if not line.startswith("maintenance-agent==")} == locked


def test_the_image_says_what_it_is(engine: Engine) -> None:
    config = engine.described["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["maintenance-agent"]
    assert config["Cmd"] == ["serve"]
    assert config["Labels"]["org.opencontainers.image.title"] == "Maintenance Agent"
    assert not [line for line in config["Env"] if "secret" in line.lower() or "cert" in line.lower()]


# --- what it does


@dataclass(frozen=True, slots=True)
class Container:
    """A running agent."""

    engine: Engine
    id: str
    url: str

    def get(self, path: str) -> tuple[int, str]:
        """What it answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:  # noqa: S310 - its own address
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_for(self, path: str, status: int = 200) -> None:
        """Waits until it answers so."""
        deadline = time.monotonic() + PATIENCE
        while (said := self.get(path))[0] != status:
            assert time.monotonic() < deadline, f"{said}: {self.log}"
            time.sleep(0.2)

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.engine("podman", "logs", self.id, check=False).stderr

    def stop(self) -> tuple[int, float]:
        """Sends SIGTERM, and SIGKILL after the grace; returns the exit code and the seconds that it took."""
        began = time.monotonic()
        self.engine("podman", "stop", "--time", str(GRACE), self.id)
        seconds = time.monotonic() - began
        return int(self.engine("podman", "wait", self.id).stdout), seconds


class Agents:
    """Runs agents on one database."""

    def __init__(self, engine: Engine, database: Database, folder: Path) -> None:
        self._engine, self._database, self._folder = engine, database, folder
        folder.chmod(0o755)

    def _mounted(self, port: int, *, startup: bool) -> Sequence[str]:
        path = self._folder / f"{port}.yaml"
        said = {
            "uri": self._database.uri,
            "database": self._database.name,
            "port": port,
            "startup": str(startup).lower(),
        }
        path.write_text(CONFIGURATION.format(**said))
        return ("--volume", f"{path}:/etc/maintenance.yaml:ro", "--env", f"MAINTENANCE_HTTP__PORT={port}")

    @contextlib.contextmanager
    def serving(self, *, startup: bool) -> Iterator[Container]:
        """An agent that serves."""
        port = free_port()
        words = [*CONFINED, *self._mounted(port, startup=startup), IMAGE, "--config", "/etc/maintenance.yaml", "serve"]
        id = self._engine("podman", "run", "--detach", *words).stdout.strip()
        try:
            yield Container(self._engine, id, f"http://127.0.0.1:{port}")
        finally:
            self._engine("podman", "rm", "--force", "--time", "0", id, check=False)

    def run(self, *words: str) -> Any:
        """A command of the agent, to its end; what it says to machines."""
        mounted = self._mounted(free_port(), startup=False)
        quick = ["--env", "MAINTENANCE_THROTTLE__PACE=0"]
        given = [*CONFINED, *mounted, *quick, IMAGE, "--config", "/etc/maintenance.yaml", "--json", *words]
        return json.loads(self._engine("podman", "run", "--rm", *given).stdout)


@pytest.fixture
def agents(engine: Engine, database: Database, tmp_path: Path) -> Agents:
    """Agents on a fresh database."""
    tmp_path.parent.chmod(0o755)
    return Agents(engine, database, tmp_path)


def test_it_serves_on_a_read_only_root(agents: Agents, engine: Engine) -> None:
    with agents.serving(startup=False) as container:
        container.wait_for("/readyz")
        assert container.get("/livez") == (200, "ok")
        assert container.get("/")[0] == 200
        assert "maintenance_build_info{" in container.get("/metrics")[1]
        assert engine("podman", "exec", container.id, *engine.health_check, check=False).returncode == 0
        code, seconds = container.stop()
    assert code == 0
    assert seconds < GRACE


def test_its_health_check_fails_where_nobody_serves(engine: Engine) -> None:
    program, *words = engine.health_check
    environment = ["--env", f"MAINTENANCE_HTTP__PORT={free_port()}"]
    given = ["run", "--rm", *CONFINED, *environment, "--entrypoint", program, IMAGE, *words]
    assert engine("podman", *given, check=False).returncode == 1


def test_told_to_end_in_a_run_it_ends_well_and_the_next_run_goes_on(
    agents: Agents, db: RawDatabase[dict[str, Any]]
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=400)
    task = {"status": "COMPLETED", "created_at": long_ago, "completed_at": long_ago}
    db.analysis_tasks.insert_many([{"_id": number, **task} for number in range(OLD_TASKS)])
    with agents.serving(startup=True) as container:
        deadline = time.monotonic() + PATIENCE
        while db.analysis_tasks.count_documents({}) == OLD_TASKS:
            assert time.monotonic() < deadline, container.log
            time.sleep(0.1)
        code, seconds = container.stop()
        assert code == 0, container.log
    assert seconds < GRACE
    (cut,) = db.maintenance_runs.find({})
    left = db.analysis_tasks.count_documents({})
    assert cut["outcome"] == "interrupted"
    assert cut["changed"] == {"deleted": OLD_TASKS - left}
    assert 0 < left < OLD_TASKS
    (run,) = agents.run("run", "old_tasks")["runs"]
    assert run["outcome"] == "succeeded"
    assert run["changed"] == {"deleted": left}
    assert not db.analysis_tasks.count_documents({})
