"""The agent itself, as a process: how soon it is ready, what it costs idle and at work, how quickly it tells metrics."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.demo.mongod import free_port
from tests.benchmarks.figures import Figures, percentile
from tests.benchmarks.world import TASKS, Db, finished, insert, processor_seconds
from tests.conftest import Database
from tests.harness import server_now

REPOSITORY = Path(__file__).parents[2]
TOKEN = "benchmark-token-of-some-length"  # noqa: S105 - of a server that lives for a minute
IDLE_SECONDS = 60.0
STARTS = 3
SCRAPES = 300
SCRAPE_EVERY = 0.05
# What people would run instead to be scraped: as many series, rendered by the library's own server.
PEER = """
import sys, time
from prometheus_client import Gauge, start_http_server
gauge = Gauge("series", "As many as the agent has.", ["number"])
for number in range(int(sys.argv[2])):
    gauge.labels(str(number)).set(number)
start_http_server(int(sys.argv[1]), addr="127.0.0.1")
time.sleep(3600)
"""


@dataclass
class Process:
    """A server process that is benchmarked."""

    pid: int
    port: int
    started: float

    def get(self, path: str, method: str = "GET", body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """Asks it; status 0 where it does not listen yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except ConnectionError:
            return 0, b""
        finally:
            connection.close()

    def cpu(self) -> float:
        """Seconds of the processor so far."""
        return processor_seconds(self.pid)

    def memory(self, what: str) -> float:
        """MiB: VmRSS now, VmHWM at the most."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024

    def wait_for(self, path: str) -> float:
        """Waits for a 200; returns the seconds since the start."""
        while self.get(path)[0] != http.HTTPStatus.OK:
            time.sleep(0.01)
        return time.perf_counter() - self.started

    def scrapes(self, go_on: Callable[[int], bool]) -> list[float]:
        """Milliseconds of each scrape."""
        took: list[float] = []
        while go_on(len(took)):
            asked = time.perf_counter()
            assert self.get("/metrics")[0] == http.HTTPStatus.OK
            took.append((time.perf_counter() - asked) * 1000)
            time.sleep(SCRAPE_EVERY)
        return took


def test_agent(database: Database, db: Db, size: int) -> None:
    figures = Figures("agent", f"The agent itself, and a pass over {size:,} tasks", size, "standalone")
    insert(db, TASKS, finished(size, server_now(db)))
    with _agent(database) as agent:
        agent.wait_for("/readyz")  # the first one makes the indexes of a million tasks
    for _ in range(STARTS - 1):
        with _agent(database) as agent:
            ready = agent.wait_for("/readyz")
    with _agent(database) as agent:
        ready = min(ready, agent.wait_for("/readyz"))
        figures.figure("start to ready", ready, "s", f"the best of {STARTS}; indexes exist")
        _idle(figures, agent, min(IDLE_SECONDS, size / 10_000))
        series = sum(not line.startswith(b"#") for line in agent.get("/metrics")[1].splitlines())
        idle = agent.scrapes(lambda count: count < SCRAPES)
        _told(figures, f"/metrics idle ({series:,} series)", idle)
        figures.figure("RSS idle", resting := agent.memory("VmRSS"), "MiB")
        during, lags = _during_a_pass(agent)
        _told(figures, "/metrics during a pass", during)
        figures.figure("loop lag during the pass, as the gauge says, worst", 1000 * max(lags), "ms")
        figures.figure("RSS at the peak of the pass", peak := agent.memory("VmHWM"), "MiB")
    with _process([sys.executable, "-c", PEER, str(port := free_port()), str(series)], port) as peer:
        peer.wait_for("/metrics")
        _told(figures, "prometheus_client.start_http_server, as many series", peer.scrapes(lambda n: n < SCRAPES))
    figures.at_most("start to ready", ready, 1.5, "s")
    figures.at_most("RSS idle", resting, 80, "MiB")
    figures.at_most("RSS at the peak of a pass", peak, 130, "MiB")
    figures.write()


def _idle(figures: Figures, agent: Process, seconds: float) -> None:
    before = agent.cpu()
    time.sleep(seconds)
    figures.figure("idle CPU", 100 * (agent.cpu() - before) / seconds, "%", f"of one core, over {seconds:.0f} s")


def _told(figures: Figures, what: str, took: list[float]) -> None:
    for share in (0.5, 0.99):
        figures.figure(f"{what}, p{100 * share:.0f}", percentile(took, share), "ms")


def _during_a_pass(agent: Process) -> tuple[list[float], list[float]]:
    status, answer = agent.get("/api/maintenance/jobs/old_tasks/run", "POST", {"accept": ["cap"]})
    assert status == http.HTTPStatus.ACCEPTED, answer
    run = f"/api/maintenance/runs/{json.loads(answer)['_id']}"
    lags: list[float] = []

    def going_on(count: int) -> bool:
        lags.append(_gauge(agent.get("/metrics")[1], b"maintenance_event_loop_lag_seconds "))
        return count % 10 != 0 or json.loads(agent.get(run)[1])["outcome"] is None

    took = agent.scrapes(going_on)
    record = json.loads(agent.get(run)[1])
    assert record["outcome"] == "succeeded", record
    return took, lags


def _gauge(metrics: bytes, name: bytes) -> float:
    return float(next(line for line in metrics.splitlines() if line.startswith(name)).split()[1])


@contextmanager
def _agent(database: Database) -> Iterator[Process]:
    with tempfile.TemporaryDirectory() as folder:
        tokens, port = Path(folder) / "tokens", free_port()
        tokens.write_text(f"bench:{TOKEN}\n")
        tokens.chmod(0o600)
        environment = {
            "MAINTENANCE_MONGODB__URI": database.uri,
            "MAINTENANCE_MONGODB__DATABASE": database.name,
            "MAINTENANCE_HTTP__HOST": "127.0.0.1",
            "MAINTENANCE_HTTP__PORT": str(port),
            "MAINTENANCE_HTTP__TOKENS_FILE": str(tokens),
            "MAINTENANCE_HTTP__RATE_LIMIT": "100000",
            "MAINTENANCE_DEFAULTS__RUN_TIMEOUT": "6h",
            "MAINTENANCE_ARCHIVE__MAX_SIZE": "100GiB",
            "MAINTENANCE_ENABLED": "false",
            "MAINTENANCE_LOG__LEVEL": "warning",
        }
        with _process([sys.executable, "-m", "agent", "serve"], port, environment) as process:
            yield process


@contextmanager
def _process(words: list[str], port: int, environment: Mapping[str, str] | None = None) -> Iterator[Process]:
    started = time.perf_counter()
    with subprocess.Popen(words, cwd=REPOSITORY, env={**os.environ, **(environment or {})}) as process:
        try:
            yield Process(process.pid, port, started)
        finally:
            process.terminate()
            process.wait(60)
