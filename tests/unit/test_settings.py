"""The layers of the configuration: built-in values, old variables, file, environment, command line."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from agent.errors import ConfigurationError
from agent.settings import Settings, load
from tests.unit.settings_fake import KINDS, FakeJob

HOUR = dt.timedelta(hours=1)
MINUTE = dt.timedelta(minutes=1)


class Load(Protocol):
    """Loads a file of the given text."""

    def __call__(
        self, text: str | None = None, environ: Mapping[str, str] = ..., overrides: Mapping[str, Any] = ...
    ) -> Settings[FakeJob]:
        """The settings."""


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    """``load`` with the fake kinds."""

    def call(
        text: str | None = None, environ: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
    ) -> Settings[FakeJob]:
        path = tmp_path / "maintenance.yaml"
        if text is not None:
            path.write_text(text, encoding="utf-8")
        return load(KINDS, path=path if text is not None else None, environ=environ or {}, overrides=overrides or {})

    return call


def job(settings: Settings[FakeJob], name: str) -> Any:
    """A job, of which a test knows the fields."""
    return settings.jobs[name]


# ----------------------------------------------------------------------------------------------------- built-in values


def test_without_a_file_everything_has_its_default(loaded: Load) -> None:
    """The contract's own table."""
    shown = loaded().shown()
    assert {key: shown[key] for key in ("mongodb", "indexes", "journal", "archive", "schedule", "defaults")} == {
        "mongodb": {"uri": "mongodb://localhost:27017", "uri_file": None, "database": "app"},
        "indexes": "manage",
        "journal": {"keep": "90d"},
        "archive": {"enabled": True, "keep": "7d", "max_size": "2GiB"},
        "schedule": {"every": "1h", "jitter": "30s", "run_on_startup": True, "timezone": "UTC"},
        "defaults": {"enabled": True, "run_timeout": "10m", "dry_run": False, "batch": 1000},
    }
    assert shown["http"] | {"port": 9190, "host": "0.0.0.0", "tokens_file": None} == shown["http"]  # noqa: S104


def test_the_built_in_jobs_are_those_whose_kind_there_is(loaded: Load) -> None:
    """A kind that is not registered has no job; the order is that of the list."""
    settings = loaded()
    assert list(settings.jobs) == ["orphan_apps", "stuck_tasks", "old_tasks", "client_cache"]
    assert settings.schedule_enabled
    assert settings.warnings == []


def test_a_job_takes_what_it_does_not_say_from_the_sections(loaded: Load) -> None:
    """Database, rhythm, and the keys of ``defaults``."""
    settings = loaded(
        """
        mongodb: {database: shop}
        schedule: {every: 2h, run_on_startup: false, timezone: Europe/Berlin}
        defaults: {enabled: false, run_timeout: 5m, dry_run: true, batch: 7}
        jobs:
          plain: {kind: retention}
          own: {kind: retention, database: other, every: 3h, run_on_startup: true, timezone: UTC, enabled: true,
                run_timeout: 1m, dry_run: false, batch: 9}
        """
    )
    plain, own = job(settings, "plain"), job(settings, "own")
    keys = ("name", "database", "every", "run_on_startup", "timezone", "enabled", "run_timeout", "dry_run", "batch")
    assert [getattr(plain, key) for key in keys] == [
        "plain", "shop", 2 * HOUR, False, "Europe/Berlin", False, 5 * MINUTE, True, 7,
    ]  # fmt: skip
    assert [getattr(own, key) for key in keys] == ["own", "other", 3 * HOUR, True, "UTC", True, MINUTE, False, 9]


def test_a_job_with_a_cron_expression_has_no_interval(loaded: Load) -> None:
    """Not the one of the schedule, and not the one of its kind."""
    settings = loaded('jobs: {a: {kind: retention, cron: "0 3 * * 0"}, b: {kind: client_eviction, cron: "@daily"}}')
    assert [(entry.every, entry.cron) for entry in settings.jobs.values()] == [(None, "0 3 * * 0"), (None, "@daily")]


def test_the_rhythm_of_a_kind_is_stronger_than_that_of_the_schedule(loaded: Load) -> None:
    """A kind that says how often it runs was meant so."""
    settings = loaded("{schedule: {every: 2h}, jobs: {a: {kind: client_eviction}, b: {kind: retention, every: null}}}")
    assert [entry.every for entry in settings.jobs.values()] == [5 * MINUTE, 2 * HOUR]


