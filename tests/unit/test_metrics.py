"""The metrics: names and closed label sets as the contract has them, every series from the start."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent import metrics as module
from agent.cluster import Reason
from agent.metrics import Metrics

ROOT = Path(__file__).parents[2]
AT = dt.datetime(2026, 11, 22, 10, tzinfo=dt.UTC)
# The contract: each name with its labels.
CONTRACT = {
    "build_info": {"version"},
    "runs_total": {"job_name", "outcome"},
    "run_duration_seconds": {"job_name"},
    "run_in_progress": {"job_name"},
    "run_started_timestamp_seconds": {"job_name"},
    "run_timeout_seconds": {"job_name"},
    "last_run_timestamp_seconds": {"job_name"},
    "last_success_timestamp_seconds": {"job_name"},
    "next_run_timestamp_seconds": {"job_name"},
    "schedule_interval_seconds": {"job_name"},
    "missed_runs_total": {"job_name"},
    "job_enabled": {"job_name"},
    "job_paused": {"job_name"},
    "found": {"job_name", "what"},
    "oldest_found_age_seconds": {"job_name"},
    "changed_total": {"job_name", "action"},
    "item_failures_total": {"job_name"},
    "refusals_total": {"job_name", "guard"},
    "held": {"job_name", "reason"},
    "lease_held": {"job_name"},
    "throttled_seconds_total": {"job_name", "reason"},
    "archive_bytes": set(),
    "archive_limit_bytes": set(),
    "allocation_cpu_cores": {"provider", "view"},
    "allocation_memory_bytes": {"provider", "view"},
    "allocation_storage_bytes": {"provider", "view"},
    "audit_up": {"provider"},
    "client_cache_entries": set(),
    "client_cache_requests_total": {"result"},
    "client_cache_evictions_total": {"reason"},
    "client_cache_close_failures_total": set(),
    "client_cache_connect_seconds": set(),
    "dependency_up": {"dependency"},
    "mongodb_command_duration_seconds": {"command"},
    "mongodb_command_failures_total": {"command"},
    "http_requests_total": {"method", "route", "code"},
    "http_request_duration_seconds": {"route"},
    "event_loop_lag_seconds": set(),
    "config_last_reload_successful": set(),
    "config_last_reload_success_timestamp_seconds": set(),
}


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock of the test."""
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Iterator[Metrics]:
    """The metrics of an agent with two jobs."""
    made = Metrics("1.2.3", ["orphan_apps", "old_tasks"], monotonic=clock)
    yield made
    made.close()


def series(metrics: Metrics) -> dict[str, float]:
    """Every series of ours by its name and labels, in one line each."""
    found = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name.removeprefix('maintenance_')}{{{labels}}}"] = sample.value
    return found


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The value of one series, or nothing where it does not exist."""
    return metrics.registry.get_sample_value(f"maintenance_{name}", labels)


async def text(metrics: Metrics) -> str:
    """The exposition in the text format."""
    body, _ = await metrics.render("", "")
    return body.decode()


# -------------------------------------------------------------------------------------------------------- the contract


def test_names_and_labels_are_those_of_the_contract(metrics: Metrics) -> None:
    """No family is missing, none is more, and none has other labels."""
    assert {spec.name: set(spec.labels) for spec in metrics.specs} == CONTRACT


def test_no_label_is_one_that_prometheus_sets(metrics: Metrics) -> None:
    """A label named job or instance would be renamed by the scrape."""
    forbidden = {"job", "instance", "namespace", "pod", "container", "endpoint"}
    for family in metrics.registry.collect():
        for sample in family.samples:
            assert not forbidden & set(sample.labels), sample.name


def test_every_series_of_a_job_exists_from_the_start(metrics: Metrics) -> None:
    """A rate over the first failure needs the zero before it."""
    found = series(metrics)
    for outcome in ("succeeded", "failed", "timed_out", "refused", "interrupted", "skipped"):
        assert found[f"runs_total{{job_name=orphan_apps,outcome={outcome}}}"] == 0
    for guard in ("root", "targets", "cap", "archive"):
        assert found[f"refusals_total{{guard={guard},job_name=old_tasks}}"] == 0
    assert found["last_success_timestamp_seconds{job_name=old_tasks}"] == 0
    assert found["run_duration_seconds_count{job_name=old_tasks}"] == 0
    assert found["mongodb_command_failures_total{command=find}"] == 0
    assert found["client_cache_requests_total{result=hit}"] == 0
    assert found["dependency_up{dependency=mongodb}"] == 0


async def test_there_are_no_created_series_and_the_process_is_there(metrics: Metrics) -> None:
    """``*_created`` doubles every counter for nothing; the client's own collectors are included."""
    exposition = await text(metrics)
    assert "_created" not in exposition
    assert {"process_cpu_seconds_total", "python_gc_collections_total", "python_info"} <= {
        sample.name for family in text_string_to_metric_families(exposition) for sample in family.samples
    }


