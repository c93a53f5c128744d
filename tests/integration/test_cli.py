"""The command line as an operator uses it: real processes, a real MongoDB, exit codes, sentences, JSON."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pymongo.database import Database as RawDatabase

from agent.demo.mongod import free_port
from tests import commandline
from tests.commandline import REPOSITORY, Cli
from tests.conftest import Database

Document = dict[str, Any]

DAY = dt.timedelta(days=1)
HEALTHY, ORPHANED = 8, 2
DRY = {
    "orphan_apps": {"orphan": 2},
    "orphan_tasks": {"orphan": 3},
    "stuck_tasks": {"stuck": 1},
    "old_tasks": {"expired": 1},
}
CHANGED = {
    "orphan_apps": {"deleted": 2},
    "orphan_tasks": {"cancelled": 3},
    "stuck_tasks": {"failed": 1},
    "old_tasks": {"deleted": 1},
}
OUTSIDE_TASK = "no such thing as this id"


@dataclass(frozen=True)
class World:
    """A small platform with something for each job to do, its volume, and the command line that works on it."""

    cli: Cli
    db: RawDatabase[Document]
    root: Path
    settings: Document

    def configured(self, **sections: Any) -> Cli:
        """The command line with other sections in its configuration."""
        path = self.cli.folder / f"{time.monotonic_ns()}.yaml"
        path.write_text(yaml.safe_dump({**self.settings, **sections}))
        return replace(self.cli, config=path)

    def jobs(self, **changes: Document) -> Cli:
        """The command line with other settings of its jobs."""
        jobs = {name: {**job, **changes.get(name, {})} for name, job in self.settings["jobs"].items()}
        return self.configured(jobs=jobs)

    def documents(self) -> list[Document]:
        """All that belongs to the application."""
        return [*self.db.generated_applications.find().sort("_id"), *self.db.analysis_tasks.find().sort("_id")]

    def hang(self) -> Cli:
        """The command line with a volume that does not answer: its marker is a pipe that nobody writes to."""
        if not (self.root / "marker").exists():
            os.mkfifo(self.root / "marker")
        return self.jobs(orphan_apps={"marker": "marker"})


@pytest.fixture(scope="module")
def host() -> Iterator[Cli]:
    with commandline.host() as cli:
        yield cli


@pytest.fixture
def world(host: Cli, database: Database, db: RawDatabase[Document], root: Path) -> World:
    now = dt.datetime.now(dt.UTC)
    records = [
        {"model_slug": "elm", "app_number": number, "created_at": now - DAY} for number in range(HEALTHY + ORPHANED)
    ]
    for record in records[:HEALTHY]:
        (root / f"generated/apps/elm/app{record['app_number']}").mkdir(parents=True)
    orphaned = [_task(HEALTHY, "PENDING", now - dt.timedelta(minutes=30)) for _ in range(3)]
    stuck = [_task(0, "RUNNING", now - DAY)]
    healthy = [_task(1, "PENDING", now - dt.timedelta(minutes=5)), _task(1, "COMPLETED", now - DAY, now - DAY)]
    expired = [_task(1, "COMPLETED", now - 60 * DAY, now - 60 * DAY)]
    db.generated_applications.insert_many(records)
    db.analysis_tasks.insert_many([*orphaned, *stuck, *healthy, *expired])
    settings = {
        "mongodb": {"uri": database.uri, "database": database.name},
        "http": {"host": "127.0.0.1", "port": free_port()},
        "indexes": "check",  # a small platform needs none, and each test has a database of its own
        "jobs": {
            "orphan_apps": {"kind": "orphan_records", "root": str(root), "quarantine": "0s"},
            "orphan_tasks": {"kind": "orphan_tasks"},
            "stuck_tasks": {"kind": "stuck_tasks"},
            "old_tasks": {"kind": "retention"},
        },
    }
    made = World(host, db, root, settings)
    return replace(made, cli=made.configured())


def _task(target: int, status: str, created: dt.datetime, completed: dt.datetime | None = None) -> Document:
    return {
        "target_model": "elm",
        "target_app_number": target,
        "status": status,
        "created_at": created,
        "started_at": None,
        "completed_at": completed,
        "error_message": None,
    }


# ---------------------------------------------------------------------------------------------------------------- runs


def test_a_dry_run_finds_changes_nothing_and_exits_with_3(world: World) -> None:
    before = world.documents()
    done = world.cli("run", "--all", "--dry-run", "--json")
    assert done.code == 3
    assert {job: run["found"] for job, run in done.runs.items()} == DRY
    assert all(run["changed"] == {} and run["trigger"] == "cli" for run in done.runs.values())
    assert world.documents() == before


def test_a_run_changes_the_same_and_the_next_one_nothing(world: World) -> None:
    done = world.cli("run", "--all", "--json")
    assert done.code == 0
    assert {job: run["changed"] for job, run in done.runs.items()} == CHANGED
    assert {line["job"] for line in done.logged if line["event"] == "run_ended"} == set(CHANGED)
    again = world.cli("run", "--all", "--json")
    assert again.code == 0
    assert not any(run["found"] for run in again.runs.values())


def test_a_plan_is_applied_once_and_what_it_did_is_restored(world: World) -> None:
    before = world.documents()
    planned = world.cli("run", "orphan_apps", "orphan_tasks", "--dry-run", "--json")
    pass_id = planned.runs["orphan_apps"]["pass"]
    applied = world.cli("apply", pass_id, "--json")
    assert applied.code == 0
    assert {job: run["changed"] for job, run in applied.runs.items()} == {
        "orphan_apps": {"deleted": 2},
        "orphan_tasks": {"cancelled": 3},
    }
    again = world.cli("apply", pass_id)
    assert again.code == 2
    assert "a plan is applied once" in again.err
    for run in applied.runs.values():
        restored = world.cli("restore", run["_id"], "--json")
        assert restored.code == 0
        assert restored.runs[run["job"]]["changed"] == {"restored": sum(run["changed"].values())}
    assert world.documents() == before


def test_a_restore_that_meets_a_conflict_exits_with_1(world: World) -> None:
    run = world.cli("run", "orphan_tasks", "orphan_apps", "--json").runs["orphan_tasks"]
    first, second = (entry["id"]["$oid"] for entry in run["sample"][:2])
    assert world.cli("restore", run["_id"], "--item", first).code == 0
    world.db.analysis_tasks.update_many({"status": "CANCELLED"}, {"$set": {"error_message": "by hand"}})
    done = world.cli("restore", run["_id"], "--json")
    assert done.code == 1
    assert done.runs["orphan_tasks"]["failed"] == 2
    unknown = world.cli("restore", run["_id"], "--item", OUTSIDE_TASK)
    assert (unknown.code, second in unknown.err) == (2, False)


def test_a_root_that_is_not_there_is_refused_with_4(world: World) -> None:
    moved = world.root.rename(f"{world.root}-moved")
    try:
        done = world.cli("run", "--all", "--json")
        preview = world.cli("run", "orphan_apps", "--dry-run", "--json")
    finally:
        moved.rename(world.root)
    assert (done.code, done.runs["orphan_apps"]["outcome"]) == (4, "refused")
    assert done.runs["orphan_tasks"]["outcome"] == "succeeded"
    assert (preview.code, preview.runs["orphan_apps"]["found"]) == (4, {})
    assert world.db.generated_applications.count_documents({}) == HEALTHY + ORPHANED


def test_a_missing_marker_can_be_consented_to(world: World) -> None:
    cli = world.jobs(orphan_apps={"marker": ".volume-id"})
    refused = cli("run", "orphan_apps")
    assert refused.code == 4
    assert "the marker .volume-id is missing" in refused.out
    assert "--accept root" in refused.out
    assert cli("run", "orphan_apps", "--accept", "cap,root", "--json").runs["orphan_apps"]["accept"] == ["cap", "root"]


def test_over_the_cap_a_dry_run_exits_with_3_and_a_real_one_with_4(world: World) -> None:
    cli = world.jobs(orphan_apps={"limit": {"items": 1}})
    preview = cli("run", "orphan_apps", "--dry-run")
    assert preview.code == 3
    assert "a real run would be refused (cap)" in preview.out
    assert cli("run", "orphan_apps").code == 4
    assert cli("run", "orphan_apps", "--accept", "cap").code == 0


def test_of_several_outcomes_the_gravest_counts(world: World) -> None:
    cli = world.jobs(orphan_apps={"root": "/nowhere/at/all"}, orphan_tasks={"limit": {"items": 0}})
    world.db.maintenance_leases.insert_one(
        {"_id": "stuck_tasks", "term": 7, "holder": "another", "expires_at": dt.datetime.now(dt.UTC) + DAY}
    )
    world.db.generated_applications.delete_many({"app_number": HEALTHY})
    done = cli("run", "--all", "--json")
    assert {job: run["outcome"] for job, run in done.runs.items()} == {
        "orphan_apps": "refused",
        "orphan_tasks": "refused",
        "stuck_tasks": "skipped",
        "old_tasks": "succeeded",
    }
    assert done.code == 1
    assert done.runs["stuck_tasks"]["reason"] == "stuck_tasks is already running on another"


def test_a_run_that_times_out_exits_with_1(world: World) -> None:
    world.hang()
    cli = world.jobs(orphan_apps={"marker": "marker", "run_timeout": "1s"})
    done = cli("run", "orphan_apps", "--json")
    assert (done.code, done.runs["orphan_apps"]["outcome"]) == (1, "timed_out")


def test_a_disabled_job_runs_when_it_is_named_and_not_with_all(world: World) -> None:
    cli = world.jobs(**{name: {"enabled": False} for name in CHANGED})
    assert cli("run", "--all", "--json").runs == {}
    assert "no job is enabled" in cli("run", "--all").out
    assert cli("run", "old_tasks", "--json").runs["old_tasks"]["changed"] == {"deleted": 1}


@pytest.mark.parametrize(
    "words, sentence",
    [
        (
            ["run", "old_taks"],
            "there is no job old_taks; there are: old_tasks, orphan_apps, orphan_tasks, stuck_tasks",
        ),
        (["pause", "old_taks"], "there is no job old_taks"),
        (["apply", "20260101T000000-0123456789"], "there is no run 20260101T000000-0123456789"),
        (["restore", "20260101T000000-0123456789"], "there is no run 20260101T000000-0123456789"),
        (["explain", "old_tasks", OUTSIDE_TASK], f"has no document with the id {OUTSIDE_TASK}"),
        (["hold", "analysis_tasks", OUTSIDE_TASK], f"has no document with the id {OUTSIDE_TASK}"),
        (["release", "analysis_tasks", OUTSIDE_TASK], f"has no held document with the id {OUTSIDE_TASK}"),
        (["runs", "--before", "nothing"], "there is no run nothing"),
        (["audit"], "no job of the kind allocation_audit is configured"),
    ],
    ids=lambda value: "-".join(value[:1]) if isinstance(value, list) else "",
)
def test_what_does_not_exist_is_named_with_2(world: World, words: list[str], sentence: str) -> None:
    done = world.cli(*words, "--json")
    assert (done.code, done.out) == (2, "")
    assert len(done.sentences) == 1
    assert sentence in done.sentences[0]


def test_an_audit_reports_with_3_and_repairs_only_when_it_is_asked_to(world: World) -> None:
    amounts = {"cpu": 2000, "memory": 2**30, "storage": 0}
    provider = {"_id": "p1", "capacity": {"cpu": 8000, "memory": 2**34, "storage": 2**34}, "version": 1}
    world.db.providers.insert_one({**provider, "allocated": {"cpu": 0, "memory": 0, "storage": 0}, "bookings": {}})
    world.db.databases.insert_one({"_id": "d1", "provider_id": "p1", "status": "active", "resources": amounts})
    audit = {"kind": "allocation_audit", "enabled": False}
    patient = world.configured(jobs={"allocations": audit})
    found = patient("audit", "--json")
    assert (found.code, found.runs["allocations"]["dry_run"]) == (3, True)
    assert found.runs["allocations"]["found"] == {"drift": 1}
    once = patient("audit", "--repair", "--json")
    assert (once.code, once.runs["allocations"]["held"]) == (3, {"quarantine": 1}), "a single reading repairs nothing"
    quick = world.configured(jobs={"allocations": {**audit, "confirm": "0s"}})
    repaired = quick("audit", "--repair", "--json")
    assert (repaired.code, repaired.runs["allocations"]["changed"]) == (0, {"repaired": 1})
    assert (world.db.providers.find_one() or {})["allocated"] == amounts
    assert quick("audit").code == 0


# -------------------------------------------------------------------------------------------------------------- looking


def test_status_runs_and_explain_are_readable_at_80_columns(world: World) -> None:
    run = world.cli("run", "--all", "--json").runs["orphan_tasks"]
    task = run["sample"][0]["id"]["$oid"]
    for words in (["status"], ["runs"], ["explain", "orphan_tasks", task], ["check"]):
        done = world.cli(*words, COLUMNS="80")
        assert done.code == 0, done.err
        assert max(len(line) for line in done.out.splitlines()) <= 80
        assert "\x1b" not in done.out
    history = world.cli("runs", COLUMNS="80").out
    assert run["_id"] in history, "an id stands in one piece"


def test_the_words_are_those_of_the_api(world: World) -> None:
    run = world.cli("run", "--all", "--json").runs["stuck_tasks"]
    status = world.cli("status", "--json").json
    assert [job["name"] for job in status["jobs"]] == list(CHANGED)
    assert status["statistics"]["orphan_tasks_cleaned"] == 3
    page = world.cli("--json", "runs", "--limit", "2").json
    assert [len(page["runs"]), page["next"]] == [2, page["runs"][-1]["_id"]]
    older = world.cli("runs", "--limit", "2", "--before", page["next"], "--json").json
    assert [older["next"], len({run["_id"] for run in page["runs"] + older["runs"]})] == [None, 4]
    assert [one["_id"] for one in world.cli("runs", "--job", "stuck_tasks", "--json").json["runs"]] == [run["_id"]]
    assert len(world.cli("runs", "--pass", run["pass"], "--outcome", "succeeded", "--json").json["runs"]) == 4
    assert world.cli("runs", "--trigger", "schedule").out == "no runs\n"


def test_explain_says_which_condition_does_not_hold(world: World) -> None:
    waiting = world.db.analysis_tasks.find_one({"status": "PENDING", "target_app_number": 1}) or {}
    lost = world.db.analysis_tasks.find_one({"target_app_number": HEALTHY}) or {}
    document = world.cli("explain", "stuck_tasks", str(waiting["_id"]), "--json").json
    conditions = {action["action"]: [one["holds"] for one in action["conditions"]] for action in document["actions"]}
    assert conditions == {"failed": [False, False], "cancelled": [True, False]}
    world.db.generated_applications.delete_one({"app_number": HEALTHY})
    told = world.cli("explain", "orphan_tasks", str(lost["_id"])).out
    assert "It is orphan and would be cancelled: no record in generated_applications for" in told


def test_holds_and_pauses(world: World) -> None:
    record = world.db.generated_applications.find_one({"app_number": HEALTHY}) or {}
    held = world.cli("hold", "generated_applications", str(record["_id"]), "--reason", "mine", "--json").json
    assert (held["held"], held["reason"]) == (True, "mine")
    assert world.cli("run", "orphan_apps", "--json").runs["orphan_apps"]["held"] == {"hold": 1}
    assert "no job touches it" in world.cli("hold", "generated_applications", str(record["_id"])).out
    assert "released" in world.cli("release", "generated_applications", str(record["_id"])).out
    assert world.cli("pause", "old_tasks", "--json").json == {"job": "old_tasks", "paused": True}
    assert "paused: everything" in world.cli("pause").out
    status = world.cli("status", "--json").json
    assert (status["paused"], all(job["paused"] for job in status["jobs"])) == (True, True)
    assert "everything is paused" in world.cli("resume", "old_tasks").out
    assert world.cli("resume").out == "resumed: everything\n"


def test_a_reader_that_has_seen_enough_is_no_error(world: World) -> None:
    world.cli("run", "--all")
    for words in ("runs", "demo --help"):
        command = f"{sys.executable} -m agent --config {world.cli.config} {words} | head -1"
        piped = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert (piped.returncode, piped.stderr) == (0, ""), words


def test_colours_stand_on_a_terminal_only_and_not_against_no_color(world: World) -> None:
    world.cli("run", "--all")
    coloured = _on_a_terminal(world, "status")
    assert "\x1b[32m" in coloured
    assert "succeeded" in coloured
    assert "\x1b[32m" not in _on_a_terminal(world, "status", NO_COLOR="1")


def test_a_long_run_shows_on_a_terminal_how_it_comes_along(world: World) -> None:
    world.hang()
    path = world.jobs(orphan_apps={"marker": "marker", "run_timeout": "3s"}).config
    shown = _on_a_terminal(replace(world, cli=replace(world.cli, config=path)), "run", "orphan_apps", "old_tasks")
    assert "0/2" in shown
    assert "orphan_apps: found -, changed -" in shown
    assert "timed_out" in shown


def _on_a_terminal(world: World, *words: str, **environment: str) -> str:
    """What a person sees who types the words in a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", **environment}
    command = [sys.executable, "-m", "agent", "--config", str(world.cli.config), *words]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while some := os.read(ours, 4096):
                seen += some
    os.close(ours)
    return seen.decode()


