"""The documentation: it builds without a warning, and what it says of commands, keys, URLs, metrics and files is true."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from agent.cli.arguments import EXIT_CODES, parse
from agent.cli.edge import COMMANDS
from agent.errors import ConfigurationError
from agent.job import Job, Limit
from agent.jobs import KINDS
from agent.settings import Settings, load, reference
from agent.settings.legacy import NAMES
from agent.web import ENDPOINTS
from agent.web.openapi import template
from agent.web.problems import TITLES

REPOSITORY: Final = Path(__file__).parents[2]
DOCS: Final = REPOSITORY / "docs"
PAGES: Final = tuple(
    DOCS / f"{name}.md"
    for name in (
        "adapting",
        "configuration",
        "deployment",
        "failure-modes",
        "http-api",
        "index",
        "operations",
        "safety",
        "security",
        "upgrading",
        "writing-a-job",
    )
)
MARK: Final = "a test holds the two together. -->\n"

of_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The commands that a page shows, a continued line being one."""
    found = "".join(blocks(page, "console")).replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in found.splitlines() if line.startswith("$ ")]


def configured(text: str, tmp_path: Path, kinds: tuple[type[Job], ...] = KINDS) -> Settings[Job]:
    """The settings that a block of YAML makes; the secret that it names is somewhere else here."""
    path, uri = tmp_path / "maintenance.yaml", tmp_path / "uri"
    path.write_text(text)
    uri.write_text("mongodb://mongodb.example:27017")
    return load(kinds, path=path, environ={"MAINTENANCE_MONGODB__URI_FILE": str(uri)})


