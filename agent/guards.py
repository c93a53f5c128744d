"""Guards: what can refuse a run before its first change, and the words in which it says so.

A refusal names what was seen, what was expected, and how an operator can consent.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import RefusedError
from agent.job import Limit, Proof

SHARE = 2  # a source may shrink to the 2nd part, the half, of what it was before absence stops counting


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the last good run saw of a source, and what the agent itself has deleted there since."""

    measure: int | None = None
    identity: str | None = None
    deleted_since: int = 0


def judge(proof: Proof, baseline: Baseline | None, accept: frozenset[str], job: str) -> None:
    """Raises ``RefusedError`` where the source of truth is not what it has to be and nobody consented."""
    refusal = proof.refusal or _compared(proof, baseline)
    if refusal is None or (proof.consent and proof.guard in accept):
        return
    if not proof.consent:
        raise RefusedError(proof.guard, refusal)
    raise _open_to_consent(proof.guard, refusal, job)


def _compared(proof: Proof, baseline: Baseline | None) -> str | None:
    if baseline is None:
        return None
    if baseline.identity is not None and proof.identity != baseline.identity:
        return f"the marker names another volume: {proof.identity!r} instead of {baseline.identity!r}"
    if baseline.measure is None or proof.measure is None:
        return None
    expected = max(baseline.measure - baseline.deleted_since, 0)
    if proof.measure * SHARE >= expected:
        return None
    own = f" less {baseline.deleted_since} deleted by the agent" if baseline.deleted_since else ""
    least = -(-expected // SHARE)
    seen = f"saw {proof.measure} {proof.unit}, expected at least {least}"
    return f"{seen}: half of the {baseline.measure} of the last good run{own}"


def cap(limit: Limit, found: int, population: int, *, truncates: bool) -> str | None:
    """Why so many items are too many for one run, or nothing."""
    if found > limit.items and not truncates:
        return f"{found} items are more than limit.items = {limit.items}"
    if found > limit.floor and found > limit.fraction * population:
        share = found / population if population else 1.0
        return (
            f"{found} items are {share:.0%} of {population}, more than limit.fraction = {limit.fraction:g}"
            f" (which counts above limit.floor = {limit.floor})"
        )
    return None


def refuse_cap(reason: str, job: str) -> RefusedError:
    """The refusal of a run by its cap."""
    return _open_to_consent("cap", reason, job)


def _open_to_consent(guard: str, reason: str, job: str) -> RefusedError:
    how = f"; if that is right, consent with: maintenance-agent run {job} --accept {guard}"
    return RefusedError(guard, f"{reason}{how}", consent=guard)