# -------------------------------------------------------------------------------------------------- what can go wrong


def test_a_mongodb_that_is_away_is_said_in_one_sentence_with_5(world: World) -> None:
    address = f"127.0.0.1:{free_port()}"
    cli = world.configured(mongodb={"uri": f"mongodb://ann:s3cret@{address}/", "database": "app"})
    began = time.monotonic()
    running = {words: cli.start(*words.split()) for words in ("status", "run --all", "pause", "check")}
    for words, command in running.items():
        done = command.wait()
        said = done.out if words == "check" else "\n".join(done.sentences)
        assert done.code == 5, words
        assert f"MongoDB cannot be reached at mongodb://ann:***@{address}/: " in said
        assert said.rstrip().endswith("Check mongodb.uri, that the server runs, and the way to it.")
        assert words == "check" or (done.out, len(done.sentences)) == ("", 1)
        assert "s3cret" not in done.out + done.err
    assert time.monotonic() - began < 15  # 5 for the server, the rest for a busy machine


@pytest.mark.parametrize("command", ["serve", "status", "run --all"])
def test_all_mistakes_of_a_configuration_are_listed_with_2(world: World, command: str) -> None:
    cli = world.configured(htpt={"port": 1}, schedule={"every": "soon"})
    done = cli(*command.split())
    assert (done.code, done.out) == (2, "")
    assert len(done.sentences) == len(done.err.splitlines()) == 2
    assert "htpt: unknown key; did you mean `http`?" in done.err
    assert 'schedule.every: "soon" is not accepted' in done.err


