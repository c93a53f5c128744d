"""The runbooks: one an alert, in the same order of parts, with commands, addresses and expressions that there are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli.arguments import parse
from tests import promql

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "runbooks"
INDEX = FOLDER / "index.md"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path != INDEX)
PARTS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]

each_page = pytest.mark.parametrize("page", [*PAGES, INDEX], ids=lambda page: page.stem)


def alerts() -> list[dict[str, Any]]:
    """The alerts that are shipped."""
    groups = yaml.safe_load((ROOT / "config" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def text(page: Path) -> str:
    """A page."""
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)


def test_every_runbook_url_reaches_one_and_every_one_is_reached() -> None:
    """By the last part of the address, which is a file here."""
    assert sorted(Path(rule["annotations"]["runbook_url"]).name for rule in alerts()) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_says_it_all_in_the_same_order(page: Path) -> None:
    """Meaning, impact, diagnosis, mitigation; how to find the cause with something to type."""
    assert text(page).startswith(f"# {page.stem}\n")
    assert re.findall(r"^## (.+)$", text(page), re.MULTILINE) == PARTS
    diagnosis = text(page).partition("## Diagnosis")[2].partition("## Mitigation")[0]
    assert "```" in diagnosis
    assert all(part.strip() for part in re.split(r"^## .+$", text(page), flags=re.MULTILINE)[1:])


def test_the_index_lists_them_all_with_their_severity() -> None:
    """In the order of the alerts."""
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+) \|", text(INDEX), re.MULTILINE)
    assert rows == [(rule["alert"], rule["alert"], rule["labels"]["severity"]) for rule in alerts()]


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    """To another runbook."""
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        assert (FOLDER / target).exists(), target


@each_page
def test_commands_are_those_of_the_command_line(page: Path) -> None:
    """In blocks and within the text, with all their options."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    lines += re.findall(r"`(maintenance-agent [^`]+)`", text(page))
    for line in lines:
        words = shlex.split(line.partition(" | ")[0])
        if "maintenance-agent" not in words:
            assert words[0] in {"curl", "kubectl"}, line
            continue
        arguments = words[len(words) - words[::-1].index("maintenance-agent") :]
        if words[0] == "maintenance-agent" or "--" in words:
            parse(arguments)


@each_page
def test_addresses_are_those_of_the_interface(page: Path) -> None:
    """With their method."""
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"]
    known = {
        re.sub(r"\{\w+\}", "[A-Z]+", path): {method.upper() for method in methods} for path, methods in paths.items()
    }
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            for path in re.findall(r"http://localhost:9190(/[^\s'?]*)", line):
                methods = [allowed for pattern, allowed in known.items() if re.fullmatch(pattern, path)]
                assert methods, path
                assert any(("POST" if "-X POST" in line else "GET") in allowed for allowed in methods), line


@each_page
def test_expressions_are_promql_about_what_there_is(page: Path) -> None:
    """Those of the agent, of its recording rules, and a few that every cluster has."""
    rules = yaml.safe_load((ROOT / "config" / "prometheus" / "rules.yaml").read_text(encoding="utf-8"))
    recorded = {rule["record"] for group in rules["groups"] for rule in group["rules"]}
    for block in blocks(page, "promql"):
        for selector in promql.selectors(block):
            assert promql.wrong(selector) is None, promql.wrong(selector)
            assert selector.name in recorded or selector.name.startswith(
                ("maintenance_", "process_", "container_", "up")
            )