def test_a_jitter_that_nobody_gave_fits_the_shortest_interval(loaded: Load) -> None:
    """Half of it, or slots would overtake each other; a job that is off has no say."""
    settings = loaded("jobs: {a: {kind: retention, every: 10s}, b: {kind: retention, every: 1s, enabled: false}}")
    assert settings.schedule.jitter == dt.timedelta(seconds=5)
    assert loaded("jobs: {a: {kind: retention, every: 1m}}").schedule.jitter == dt.timedelta(seconds=30)


def test_what_a_job_says_of_a_part_leaves_the_rest_of_it(loaded: Load) -> None:
    """Parts with known keys are merged over the kind's; a mapping of free keys is replaced."""
    settings = loaded(
        """
        jobs:
          a: {kind: orphan_records, limit: {items: 5}, fields: {ended: null}, match: {x: y}}
          b: {kind: retention}
        """
    )
    one = job(settings, "a")
    assert (one.limit.items, one.limit.fraction) == (5, 0.5)
    assert (one.fields_.status, one.fields_.ended) == ("status", None)
    assert one.match == {"x": "y"}
    assert job(settings, "b").limit.items == 7


def test_the_jobs_of_the_file_replace_the_built_in_ones(loaded: Load) -> None:
    """In the order of the file."""
    settings = loaded("jobs: {z: {kind: retention}, orphan-apps: {kind: orphan_records, root: /vol}}")
    assert list(settings.jobs) == ["z", "orphan-apps"]
    assert job(settings, "orphan-apps").root == Path("/vol")


def test_no_jobs_at_all_are_allowed_and_odd(loaded: Load) -> None:
    """Somebody may want the page only."""
    settings = loaded("jobs: {}")
    assert settings.jobs == {}
    assert settings.warnings == ["jobs: there are none; nothing will ever be done"]


@pytest.mark.parametrize("word", ["yes", "on", "true", "True", "'yes'"])
def test_the_words_for_true_are_true_where_that_is_asked_for(loaded: Load, word: str) -> None:
    """And stay words elsewhere."""
    settings = loaded(f"{{defaults: {{dry_run: {word}}}, mongodb: {{database: on}}}}")
    assert settings.defaults.dry_run
    assert settings.mongodb.database == "on"


# --------------------------------------------------------------------------------------------------------- environment


