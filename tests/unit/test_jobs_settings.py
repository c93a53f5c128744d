"""The kinds' settings: defaults as the design has them, and what is refused at start, with words that help."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from pydantic import ValidationError

from agent.job import Item, Job, Limit, Report
from agent.jobs import KINDS
from agent.jobs.orphan_records import OrphanRecords
from agent.jobs.orphan_tasks import OrphanTasks
from agent.jobs.retention import Retention
from agent.jobs.stuck_tasks import StuckTasks
from agent.runner import in_cascade
from tests.harness import job_of

MINUTE, HOUR, DAY = dt.timedelta(minutes=1), dt.timedelta(hours=1), dt.timedelta(days=1)
NOON = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)


def records(**settings: Any) -> OrphanRecords:
    job = job_of(kind="orphan_records", **settings)
    assert isinstance(job, OrphanRecords)
    return job


def refused(words: str, **settings: Any) -> None:
    """The settings of a job are refused with these words."""
    with pytest.raises(ValidationError, match=words):
        job_of(**settings)


# --- defaults


def test_the_defaults_are_those_of_the_design() -> None:
    """A job needs only what differs."""
    one = records()
    assert (one.collection, one.path) == ("generated_applications", "generated/apps/{model_slug}/app{app_number}")
    assert (str(one.root), one.marker, one.grace, one.quarantine) == ("/data", None, 10 * MINUTE, 10 * MINUTE)
    assert one.limit == Limit(items=1000, fraction=0.25, floor=50)
    two = job_of(kind="orphan_tasks")
    assert isinstance(two, OrphanTasks)
    assert (two.collection, two.targets) == ("analysis_tasks", "generated_applications")
    assert two.match == {"target_model": "model_slug", "target_app_number": "app_number"}
    assert (two.grace, two.quarantine) == (MINUTE, dt.timedelta(0))
    assert two.message == "Target app no longer exists - cancelled by maintenance service"
    assert two.limit == Limit(items=10_000, fraction=1.0, floor=0)
    three = job_of(kind="stuck_tasks")
    assert isinstance(three, StuckTasks)
    assert (three.timeout, three.pending_timeout) == (HOUR, HOUR)
    assert three.limit == Limit(items=10_000, fraction=0.5, floor=50)
    four = job_of(kind="retention")
    assert isinstance(four, Retention)
    assert four.keep == 30 * DAY
    assert four.limit == Limit(items=1_000_000, fraction=0.5, floor=1000)
    assert four.truncates


def test_a_pass_goes_in_cascade_order_and_keeps_the_order_of_one_kind() -> None:
    """Records before the tasks that target them, tasks before their retention."""
    mixed = [
        job_of(kind=kind.model_fields["kind"].default, name=f"j{number}") for number, kind in enumerate(KINDS[::-1])
    ]
    mixed += [job_of(kind="orphan_tasks", name="second"), job_of(kind="orphan_tasks", name="third")]
    ordered = in_cascade(mixed)
    kinds = [job.kind for job in ordered]
    assert list(dict.fromkeys(kinds)) == [kind.model_fields["kind"].default for kind in KINDS]
    assert [job.name for job in ordered if job.kind == "orphan_tasks"][1:] == ["second", "third"]


def test_a_limit_says_only_what_differs_from_the_kinds_own() -> None:
    """The rest stays the kind's."""
    assert records(limit={"items": 5}).limit == Limit(items=5, fraction=0.25, floor=50)
    refused("fraction", kind="orphan_records", limit={"fraction": 1.5})
    refused("extra|not permitted|forbidden", kind="orphan_records", limit={"item": 5})


# --- orphan_records


@pytest.mark.parametrize(
    "path",
    [
        "{a}",
        "{a.b.c}",
        "x/{a}",
        "generated/{a}-{b}/app{c}",
        "...{a}",
        "a..b/{c}",
        "{{literal}}/{a}",
    ],
)
def test_a_template_takes_fields_in_braces(path: str) -> None:
    """Dotted ones too; doubled braces are braces."""
    assert records(path=path).path == path


@pytest.mark.parametrize(
    "path, words",
    [
        ("", "relative path"),
        ("/{a}", "relative path"),
        ("../{a}", "relative path"),
        ("x/../{a}", "relative path"),
        ("{a}/..", "relative path"),
        ("no/fields", "at least one field"),
        ("{}", "field names"),
        ("{0!r}", "field names"),
        ("{a:>5}", "field names"),
        ("{a!s}", "field names"),
        ("{a[0]}", "field names"),
        ("{a.}", "field names"),
        ("{a b}", "field names"),
        ("{a", "not a template"),
        ("a}", "not a template"),
        ("{a{b}}", "field names|not a template"),
    ],
)
def test_a_template_that_is_none_is_refused(path: str, words: str) -> None:
    """Nothing but fields in a relative path."""
    refused(words, kind="orphan_records", path=path)


@pytest.mark.parametrize("root", ["relative", "", "."])
def test_a_root_must_be_absolute(root: str) -> None:
    """Else it would depend on where the agent was started."""
    refused("absolute", kind="orphan_records", root=root)


@pytest.mark.parametrize("marker", ["/etc/passwd", "../x", "a/../../x", "", "/"])
def test_a_marker_must_lie_under_the_root(marker: str) -> None:
    """It proves the volume, so it must be on it."""
    refused("relative path", kind="orphan_records", marker=marker)


