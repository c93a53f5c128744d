"""The agent as a process of its own, with the command that a user would give, on the data of the incident.

Whatever asks it shares no interpreter with it: what it measures is the agent's doing.
"""

from __future__ import annotations

import contextlib
import http
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from agent.demo.incident import incident
from agent.demo.mongod import free_port
from tests.conftest import Database
from tests.harness import Db, server_now

REPOSITORY: Final = Path(__file__).parents[2]
TOKEN: Final = "anns-token-of-sufficient-length"  # noqa: S105 - opens nothing but the agents of these tests
PATIENCE: Final = 60.0  # seconds until it is ready, or gone; one or two on an idle machine
POLL: Final = 0.05


@dataclass(frozen=True, slots=True)
class Served:
    """An agent that listens."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


def jobs(root: Path) -> dict[str, dict[str, Any]]:
    """Jobs that have found, changed, planned and refused something after a pass over the incident."""
    return {
        "orphan_apps": {"kind": "orphan_records", "root": str(root), "quarantine": "0s"},
        "orphan_tasks": {"kind": "orphan_tasks"},
        "stuck_tasks": {"kind": "stuck_tasks"},
        "old_tasks": {"kind": "retention"},
        "look_only": {"kind": "retention", "dry_run": True},
        "client_cache": {"kind": "client_eviction", "every": "365d"},
    }


def load_incident(db: Db, root: Path) -> None:
    """The analysis platform on the day of the incident."""
    made = incident(server_now(db))
    made.write_files(root)
    db.generated_applications.insert_many(made.records)
    db.analysis_tasks.insert_many(made.tasks)


@contextlib.contextmanager
def serving(
    folder: Path, database: Database, root: Path, *, access: bool = True, rate_limit: int = 100_000, **sections: Any
) -> Iterator[Served]:
    """Starts the agent, waits until it is ready, and ends it as an orchestrator would; its files lie in ``folder``."""
    tokens = folder / "tokens"
    tokens.write_text(f"ann:{TOKEN}\n", encoding="utf-8")
    port = free_port()
    told: dict[str, Any] = {
        "mongodb": {"uri": database.uri, "database": database.name},
        "http": {"host": "127.0.0.1", "port": port, "rate_limit": rate_limit},
        "schedule": {"every": "365d", "run_on_startup": False},  # a slot that does not come while a test runs
        "jobs": jobs(root),
        **sections,
    }
    if access:
        told["http"]["tokens_file"] = str(tokens)
    config, log = folder / "maintenance.yaml", folder / "log"
    config.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "agent", "--config", str(config), "serve"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAINTENANCE_")}
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=REPOSITORY) as process,
    ):
        served = Served(port, log)
        try:
            _wait_until_ready(served, process)
            yield served
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def _wait_until_ready(served: Served, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while get(served, "/readyz") != http.HTTPStatus.OK:
        assert process.poll() is None, served.log.read_text()
        assert time.monotonic() < deadline, served.log.read_text()
        time.sleep(POLL)


def get(served: Served, path: str) -> int | None:
    """The status of an answer; nothing where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()