@pytest.mark.parametrize(
    "name, text, path, value",
    [
        ("MAINTENANCE_MONGODB__DATABASE", "123", "mongodb.database", "123"),
        ("MAINTENANCE_MONGODB__DATABASE", "true", "mongodb.database", "true"),
        ("MAINTENANCE_HTTP__PORT", "8080", "http.port", 8080),
        ("MAINTENANCE_HTTP__HOST", "::1", "http.host", "::1"),
        ("MAINTENANCE_HTTP__TOKENS_FILE", "", "http.tokens_file", None),
        ("MAINTENANCE_HTTP__TOKENS_FILE", "null", "http.tokens_file", None),
        ("MAINTENANCE_HTTP__BASE_PATH", "", "http.base_path", ""),
        ("MAINTENANCE_HTTP", "{port: 1, host: h}", "http.port", 1),
        ("MAINTENANCE_INDEXES", "check", "indexes", "check"),
        ("MAINTENANCE_LOG__LEVEL", "debug", "log.level", "DEBUG"),
        ("MAINTENANCE_SCHEDULE__EVERY", "90s", "schedule.every", "1m30s"),
        ("MAINTENANCE_SCHEDULE__JITTER", "0", "schedule.jitter", "0s"),
        ("MAINTENANCE_ARCHIVE__MAX_SIZE", "500MB", "archive.max_size", "500MB"),
        ("MAINTENANCE_ARCHIVE__MAX_SIZE", "2048", "archive.max_size", "2KiB"),
        ("MAINTENANCE_ARCHIVE__ENABLED", "no", "archive.enabled", False),
        ("MAINTENANCE_ARCHIVE__ENABLED", "0", "archive.enabled", False),
        ("MAINTENANCE_DEFAULTS__DRY_RUN", "1", "defaults.dry_run", True),
        ("MAINTENANCE_JOBS__A_B__ROOT", "/vol", "jobs.a-b.root", "/vol"),
        ("MAINTENANCE_JOBS__A_B__ENABLED", "off", "jobs.a-b.enabled", False),
        ("MAINTENANCE_JOBS__A_B", "{root: /vol}", "jobs.a-b.root", "/vol"),
        ("MAINTENANCE_JOBS", "{a-b: {root: /vol}}", "jobs.a-b.root", "/vol"),
        ("MAINTENANCE_JOBS__A_B__LIMIT__ITEMS", "5", "jobs.a-b.limit.items", 5),
        ("MAINTENANCE_JOBS__A_B__LIMIT", '{"items": 5}', "jobs.a-b.limit.items", 5),
        ("MAINTENANCE_JOBS__A_B__FIELDS__ENDED", "null", "jobs.a-b.fields.ended", None),
        ("MAINTENANCE_JOBS__A_B__FIELDS__ENDED", "done.at", "jobs.a-b.fields.ended", "done.at"),
        ("MAINTENANCE_JOBS__A_B__MATCH", "{x: y}", "jobs.a-b.match", {"x": "y"}),
        ("MAINTENANCE_JOBS__A_B__MATCH__MODEL", "5", "jobs.a-b.match", {"model": "5", "number": "app"}),
        ("MAINTENANCE_JOBS__A_B__MATCH__NEW", "z", "jobs.a-b.match", {"model": "slug", "number": "app", "new": "z"}),
        ("MAINTENANCE_JOBS__A_B__NEVER", "[x, y]", "jobs.a-b.never", ["x", "y"]),
        ("MAINTENANCE_JOBS__A_B__WHERE", '{"a": {"$oid": "1"}}', "jobs.a-b.where", {"a": {"$oid": "1"}}),
        ("MAINTENANCE_JOBS__A_B__WHERE__TENANT", "5", "jobs.a-b.where", {"tenant": 5}),
        ("MAINTENANCE_JOBS__OLD__KEEP", "5d", "jobs.old.keep", "5d"),
        ("MAINTENANCE_JOBS__OLD__KEEP", "{done: 5d}", "jobs.old.keep", {"done": "5d"}),
        ("MAINTENANCE_JOBS__OLD__KEEP__FAILED", "5d", "jobs.old.keep", {"failed": "5d"}),
        ("MAINTENANCE_JOBS__OLD__CRON", "@daily", "jobs.old.every", None),
        ("MAINTENANCE_JOBS__OLD__CRON", "", "jobs.old.every", "3h"),
        ("MAINTENANCE_JOBS__X__Y__ROOT", "/vol", "jobs.x__y.root", "/vol"),
    ],
)
def test_a_variable_is_read_as_its_key_asks_for(loaded: Load, name: str, text: str, path: str, value: Any) -> None:
    """Text stays text, all else is YAML; it wins over the file, key by key."""
    file = """
        http: {port: 7, host: other}
        jobs:
          a-b: {kind: orphan_records, root: /data, limit: {fraction: 0.25}}
          x__y: {kind: orphan_records}
          old: {kind: retention, every: 3h}
        """
    settings = loaded(file, {name: text, "PATH": "/bin"})
    shown: Any = settings.shown()
    for part in path.split("."):
        shown = shown[part]
    assert shown == value
    assert settings.warnings == []
    assert job(settings, "a-b").limit.fraction == 0.25


def test_a_part_wins_over_the_whole(loaded: Load) -> None:
    """Whatever the order in which the environment lists them."""
    environ = {"MAINTENANCE_HTTP__PORT": "2", "MAINTENANCE_HTTP": "{port: 1, host: h}"}
    settings = loaded(environ=environ)
    assert (settings.http.port, settings.http.host) == (2, "h")


def test_the_kind_of_a_job_is_read_before_its_keys(loaded: Load) -> None:
    """Since it says what they are."""
    environ = {"MAINTENANCE_JOBS__A__KEEP": "5d", "MAINTENANCE_JOBS__A__KIND": "retention"}
    assert job(loaded("jobs: {a: {kind: orphan_records}}", environ), "a").keep == dt.timedelta(days=5)
    assert job(loaded("jobs: {a: {}}", environ), "a").keep == dt.timedelta(days=5)


NO_JOB = "there is no such job to adjust (jobs: orphan_apps, stuck_tasks, old_tasks, client_cache); ignored"
NEAR = "unknown, ignored; did you mean"


