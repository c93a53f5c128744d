"""Job: everything about one job."""

from __future__ import annotations

from dashboards.board import (
    EVERYWHERE,
    GREEN,
    JOB,
    NO_STEPS,
    ORANGE,
    RED,
    About,
    Board,
    Panel,
    Query,
    bars,
    chosen,
    lines,
    number,
    states,
)

ONE_JOB = f'{EVERYWHERE}, job_name="$job_name"'
SCHEDULE = {"0": ("disabled", ORANGE), "1": ("enabled", GREEN), "2": ("paused", ORANGE), "3": ("paused", ORANGE)}


def board() -> Board:
    """The dashboard."""
    made = Board(
        JOB,
        "One job of the Maintenance Agent: its schedule, its runs, and what they found.",
        matchers=ONE_JOB,
        runs=True,
    )
    made.variable(chosen("job_name", "Job", f"maintenance_job_enabled{{{EVERYWHERE}}}, job_name", several=False))
    made.row("$job_name", 4, *_now(made))
    made.row("Runs", 8, *_runs(made))
    made.row("Items", 8, *_items(made))
    made.row("Lease and pace", 7, *_pace(made))
    return made


def _now(made: Board) -> list[Panel]:
    interval = "max(maintenance_schedule_interval_seconds{WHERE})"
    return [
        made.panel(
            number(meanings=SCHEDULE),
            About("Schedule", "Whether the schedule includes the job, or somebody has paused it.", "short", 4),
            Query("max(maintenance_job_enabled{WHERE}) + 2 * max(maintenance_job_paused{WHERE})", instant=True),
        ),
        made.panel(
            number(),
            About("Interval", "Time between two scheduled runs.", "s", 4),
            Query(f"{interval} > 0", instant=True),
        ).no_value("none"),
        made.panel(
            number(((None, GREEN), (1.5, ORANGE), (2, RED))),
            About("Time since the last success", "In intervals of the job: above 2 it is overdue.", "short", 4),
            Query(
                f"(time() - (max(maintenance_last_success_timestamp_seconds{{WHERE}}) > 0)) / ({interval} > 0)",
                instant=True,
            ),
        )
        .no_value("never")
        .decimals(2),
        made.panel(
            number(),
            About("Last success", "When a run last succeeded, on any replica.", "dateTimeFromNow", 4),
            Query("(max(maintenance_last_success_timestamp_seconds{WHERE}) > 0) * 1000", instant=True),
        ).no_value("never"),
        made.panel(
            number(),
            About("Next run", "When the job is due next.", "dateTimeFromNow", 4),
            Query("(max(maintenance_next_run_timestamp_seconds{WHERE}) > 0) * 1000", instant=True),
        ).no_value("not scheduled"),
        made.panel(
            number(NO_STEPS),
            About("Running now", "Runs in progress, dry runs included.", "short", 4),
            Query("sum(maintenance_run_in_progress{WHERE})", instant=True),
        ),
    ]


def _runs(made: Board) -> list[Panel]:
    buckets = "sum by (le) (rate(maintenance_run_duration_seconds_bucket{WHERE}[$__rate_interval]))"
    mean = "sum(rate(maintenance_run_duration_seconds_{}{{WHERE}}[$__rate_interval]))"
    return [
        made.panel(
            bars(),
            About(
                "Runs by outcome",
                "Runs that ended. refused: a guard said no before the first change. skipped: a replica had done it, or"
                " it was running.",
                "short",
                8,
            ),
            Query("sum by (outcome) (increase(maintenance_runs_total{WHERE}[$__rate_interval]))", "{{outcome}}"),
        ),
        made.panel(
            lines(),
            About(
                "Time that runs take",
                "The mean, the 95th percentile (within the histogram's buckets), and the time-out of a run.",
                "s",
                8,
            ),
            Query(f"{mean.format('sum')} / {mean.format('count')}", "mean"),
            Query(f"histogram_quantile(0.95, {buckets})", "95 %"),
            Query("max(maintenance_run_timeout_seconds{WHERE})", "time-out"),
        ).interval("5m"),
        made.panel(
            bars(),
            About("Refusals", "Runs that a guard refused, by guard: nothing was changed.", "short", 4),
            Query("sum by (guard) (increase(maintenance_refusals_total{WHERE}[$__rate_interval]))", "{{guard}}"),
        ),
        made.panel(
            bars(),
            About("Runs missed", "Scheduled runs that did not take place on any replica.", "short", 4),
            Query("sum(increase(maintenance_missed_runs_total{WHERE}[$__rate_interval]))", "missed"),
        ),
    ]


def _items(made: Board) -> list[Panel]:
    return [
        made.panel(
            lines(fill=10),
            About(
                "Found by the last run",
                "Items by what they are, held ones included. malformed, unreadable and outside are only reported.",
                "short",
                8,
            ),
            Query("max by (what) (maintenance_found{WHERE})", "{{what}}"),
            Query("max by (reason) (maintenance_held{WHERE})", "held: {{reason}}"),
        ),
        made.panel(
            bars(),
            About("Items changed", "What runs did, by action, and the items that failed.", "short", 8),
            Query("sum by (action) (increase(maintenance_changed_total{WHERE}[$__rate_interval]))", "{{action}}"),
            Query("sum(increase(maintenance_item_failures_total{WHERE}[$__rate_interval]))", "could not be changed"),
        ),
        made.panel(
            lines(),
            About(
                "Age of the oldest item left",
                "How old the oldest item is that the last run left as it was. 0: it cleared all that it found.",
                "s",
                8,
            ),
            Query("max(maintenance_oldest_found_age_seconds{WHERE})", "oldest"),
        ),
    ]


def _pace(made: Board) -> list[Panel]:
    return [
        made.panel(
            states({"0": ("free", "transparent"), "1": ("held", GREEN)}),
            About(
                "Lease", "Which process holds the lease of the job. Short runs fall between two scrapes.", "short", 12
            ),
            Query("max by (instance) (maintenance_lease_held{WHERE})", "{{instance}}"),
        ),
        made.panel(
            lines(fill=10),
            About(
                "Time spent sparing the database",
                "Share of the time that runs paused. lag: replicas were behind; pace: after a read or a batch.",
                "percentunit",
                12,
            ),
            Query("sum by (reason) (rate(maintenance_throttled_seconds_total{WHERE}[$__rate_interval]))", "{{reason}}"),
        ),
    ]
