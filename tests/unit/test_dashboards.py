"""The dashboards that are shipped: held to the program that makes them, and to the rules of Grafana's own linters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
import yaml

from dashboards.__main__ import FOLDER, files
from dashboards.board import DASHBOARDS
from tests import promql
from tests.kustomize import kustomize

ROOT = FOLDER.parent
Json = dict[str, Any]
BOARDS: dict[str, Json] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
PLACE = {"cluster", "namespace"}
WIDTH = 24

each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def panels(board: Json) -> list[Json]:
    """The panels that show something."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions(board: Json) -> Iterator[tuple[str, str]]:
    """Every expression of a board, with the title of what asks it."""
    for panel in panels(board):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in board["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], annotation["expr"]


def variables(board: Json) -> dict[str, Json]:
    """The variables of a board by name."""
    return {variable["name"]: variable for variable in board["templating"]["list"]}


# --------------------------------------------------------------------------------------------------------- the program


def test_what_is_committed_is_what_the_program_makes() -> None:
    """`python -m dashboards` writes them anew."""
    assert {path: path.read_text(encoding="utf-8") for path in files()} == files()
    assert set(BOARDS) == set(DASHBOARDS)


def test_the_config_maps_hold_every_dashboard() -> None:
    """And stay below what Kubernetes lets a ConfigMap, and an annotation of its last state, hold."""
    made = yaml.safe_load((FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))["configMapGenerator"]
    assert {name for one in made for name in one["files"]} == {f"{uid}.json" for uid in BOARDS}
    for one in made:
        assert sum((FOLDER / name).stat().st_size for name in one["files"]) < 256 * 1024


def test_kustomize_takes_them() -> None:
    """The dashboards as ConfigMaps with the label that Grafana's sidecar looks for, and the rules as they are."""
    made = [*kustomize(FOLDER), *kustomize(ROOT / "config" / "prometheus" / "operator")]
    kinds = [document["kind"] for document in made]
    assert kinds == ["ConfigMap"] * len(BOARDS) + ["PrometheusRule"]
    assert all(one["metadata"]["labels"]["grafana_dashboard"] == "1" for one in made if one["kind"] == "ConfigMap")


def test_grafana_is_provisioned_with_the_data_source_and_the_folder() -> None:
    """The file is where Grafana looks, and nothing that is changed in the browser is believed to be kept."""
    folder = ROOT / "config" / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((folder / "dashboards" / "maintenance-agent.yaml").read_text())["providers"]
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    scrape = yaml.safe_load((ROOT / "config" / "prometheus" / "prometheus.yaml").read_text())["global"]
    assert (provider["type"], provider["allowUiUpdates"]) == ("file", False)
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert source["jsonData"]["timeInterval"] == scrape["scrape_interval"]


# ----------------------------------------------------------------------------------------------------------- the board


@each_board
def test_a_board_has_a_stable_name_and_is_not_edited_in_place(board: Json) -> None:
    """The uid stands in links and alerts; Grafana takes at most 40 characters."""
    assert re.fullmatch(r"[a-z-]{1,40}", board["uid"])
    assert board["title"] == f"Maintenance Agent / {DASHBOARDS[board['uid']]}"
    assert board["editable"] is False
    assert board["id"] is None
    assert board["description"]
    assert board["tags"] == ["maintenance-agent"]
    assert board["refresh"]
    assert "__inputs" not in board
    assert "__requires" not in board


@each_board
def test_the_data_source_is_chosen_on_top(board: Json) -> None:
    """A variable `datasource` of the type prometheus, labelled as everywhere, and nothing else is asked."""
    source = variables(board)["datasource"]
    assert (source["type"], source["query"], source["label"]) == ("datasource", "prometheus", "Data source")
    for panel in panels(board):
        assert panel["datasource"] == SOURCE
        assert all(target["datasource"] == SOURCE for target in panel["targets"])


@each_board
def test_variables_are_labelled_filled_and_asked_again(board: Json) -> None:
    """Cluster and namespace everywhere; all at once where several may be chosen."""
    names = list(variables(board))
    assert names[:3] == ["datasource", "cluster", "namespace"]
    for name, variable in list(variables(board).items())[1:]:
        assert variable["type"] == "query"
        assert variable["label"]
        assert variable["datasource"] == SOURCE
        assert variable["refresh"] == 2, "on a change of the time range"
        assert re.fullmatch(r"label_values\(.+, \w+\)", variable["query"]["query"])
        assert "current" in variable
        if name == "job_name":
            assert (variable["multi"], variable["includeAll"]) == (False, False)
        else:
            assert (variable["multi"], variable["includeAll"], variable["allValue"]) == (True, True, ".*")
            assert variable["current"]["value"] == ["$__all"]


def test_the_job_is_chosen_where_one_job_is_shown() -> None:
    """And the other boards have what they are about."""
    assert "job_name" in variables(BOARDS["maintenance-job"])
    assert "provider" in variables(BOARDS["maintenance-allocations"])
    assert "instance" in variables(BOARDS["maintenance-agent"])


@each_board
def test_boards_lead_to_each_other(board: Json) -> None:
    """With what was chosen and the time range."""
    links = {link["url"]: link for link in board["links"]}
    assert set(links) == {f"/d/{uid}" for uid in BOARDS if uid != board["uid"]}
    assert all(link["includeVars"] and link["keepTime"] and link["type"] == "link" for link in links.values())


def test_the_table_of_jobs_leads_to_a_job() -> None:
    """A click on its name."""
    text = json.dumps(BOARDS["maintenance-overview"])
    assert "/d/maintenance-job?" in text
    assert "&var-job_name=${__value.raw}" in text


@each_board
def test_runs_and_alerts_are_annotated(board: Json) -> None:
    """Runs at the instant at which they ended, alerts while they fire."""
    found = {annotation["name"]: annotation for annotation in board["annotations"]["list"]}
    assert set(found) == {"Annotations & Alerts", "Runs", "Alerts"}
    assert found["Annotations & Alerts"]["builtIn"] == 1
    assert found["Runs"]["useValueForTime"] is True
    assert found["Runs"]["expr"].endswith("* 1000"), "Grafana counts milliseconds"
    assert 'alertstate="firing"' in found["Alerts"]["expr"]
    assert all(found[name]["datasource"] == SOURCE for name in ("Runs", "Alerts"))


# ---------------------------------------------------------------------------------------------------------- the panels


@each_board
def test_panels_have_ids_titles_descriptions_and_units(board: Json) -> None:
    """Grafana would give ids anew at every start; without a unit a number means nothing."""
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(isinstance(id, int) and id > 0 for id in ids)
    for panel in panels(board):
        assert panel["title"]
        assert panel["description"].endswith((".", "!", "?"))
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]