@pytest.mark.parametrize(
    "name, warning",
    [
        ("MAINTENANCE_HTTP_PORT", f"{NEAR} MAINTENANCE_HTTP__PORT?"),
        ("MAINTENANCE_HTTP__PROT", f"{NEAR} MAINTENANCE_HTTP__PORT?"),
        ("MAINTENANCE_INTERVAL_SECOND", f"{NEAR} MAINTENANCE_INTERVAL_SECONDS?"),
        ("MAINTENANCE_JOBS__OLD_TASKS__KEP", f"{NEAR} MAINTENANCE_JOBS__OLD_TASKS__KEEP?"),
        ("MAINTENANCE_JOBS__OLD_TASKS__LIMIT__ITEM", f"{NEAR} MAINTENANCE_JOBS__OLD_TASKS__LIMIT__ITEMS?"),
        ("MAINTENANCE_JOBS__OLD_TASK__KEEP", f"{NO_JOB}; did you mean MAINTENANCE_JOBS__OLD_TASKS__KEEP?"),
        ("MAINTENANCE_JOBS__XYZ", NO_JOB),
        ("MAINTENANCE_JOBS__OLD_TASKS__NAME", "unknown, ignored"),
        ("MAINTENANCE_JOBS__OLD_TASKS__KEEP__NEVER", "unknown, ignored"),
        ("MAINTENANCE_JOBS__OLD_TASKS__ENABLED__X", "unknown, ignored"),
        ("MAINTENANCE_JOBS__OLD_TASKS__", "unknown, ignored"),
        ("MAINTENANCE_SCHEDULE_ENABLED", "unknown, ignored"),
        ("MAINTENANCE_WARNINGS", "unknown, ignored"),
        ("MAINTENANCE_", "unknown, ignored"),
        ("MAINTENANCE___", "unknown, ignored"),
        ("MAINTENANCE_PASSWORD", "unknown, ignored"),
    ],
)
def test_an_unknown_variable_is_a_warning_with_the_nearest(loaded: Load, name: str, warning: str) -> None:
    """Never with its value, which may be a secret."""
    assert loaded(environ={name: "1234"}).warnings == [f"{name}: {warning}"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("MAINTENANCE_AGENT_SERVICE_HOST", "10.0.0.1"),
        ("MAINTENANCE_AGENT_SERVICE_PORT", "9190"),
        ("MAINTENANCE_AGENT_SERVICE_PORT_METRICS", "9190"),
        ("MAINTENANCE_AGENT_PORT", "tcp://10.0.0.1:9190"),
        ("MAINTENANCE_AGENT_PORT_9190_TCP", "tcp://10.0.0.1:9190"),
        ("MAINTENANCE_AGENT_PORT_9190_TCP_PROTO", "tcp"),
        ("MAINTENANCE_AGENT_PORT_9190_TCP_PORT", "9190"),
        ("MAINTENANCE_AGENT_PORT_9190_TCP_ADDR", "10.0.0.1"),
        ("MAINTENANCE_AGENT_PORT_53_UDP_ADDR", "10.0.0.1"),
        ("MAINTENANCE_SERVICE_HOST", "10.0.0.1"),
        ("MAINTENANCE_SERVICE_PORT", "9190"),
        ("MAINTENANCE_PORT", "tcp://10.0.0.1:9190"),
        ("MAINTENANCE_PORT_9190_TCP_ADDR", "10.0.0.1"),
        ("MAINTENANCE_HTTP_PORT", "tcp://10.0.0.1:80"),
    ],
)
def test_what_kubernetes_injects_for_a_service_is_ignored(loaded: Load, name: str, text: str) -> None:
    """Without a word, and without taking it for a setting."""
    settings = loaded(environ={name: text})
    assert settings.warnings == []
    assert settings == loaded()


def test_a_job_that_is_not_there_cannot_be_added_by_a_variable(loaded: Load) -> None:
    """One inside a mapping neither; those that are there are adjusted all the same."""
    environ = {"MAINTENANCE_JOBS": "{nope: {kind: retention}, old_tasks: {keep: 5d}}"}
    settings = loaded(environ=environ)
    assert settings.warnings == ["MAINTENANCE_JOBS: there is no job `nope` to adjust; ignored"]
    assert "nope" not in settings.jobs
    assert job(settings, "old_tasks").keep == dt.timedelta(days=5)


# -------------------------------------------------------------------------------------------- the five old variables

OLD = {
    "MAINTENANCE_INTERVAL_SECONDS": "600",
    "MAINTENANCE_TASK_RETENTION_DAYS": "7",
    "MAINTENANCE_STUCK_TASK_TIMEOUT_MINUTES": "20",
    "MAINTENANCE_DRY_RUN": "true",
}


