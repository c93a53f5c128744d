"""The demonstration: what `make demo` and `make demo ONCE=1` show, on a mongod of its own."""
# ruff: noqa: S310 - the addresses are those of the demonstration itself

from __future__ import annotations

import json
import re
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import commandline
from tests.commandline import Cli, usual_ports

CHANGED = {
    "orphan_apps": {"deleted": 28},
    "orphan_tasks": {"cancelled": 469},
    "stuck_tasks": {"failed": 37, "cancelled": 12},
    "old_tasks": {"deleted": 412},
}


@pytest.fixture(scope="module")
def host() -> Iterator[Cli]:
    with commandline.host() as cli:
        yield cli


@pytest.fixture
def cli(host: Cli, tmp_path: Path) -> Cli:
    """The command line with a folder for temporary things that is empty, and stays so."""
    return replace(host, environment={"TMPDIR": str(tmp_path)})


def test_once_reports_a_dry_and_a_real_pass_and_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    done = cli("demo", "--once", "--json")
    assert done.code == 0, done.err
    report = done.json
    assert (report["ok"], report["dry_pass"]["problems"], report["pass"]["problems"]) == (True, [], [])
    found = [{run["job"]: run["found"] for run in report[name]["runs"]} for name in ("dry_pass", "pass")]
    assert (
        found[0]
        == found[1]
        == {
            "orphan_apps": {"orphan": 28},
            "orphan_tasks": {"orphan": 469},
            "stuck_tasks": {"stuck": 49},
            "old_tasks": {"expired": 412},
        }
    )
    assert {run["job"]: run["changed"] for run in report["pass"]["runs"]} == CHANGED
    assert not any(run["changed"] for run in report["dry_pass"]["runs"])
    assert list(tmp_path.iterdir()) == []


@usual_ports()
def test_it_serves_until_a_signal_says_where_to_look_and_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    running = cli.start("demo", MAINTENANCE_DRY_RUN="true")  # the environment has no say in it
    out = running.folder / "out"
    running.wait_for(lambda: "All as expected" in out.read_text())
    told = out.read_text()
    for number in (28, 469, 37, 12, 412):
        assert str(number) in told
    (metrics,) = re.findall(r"http://\S+/metrics", told)
    (command,) = re.findall(r"curl -H 'Authorization: (Bearer \S+)' (\S+)", told)
    with urllib.request.urlopen(metrics, timeout=5) as answer:
        assert 'maintenance_changed_total{action="cancelled",job_name="orphan_tasks"} 469.0' in answer.read().decode()
    request = urllib.request.Request(command[1], headers={"Authorization": command[0]})
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert json.load(answer)["statistics"]["orphan_apps_cleaned"] == 28
    running.signal(signal.SIGINT)
    done = running.wait()
    assert done.code == 0, done.err
    ended = {line["job"]: line["changed"] for line in done.logged if line["event"] == "run_ended"}
    assert ended == CHANGED
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_mongod_is_told_so_with_5(cli: Cli) -> None:
    done = cli("demo", "--once", MONGOD="/nowhere/mongod")
    assert done.code == 5
    assert done.sentences == ["MONGOD names '/nowhere/mongod', which is no program that can be run"]