async def test_promtool_finds_nothing_to_say(metrics: Metrics) -> None:
    """Prometheus' own linter on names, units and help texts."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: the package prometheus)")
    metrics.set_routes([("GET", "/livez", [200, 503])])
    metrics.allocation("p1", "cpu", "booked", 1)
    metrics.audit_up("p1", up=True)
    check = await asyncio.to_thread(
        subprocess.run,
        [promtool, "check", "metrics"],
        input=(await text(metrics)).encode(),
        capture_output=True,
        check=False,
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


def test_the_reference_is_the_committed_one() -> None:
    """docs/metrics.md says what the code does; `python -m agent.metrics docs/metrics.md` writes it anew."""
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == module.reference()


def test_the_reference_names_every_family_and_closed_set() -> None:
    """Names, help texts and values of labels."""
    reference = module.reference()
    for name in CONTRACT:
        assert f"### `maintenance_{name}`" in reference
    assert "`succeeded`, `failed`, `timed_out`, `refused`, `interrupted`, `skipped`" in reference


# ------------------------------------------------------------------------------------------------------------ the jobs


def test_a_run_is_in_progress_until_it_ends_and_then_counted(metrics: Metrics) -> None:
    """Outcome, time, changes and failures of items."""
    metrics.run_started("orphan_apps")
    assert value(metrics, "run_in_progress", job_name="orphan_apps") == 1
    assert value(metrics, "run_started_timestamp_seconds", job_name="orphan_apps") == pytest.approx(time.time(), abs=60)
    metrics.run_ended("orphan_apps", "succeeded", 1.5, {"deleted": 28, "restored": 1}, 2, None)
    assert value(metrics, "run_in_progress", job_name="orphan_apps") == 0
    assert value(metrics, "run_started_timestamp_seconds", job_name="orphan_apps") == 0
    assert value(metrics, "runs_total", job_name="orphan_apps", outcome="succeeded") == 1
    assert value(metrics, "run_duration_seconds_sum", job_name="orphan_apps") == 1.5
    assert value(metrics, "changed_total", job_name="orphan_apps", action="deleted") == 28
    assert value(metrics, "changed_total", job_name="orphan_apps", action="restored") == 1
    assert value(metrics, "item_failures_total", job_name="orphan_apps") == 2
    assert value(metrics, "refusals_total", job_name="orphan_apps", guard="cap") == 0


def test_a_refusal_names_its_guard(metrics: Metrics) -> None:
    """A refused run counts under its outcome and under the guard."""
    metrics.run_started("orphan_apps")
    metrics.run_ended("orphan_apps", "refused", 0.1, {}, 0, "root")
    assert value(metrics, "runs_total", job_name="orphan_apps", outcome="refused") == 1
    assert value(metrics, "refusals_total", job_name="orphan_apps", guard="root") == 1


def test_what_did_not_run_is_counted(metrics: Metrics) -> None:
    """Skipped and missed runs, pauses, and the lease."""
    metrics.skipped("old_tasks")
    metrics.missed("old_tasks")
    metrics.missed("old_tasks", 3)
    metrics.throttled("old_tasks", "lag", 1.5)
    metrics.lease("old_tasks", held=True)
    assert value(metrics, "runs_total", job_name="old_tasks", outcome="skipped") == 1
    assert value(metrics, "missed_runs_total", job_name="old_tasks") == 4
    assert value(metrics, "throttled_seconds_total", job_name="old_tasks", reason="lag") == 1.5
    assert value(metrics, "lease_held", job_name="old_tasks") == 1


def test_the_state_of_a_job_follows_schedule_and_journal(metrics: Metrics) -> None:
    """What a mapping leaves out goes back to zero, and so does an instant that is not known."""
    metrics.job_state("old_tasks", enabled=True, paused=False, interval_seconds=3600, next_run=AT)
    metrics.journal_state(
        "old_tasks", found={"expired": 5}, held={"hold": 2}, last_run=AT, last_success=AT, oldest_found_age=90.0
    )
    assert value(metrics, "next_run_timestamp_seconds", job_name="old_tasks") == AT.timestamp()
    assert value(metrics, "schedule_interval_seconds", job_name="old_tasks") == 3600
    assert value(metrics, "job_enabled", job_name="old_tasks") == 1
    assert value(metrics, "found", job_name="old_tasks", what="expired") == 5
    assert value(metrics, "held", job_name="old_tasks", reason="hold") == 2
    assert value(metrics, "oldest_found_age_seconds", job_name="old_tasks") == 90
    metrics.job_state("old_tasks", enabled=False, paused=True, interval_seconds=None, next_run=None)
    metrics.journal_state("old_tasks", found={}, held={}, last_run=AT, last_success=None, oldest_found_age=None)
    assert value(metrics, "next_run_timestamp_seconds", job_name="old_tasks") == 0
    assert value(metrics, "job_paused", job_name="old_tasks") == 1
    assert value(metrics, "found", job_name="old_tasks", what="expired") == 0
    assert value(metrics, "held", job_name="old_tasks", reason="hold") == 0
    assert value(metrics, "last_success_timestamp_seconds", job_name="old_tasks") == 0
    assert value(metrics, "last_run_timestamp_seconds", job_name="old_tasks") == AT.timestamp()


def test_what_alerts_compare_with_is_told(metrics: Metrics) -> None:
    """The time-out of a run, and how full the archive is."""
    metrics.job_state(
        "old_tasks", enabled=True, paused=False, interval_seconds=3600, next_run=AT, run_timeout_seconds=600
    )
    metrics.archive_state(archived=1700, limit=2000)
    assert value(metrics, "run_timeout_seconds", job_name="old_tasks") == 600
    assert value(metrics, "archive_bytes") == 1700
    assert value(metrics, "archive_limit_bytes") == 2000


def test_a_reload_brings_and_takes_the_series_of_jobs(metrics: Metrics) -> None:
    """A vanished job leaves no series behind; a new one has all from the start; the others keep their counts."""
    metrics.skipped("old_tasks")
    before = {name for name in series(metrics) if "job_name=orphan_apps" in name}
    metrics.set_jobs(["old_tasks", "new_job"])
    after = series(metrics)
    assert not [name for name in after if "job_name=orphan_apps" in name]
    assert {name.replace("job_name=new_job", "job_name=orphan_apps") for name in after if "new_job" in name} == before
    assert value(metrics, "runs_total", job_name="old_tasks", outcome="skipped") == 1


def test_a_run_of_a_vanished_job_leaves_no_trace(metrics: Metrics) -> None:
    """It may end after the reload that removed its job, and the job may come back before it does."""
    metrics.run_started("orphan_apps")
    metrics.set_jobs(["old_tasks"])
    metrics.missed("orphan_apps")
    metrics.lease("orphan_apps", held=False)
    metrics.throttled("orphan_apps", "pace", 1)
    metrics.job_state("orphan_apps", enabled=True, paused=False, interval_seconds=1, next_run=None)
    metrics.journal_state("orphan_apps", found={}, held={}, last_run=None, last_success=None, oldest_found_age=None)
    metrics.skipped("orphan_apps")
    assert not [name for name in series(metrics) if "orphan_apps" in name]
    metrics.set_jobs(["old_tasks", "orphan_apps"])
    assert value(metrics, "run_in_progress", job_name="orphan_apps") == 1
    metrics.run_ended("orphan_apps", "interrupted", 1, {}, 0, None)
    assert value(metrics, "run_in_progress", job_name="orphan_apps") == 0


# ----------------------------------------------------------------------------------------------- the agent's own needs


def test_commands_beyond_the_closed_set_are_others(metrics: Metrics) -> None:
    """The driver sends housekeeping commands; a label takes none of their names."""
    metrics.command("find", 0.01, ok=True)
    metrics.command("buildInfo", 0.01, ok=False)
    assert value(metrics, "mongodb_command_duration_seconds_count", command="find") == 1
    assert value(metrics, "mongodb_command_failures_total", command="find") == 0
    assert value(metrics, "mongodb_command_failures_total", command="other") == 1


def test_commands_may_be_told_from_many_threads(metrics: Metrics) -> None:
    """The driver calls from its own threads; nothing is lost."""

    def tell() -> None:
        for _ in range(1000):
            metrics.command("find", 0.001, ok=False)

    threads = [threading.Thread(target=tell) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(metrics, "mongodb_command_failures_total", command="find") == 8000


def test_requests_are_counted_under_known_routes_only(metrics: Metrics) -> None:
    """A path that a client invents makes no series."""
    metrics.set_routes([("GET", "/livez", [200])])
    assert value(metrics, "http_requests_total", method="GET", route="/livez", code="200") == 0
    metrics.http("GET", "/livez", 200, 0.001)
    metrics.http("GET", None, 404, 0.001)
    metrics.http("BREW", "/invented", 405, 0.001)
    assert value(metrics, "http_requests_total", method="GET", route="/livez", code="200") == 1
    assert value(metrics, "http_requests_total", method="GET", route="other", code="404") == 1
    assert value(metrics, "http_requests_total", method="other", route="other", code="405") == 1
    assert value(metrics, "http_request_duration_seconds_count", route="other") == 2


def test_dependencies_and_configuration(metrics: Metrics) -> None:
    """A bad configuration keeps the instant of the last good one."""
    metrics.dependency("mongodb", up=True)
    metrics.config_reloaded(True, AT)
    metrics.config_reloaded(False, AT + dt.timedelta(hours=1))
    assert value(metrics, "dependency_up", dependency="mongodb") == 1
    assert value(metrics, "config_last_reload_successful") == 0
    assert value(metrics, "config_last_reload_success_timestamp_seconds") == AT.timestamp()


def test_the_worst_lag_is_shown_for_a_minute(metrics: Metrics, clock: Clock) -> None:
    """Scrapers that come at different times all see it; afterwards the next worst."""
    metrics.loop_lag(0.2)
    clock.now += 30
    metrics.loop_lag(0.1)
    metrics.loop_lag(-0.1)
    assert value(metrics, "event_loop_lag_seconds") == 0.2
    assert value(metrics, "event_loop_lag_seconds") == 0.2
    clock.now += 31
    assert value(metrics, "event_loop_lag_seconds") == 0.1
    clock.now += 60
    assert value(metrics, "event_loop_lag_seconds") == 0


def test_a_provider_comes_and_goes(metrics: Metrics) -> None:
    """An amount that is not known has no series, nor has a provider that is forgotten."""
    metrics.allocation("p1", "cpu", "capacity", 16)
    metrics.allocation("p1", "memory", "used", 2.0**30)
    metrics.allocation("p1", "memory", "used", None)
    metrics.allocation("p1", "storage", "owed", None)
    metrics.audit_up("p1", up=False)
    assert value(metrics, "allocation_cpu_cores", provider="p1", view="capacity") == 16
    assert value(metrics, "allocation_memory_bytes", provider="p1", view="used") is None
    assert value(metrics, "audit_up", provider="p1") == 0
    metrics.forget_provider("p1")
    metrics.forget_provider("p1")
    assert not [name for name in series(metrics) if "provider=p1" in name]


def test_the_client_cache_tells_what_it_does(metrics: Metrics) -> None:
    """Look-ups, evictions, failures to close, connects and size."""
    metrics.cache.entries(3)
    metrics.cache.requested("miss")
    metrics.cache.evicted("idle")
    metrics.cache.close_failed()
    metrics.cache.connected(0.2)
    assert value(metrics, "client_cache_entries") == 3
    assert value(metrics, "client_cache_requests_total", result="miss") == 1
    assert value(metrics, "client_cache_evictions_total", reason="idle") == 1
    assert value(metrics, "client_cache_close_failures_total") == 1
    assert value(metrics, "client_cache_connect_seconds_count") == 1


def test_every_reason_of_an_eviction_has_its_series(metrics: Metrics) -> None:
    """The closed set is the cache's own."""
    assert set(get_args(module.Eviction)) == {reason.value for reason in Reason}
    for reason in Reason:
        metrics.cache.evicted(reason)
        assert value(metrics, "client_cache_evictions_total", reason=reason.value) == 1


