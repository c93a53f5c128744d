"""What may be typed, which exit code a run makes, and how text that is not ours is shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agent.cli import arguments, edge, output, process, runs
from agent.errors import AgentError, ClusterUnavailableError, StoreDeniedError, StoreUnavailableError, VolumeError

RUN: dict[str, Any] = {
    "_id": "20260101T000000-0123456789",
    "pass": "20260101T000000-9876543210",
    "job": "old_tasks",
    "trigger": "cli",
    "dry_run": False,
    "outcome": "succeeded",
    "reason": None,
    "seconds": 0.25,
    "population": 1234,
    "found": {},
    "held": {},
    "changed": {},
    "failed": 0,
    "complete": True,
    "would_refuse": None,
    "sample": [],
}


# ----------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "line",
    ["--config a.yaml --json status", "status --config a.yaml --json", "--json status --config a.yaml"],
)
def test_the_options_of_all_commands_stand_before_or_after_the_command(line: str) -> None:
    given = arguments.parse(line.split())
    assert (given.command, given.config, given.json) == ("status", Path("a.yaml"), True)


def test_without_options_there_is_no_file_and_a_table() -> None:
    given = arguments.parse(["status"])
    assert (given.config, given.json) == (None, False)


@pytest.mark.parametrize(
    "line", ["run a --accept root,cap", "run --accept root --accept cap a", "run a --accept=cap,root"]
)
def test_consents_are_repeated_or_listed(line: str) -> None:
    assert arguments.parse(line.split()).accept == frozenset({"root", "cap"})


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("", "the following arguments are required: COMMAND"),
        ("runn", "invalid choice: 'runn'"),
        ("run", "name the jobs to run, or give --all"),
        ("run a --all", "name jobs, or give --all for all that are enabled, not both"),
        ("run a --accept everything", "'everything' is no guard to consent to; there are: root, targets, cap"),
        ("run a --accept archive", "'archive' is no guard to consent to"),
        ("run a --dry", "unrecognized arguments: --dry"),
        ("runs --limit 0", "'0' is no number from 1 to 1000"),
        ("runs --limit 1001", "'1001' is no number from 1 to 1000"),
        ("runs --limit ٣", "is no number from 1 to 1000"),
        ("runs --outcome good", "invalid choice: 'good'"),
        ("runs --trigger me", "invalid choice: 'me'"),
        ("explain old_tasks", "the following arguments are required: ID"),
    ],
)
def test_what_means_nothing_is_refused_with_2(line: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        arguments.parse(line.split())
    assert refused.value.code == 2
    assert sentence in capsys.readouterr().err


def test_an_id_may_look_like_anything() -> None:
    for id in ("-5", '{"$oid": "507f1f77bcf86cd799439011"}', "", "a b"):
        assert arguments.parse(["explain", "old_tasks", id]).id == id


# ---------------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    "changes, code",
    [
        ({}, 0),
        ({"changed": {"deleted": 3}, "found": {"expired": 3}}, 0),
        ({"failed": 1, "found": {"expired": 1}}, 0),
        ({"outcome": "failed"}, 1),
        ({"outcome": "timed_out"}, 1),
        ({"outcome": "interrupted"}, 1),
        ({"outcome": "skipped"}, 1),
        ({"outcome": None}, 1),
        ({"trigger": "restore", "failed": 1}, 1),
        ({"trigger": "restore", "changed": {"restored": 1}}, 0),
        ({"dry_run": True}, 0),
        ({"dry_run": True, "found": {"malformed": 1}}, 3),
        ({"dry_run": True, "found": {"orphan": 9}, "would_refuse": "cap"}, 3),
        ({"dry_run": True, "outcome": "refused"}, 4),
        ({"outcome": "refused", "found": {"orphan": 9}}, 4),
    ],
)
def test_the_exit_code_of_a_run(changes: dict[str, Any], code: int) -> None:
    assert runs.exit_code([{**RUN, **changes}]) == code


def test_of_several_runs_the_first_of_5_1_4_3_counts() -> None:
    found = {**RUN, "dry_run": True, "found": {"orphan": 1}}
    refused, failed = {**RUN, "outcome": "refused"}, {**RUN, "outcome": "failed"}
    assert runs.exit_code([]) == 0
    assert runs.exit_code([RUN, found]) == 3
    assert runs.exit_code([found, refused]) == 4
    assert runs.exit_code([refused, failed, found]) == 1
    assert runs.exit_code([refused, failed, found], [StoreUnavailableError("away")]) == 5


@pytest.mark.parametrize(
    "error, code",
    [
        (StoreUnavailableError("away"), 5),
        (ClusterUnavailableError("away"), 5),
        (VolumeError("no answer"), 5),
        (StoreDeniedError("no"), 1),
        (AgentError("full"), 1),
    ],
)
def test_only_a_dependency_that_is_away_is_unreachable(error: AgentError, code: int) -> None:
    assert runs.exit_code([{**RUN, "outcome": "failed"}], [error]) == code


# -------------------------------------------------------------------------------------------------------------- output


def _shown(record: dict[str, Any], width: int = 100) -> str:
    to = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    runs.show([record], to)
    file = to.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_what_a_database_holds_is_neither_markup_nor_moves_the_cursor() -> None:
    sample = [{"id": "[red]\x1b[2Jid\n:boom:\u202e", "action": "deleted", "reason": "\x07[/red]"}]
    shown = _shown({**RUN, "dry_run": True, "found": {"expired": 1}, "sample": sample, "reason": "[bold]\x9b"})
    assert '"[red]\\u001b[2Jid\\n:boom:\\u202e"' in shown
    assert "\\x07[/red]" in shown
    assert "old_tasks: [bold]\\x9b" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e"}


def test_what_can_be_done_next_is_said() -> None:
    sample = [{"id": 1, "action": "deleted", "reason": "old"}]
    planned = _shown({**RUN, "dry_run": True, "found": {"expired": 1}, "sample": sample})
    assert f"apply this plan: maintenance-agent apply {RUN['pass']}" in planned
    changed = _shown({**RUN, "found": {"expired": 1}, "changed": {"deleted": 1}})
    assert f"undo old_tasks: maintenance-agent restore {RUN['_id']}" in changed
    assert "undo" not in _shown({**RUN, "trigger": "restore", "changed": {"restored": 1}})
    assert "undo" not in _shown({**RUN, "changed": {"evicted": 1}})
    assert "there is more to do" in _shown({**RUN, "complete": False})


def test_the_process_of_its_own_collects_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that imports the command line."""
    calmed: list[bool] = []
    monkeypatch.setattr(process, "calm_collector", lambda: calmed.append(True))
    monkeypatch.setattr(process, "cut_after", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["maintenance-agent", "schema"])
    assert (edge.run(["schema"]), calmed) == (0, [])
    assert (edge.run(None), calmed) == (0, [True])


def test_numbers_times_and_ids_are_for_people() -> None:
    now = "2026-01-03T00:00:00.000Z"
    assert output.counts({"orphan": 1234, "malformed": 1}) == "1,234 orphan, 1 malformed"
    assert output.counts({}) == "-"
    assert output.instant("2026-01-02T03:04:05.678Z") == "2026-01-02 03:04:05Z"
    assert [output.ago(then, now) for then in ("2026-01-02T23:59:59.000Z", "2026-01-02T23:59:00Z", None)] == [
        "1s ago",
        "1m ago",
        "-",
    ]
    assert [output.ago(then, now) for then in ("2026-01-01T00:00:00Z", "2026-01-02T22:00:01Z", now)] == [
        "2d ago",
        "1h ago",
        "0s ago",
    ]
    assert output.shown({"$oid": "507f1f77bcf86cd799439011"}) == "507f1f77bcf86cd799439011"
    assert output.shown({"$date": "x", "a": 1}) == '{"$date": "x", "a": 1}'
    assert output.shown(7) == "7"
