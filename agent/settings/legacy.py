"""The five environment variables of the service that came before this one.

They stand above the built-in values and below what the file says, except that ``MAINTENANCE_ENABLED=false`` always
stops the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.settings.document import Key
from agent.settings.draft import Draft, from_words
from agent.settings.problems import dotted, refusal
from agent.settings.values import MAX_DURATION, parse_duration

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})

ENABLED = "MAINTENANCE_ENABLED"
INTERVAL = "MAINTENANCE_INTERVAL_SECONDS"
RETENTION = "MAINTENANCE_TASK_RETENTION_DAYS"
TIMEOUT = "MAINTENANCE_STUCK_TASK_TIMEOUT_MINUTES"
DRY_RUN = "MAINTENANCE_DRY_RUN"
NAMES = (ENABLED, INTERVAL, RETENTION, TIMEOUT, DRY_RUN)

_UNIT_SECONDS = {INTERVAL: 1, RETENTION: 86_400, TIMEOUT: 60}
_UNIT_NAMES = {INTERVAL: "seconds", RETENTION: "days", TIMEOUT: "minutes"}
_UNITS = {INTERVAL: "s", RETENTION: "d", TIMEOUT: "m"}


@dataclass(frozen=True, slots=True)
class Legacy:
    """What the old variables say: whether the clock runs, and the defaults of two kinds."""

    clock: bool = True
    sections: Mapping[Key, tuple[Any, str]] = field(default_factory=dict)
    """The keys of sections that have another default now: the value, and the variable that it is from."""
    kinds: Mapping[str, Mapping[str, tuple[Any, str]]] = field(default_factory=dict)
    """The same for the keys of kinds."""


def lay_legacy(draft: Draft, environ: Mapping[str, str]) -> Legacy:
    """Lays what the old variables say of sections into the draft, and returns the rest."""
    clock = _flag(draft, environ, ENABLED)
    dry_run = _flag(draft, environ, DRY_RUN)
    every = _duration(draft, environ, INTERVAL)
    keep = _duration(draft, environ, RETENTION)
    timeout = _duration(draft, environ, TIMEOUT)
    sections: dict[Key, tuple[Any, str]] = {}
    if dry_run is not None:
        sections["defaults", "dry_run"] = (dry_run, DRY_RUN)
    if every is not None:
        sections["schedule", "every"] = (every, INTERVAL)
    for path, (value, name) in sections.items():
        draft.put(path, value, from_words(name))
    kinds: dict[str, dict[str, tuple[Any, str]]] = {}
    if keep is not None:
        kinds["retention"] = {"keep": (keep, RETENTION)}
    if timeout is not None:
        # The old service had one limit for running and pending tasks.
        kinds["stuck_tasks"] = {"timeout": (timeout, TIMEOUT), "pending_timeout": (timeout, TIMEOUT)}
    return Legacy(clock is not False, sections, kinds)


def _flag(draft: Draft, environ: Mapping[str, str], name: str) -> bool | None:
    text = environ.get(name)
    if text is None:
        return None
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        draft.problems.append(f"{name}: {refusal(text, 'give true or false')}")
        return None
    return word in _TRUE


def _duration(draft: Draft, environ: Mapping[str, str], name: str) -> str | None:
    text = environ.get(name)
    if text is None:
        return None
    most = int(MAX_DURATION.total_seconds()) // _UNIT_SECONDS[name]
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(most)) and 1 <= int(digits) <= most):
        wanted = f"give a whole number of {_UNIT_NAMES[name]} from 1 to {most}"
        draft.problems.append(f"{name}: {refusal(text, wanted)}")
        return None
    return f"{int(digits)}{_UNITS[name]}"


def shadowed(draft: Draft, legacy: Legacy) -> list[str]:
    """Warnings about old variables that have no effect, because the configuration says otherwise."""
    values = dict(legacy.sections)
    for kind, keys in legacy.kinds.items():
        for job, raw in draft.jobs.items():
            values |= {("jobs", job, key): value for key, value in keys.items() if raw.get("kind") == kind}
    warnings = []
    for path, (value, name) in values.items():
        origin = draft.origin(path) if draft.has(path) else None
        if origin is not None and not _same(value, draft.get(path)):
            warnings.append(f"{name} has no effect on {dotted(path)}, which is set ({origin.words})")
    return warnings


def _same(one: Any, other: Any) -> bool:
    """Whether two settings that were found good are the same, however they are written."""
    if isinstance(one, bool):
        return str(other).strip().lower() in (_TRUE if one else _FALSE)
    return not isinstance(other, dict) and parse_duration(one) == parse_duration(other)