# --- as a whole


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links, anchors and the navigation are checked by that too."""
    if find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "operations" / "index.html").is_file()


def test_every_page_is_in_the_navigation() -> None:
    navigation = set(_pages(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]))
    assert {page.name for page in PAGES} <= navigation
    assert not [page for page in navigation if not (DOCS / page).is_file()]


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in _pages(part)]


@of_each_page
def test_every_file_that_it_names_is_there(page: Path) -> None:
    named = re.findall(r"(?<![\w/.-])((?:config|docs|agent|dashboards|tests)/[\w./-]*\w)", page.read_text())
    assert not [path for path in named if not (REPOSITORY / path).exists()]


@of_each_page
def test_every_metric_that_it_names_exists(page: Path) -> None:
    known = set(re.findall(r"^### `(\w+)`", (DOCS / "metrics.md").read_text(), re.MULTILINE))
    own = {f"maintenance_{name}" for name in ("runs", "items", "marks", "leases", "controls", "agent")}
    assert set(re.findall(r"`(maintenance_\w+)", page.read_text())) <= known | own


@of_each_page
def test_every_command_that_it_shows_is_understood(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "kubectl" and "exec" in words:
            words = words[words.index("--") + 1 :]
        if words[0] == "maintenance-agent":
            assert parse(words[1:]).command in COMMANDS
        else:
            assert words[0] in {"curl", "docker", "kubectl", "pip"}


@of_each_page
def test_every_command_in_its_text_exists(page: Path) -> None:
    for said in re.findall(r"`maintenance-agent ([a-z]+)", page.read_text()):
        assert said in COMMANDS


@of_each_page
def test_every_request_that_it_shows_has_an_endpoint(page: Path) -> None:
    known = {(endpoint.method, _as_pattern(template(endpoint.path))) for endpoint in ENDPOINTS}
    for command in (shlex.split(one) for one in commands(page) if one.startswith("curl")):
        method = command[command.index("-X") + 1] if "-X" in command else "GET"
        path = command[-1].removeprefix("http://localhost:9190")
        assert [1 for verb, pattern in known if verb == method and pattern.fullmatch(path)], (method, path)


def _as_pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)))


# --- configuration


def test_the_reference_is_what_the_code_says() -> None:
    """`make docs` writes it anew."""
    head, mark, body = (DOCS / "configuration.md").read_text().partition(MARK)
    assert head
    assert mark
    assert body == "\n" + reference(KINDS)


@pytest.mark.parametrize("number", range(3), ids=["analysis-platform", "database-platform", "queue"])
def test_each_worked_example_is_a_configuration(tmp_path: Path, number: int) -> None:
    examples = blocks(DOCS / "adapting.md", "yaml")
    assert len(examples) == 3
    settings = configured(examples[number], tmp_path)
    assert settings.jobs
    assert all("tokens_file: there is no file" in warning for warning in settings.warnings)


def test_a_mistake_in_an_example_would_be_seen(tmp_path: Path) -> None:
    example = blocks(DOCS / "adapting.md", "yaml")[0]
    with pytest.raises(ConfigurationError, match="orphan_task"):
        configured(example.replace("kind: orphan_tasks", "kind: orphan_task"), tmp_path)


def test_the_upgrade_notes_name_the_old_variables() -> None:
    named = re.findall(r"^\| `(MAINTENANCE_\w+)`", (DOCS / "upgrading.md").read_text(), re.MULTILINE)
    assert named == list(NAMES)


@pytest.mark.parametrize("page", ["deployment"])
def test_it_names_the_sections_that_need_a_restart(page: str) -> None:
    from agent.app import FIXED  # noqa: PLC0415 - loads all of the service

    text = " ".join((DOCS / f"{page}.md").read_text().split())
    *first, last = (f"`{name}`" for name in FIXED)
    assert f"{', '.join(first)} and {last}" in text


# --- rules


def test_the_table_of_caps_is_what_the_kinds_say() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \|", (DOCS / "safety.md").read_text(), re.MULTILINE
    )
    said = {
        kind: Limit(items=int(items.replace(",", "")), fraction=float(fraction), floor=int(floor.replace(",", "")))
        for kind, items, fraction, floor in rows
    }
    assert said == {str(kind.model_fields["kind"].default): kind.limits for kind in KINDS if kind.scope == "shared"}


def test_the_table_of_exit_codes_is_what_the_command_line_says() -> None:
    rows = re.findall(r"^\| (\d) \| (.*) \|$", (DOCS / "operations.md").read_text(), re.MULTILINE)
    said = {code: meaning.replace("`", "") for code, meaning in rows}
    assert said == dict(re.findall(r"^  (\d)  (.*)$", EXIT_CODES, re.MULTILINE)) | {"2": said["2"]}


def test_every_kind_is_on_the_first_page() -> None:
    first_table = (DOCS / "index.md").read_text().partition("## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", first_table, re.MULTILINE)
    assert named == [str(kind.model_fields["kind"].default) for kind in KINDS]


# --- the API


def test_the_api_page_lists_every_endpoint() -> None:
    text = (DOCS / "http-api.md").read_text()
    said = set(re.findall(r"`(GET|POST) (/[^`?]*)`", text))
    known = {(endpoint.method, template(endpoint.path)) for endpoint in ENDPOINTS}
    assert said == {pair for pair in known if not pair[1].startswith("/static/")}


def test_the_api_page_lists_every_problem() -> None:
    text = (DOCS / "http-api.md").read_text().partition("## Errors")[2]
    rows = dict(re.findall(r"^\| (\d{3}) \| (.*) \|$", text, re.MULTILINE))
    said = {(kind, int(status)) for status, kinds in rows.items() for kind in re.findall(r"`([a-z-]+)`", kinds)}
    assert said == {(kind, status) for kind, (status, _) in TITLES.items()}


# --- writing a job


def test_the_example_of_a_kind_is_one(tmp_path: Path) -> None:
    """Its code runs, its configuration loads, and the reference knows its keys."""
    page = DOCS / "writing-a-job.md"
    (code,), (text,) = blocks(page, "python"), blocks(page, "yaml")
    module: dict[str, Any] = {"__name__": "agent.jobs.idle_sessions"}
    exec(compile(code, str(page), "exec"), module)  # noqa: S102 - our own example, which this test is about
    kind: type[Job] = module["IdleSessions"]
    kind.model_rebuild(_types_namespace=module)
    job = configured(text, tmp_path, (*KINDS, kind)).jobs["old-sessions"]
    assert job.kind == "idle_sessions"
    assert job.cron == "0 4 * * *"
    assert "`idle`" in reference((*KINDS, kind))


def test_the_example_of_a_kind_says_the_same_when_it_looks_and_when_it_writes() -> None:
    code = blocks(DOCS / "writing-a-job.md", "python")[0]
    uses: Mapping[str, int] = {word: code.count(word) for word in ("self._conditions(now)", "Condition(")}
    assert uses["self._conditions(now)"] == 3


# --- the bill of materials, and what the policy promises


def test_the_security_policy_supports_the_version_of_the_project() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text()
    version = next(line.split('"')[1] for line in project.splitlines() if line.startswith("version = "))
    assert f"| {version.rpartition('.')[0]}.x | yes |" in (REPOSITORY / "SECURITY.md").read_text()
