"""`check` on real servers: what it finds, what it leaves alone, and the least role under which the agent works."""
# ruff: noqa: S106, S310 - the passwords and the addresses are those of this test's own servers

from __future__ import annotations

import asyncio
import datetime as dt
import json
import re
import secrets
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from pymongo.database import Database as RawDatabase

from agent import check
from agent.app import Agent
from agent.demo.incident import Incident, incident
from agent.demo.mongod import Mongod, free_port
from agent.jobs import KINDS
from agent.settings import load
from tests import commandline, servers
from tests.commandline import Cli
from tests.conftest import Database

Document = dict[str, Any]

TOKEN: Final = "a-token-of-sufficient-length"  # noqa: S105 - of this test only
JOBS: Final = ("orphan_apps", "orphan_tasks", "stuck_tasks", "old_tasks")


@pytest.fixture(scope="module")
def host() -> Iterator[Cli]:
    with commandline.host() as cli:
        yield cli


def settings_of(uri: str, database: str, root: Path) -> Document:
    """A configuration for the incident."""
    return {
        "mongodb": {"uri": uri, "database": database},
        "http": {"host": "127.0.0.1", "port": free_port()},
        "jobs": {
            "orphan_apps": {"kind": "orphan_records", "root": str(root), "quarantine": "0s"},
            "orphan_tasks": {"kind": "orphan_tasks"},
            "stuck_tasks": {"kind": "stuck_tasks"},
            "old_tasks": {"kind": "retention"},
        },
    }


def configured(cli: Cli, settings: Document) -> Cli:
    """The command line with these settings."""
    path = cli.folder / f"{secrets.token_hex(8)}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return replace(cli, config=path)


def play(db: RawDatabase[Document], root: Path) -> Incident:
    """Puts the incident in place."""
    played = incident(dt.datetime.now(dt.UTC))
    played.write_files(root)
    db.generated_applications.insert_many(played.records)
    db.analysis_tasks.insert_many(played.tasks)
    return played


# ------------------------------------------------------------------------------------------------------ what it finds


@servers.both_topologies
def test_a_deployment_that_is_right_is_told_so_and_left_as_it_is(
    host: Cli, database: Database, db: RawDatabase[Document], root: Path
) -> None:
    play(db, root)
    cli = configured(host, settings_of(database.uri, database.name, root))
    before = db.list_collection_names()
    first = cli("check", "--json")
    assert (first.code, first.json["ok"]) == (0, True), first.out
    assert sorted(db.list_collection_names()) == sorted(before), "nothing is written"
    assert list(db.analysis_tasks.index_information()) == ["_id_"], "nor is an index created"
    assert "will be created at the next start" in first.out
    assert "so all of" in first.out
    assert ("a standalone server has no transactions" in first.out) == (database.topology == "standalone")
    assert cli("run", "--all").code == 0
    second = cli("check", COLUMNS="200")
    assert second.code == 0
    said = second.out
    assert re.search(r"all \d+ are there", said)
    for job in JOBS:
        assert f"{job}: none reads a whole collection" in said
    assert "authorization is off" in said


def test_what_is_missing_is_named(host: Cli, database: Database, db: RawDatabase[Document], root: Path) -> None:
    played = play(db, root)
    settings = settings_of(database.uri, database.name, root) | {"indexes": "check"}
    settings["jobs"]["orphan_tasks"]["targets"] = "generated_aplications"
    settings["jobs"]["orphan_apps"]["marker"] = ".volume-id"
    db.create_collection("finished", viewOn="analysis_tasks", pipeline=[])
    settings["jobs"]["old_tasks"]["collection"] = "finished"
    db.analysis_tasks.create_index("status")
    done = configured(host, settings)("check", "--json")
    found = [(one["level"], one["topic"], one["message"]) for one in done.json["findings"]]
    assert done.code == 1
    name = database.name
    assert ("problem", "volume", f"orphan_apps: there is no .volume-id under {root}, so runs will be refused") in found
    missing = f"orphan_tasks: {name}.generated_aplications does not exist; is a name wrong?"
    assert ("warning", "collections", missing) in found
    assert ("problem", "collections", f"old_tasks: {name}.finished is a view: no job can change it") in found
    assert not [one for one in found if "stuck_tasks" in one[2] and one[0] != "ok"], "the index on status serves it"
    walk = "orphan_apps: records in the order of their directories (model_slug, app_number): no index serves it, "
    assert ("warning", "queries", f"{walk}so all of {name}.generated_applications is read") in found
    assert len(played.records) == db.generated_applications.count_documents({})


