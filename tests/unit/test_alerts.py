"""The rules that are shipped: what each alert says, that it is tested both ways, and that Prometheus takes them all."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards import rules as manifest
from dashboards.board import DASHBOARDS
from tests import promql

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "config" / "prometheus"
TESTS = sorted((FOLDER / "tests").glob("*.yaml"))
Rule = dict[str, Any]


def load(path: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules(name: str) -> list[Rule]:
    """The rules of one of the files."""
    return [rule for group in load(FOLDER / name)["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules("alerts.yaml")}
RECORDED = rules("rules.yaml")
RULES = [*ALERTS.values(), *RECORDED]
each_rule = pytest.mark.parametrize(
    "rule", RULES, ids=[f"{number} {rule.get('alert') or rule['record']}" for number, rule in enumerate(RULES)]
)
OF_A_PROCESS = {"maintenance_lease_held", "maintenance_client_cache_entries"}  # no state of the journal: these add up
# What has to be watched, whatever else is.
WATCHED = {
    "MaintenanceAgentAbsent",
    "MaintenanceJobOverdue",
    "MaintenanceJobNeverSucceeded",
    "MaintenanceJobFailing",
    "MaintenanceRunTooLong",
    "MaintenanceRunRefused",
    "MaintenanceBacklogGrowing",
    "MaintenanceOrphansReturning",
    "MaintenanceRunsMissed",
    "MaintenanceLeaseFlapping",
    "MaintenanceJobPaused",
    "MaintenanceAllocationDrift",
    "MaintenanceProviderOvercommitted",
    "MaintenanceAuditBlind",
    "MaintenanceClientCacheThrashing",
    "MaintenanceClientCloseFailing",
    "MaintenanceArchiveNearLimit",
    "MaintenanceMongoDBDown",
    "MaintenanceMongoDBSlow",
    "MaintenanceEventLoopLagging",
    "MaintenanceConfigReloadFailed",
}


def program(name: str) -> str:
    """The path of a program, or a skipped test."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: the packages prometheus and prometheus-alertmanager)")
    return found