# ---------------------------------------------------------------------------------------------------------- the scrapes


async def test_a_scrape_gets_the_form_that_it_accepts(metrics: Metrics) -> None:
    """OpenMetrics where it is asked for, the text format for everybody else, whatever the header says."""
    openmetrics = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8,text/plain;version=1.0.0;q=0.3"
    body, headers = await metrics.render(openmetrics, "")
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    for accept in ("", "*/*", "text/html", "text/plain; version=x", "application/json;;;,,"):
        body, headers = await metrics.render(accept, "")
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert not body.endswith(b"# EOF\n")


async def test_a_scrape_is_compressed_where_it_accepts_that(metrics: Metrics) -> None:
    """By name, but not with the weight of nothing."""
    for accepted in ("gzip", "br, gzip;q=0.5", "*"):
        body, headers = await metrics.render("", accepted)
        assert headers["Content-Encoding"] == "gzip"
        assert b"maintenance_build_info" in gzip.decompress(body)
    for refused in ("", "br", "gzip;q=0", "gzip;q=0.0"):
        body, headers = await metrics.render("", refused)
        assert "Content-Encoding" not in headers


async def test_scrapes_at_the_same_time_share_one_text_for_a_second(metrics: Metrics, clock: Clock) -> None:
    """A second later the text is made anew."""
    bodies = await asyncio.gather(*(metrics.render("", "") for _ in range(50)))
    assert len({id(body) for body, _ in bodies}) == 1
    metrics.skipped("old_tasks")
    clock.now += 0.9
    assert (await metrics.render("", ""))[0] is bodies[0][0]
    clock.now += 0.2
    assert (await metrics.render("", ""))[0] != bodies[0][0]


async def test_a_scrape_that_goes_away_does_not_disturb_the_others(metrics: Metrics) -> None:
    """Who waits for the same text still gets it."""
    first = asyncio.create_task(metrics.render("", ""))
    await asyncio.sleep(0)
    second = asyncio.create_task(metrics.render("", ""))
    await asyncio.sleep(0)
    first.cancel()
    body, _ = await second
    assert b"maintenance_build_info" in body


async def test_the_text_is_made_off_the_event_loop(metrics: Metrics) -> None:
    """The collectors run in the thread of the metrics."""
    threads: set[str] = set()

    class Watching:
        def collect(self) -> Iterator[None]:
            threads.add(threading.current_thread().name)
            yield from ()

    metrics.registry.register(Watching())  # type: ignore[arg-type] # it collects nothing
    threads.clear()
    await metrics.render("", "")
    (name,) = threads
    assert re.fullmatch(r"metrics_\d+", name)
