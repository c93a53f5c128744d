"""The least role, and how privileges cover collections; no server is needed for either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import check
from agent.job import Job
from agent.jobs import KINDS
from agent.settings import Settings, load
from agent.store import Namespace

HERE = Namespace("app", "tasks")


def settings(tmp_path: Path, **sections: Any) -> Settings[Job]:
    path = tmp_path / "maintenance.yaml"
    path.write_text(yaml.safe_dump(sections or {}))
    loaded: Settings[Job] = load(KINDS, path=path, environ={})
    return loaded


def actions(loaded: Settings[Job]) -> dict[str, list[str]]:
    """The privileges by collection, without those of the agent's own."""
    wanted = {
        f"{one['resource']['db']}.{one['resource']['collection']}": one["actions"]
        for one in check.privileges(loaded)
        if "db" in one["resource"]
    }
    return {name: some for name, some in wanted.items() if ".maintenance_" not in name}


def test_a_role_is_what_the_command_takes(tmp_path: Path) -> None:
    role = check.role(settings(tmp_path))
    assert list(role) == ["createRole", "privileges", "roles"]
    assert (role["createRole"], role["roles"]) == ("maintenance_agent", [])


def test_each_job_adds_what_it_does_and_nothing_else(tmp_path: Path) -> None:
    jobs: dict[str, Any] = {"expire": {"kind": "retention", "collection": "tasks", "database": "other"}}
    reads = ["createIndex", "find", "insert", "listIndexes", "remove"]
    assert actions(settings(tmp_path, jobs=jobs)) == {"other.tasks": reads}
    jobs = {"stuck": {"kind": "stuck_tasks", "collection": "tasks"}}
    assert actions(settings(tmp_path, jobs=jobs)) == {"app.tasks": ["createIndex", "find", "listIndexes", "update"]}
    jobs = {"lost": {"kind": "orphan_tasks", "collection": "tasks", "targets": "apps", "targets_database": "other"}}
    assert actions(settings(tmp_path, jobs=jobs)) == {
        "app.tasks": ["createIndex", "find", "listIndexes", "update"],
        "other.apps": ["createIndex", "find", "listIndexes"],
    }


def test_indexes_that_are_only_checked_need_no_privilege_to_create_them(tmp_path: Path) -> None:
    loaded = settings(tmp_path, indexes="check")
    assert not any("createIndex" in one["actions"] for one in check.privileges(loaded))


def test_a_disabled_job_needs_nothing(tmp_path: Path) -> None:
    jobs = {"expire": {"kind": "retention", "enabled": False}}
    assert actions(settings(tmp_path, jobs=jobs)) == {}


def test_the_agents_own_collections_follow_their_settings(tmp_path: Path) -> None:
    loaded = settings(tmp_path, jobs={}, mongodb={"database": "ops"}, collections={"prefix": "janitor_"})
    resources = [one["resource"] for one in check.privileges(loaded) if "db" in one["resource"]]
    names = ("runs", "items", "marks", "leases", "controls")
    assert resources == [{"db": "ops", "collection": f"janitor_{name}"} for name in names]


def test_to_look_at_the_lag_of_secondaries_is_a_privilege_on_the_cluster(tmp_path: Path) -> None:
    looks = {"resource": {"cluster": True}, "actions": ["replSetGetStatus"]}
    assert looks in check.privileges(settings(tmp_path))
    assert looks not in check.privileges(settings(tmp_path, throttle={"max_lag": None}))
    assert check.granted([looks], None) == {"replSetGetStatus"}
    assert check.granted([{"resource": {"db": "", "collection": ""}, "actions": ["find"]}], None) == set()


@pytest.mark.parametrize(
    "resource, covers",
    [
        ({"db": "app", "collection": "tasks"}, True),
        ({"db": "app", "collection": ""}, True),
        ({"db": "", "collection": "tasks"}, True),
        ({"db": "", "collection": ""}, True),
        ({"anyResource": True}, True),
        ({"db": "app", "collection": "apps"}, False),
        ({"db": "other", "collection": "tasks"}, False),
        ({"db": "other", "collection": ""}, False),
        ({"db": "app", "system_buckets": "tasks"}, False),
        ({"cluster": True}, False),
    ],
)
def test_a_privilege_counts_for_what_its_resource_covers(resource: dict[str, Any], covers: bool) -> None:
    held = [{"resource": resource, "actions": ["find"]}, {"resource": {"cluster": True}, "actions": ["insert"]}]
    assert check.granted(held, HERE) == ({"find"} if covers else set())