def test_the_old_variables_replace_built_in_values(loaded: Load) -> None:
    """In the built-in jobs, and in those of a file that do not say otherwise."""
    for settings in (
        loaded(environ=OLD),
        loaded("jobs: {old_tasks: {kind: retention}, stuck_tasks: {kind: stuck_tasks}}", OLD),
    ):
        assert settings.schedule.every == 10 * MINUTE
        assert settings.defaults.dry_run
        assert job(settings, "old_tasks").keep == dt.timedelta(days=7)
        assert job(settings, "old_tasks").every == 10 * MINUTE
        assert job(settings, "old_tasks").dry_run
        assert job(settings, "stuck_tasks").timeout == 20 * MINUTE
        assert job(settings, "stuck_tasks").pending_timeout == 20 * MINUTE
        assert settings.warnings == []


def test_the_file_wins_over_the_old_variables_and_says_so(loaded: Load) -> None:
    """What the file leaves open is still theirs; nothing is said where both say the same."""
    text = """
        schedule: {every: 2h}
        defaults: {dry_run: false}
        jobs:
          old: {kind: retention, keep: 60d}
          same: {kind: retention, keep: 1w}
          stuck: {kind: stuck_tasks, timeout: 2h}
        """
    settings = loaded(text, OLD)
    assert settings.schedule.every == 2 * HOUR
    assert not settings.defaults.dry_run
    assert job(settings, "old").keep == dt.timedelta(days=60)
    assert (job(settings, "stuck").timeout, job(settings, "stuck").pending_timeout) == (2 * HOUR, 20 * MINUTE)
    assert [warning.split("maintenance.yaml", maxsplit=1)[-1] for warning in settings.warnings] == [
        ", line 3)", ", line 2)", ", line 5)", ", line 7)",
    ]  # fmt: skip
    assert settings.warnings[0].startswith("MAINTENANCE_DRY_RUN has no effect on defaults.dry_run, which is set (")


def test_the_new_variables_win_over_the_old_ones(loaded: Load) -> None:
    """Since they win over the file, too."""
    settings = loaded(environ={**OLD, "MAINTENANCE_SCHEDULE__EVERY": "5m"})
    assert settings.schedule.every == 5 * MINUTE
    assert settings.warnings == [
        "MAINTENANCE_INTERVAL_SECONDS has no effect on schedule.every, which is set (MAINTENANCE_SCHEDULE__EVERY)"
    ]


@pytest.mark.parametrize(
    "text, runs",
    [
        ("false", False),
        ("0", False),
        ("No", False),
        ("off", False),
        ("true", True),
        ("1", True),
        ("YES", True),
        ("on", True),
    ],
)
def test_the_clock_is_stopped_by_its_old_variable_whatever_the_file_says(loaded: Load, text: str, runs: bool) -> None:
    """Serving goes on; nothing is scheduled."""
    settings = loaded(
        "{defaults: {enabled: true}, jobs: {a: {kind: retention, enabled: true}}}", {"MAINTENANCE_ENABLED": text}
    )
    assert settings.schedule_enabled is runs
    assert settings.jobs["a"].enabled


# -------------------------------------------------------------------------------------------------------- command line


def test_the_command_line_wins_over_everything(loaded: Load) -> None:
    """File, environment, then what was typed."""
    environ = {"MAINTENANCE_HTTP__PORT": "2", "MAINTENANCE_JOBS__OLD_TASKS__KEEP": "2d"}
    settings = loaded("http: {port: 1}", environ, {"http": {"port": 3}, "jobs": {"old_tasks": {"keep": "3d"}}})
    assert settings.http.port == 3
    assert job(settings, "old_tasks").keep == dt.timedelta(days=3)


def test_the_layers_do_not_change_what_they_are_given(loaded: Load) -> None:
    """So that loading again gives the same."""
    overrides: dict[str, Any] = {"http": {"port": 3}}
    environ = {"MAINTENANCE_HTTP__HOST": "h"}
    assert loaded(environ=environ, overrides=overrides) == loaded(environ=environ, overrides=overrides)
    assert overrides == {"http": {"port": 3}}
    assert list(loaded().jobs) == ["orphan_apps", "stuck_tasks", "old_tasks", "client_cache"]


# ------------------------------------------------------------------------------------------------------------- secrets

