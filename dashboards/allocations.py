"""Allocations: capacity, booked, owed and used of the providers, and how they drift apart."""

from __future__ import annotations

from dashboards.board import (
    ABOVE_ZERO_IS_BAD,
    ALLOCATIONS,
    EVERYWHERE,
    GREEN,
    ORANGE,
    RED,
    About,
    Board,
    Panel,
    Query,
    bars,
    chosen,
    gauges,
    lines,
    number,
    states,
)

SOME = f'{EVERYWHERE}, provider=~"$provider"'
PROVIDERS = "by (cluster, namespace, provider)"
RESOURCES = {
    "CPU": ("maintenance_allocation_cpu_cores", "short", "cores"),
    "Memory": ("maintenance_allocation_memory_bytes", "bytes", "bytes"),
    "Storage": ("maintenance_allocation_storage_bytes", "bytes", "bytes"),
}
EACH = "{{provider}} {{namespace}}"


def board() -> Board:
    """The dashboard."""
    made = Board(
        ALLOCATIONS, "What the providers have, what is booked, owed and used, and how these drift apart.", matchers=SOME
    )
    made.variable(chosen("provider", "Provider", f"maintenance_allocation_cpu_cores{{{EVERYWHERE}}}, provider"))
    made.row("Does it add up?", 4, *_verdict(made))
    made.row("All selected providers", 8, *[_sum(made, name) for name in RESOURCES])
    made.row("How full is each provider?", 8, *[_full(made, name) for name in RESOURCES])
    made.row("Drift: booked less owed", 8, *[_drift(made, name, "booked", "owed") for name in RESOURCES])
    made.row("Drift: used less booked", 8, *[_drift(made, name, "used", "booked") for name in RESOURCES])
    made.row("The audit", 7, *_audit(made))
    return made


def _amount(name: str, views: str) -> str:
    metric, _, _ = RESOURCES[name]
    return f'max {PROVIDERS} ({metric}{{WHERE, view=~"{views}"}})'


def _committed(name: str) -> str:
    return f"{_amount(name, 'booked|owed')} / {_amount(name, 'capacity')}"


def _verdict(made: Board) -> list[Panel]:
    over = " or ".join(f"count {PROVIDERS} ({_committed(name)} > 1)" for name in RESOURCES)
    differ = " or ".join(f"{_amount(name, 'booked')} != {_amount(name, 'owed')}" for name in RESOURCES)
    return [
        made.panel(
            number(),
            About("Providers", "Providers that the last audits saw.", "short", 6),
            Query(f"count(count {PROVIDERS} (maintenance_allocation_cpu_cores{{WHERE}})) or vector(0)", instant=True),
        ),
        made.panel(
            number(ABOVE_ZERO_IS_BAD),
            About("Over-committed", "Providers that have promised more of a resource than they have.", "short", 6),
            Query(f"count({over}) or vector(0)", instant=True),
        ),
        made.panel(
            number(((None, GREEN), (1, ORANGE))),
            About(
                "Booked differs from owed",
                "Providers whose ledger says otherwise than their databases. While a database is made or removed that"
                " is no mistake; the audit knows, see below.",
                "short",
                6,
            ),
            Query(f"count({differ}) or vector(0)", instant=True),
        ),
        made.panel(
            number(ABOVE_ZERO_IS_BAD),
            About("Not readable", "Providers whose cluster the last audit could not read.", "short", 6),
            Query(f"count(max {PROVIDERS} (maintenance_audit_up{{WHERE}}) == 0) or vector(0)", instant=True),
        ),
    ]


def _sum(made: Board, name: str) -> Panel:
    metric, unit, said = RESOURCES[name]
    told = f"What there is ({said}), what the ledgers say, what the databases add up to, what the clusters request."
    by_view = f"sum by (view) (max by (cluster, namespace, provider, view) ({metric}{{WHERE}}))"
    return made.panel(lines(fill=5), About(name, told, unit, 8), Query(by_view, "{{view}}"))


def _full(made: Board, name: str) -> Panel:
    told = f"The larger of booked and owed {name.lower() if name != 'CPU' else name}, as a share of the capacity."
    levels = ((None, GREEN), (0.8, ORANGE), (1, RED))
    about = About(f"{name} promised", told, "percentunit", 8)
    return made.panel(gauges(levels, 1.25), about, Query(_committed(name), EACH, instant=True))


def _drift(made: Board, name: str, more: str, less: str) -> Panel:
    _, unit, _ = RESOURCES[name]
    about = About(f"{name}: {more} less {less}", f"0 where they agree; above 0 more is {more} than {less}.", unit, 8)
    return made.panel(lines(below_zero=True), about, Query(f"{_amount(name, more)} - {_amount(name, less)}", EACH))


def _audit(made: Board) -> list[Panel]:
    found = f'maintenance_found{{{EVERYWHERE}, what=~"drift|overcommitted"}}'
    return [
        made.panel(
            states({"0": ("blind", RED), "1": ("read", GREEN)}),
            About("Could it be read?", "Whether the audit could read the provider's cluster.", "short", 8),
            Query(f"max {PROVIDERS} (maintenance_audit_up{{WHERE}})", EACH),
        ),
        made.panel(
            lines(fill=10),
            About(
                "What the audits found",
                "Providers that do not add up or promised too much. Those with a database on its way are not judged."
                " Not narrowed to the selected providers.",
                "short",
                8,
            ),
            Query(f"max by (cluster, namespace, what) ({found})", "{{what}} {{namespace}}"),
        ),
        made.panel(
            bars(),
            About("Repaired", "Ledgers that an audit with `repair: true` has corrected.", "short", 8),
            Query(
                "sum by (namespace, job_name) (increase(maintenance_changed_total"
                f'{{{EVERYWHERE}, action="repaired"}}[$__rate_interval])) > 0',
                "{{job_name}} {{namespace}}",
            ),
        ),
    ]