@each_board
def test_queries_have_names_of_their_own(board: Json) -> None:
    """Two of one panel with the same name would hide each other; so would two that ask the same."""
    for panel in panels(board):
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        asked = [target["expr"] for target in panel["targets"]]
        assert len(set(asked)) == len(asked)


@each_board
def test_panels_do_not_overlap_and_fill_the_width(board: Json) -> None:
    """Every line of the grid is full."""
    places = [panel["gridPos"] for panel in board["panels"]]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    for y in {place["y"] for place in places}:
        assert sum(place["w"] for place in places if place["y"] == y) == WIDTH


# ----------------------------------------------------------------------------------------------------- the expressions


@each_board
def test_expressions_are_promql_about_what_there_is(board: Json) -> None:
    """Metrics, labels and values of labels that the agent has; beside these only what every process has, and ALERTS."""
    for title, expr in expressions(board):
        for selector in promql.selectors(expr):
            assert selector.name.startswith(("maintenance_", "process_")) or selector.name == "ALERTS", title
            assert promql.wrong(selector) is None, f"{title}: {promql.wrong(selector)}"


@each_board
def test_expressions_follow_what_is_chosen(board: Json) -> None:
    """Every selector has the cluster and the namespace, and what the board is about."""
    own = {"job_name"} & set(variables(board))
    for title, expr in expressions(board):
        for selector in promql.selectors(expr):
            asked = {name for name, _ in selector.matchers}
            wanted = PLACE if selector.name == "ALERTS" else PLACE | own
            assert wanted <= asked, f"{title}: {selector.name}"
    raw = " ".join(expr for _, expr in expressions(board))
    for name in set(variables(board)) - {"datasource"}:
        assert re.search(rf'{name}=~?"\${name}"', raw), name


@each_board
def test_ranges_follow_the_time_that_is_shown(board: Json) -> None:
    """`$__rate_interval` is never shorter than four scrapes; `$__range` is for a sum over all that is shown."""
    for title, expr in expressions(board):
        assert set(re.findall(r"\[([^]]*)\]", expr)) <= {"$__rate_interval", "$__range"}, title
        if re.search(r"\b(rate|irate)\(", expr):
            assert "$__range]" not in expr, title


@each_board
def test_counters_are_rated_before_they_are_summed_and_state_is_not_summed(board: Json) -> None:
    """A counter as it is starts at 0 with its process; the state of the journal is the same on every replica."""
    processes = {"maintenance_run_in_progress", "maintenance_client_cache_entries"}
    for title, expr in expressions(board):
        for selector in promql.selectors(expr):
            kind, _ = promql.families().get(selector.name, ("", {}))
            if kind in {"counter", "histogram"}:
                assert selector.function in promql.RATES, title
                assert selector.aggregation == "sum", title
            if kind == "gauge" and selector.name not in processes:
                assert selector.aggregation != "sum", title


@each_board
def test_events_are_counted_once(board: Json) -> None:
    """A bar for a run needs steps that are wider than the scrape's, or the same run stands in several bars."""
    for panel in panels(board):
        if panel["fieldConfig"]["defaults"].get("custom", {}).get("drawStyle") == "bars":
            assert panel["interval"] == "5m", panel["title"]


def test_what_the_agent_counts_can_be_seen() -> None:
    """Every metric stands on a dashboard, apart from those that only alerts ask for."""
    shown = {one.name for board in BOARDS.values() for _, expr in expressions(board) for one in promql.selectors(expr)}
    rules = yaml.safe_load((ROOT / "config" / "prometheus" / "alerts.yaml").read_text())
    asked = {one.name for group in rules["groups"] for rule in group["rules"] for one in promql.selectors(rule["expr"])}
    left = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown | asked}
    every = {re.sub(r"_(bucket|sum|count)$", "", name) for name in promql.families()}
    assert every - left == set()
