"""Overview: is it alive, is each job on time, what did it change, what did it refuse, what is waiting."""

from __future__ import annotations

from dashboards.board import (
    ABOVE_ZERO_IS_BAD,
    GREEN,
    JOB,
    ORANGE,
    OVERVIEW,
    RED,
    UP_DOWN,
    YES_NO,
    ZERO_IS_BAD,
    About,
    Board,
    Column,
    Panel,
    Query,
    bars,
    columns,
    gauges,
    lines,
    number,
)

JOBS = "by (cluster, namespace, job_name)"
AGE = f"time() - max {JOBS} (maintenance_last_success_timestamp_seconds{{WHERE}})"
INTERVAL = f"(max {JOBS} (maintenance_schedule_interval_seconds{{WHERE}}) > 0)"
ACTIVE = f"max {JOBS} (maintenance_job_enabled{{WHERE}}) == 1 and max {JOBS} (maintenance_job_paused{{WHERE}}) == 0"
OF_A_JOB = (
    f"/d/{JOB}?${{datasource:queryparam}}&${{cluster:queryparam}}&${{namespace:queryparam}}"
    "&var-job_name=${__value.raw}&${__url_time_range}"
)
EACH = "{{job_name}} {{namespace}}"


def board() -> Board:
    """The dashboard."""
    made = Board(OVERVIEW, "Is the Maintenance Agent alive, are its jobs on time, and what do they do?")
    made.row("Is it alive?", 4, *_alive(made))
    made.row("Is each job on time?", 9, *_on_time(made))
    made.row("What did it change?", 8, *_changed(made))
    made.row("What did it refuse?", 8, *_refused(made))
    made.row("What is waiting?", 8, *_waiting(made))
    return made


def _alive(made: Board) -> list[Panel]:
    firing = 'ALERTS{alertstate="firing", alertname=~"Maintenance.+", WHERE}'
    return [
        made.panel(
            number(ZERO_IS_BAD),
            About("Agents", "Processes that can be scraped. Several are replicas of one agent.", "short", 4),
            Query("count(maintenance_build_info{WHERE}) or vector(0)", instant=True),
        ),
        made.panel(
            number(meanings=UP_DOWN),
            About("MongoDB", "Whether every agent reached MongoDB when it last tried.", "short", 4),
            Query('min(maintenance_dependency_up{WHERE, dependency="mongodb"})', instant=True),
        ),
        made.panel(
            number(meanings={"0": ("refused", RED), "1": ("taken", GREEN)}),
            About("Configuration", "Whether the configuration was valid when it was last loaded.", "short", 4),
            Query("min(maintenance_config_last_reload_successful{WHERE})", instant=True),
        ),
        made.panel(
            number(ABOVE_ZERO_IS_BAD),
            About(
                "Jobs overdue",
                "Jobs without a success for two of their intervals, or without any; paused and disabled ones aside.",
                "short",
                4,
            ),
            Query(f"count(({AGE}) / {INTERVAL} > 2 and {ACTIVE}) or vector(0)", instant=True),
        ),
        made.panel(
            number(((None, GREEN), (1, ORANGE))),
            About("Jobs paused", "Jobs that somebody has paused, singly or with everything.", "short", 4),
            Query(f"sum(max {JOBS} (maintenance_job_paused{{WHERE}}))", instant=True),
        ),
        made.panel(
            number(ABOVE_ZERO_IS_BAD),
            About("Alerts", "Alerts of the agent that fire now. Needs the shipped rules.", "short", 4),
            Query(f"count({firing}) or vector(0)", instant=True),
        ),
    ]


