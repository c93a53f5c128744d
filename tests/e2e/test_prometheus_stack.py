"""`make stack`: it starts what it says, Prometheus scrapes the agent with the shipped rules, and Ctrl-C ends it all."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.demo.mongod import listens
from agent.demo.stack import get
from tests.commandline import usual_ports
from tests.e2e import stack

PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.2


def until(holds: Callable[[], Any], what: str) -> Any:
    """Waits until something is true, and returns it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_SECONDS:.0f} s"
        time.sleep(POLL_SECONDS)
    return found


def port(text: str, name: str) -> int:
    """The port of a place that was printed."""
    found = re.search(rf"^  {name} +http://127\.0\.0\.1:(\d+)/", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


@usual_ports()
def test_the_stack_starts_and_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    """The agent, Prometheus with the rules, Alertmanager that it knows; none of them outlives it."""
    stack.programs_or_skip()
    output = tmp_path / "output"
    with (
        output.open("wb") as sink,
        subprocess.Popen([sys.executable, "-m", "agent.demo.stack"], stdout=sink, stderr=subprocess.STDOUT) as process,
    ):
        try:
            text = until(lambda: (text := output.read_text()) and "Ctrl-C ends it" in text and text, "the places")
            agent, prometheus, alertmanager = (port(text, name) for name in ("metrics", "targets", "told"))
            until(lambda: result(prometheus, "maintenance_build_info"), "the first scrape")
            rules = json.loads(get(prometheus, "/api/v1/rules"))["data"]["groups"]
            assert sum(len(group["rules"]) for group in rules) > 30
            known = json.loads(get(prometheus, "/api/v1/alertmanagers"))["data"]["activeAlertmanagers"]
            assert [one["url"] for one in known] == [f"http://127.0.0.1:{alertmanager}/api/v2/alerts"]
            assert json.loads(get(alertmanager, "/api/v2/status"))["config"]["original"]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_SECONDS)
    assert process.returncode == 0, output.read_text()
    assert not [one for one in (agent, prometheus, alertmanager) if listens(one)]


def result(prometheus: int, expr: str) -> Any:
    """What Prometheus answers to an expression now."""
    return json.loads(get(prometheus, f"/api/v1/query?query={expr}"))["data"]["result"]