@pytest.mark.parametrize("uri", ["mongodb://ann:s@cret@host/", "mongodb://host:99999/"])
def test_a_connection_string_that_the_driver_does_not_take_is_a_configuration_error(world: World, uri: str) -> None:
    done = world.configured(mongodb={"uri": uri})("status")
    assert done.code == 2
    assert done.err.startswith("mongodb.uri: is no connection string that MongoDB's driver takes: ")


def test_wrong_credentials_or_a_full_disk_are_no_traceback(world: World) -> None:
    uri = f"mongodb://ann:wrong@{world.settings['mongodb']['uri'].partition('://')[2]}&authSource=admin"
    denied = world.configured(mongodb={"uri": uri})("status")
    assert denied.code == 1
    assert denied.sentences == ["MongoDB refused: Authentication failed.; `check` says which privileges are missing"]
    full = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m agent schema >/dev/full"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (full.returncode, full.stderr) == (1, "the output could not be written: No space left on device\n")


# ------------------------------------------------------------------------------------------------------------- signals


def _hanging(world: World) -> bool:
    """Whether a run of the job whose volume hangs is going on."""
    return world.db.maintenance_runs.find_one({"job": "orphan_apps", "ended_at": None}) is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_runs_end_as_interrupted_with_1(world: World, number: signal.Signals) -> None:
    running = world.hang().start("run", "orphan_apps", "old_tasks", "--json")
    running.wait_for(lambda: _hanging(world))
    running.signal(number)
    done = running.wait()
    assert done.code == 1
    assert {job: run["outcome"] for job, run in done.runs.items()} == {
        "orphan_apps": "interrupted",
        "old_tasks": "skipped",
    }
    assert not _hanging(world)


