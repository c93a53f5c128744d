"""The stack to try, ``make stack``: the incident, the agent, and Prometheus and Alertmanager with the shipped files.

The application of this stage was not mended: it goes on making tasks for applications that are gone, a burst of seven
at a time. The agent clears them away every minute, and after a few of these runs Prometheus says what is going on
(MaintenanceOrphansReturning). Everything listens on the loopback address; Ctrl-C ends and removes it all.

``Monitoring`` is used by the tests as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml
from rich.console import Console

from agent import log
from agent.app import Service
from agent.demo import show
from agent.demo.incident import BURST, Document
from agent.demo.mongod import free_port, listens, spawn
from agent.demo.show import TASKS, Stage
from agent.errors import AgentError, StoreError
from agent.job import Job
from agent.settings import Settings

CHECKOUT: Final = Path(__file__).parents[2]
FILES: Final = CHECKOUT / "config" / "prometheus"
RULES: Final = ("rules.yaml", "alerts.yaml")
RUNBOOKS: Final = "https://runbooks.example"  # in the shipped alerts; here the files of the checkout take its place

PROMETHEUS_PORT: Final = 9090  # these two where they are free, so that addresses are the usual ones
ALERTMANAGER_PORT: Final = 9093
START_SECONDS: Final = 30.0  # 0.3 on an idle machine
STOP_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.1

SCRAPE_SECONDS: Final = 5
EVERY: Final = dt.timedelta(minutes=1)
BURST_SECONDS: Final = 20.0
WATCH_SECONDS: Final = 5.0

Json = dict[str, Any]


class MonitoringError(AgentError):
    """Prometheus or Alertmanager is not there or did not start; the message says what helps."""


class Monitoring:
    """A running Prometheus that scrapes these agents, and the Alertmanager that it tells; ended with its block.

    ``seconds`` is the time between two scrapes and between two evaluations. ``patient`` false takes the waiting out of
    the alerts (``for`` and ``keep_firing_for``); their expressions stay what they are. ``ports`` are those of
    Prometheus and Alertmanager.
    """

    def __init__(
        self,
        folder: Path,
        agents: Sequence[str],
        *,
        ports: tuple[int, int],
        seconds: int = SCRAPE_SECONDS,
        patient: bool = True,
    ) -> None:
        self._folder = folder
        self._agents = list(agents)
        self._seconds = seconds
        self._patient = patient
        self._processes: list[subprocess.Popen[bytes]] = []
        self.prometheus, self.alertmanager = ports

    def __enter__(self) -> Self:
        if not FILES.is_dir():
            raise MonitoringError(f"{FILES} is not there: this needs a checkout of the project, not only its package")
        (self._folder / "prometheus").mkdir(parents=True)
        (self._folder / "alertmanager").mkdir()
        try:
            self._start("prometheus-alertmanager", self.alertmanager, self._alertmanager_arguments())
            self._start("prometheus", self.prometheus, self._prometheus_arguments())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    # --- what they are told

    def _prometheus_arguments(self) -> list[str]:
        config = _shipped("prometheus.yaml")
        config["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), f"{self._seconds}s")
        config["rule_files"] = [str(self._rules(name)) for name in RULES]
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{self.alertmanager}"]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = self._agents
        return [
            f"--config.file={self._written('prometheus.yaml', config)}",
            f"--storage.tsdb.path={self._folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{self.prometheus}",
        ]

    def _alertmanager_arguments(self) -> list[str]:
        return [
            f"--config.file={FILES / 'alertmanager.yaml'}",
            f"--storage.path={self._folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{self.alertmanager}",
            "--cluster.listen-address=",
        ]

    def _rules(self, name: str) -> Path:
        rules = _shipped(name)
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            if "runbook_url" in rule.get("annotations", {}):
                url = rule["annotations"]["runbook_url"]
                rule["annotations"]["runbook_url"] = url.replace(RUNBOOKS, (CHECKOUT / "docs" / "runbooks").as_uri())
            if not self._patient:
                rule.pop("for", None)
                rule.pop("keep_firing_for", None)
        return self._written(name, rules)

    def _written(self, name: str, content: Json) -> Path:
        path = self._folder / name
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    # --- start and end

    def _start(self, name: str, port: int, arguments: Sequence[str]) -> None:
        program = shutil.which(name)
        if program is None:
            raise MonitoringError(
                f"{name} was not found. On Debian and Ubuntu: apt-get install prometheus prometheus-alertmanager"
            )
        output = self._folder / f"{name}.log"
        process = spawn([program, *arguments], output)
        self._processes.append(process)
        deadline = time.monotonic() + START_SECONDS
        while (ended := process.poll() is not None) or not _ready(port):
            if ended or time.monotonic() > deadline:
                words = "\n  ".join(output.read_text(errors="replace").splitlines()[-5:])
                raise MonitoringError(f"{name} did not start:\n  {words}")
            time.sleep(POLL_SECONDS)

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # --- what they say

    def alerts(self) -> list[Json]:
        """The alerts that Alertmanager has been told of, and that have not been resolved."""
        found: list[Json] = json.loads(get(self.alertmanager, "/api/v2/alerts"))
        return found


def get(port: int, path: str) -> bytes:
    """What a server of this machine answers. Raises ``OSError``, also where it answers with an error."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise OSError(f"{answer.status}: {body.decode(errors='replace')[:1000]}")
    return body