URI = "mongodb://bob:hunter2@db.internal:27017/?authSource=admin&tlsCertificateKeyFilePassword=hunter3"


def test_the_uri_is_read_from_its_file(loaded: Load, tmp_path: Path) -> None:
    """Without the end of the line that editors leave."""
    secret = tmp_path / "uri"
    secret.write_text(f"{URI}\n", encoding="utf-8")
    settings = loaded(f"mongodb: {{uri_file: {secret}}}")
    assert settings.mongodb.uri.get_secret_value() == URI
    assert settings.shown()["mongodb"]["uri_file"] == str(secret)


@pytest.mark.parametrize("later", ["uri", "uri_file"])
def test_of_uri_and_uri_file_the_later_layer_wins(loaded: Load, tmp_path: Path, later: str) -> None:
    """Whichever of the two it gives."""
    secret = tmp_path / "uri"
    secret.write_text("mongodb://from-file", encoding="utf-8")
    values = {"uri": "mongodb://given", "uri_file": str(secret)}
    earlier = "uri_file" if later == "uri" else "uri"
    settings = loaded(
        f"mongodb: {{{earlier}: {values[earlier]}}}", {f"MAINTENANCE_MONGODB__{later.upper()}": values[later]}
    )
    expected = "mongodb://given" if later == "uri" else "mongodb://from-file"
    assert settings.mongodb.uri.get_secret_value() == expected
    settings = loaded(
        f"mongodb: {{{earlier}: {values[earlier]}, {later}: null}}", overrides={"mongodb": {later: values[later]}}
    )
    assert settings.mongodb.uri.get_secret_value() == expected


def test_of_every_and_cron_the_later_layer_wins(loaded: Load) -> None:
    """As of any two keys that exclude each other."""
    text = "jobs: {a: {kind: retention, every: 5m}, b: {kind: retention, cron: '@daily'}}"
    environ = {"MAINTENANCE_JOBS__A__CRON": "@weekly", "MAINTENANCE_JOBS__B__EVERY": "3h"}
    settings = loaded(text, environ)
    assert [(entry.every, entry.cron) for entry in settings.jobs.values()] == [(None, "@weekly"), (3 * HOUR, None)]


def test_nothing_that_is_shown_holds_a_secret(loaded: Load) -> None:
    """Neither the representation nor a dump nor what the API shows."""
    settings = loaded(f'mongodb: {{uri: "{URI}"}}')
    shown = (
        repr(settings),
        str(settings),
        str(settings.model_dump()),
        settings.model_dump_json(),
        str(settings.shown()),
    )
    assert not any("hunter" in text for text in shown)
    assert settings.shown()["mongodb"]["uri"] == (
        "mongodb://bob:***@db.internal:27017/?authSource=admin&tlsCertificateKeyFilePassword=***"
    )


def test_a_secret_file_that_is_not_there_is_odd(loaded: Load, tmp_path: Path) -> None:
    """The API then answers 403 and says why; a run from the command line does not need it."""
    missing = tmp_path / "tokens"
    assert loaded(f"http: {{tokens_file: {missing}}}").warnings == [f"http.tokens_file: there is no file {missing}"]
    missing.touch()
    assert loaded(f"http: {{tokens_file: {missing}}}").warnings == []


def test_settings_cannot_be_changed(loaded: Load) -> None:
    """A reload makes new ones."""
    settings = loaded()
    with pytest.raises(ValueError, match="frozen"):
        settings.http.port = 5  # type: ignore[misc]


def test_all_problems_of_all_layers_are_told_at_once(loaded: Load) -> None:
    """Old variables, file, environment, command line."""
    environ = {
        "MAINTENANCE_DRY_RUN": "maybe",
        "MAINTENANCE_HTTP__PORT": "x",
        "MAINTENANCE_MONGODB__URI_FILE": "/nowhere",
    }
    with pytest.raises(ConfigurationError) as caught:
        loaded(
            "{indexes: none, jobs: {a: {kind: retention, keep: 5}}}",
            environ,
            {"jobs": {"b": {}}, "log": {"level": "x"}},
        )
    starts = [problem.split(": ")[0] for problem in caught.value.problems]
    assert sorted(starts) == [
        "MAINTENANCE_DRY_RUN", "http.port", "indexes", "jobs.a.keep", "jobs.b", "log.level", "mongodb.uri_file",
    ]  # fmt: skip