def test_a_root_that_is_not_there_is_a_problem(host: Cli, database: Database, root: Path) -> None:
    done = configured(host, settings_of(database.uri, database.name, root / "nowhere"))("check")
    assert done.code == 1
    assert f"orphan_apps: {root}/nowhere does not exist, so runs will be refused" in done.out


@pytest.mark.parametrize(
    "content, said",
    [
        ("ann a-token-of-sufficient-length\n", "line 1: expected name:token, so the agent will not serve"),
        (None, "the file cannot be read (No such file or directory), so the agent will not serve"),
        ("ann:a-token-of-sufficient-length\n# nobody else\n", "names of users: 1"),
    ],
)
def test_the_tokens_without_which_the_agent_does_not_serve_are_read(
    host: Cli, database: Database, root: Path, tmp_path: Path, content: str | None, said: str
) -> None:
    tokens = tmp_path / "tokens"
    if content is not None:
        tokens.write_text(content)
    settings = settings_of(database.uri, database.name, root)
    settings["http"] = {**settings["http"], "tokens_file": str(tokens)}
    done = configured(host, settings)("check")
    assert f"{tokens}: {said}" in done.out
    assert done.code == (1 if "not serve" in said else 0)


def test_all_that_is_wrong_with_the_configuration_is_listed(host: Cli) -> None:
    done = configured(host, {"htpt": {}, "schedule": {"every": "soon"}})("check")
    assert done.code == 2
    assert [line.split()[:2] for line in done.out.splitlines()] == [["problem", "configuration"]] * 2


# -------------------------------------------------------------------------------------------------------- permissions


