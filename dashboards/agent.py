"""Agent: the process, HTTP, the commands to MongoDB, the cache of provider clients, leases and the archive."""

from __future__ import annotations

from grafana_foundation_sdk.models.common import BigValueTextMode

from dashboards.board import (
    AGENT,
    EVERYWHERE,
    GREEN,
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

SOME = f'{EVERYWHERE}, instance=~"$instance"'
# Every process has the metrics of the client library: those of the agent are told by its own metric beside them.
OURS = "and on (job, instance) maintenance_build_info{WHERE}"
ONE = "{{instance}}"


def board() -> Board:
    """The dashboard."""
    made = Board(AGENT, "The processes of the Maintenance Agent and what they need.", matchers=SOME)
    made.variable(chosen("instance", "Instance", f"maintenance_build_info{{{EVERYWHERE}}}, instance"))
    made.row("Process", 8, *_process(made))
    made.row("HTTP", 8, *_http(made))
    made.row("MongoDB", 8, *_mongodb(made))
    made.row("Provider clients", 8, *_clients(made))
    made.row("Leases and archive", 8, *_leases(made))
    return made


def _process(made: Board) -> list[Panel]:
    return [
        made.panel(
            number().text_mode(BigValueTextMode.NAME),
            About("Version", "What runs, an entry a version.", "short", 4),
            Query("count by (version) (maintenance_build_info{WHERE})", "{{version}}", instant=True),
        ),
        made.panel(
            lines(),
            About("CPU", "Cores that the process uses.", "short", 5),
            Query(f"rate(process_cpu_seconds_total{{WHERE}}[$__rate_interval]) {OURS}", ONE),
        ),
        made.panel(
            lines(),
            About("Memory", "Resident memory.", "bytes", 5),
            Query(f"process_resident_memory_bytes{{WHERE}} {OURS}", ONE),
        ),
        made.panel(
            lines(),
            About("Open files", "File descriptors in use; each connection is one.", "short", 5),
            Query(f"process_open_fds{{WHERE}} {OURS}", ONE),
        ),
        made.panel(
            lines(),
            About(
                "Event loop lag",
                "By how much a timer was late, at worst, within a minute. Above half a second leases suffer.",
                "s",
                5,
            ),
            Query("max by (instance) (maintenance_event_loop_lag_seconds{WHERE})", ONE),
        ),
    ]


def _http(made: Board) -> list[Panel]:
    buckets = "sum by (route, le) (rate(maintenance_http_request_duration_seconds_bucket{WHERE}[$__rate_interval]))"
    by = "sum by (route, code) (rate(maintenance_http_requests_total{WHERE}[$__rate_interval])) > 0"
    return [
        made.panel(
            lines(fill=10),
            About("Requests", "Requests that were answered, by route and status.", "reqps", 12),
            Query(by, "{{route}} {{code}}"),
        ),
        made.panel(
            lines(),
            About(
                "Time to answer",
                "The 95th percentile by route. A request that waits for a run takes as long as it waits.",
                "s",
                12,
            ),
            Query(f"histogram_quantile(0.95, {buckets}) >= 0", "{{route}}"),
        ),
    ]


def _mongodb(made: Board) -> list[Panel]:
    seconds = "rate(maintenance_mongodb_command_duration_seconds_{}{{WHERE}}[$__rate_interval])"
    return [
        made.panel(
            states({"0": ("down", RED), "1": ("up", GREEN)}),
            About("Reached", "Whether the process reached what it depends on when it last tried.", "short", 6),
            Query("min by (instance, dependency) (maintenance_dependency_up{WHERE})", f"{{{{dependency}}}} {ONE}"),
        ),
        made.panel(
            lines(fill=10),
            About("Commands", "Commands that MongoDB answered.", "ops", 6),
            Query(f"sum by (command) ({seconds.format('count')}) > 0", "{{command}}"),
        ),
        made.panel(
            lines(),
            About("Time to answer", "The 95th percentile by command. Selections take longer than the rest.", "s", 6),
            Query(f"histogram_quantile(0.95, sum by (command, le) ({seconds.format('bucket')})) >= 0", "{{command}}"),
        ),
        made.panel(
            lines(),
            About("Commands that failed", "Commands that MongoDB or the connection to it refused.", "ops", 6),
            Query(
                "sum by (command) (rate(maintenance_mongodb_command_failures_total{WHERE}[$__rate_interval]))",
                "{{command}}",
            ),
        ),
    ]


def _clients(made: Board) -> list[Panel]:
    requests = "sum by (result) (rate(maintenance_client_cache_requests_total{WHERE}[$__rate_interval]))"
    connect = "sum by (le) (rate(maintenance_client_cache_connect_seconds_bucket{WHERE}[$__rate_interval]))"
    closing = "sum(increase(maintenance_client_cache_close_failures_total{WHERE}[$__rate_interval]))"
    return [
        made.panel(
            lines(fill=10),
            About("Clients", "Clients of providers' clusters in the cache.", "short", 6),
            Query("sum by (instance) (maintenance_client_cache_entries{WHERE})", ONE),
        ),
        made.panel(
            lines(fill=10),
            About("Look-ups", "hit: there was a client; miss: one was made; error: none could be.", "ops", 6),
            Query(requests, "{{result}}"),
        ),
        made.panel(
            bars(),
            About(
                "Evictions", "Clients that were taken out, by reason, and those that could not be closed.", "short", 6
            ),
            Query(
                "sum by (reason) (increase(maintenance_client_cache_evictions_total{WHERE}[$__rate_interval]))",
                "{{reason}}",
            ),
            Query(closing, "closing failed"),
        ),
        made.panel(
            lines(),
            About(
                "Time to connect", "Time to make a client and reach its cluster: median and 95th percentile.", "s", 6
            ),
            Query(f"histogram_quantile(0.5, {connect})", "50 %"),
            Query(f"histogram_quantile(0.95, {connect})", "95 %"),
        ),
    ]


def _leases(made: Board) -> list[Panel]:
    interrupted = 'maintenance_runs_total{WHERE, outcome="interrupted"}'
    return [
        made.panel(
            states({"0": ("free", "transparent"), "1": ("held", GREEN)}),
            About(
                "Leases",
                "Which process holds the lease of which job. Short runs fall between two scrapes.",
                "short",
                10,
            ),
            Query("max by (job_name, instance) (maintenance_lease_held{WHERE})", f"{{{{job_name}}}} {ONE}"),
        ),
        made.panel(
            bars(),
            About("Interrupted runs", "Runs that a lost lease or a shutdown ended between two batches.", "short", 6),
            Query(f"sum by (job_name) (increase({interrupted}[$__rate_interval]))", "{{job_name}}"),
        ),
        made.panel(
            lines(fill=10),
            About(
                "Archive",
                "Size of the copies that make changes undoable, and the size at which runs are refused.",
                "bytes",
                8,
            ),
            Query("max by (cluster, namespace) (maintenance_archive_bytes{WHERE})", "archive {{namespace}}"),
            Query("max by (cluster, namespace) (maintenance_archive_limit_bytes{WHERE}) > 0", "limit {{namespace}}"),
        ),
    ]