ODD_VALUES: list[tuple[Any, str | None]] = [
    ("a", "a"),
    ("Ünï code", "Ünï code"),
    ("日本", "日本"),
    ("-rf", "-rf"),
    ("~", "~"),
    ("a\nb", "a\nb"),
    ("a\\b", "a\\b"),
    ("{x}", "{x}"),
    ("%s", "%s"),
    ("org/model", "org/model"),
    ("...", "..."),
    (3, "3"),
    (0, "0"),
    (-1, "-1"),
    (3.0, "3"),
    (-0.0, "0"),
    (2.0**52, str(2**52)),
    (2.0**53, None),
    (3.5, None),
    (float("nan"), None),
    (float("inf"), None),
    (True, None),
    (None, None),
    ("", None),
    ("a\0b", None),
    ("a\ufffdb", None),
    (b"a", None),
    (["a"], None),
    ({"a": 1}, None),
    (NOON, None),
]


@pytest.mark.parametrize("value, text", ODD_VALUES)
def test_a_directory_is_named_by_text_and_whole_numbers_only(value: Any, text: str | None) -> None:
    """Anything else makes no name: the record is malformed."""
    place = records(path="apps/x{slug}y/z").parts({"_id": 1, "slug": value})
    if text is None:
        assert isinstance(place, Item)
        assert (place.what, place.action) == ("malformed", None)
    else:
        assert place == ("apps", *f"x{text}y".split("/"), "z")


@pytest.mark.parametrize(
    "slug, number, what",
    [
        ("..", 1, "outside"),
        ("../../etc", 1, "outside"),
        ("a/../../..", 1, "outside"),
        ("a/..", 1, "outside"),
        ("/etc", 1, "outside"),
        ("//x", 1, "outside"),
        (".", 1, "malformed"),
        ("a//b", 1, "malformed"),
        ("a/", 1, "malformed"),
        ("a/./b", 1, "malformed"),
    ],
)
def test_no_value_leads_out_of_the_root_or_names_a_directory_in_two_ways(slug: str, number: int, what: str) -> None:
    """It is reported, and nothing is looked up."""
    place = records(path="{slug}/{number}").parts({"_id": 1, "slug": slug, "number": number})
    assert isinstance(place, Item)
    assert (place.what, place.action) == (what, None)
    below = records(path="apps/{slug}/{number}").parts({"_id": 1, "slug": slug, "number": number})
    assert isinstance(below, Item)
    assert below.what in {"outside", "malformed"}


def test_a_reason_stays_short_whatever_the_record_holds() -> None:
    """Reasons stand in run records and logs."""
    job = records(path="{slug}")
    place = job.parts({"_id": 1, "slug": "x/" * 5_000_000})
    assert isinstance(place, Item)
    assert len(place.reason) < 500
    for presence in ("unreadable", "outside", "malformed", "absent"):
        item = job._item({"_id": 1, "slug": "x", "created_at": NOON}, "x" * 5_000_000, presence, NOON + DAY)
        assert item is not None
        assert len(item.reason) < 500


# --- orphan_tasks, stuck_tasks, retention


def test_a_match_names_at_least_one_pair() -> None:
    """Without one every task would have every target."""
    refused("match", kind="orphan_tasks", match={})


def test_limits_by_type_need_the_field_of_the_type() -> None:
    """Else they would silently do nothing."""
    refused("fields.type", kind="stuck_tasks", types={"a": {"timeout": "1m"}})
    refused("fields.type", kind="stuck_tasks", never=["a"])
    assert job_of(kind="stuck_tasks", never=["a"], fields={"type": "type"}).kind == "stuck_tasks"


def test_one_message_may_be_said_alone() -> None:
    """The other stays what it was."""
    job = job_of(kind="stuck_tasks", messages={"failed": "dead"})
    assert isinstance(job, StuckTasks)
    assert job.messages["failed"] == "dead"
    assert job.messages["cancelled"].startswith("Task was pending")


def test_a_retention_that_keeps_everything_is_refused() -> None:
    """And a status that never ends as well."""
    refused("names no status", kind="retention", keep={})
    refused("keep", kind="retention", keep={"running": "1d"})


# --- all of them


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.model_fields["kind"].default)
def test_unknown_keys_are_refused_and_the_job_cannot_be_changed(kind: type[Job]) -> None:
    """A settings object is a value."""
    name = kind.model_fields["kind"].default
    refused("nonsense", kind=name, nonsense=1)
    job = job_of(kind=name)
    with pytest.raises(ValidationError):
        job.enabled = False  # type: ignore[misc]


def test_a_filter_of_the_configuration_narrows_by_all_its_fields() -> None:
    """Extended JSON becomes values; the condition shows the fields that it looks at."""
    job = job_of(kind="retention", where={"tenant": "a", "$or": [{"x": {"$oid": "65e1c0000000000000000000"}}]})
    (narrowing,) = job.narrowing
    assert narrowing.fields == ("tenant",)
    assert str(narrowing.filter["$or"][0]["x"]) == "65e1c0000000000000000000"
    assert job_of(kind="retention").narrowing == []


def test_a_report_keeps_a_hundred_items_and_the_age_of_the_oldest_that_is_to_be_changed() -> None:
    """What is only reported has no age that anybody waits for."""
    report = Report()
    report.finds(Item("x", "malformed", None, "", since=NOON - DAY))
    for number in range(150):
        report.finds(Item(number, "stuck", "failed", "", since=NOON - number * MINUTE))
    assert report.found == {"malformed": 1, "stuck": 150}
    assert len(report.sample) == 100
    assert report.oldest_found_at == NOON - 149 * MINUTE
    report.forget()
    assert dict(report.found) == {}
    assert report.sample == []
    assert [report.oldest_found_at] == [None]