@dataclass(frozen=True)
class Guarded:
    """A server that asks for a user, its administrator, and the incident in it."""

    server: Mongod
    admin: servers.Client
    root: Path
    settings: Document

    def user(self, name: str, role: Document) -> Document:
        """The settings with a user who has this role, and no other."""
        self.admin.admin.command({**role, "createRole": name})
        self.admin.admin.command("createUser", name, pwd="secret", roles=[name])
        uri = f"mongodb://{name}:secret@{self.server.address}/?replicaSet=rs0&authSource=admin"
        return {**self.settings, "mongodb": {"uri": uri, "database": "app"}}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A replica set of one member with authorization."""
    folder = tmp_path_factory.mktemp("guarded")
    key, root = folder / "key", folder / "volume"
    key.touch(0o400)
    key.chmod(0o600)
    key.write_text(secrets.token_hex(32))
    key.chmod(0o400)
    root.mkdir()
    with Mongod(replica_set=servers.SET_NAME, arguments=["--keyFile", str(key)]) as server:
        cluster = servers.ReplicaSet([server])
        cluster.initiate()
        with servers.connect(cluster.uri) as nobody:
            nobody.admin.command("createUser", "root", pwd="secret", roles=["root"])
        uri = f"mongodb://root:secret@{server.address}/?replicaSet={servers.SET_NAME}"
        with servers.connect(uri) as admin:
            play(admin.app, root)
            yield Guarded(server, admin, root, settings_of(cluster.uri, "app", root))


def test_the_agent_does_all_its_work_under_the_least_role(host: Cli, guarded: Guarded, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann:{TOKEN}\n")
    role = configured(host, guarded.settings)("check", "--role").json
    settings = guarded.user("least", role)
    settings["http"] = {**settings["http"], "tokens_file": str(tokens)}
    cli = configured(host, settings)

    checked = cli("check", "--json")
    assert checked.code == 0, checked.out
    assert [one["message"] for one in checked.json["findings"] if one["topic"] == "permissions"] == [
        "least@admin may do all that the jobs need"
    ]
    done = cli("run", "--all", "--json")
    assert {job: sum(run["changed"].values()) for job, run in done.runs.items()} == {
        "orphan_apps": 28,
        "orphan_tasks": 469,
        "stuck_tasks": 49,
        "old_tasks": 412,
    }
    for run in done.runs.values():
        assert cli("restore", run["_id"]).code == 0
    held = done.runs["orphan_tasks"]["sample"][0]["id"]["$oid"]
    assert cli("explain", "orphan_tasks", held).code == 0
    assert cli("release", "analysis_tasks", held).code == 0
    planned = cli("run", "orphan_tasks", "--dry-run", "--json")
    assert planned.code == 0, "its target was restored, so it is no orphan"
    for words in (["pause"], ["resume"], ["status"], ["runs"], ["hold", "analysis_tasks", held]):
        assert cli(*words).code == 0, words
    assert not [line for line in done.logged if line["level"] != "info"], "every index could be made"

    # The last 5 minutes' runs are not repeated at the start: the API asks for a pass.
    running = cli.start("serve")
    running.wait_for(lambda: '"serving"' in running.err)
    base = f"http://127.0.0.1:{settings['http']['port']}"
    request = urllib.request.Request(
        f"{base}/api/maintenance/run",
        method="POST",
        data=json.dumps({"wait": "30s"}).encode(),
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=40) as answer:
        runs = json.load(answer)["runs"]
    assert [run["outcome"] for run in runs] == ["succeeded"] * 4
    running.signal(signal.SIGTERM)
    served = running.wait()
    assert served.code == 0
    assert not [line for line in served.logged if line["level"] != "info"]


def test_without_the_privilege_to_list_indexes_it_warns_and_works(host: Cli, guarded: Guarded) -> None:
    """A slow run is better than none."""
    role = configured(host, guarded.settings)("check", "--role").json
    kept = [
        {**one, "actions": [action for action in one["actions"] if action != "listIndexes"]}
        for one in role["privileges"]
    ]
    cli = configured(host, guarded.user("unlisting", {**role, "privileges": kept}))
    done = cli("run", "--all", "--dry-run", "--json")
    assert {run["outcome"] for run in done.runs.values()} == {"succeeded"}
    assert "index_not_looked_at" in {line["event"] for line in done.logged}


def test_one_privilege_less_is_noticed(host: Cli, guarded: Guarded) -> None:
    role = configured(host, guarded.settings)("check", "--role").json
    settings = guarded.user("lacking", role)
    cli = configured(host, settings)
    loaded = load(KINDS, path=cli.config, environ={})

    async def findings() -> list[list[check.Finding]]:
        agent = Agent(loaded)
        found = []
        try:
            for position, privilege in enumerate(role["privileges"]):
                for action in privilege["actions"]:
                    less = [{**one, "actions": list(one["actions"])} for one in role["privileges"]]
                    less[position]["actions"].remove(action)
                    kept = [one for one in less if one["actions"]]
                    guarded.admin.admin.command("updateRole", "lacking", privileges=kept)
                    found.append([one async for one in check.permissions(agent)])
        finally:
            await agent.close()
        return found

    lacks = [
        f"lacking@admin lacks {action} on {_place(privilege['resource'])}; see check --role"
        for privilege in role["privileges"]
        for action in privilege["actions"]
    ]
    assert [[one.document for one in some] for some in asyncio.run(findings())] == [
        [{"level": "problem", "topic": "permissions", "message": message}] for message in lacks
    ]
    told = cli("check")  # the last one is still missing
    assert told.code == 1
    assert lacks[-1] in told.out


def _place(resource: Document) -> str:
    return "the cluster" if "cluster" in resource else f"{resource['db']}.{resource['collection']}"


def test_nobody_and_a_wrong_password_are_problems(host: Cli, guarded: Guarded) -> None:
    nobody = configured(host, guarded.settings)("check")
    assert nobody.code == 1
    assert "the server asks for a user, and mongodb.uri names none" in nobody.out
    uri = f"mongodb://root:wr0ng@{guarded.server.address}/?replicaSet=rs0"
    wrong = configured(host, {**guarded.settings, "mongodb": {"uri": uri, "database": "app"}})("check")
    assert wrong.code == 1
    assert "MongoDB refused: Authentication failed" in wrong.out
    assert "wr0ng" not in wrong.out + wrong.err
