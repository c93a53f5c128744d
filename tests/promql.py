"""What a PromQL expression asks for: the series that it names, and whether this agent has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import promql_parser

from agent.metrics import NAMESPACE, Metrics

RATES: Final = {"rate", "irate", "increase", "changes", "resets"}
PLACES: Final = {"cluster", "namespace", "job", "instance", "pod", "container"}  # the scrape adds these
# What stands in a Grafana expression for what is chosen on top.
STAND_INS: Final = {"__rate_interval": "5m", "__range": "1h", "__interval": "5m"}


@dataclass(frozen=True)
class Selector:
    """A selector, the function that it is handed to, and the aggregation around it: the innermost of each."""

    name: str
    matchers: tuple[tuple[str, str], ...]
    function: str | None
    aggregation: str | None
    ranged: bool


def parse(expr: str, chosen: Mapping[str, str] | None = None) -> Any:
    """The expression as a tree. Raises ``ValueError`` where it is none."""
    return promql_parser.parse(substituted(expr, chosen or {}))


def substituted(expr: str, chosen: Mapping[str, str]) -> str:
    """The expression with the variables replaced: everything (``.*``) where nothing was chosen."""
    known = {**STAND_INS, **chosen}
    return re.sub(r"\$(\w+)", lambda found: known.get(found[1], ".*"), expr)


def selectors(expr: str) -> list[Selector]:
    """The selectors of an expression."""
    return list(_selectors(parse(expr), None, None))


def _selectors(node: Any, function: str | None, aggregation: str | None) -> Iterator[Selector]:
    match node:
        case promql_parser.VectorSelector():
            yield _selector(node, function, aggregation, ranged=False)
        case promql_parser.MatrixSelector():
            yield _selector(node.vector_selector, function, aggregation, ranged=True)
        case promql_parser.Call():
            for argument in node.args:
                yield from _selectors(argument, node.func.name, aggregation)
        case promql_parser.AggregateExpr():
            yield from _selectors(node.expr, function, str(node.op))
        case _:
            for name in ("lhs", "rhs", "expr"):
                if isinstance(child := getattr(node, name, None), promql_parser.Expr):
                    yield from _selectors(child, function, aggregation)


def _selector(
    node: promql_parser.VectorSelector, function: str | None, aggregation: str | None, *, ranged: bool
) -> Selector:
    matchers = tuple((one.name, one.value) for one in node.matchers.matchers)
    return Selector(node.name or "", matchers, function, aggregation, ranged)


@cache
def families() -> Mapping[str, tuple[str, Mapping[str, tuple[str, ...] | str]]]:
    """The agent's series by name: their type, and their labels with the values that these may have."""
    metrics = Metrics("", ())
    metrics.close()
    series: dict[str, tuple[str, Mapping[str, tuple[str, ...] | str]]] = {}
    for spec in metrics.specs:
        ends = ("_bucket", "_sum", "_count") if spec.type == "histogram" else ("",)
        for end in ends:
            labels = {**spec.labels, "le": "a bound"} if end == "_bucket" else spec.labels
            series[f"{NAMESPACE}_{spec.name}{end}"] = (spec.type, labels)
    return series


def wrong(selector: Selector) -> str | None:
    """What is wrong with a selector of one of the agent's series: a name, label or value that there is not."""
    if not selector.name.startswith(f"{NAMESPACE}_"):
        return None
    if selector.name not in families():
        return f"there is no series {selector.name}"
    _, labels = families()[selector.name]
    for name, value in selector.matchers:
        values = labels.get(name)
        if name in PLACES or isinstance(values, str):
            continue
        if values is None or not set(value.split("|")) <= set(values):
            return f'{selector.name} never has {name}="{value}"'
    return None