def _ready(port: int) -> bool:
    try:
        get(port, "/-/ready")
    except OSError:
        return False
    return True


def _free(usual: int) -> int:
    return free_port() if listens(usual) else usual


def _shipped(name: str) -> Json:
    content: Json = yaml.safe_load((FILES / name).read_text(encoding="utf-8"))
    return content


# ------------------------------------------------------------------------------------------------------------ the stack


def settings(stage: Stage) -> Settings[Job]:
    """The settings of the demonstration, with a run of each job a minute, so that there is something to see."""
    usual = stage.settings()
    jobs = {name: job.model_copy(update={"every": EVERY}) for name, job in usual.jobs.items()}
    schedule = usual.schedule.model_copy(update={"jitter": dt.timedelta()})
    return usual.model_copy(update={"jobs": jobs, "schedule": schedule})


def burst(stage: Stage, now: dt.datetime, number: int) -> list[Document]:
    """Seven tasks for an application that is gone, as its scheduler makes them."""
    like = stage.incident.orphan_tasks[number * BURST % len(stage.incident.orphan_tasks)]
    known = {key: value for key, value in like.items() if key != "_id"}
    names = (f"task_{number:06x}{position:06x}" for position in range(BURST))
    return [{**known, "task_id": name, "created_at": now} for name in names]


async def _go_on(stage: Stage, service: Service) -> None:
    """What the application does that was not mended."""
    number = 0
    while True:
        await asyncio.sleep(BURST_SECONDS)
        store = service.agent.store
        with contextlib.suppress(StoreError):
            await store.collection(TASKS).insert_many(burst(stage, await store.now(), number))
        number += 1


async def _tell_alerts(monitoring: Monitoring, console: Console) -> None:
    """Says which alerts come and go."""
    before: set[str] = set()
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        with contextlib.suppress(OSError):
            alerts = await asyncio.to_thread(monitoring.alerts)
            now = {f"{one['labels']['alertname']}: {one['annotations']['summary']}" for one in alerts}
            for text in sorted(now - before):
                _say(console, f"Alertmanager was told: {text}", "bold red")
            for text in sorted(before - now):
                _say(console, f"Resolved: {text}", "bold green")
            before = now


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _show_places(stage: Stage, monitoring: Monitoring, console: Console) -> None:
    agent, prometheus = f"http://127.0.0.1:{stage.port}", f"http://127.0.0.1:{monitoring.prometheus}"
    alertmanager = f"http://127.0.0.1:{monitoring.alertmanager}"
    _say(console, "\nAll of it runs. Look here:", "bold")
    places = {
        "page": f"{agent}/    (token: {stage.token})",
        "metrics": f"{agent}/metrics",
        "targets": f"{prometheus}/targets",
        "alerts": f"{prometheus}/alerts",
        "rules": f"{prometheus}/rules",
        "told": f"{alertmanager}/#/alerts    (or: amtool alert --alertmanager.url={alertmanager})",
    }
    for name, place in places.items():
        _say(console, f"  {name:9}{place}")
    _say(console, "\nThe application goes on making tasks for what is gone. In about four minutes Prometheus notices.")
    _say(console, "Ctrl-C ends it and removes everything.\n")


async def play(console: Console) -> None:
    """Sets it all up, and runs until a signal says stop."""
    log.configure("warning")
    async with show.stage(lambda text: _say(console, text)) as stage:
        _say(console, "Starting Prometheus and Alertmanager ...")
        ports = (_free(PROMETHEUS_PORT), _free(ALERTMANAGER_PORT))
        with (
            tempfile.TemporaryDirectory(prefix="maintenance-agent-stack-") as folder,
            Monitoring(Path(folder), [f"127.0.0.1:{stage.port}"], ports=ports) as monitoring,
        ):
            service = Service(lambda: settings(stage))
            service.handle_signals(on_second=lambda: os._exit(1))
            beside = (_go_on(stage, service), _tell_alerts(monitoring, console))
            tasks = [asyncio.create_task(work) for work in beside]
            try:
                await service.run(ready=lambda _: _show_places(stage, monitoring, console))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def main() -> int:
    """The stack, until Ctrl-C; returns the exit code."""
    try:
        asyncio.run(play(Console()))
    except AgentError as error:
        _say(Console(stderr=True), str(error), "red")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