def _on_time(made: Board) -> list[Panel]:
    shown = [
        Column("Enabled", "maintenance_job_enabled{WHERE}", meanings=YES_NO),
        Column("Paused", "maintenance_job_paused{WHERE}", meanings={"0": ("no", GREEN), "1": ("yes", ORANGE)}),
        Column("Interval", "maintenance_schedule_interval_seconds{WHERE} > 0", "s"),
        Column("Last run", "(maintenance_last_run_timestamp_seconds{WHERE} > 0) * 1000", "dateTimeFromNow"),
        Column("Last success", "(maintenance_last_success_timestamp_seconds{WHERE} > 0) * 1000", "dateTimeFromNow"),
        Column("Next run", "(maintenance_next_run_timestamp_seconds{WHERE} > 0) * 1000", "dateTimeFromNow"),
    ]
    table, queries = columns({"namespace": "Namespace", "job_name": "Job"}, shown, OF_A_JOB)
    about = "What the schedule and the journal say of every job. A job's name leads to its own dashboard."
    return [
        made.panel(table, About("Jobs", about, "short", 16), *queries),
        made.panel(
            gauges(((None, GREEN), (1.5, ORANGE), (2, RED)), 3),
            About(
                "Time since the last success",
                "In intervals of the job: above 2 it is overdue. Jobs that never succeeded are not here.",
                "short",
                8,
            ),
            Query(
                f"(time() - (max {JOBS} (maintenance_last_success_timestamp_seconds{{WHERE}}) > 0)) / {INTERVAL}",
                EACH,
                instant=True,
            ),
        ),
    ]


def _changed(made: Board) -> list[Panel]:
    by = "sum by (namespace, job_name, action)"
    return [
        made.panel(
            bars(),
            About("Items changed", "What runs changed, by job and action. Dry runs change nothing.", "short", 12),
            Query(
                f"{by} (increase(maintenance_changed_total{{WHERE}}[$__rate_interval])) > 0", f"{EACH} {{{{action}}}}"
            ),
        ),
        made.panel(
            gauges(((None, "blue"),)),
            About("Changed in the time shown", "The same, added up over the time range of the dashboard.", "short", 6),
            Query(
                f"{by} (increase(maintenance_changed_total{{WHERE}}[$__range])) > 0",
                f"{EACH} {{{{action}}}}",
                instant=True,
            ),
        ),
        made.panel(
            bars(),
            About("Items that failed", "Items that a run could not change although it went on.", "short", 6),
            Query(
                "sum by (namespace, job_name) (increase(maintenance_item_failures_total{WHERE}[$__rate_interval]))",
                EACH,
            ),
        ),
    ]


def _refused(made: Board) -> list[Panel]:
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
            bars(),
            About(
                "Refusals",
                "Runs that a guard refused: nothing was changed, and somebody has to look. Empty: there were none.",
                "short",
                8,
            ),
            Query(
                "sum by (namespace, job_name, guard)"
                " (increase(maintenance_refusals_total{WHERE}[$__rate_interval])) > 0",
                f"{EACH} {{{{guard}}}}",
            ),
        ),
        made.panel(
            bars(),
            About("Runs missed", "Scheduled runs that did not take place on any replica.", "short", 8),
            Query(
                "sum by (namespace, job_name) (increase(maintenance_missed_runs_total{WHERE}[$__rate_interval]))", EACH
            ),
        ),
    ]


def _waiting(made: Board) -> list[Panel]:
    found = "max by (cluster, namespace, job_name, what) (maintenance_found{WHERE})"
    held = "max by (cluster, namespace, job_name, reason) (maintenance_held{WHERE})"
    return [
        made.panel(
            lines(fill=10),
            About(
                "Found by the last run",
                "Items that the last run of each job found: those that it then changed, and those that it held.",
                "short",
                8,
            ),
            Query(f"sum by (namespace, job_name) ({found})", EACH),
        ),
        made.panel(
            lines(),
            About("Held", "Items that the last run left alone: in quarantine, or held by somebody.", "short", 8),
            Query(f"sum by (namespace, job_name) ({held})", EACH),
        ),
        made.panel(
            lines(),
            About(
                "Age of the oldest item left",
                "How old the oldest item is that the last run left as it was. 0: it cleared all that it found.",
                "s",
                8,
            ),
            Query("max by (namespace, job_name) (maintenance_oldest_found_age_seconds{WHERE})", EACH),
        ),
    ]