def test_the_second_signal_ends_at_once(world: World) -> None:
    # A server that is frozen keeps the run from ending in an orderly way.
    running = world.hang().start("run", "orphan_apps")
    running.wait_for(lambda: _hanging(world))
    world.db.client.admin.command("fsync", lock=True)  # writes wait: the record cannot be closed
    try:
        running.signal(signal.SIGINT)
        time.sleep(0.3)
        assert running.ended(running.pid) is None
        running.signal(signal.SIGINT)
        assert running.wait().code == 1
    finally:
        world.db.client.admin.command("fsyncUnlock")


# --------------------------------------------------------------------------------------------------------------- serve


def test_serve_runs_what_is_due_answers_and_ends_with_0(world: World) -> None:
    port = free_port()
    running = world.configured(http={"host": "127.0.0.1", "port": port}).start("serve", MAINTENANCE_HTPT="1")
    running.wait_for(lambda: world.db.maintenance_runs.count_documents({"outcome": "succeeded"}) == len(CHANGED))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
        assert answer.status == 200
    running.signal(signal.SIGTERM)
    done = running.wait()
    assert (done.code, done.out, done.sentences) == (0, "", [])
    (warned,) = [line["problem"] for line in done.logged if line["event"] == "configuration"]
    assert warned.startswith("MAINTENANCE_HTPT: unknown, ignored")
    assert {run["job"]: run["changed"] for run in world.db.maintenance_runs.find()} == CHANGED