def run(*words: str | Path) -> None:
    """Runs a program that has to be content, in the folder of the rules."""
    done = subprocess.run(words, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------------------------------------------------- the alerts


def test_everything_that_can_go_wrong_is_watched() -> None:
    """No alert of the list is missing, and none is there twice."""
    assert set(ALERTS) >= WATCHED
    assert len(ALERTS) == len(rules("alerts.yaml"))


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_an_operator_has_to_know(alert: str) -> None:
    """How bad it is, what happened, to whom, and where to go on."""
    rule = ALERTS[alert]
    annotations = rule["annotations"]
    assert alert.startswith("Maintenance")
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(annotations) == {"summary", "description", "runbook_url", "dashboard"}
    assert annotations["summary"].endswith(".")
    assert "$labels.namespace" in annotations["description"]
    assert annotations["runbook_url"].endswith(f"/{alert}.md")


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_leads_to_a_dashboard_that_there_is(alert: str) -> None:
    """And narrows it to what it is about."""
    found = re.fullmatch(r"https://[^/]+/d/([\w-]+)\?(.*)", ALERTS[alert]["annotations"]["dashboard"])
    assert found is not None
    assert found[1] in DASHBOARDS
    narrowed = dict(pair.split("=", 1) for pair in found[2].split("&"))
    assert all(value == f"{{{{ $labels.{name.removeprefix('var-')} }}}}" for name, value in narrowed.items())
    assert {"var-cluster", "var-namespace"} <= set(narrowed)


def test_the_refusing_guard_and_the_job_are_named() -> None:
    """Who reads the summary knows where to look."""
    summary = ALERTS["MaintenanceRunRefused"]["annotations"]["summary"]
    assert "$labels.guard" in summary
    assert "$labels.job_name" in summary


# ------------------------------------------------------------------------------------------------------ the expressions


@each_rule
def test_an_expression_asks_for_what_there_is(rule: Rule) -> None:
    """Names of metrics and recording rules, labels, and values of labels."""
    recorded = {one["record"] for one in RECORDED}
    for selector in promql.selectors(rule["expr"]):
        assert selector.name in recorded or selector.name.startswith("maintenance_"), selector.name
        assert selector.name in recorded or promql.wrong(selector) is None, promql.wrong(selector)


@each_rule
def test_counters_are_summed_and_state_is_not(rule: Rule) -> None:
    """State is the same on every replica: its sum would be a multiple of it. A counter is only a part of the whole."""
    for selector in promql.selectors(rule["expr"]):
        kind, _ = promql.families().get(selector.name, ("recorded", {}))
        if kind in {"counter", "histogram"}:
            assert selector.aggregation == "sum", selector
        if kind == "gauge" and selector.name not in OF_A_PROCESS:
            assert selector.aggregation in {"max", "min", "group", None}, selector


@pytest.mark.parametrize("record", sorted({rule["record"] for rule in RECORDED}))
def test_a_recording_rule_is_named_by_level_metric_and_operations(record: str) -> None:
    """As Prometheus' own documentation asks."""
    assert re.fullmatch(r"(job_name|command|provider)(_[a-z]+)*:maintenance_[a-z_]+:[a-z0-9_]+", record)


def test_every_recording_rule_is_used() -> None:
    """By an alert or by another one."""
    asked = {one.name for rule in RULES for one in promql.selectors(rule["expr"])}
    assert {rule["record"] for rule in RECORDED} <= asked


# ------------------------------------------------------------------------------------------------------- the rule tests


def test_every_alert_is_tested_to_fire_and_to_stay_silent() -> None:
    """None is without both."""
    expected: dict[str, set[bool]] = defaultdict(set)
    for path in TESTS:
        for test in load(path)["tests"]:
            for case in test.get("alert_rule_test", []):
                expected[case["alertname"]].add(bool(case["exp_alerts"]))
    assert dict(expected) == {alert: {True, False} for alert in ALERTS}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_rule_tests_pass(path: Path) -> None:
    """Prometheus itself evaluates them."""
    run(program("promtool"), "test", "rules", path)


# ---------------------------------------------------------------------------------------------------- what takes them


def test_prometheus_and_alertmanager_take_the_files(tmp_path: Path) -> None:
    """Rules, the example of a configuration, and the one of Alertmanager."""
    promtool = program("promtool")
    run(promtool, "check", "rules", "rules.yaml", "alerts.yaml")
    run(promtool, "check", "config", "prometheus.yaml")
    run(program("amtool"), "check-config", "alertmanager.yaml")
    # Debian's build does not know Kubernetes; the rest of that job is checked all the same.
    config = load(FOLDER / "prometheus-kubernetes.yaml")
    config["rule_files"] = []
    config["scrape_configs"][0]["static_configs"] = [{"targets": ["localhost:1"]}]
    assert config["scrape_configs"][0].pop("kubernetes_sd_configs") == [{"role": "pod"}]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run(promtool, "check", "config", tmp_path / "prometheus.yaml")


def test_the_operator_gets_the_same_rules() -> None:
    """The manifest is made of the two files; `python -m dashboards` writes it anew."""
    assert manifest.MANIFEST.read_text(encoding="utf-8") == manifest.manifest()
    made = load(manifest.MANIFEST)
    assert (made["apiVersion"], made["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert made["spec"]["groups"] == [group for name in manifest.SOURCES for group in load(FOLDER / name)["groups"]]


def test_the_agent_is_found_by_the_name_of_its_port() -> None:
    """The job without the operator and the manifest with it look for the same one."""
    relabeling = load(FOLDER / "prometheus-kubernetes.yaml")["scrape_configs"][0]["relabel_configs"]
    monitor = load(ROOT / "config" / "kubernetes" / "components" / "pod-monitor" / "pod-monitor.yaml")
    assert relabeling[0]["regex"] == monitor["spec"]["podMetricsEndpoints"][0]["port"]


def test_inhibitions_name_alerts_that_there_are() -> None:
    """A name that is wrong would inhibit nothing."""
    text = (FOLDER / "alertmanager.yaml").read_text(encoding="utf-8")
    for prefix, group, name in re.findall(r"alertname (?:=|=~|!=) \"?(Maintenance)(?:\(([\w|]+)\)|(\w+))", text):
        for one in group.split("|") if group else [name]:
            assert prefix + one in ALERTS


def test_yaml_is_tidy() -> None:
    """What `make lint` checks of all of it."""
    folders = [FOLDER, ROOT / "config" / "grafana", ROOT / "dashboards"]
    run(sys.executable, "-m", "yamllint", "--strict", "--config-file", ROOT / ".yamllint.yaml", *folders)