def test_a_volume_that_hangs_does_not_hang_the_end_of_serve(world: World) -> None:
    running = world.hang().start("serve")
    running.wait_for(lambda: _hanging(world))
    running.signal(signal.SIGTERM)
    began = time.monotonic()
    assert running.wait().code == 0
    assert time.monotonic() - began < 10
    assert not _hanging(world)


def test_a_server_that_is_frozen_is_cut_off_within_the_budget(world: World) -> None:
    running = replace(world, settings={**world.settings, "shutdown": {"budget": "3s"}}).hang().start("serve")
    running.wait_for(lambda: _hanging(world))
    world.db.client.admin.command("fsync", lock=True)
    try:
        running.signal(signal.SIGTERM)
        began = time.monotonic()
        assert running.wait().code == 0
        assert time.monotonic() - began < 4
    finally:
        world.db.client.admin.command("fsyncUnlock")


def test_a_port_in_use_is_said_in_one_sentence_with_2(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = world.configured(http={"host": "127.0.0.1", "port": port})("serve")
    assert done.code == 2
    assert len(done.sentences) == 1
    assert done.err.startswith(f"http: cannot listen on 127.0.0.1:{port}: ")
    assert "address already in use" in done.err


def test_the_module_and_the_command_are_the_same_program(world: World) -> None:
    command = [sys.executable, "-m", "agent", "status", "--json", "--config", str(world.cli.config)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert [job["name"] for job in json.loads(done.stdout)["jobs"]] == list(CHANGED)
