"""Guards: what refuses a run, in which words, and what an operator may consent to."""

from __future__ import annotations

import pytest

from agent.errors import RefusedError
from agent.guards import Baseline, cap, judge, refuse_cap
from agent.job import Limit, Proof

NOBODY: frozenset[str] = frozenset()


def test_a_proof_without_a_refusal_and_without_a_baseline_passes() -> None:
    """The first run has nothing to be compared with."""
    judge(Proof("root", measure=3, identity="a"), None, NOBODY, "apps")


@pytest.mark.parametrize("measure, refused", [(49, True), (50, False), (51, False), (1000, False)])
def test_a_source_may_shrink_to_half_of_what_it_was(measure: int, refused: bool) -> None:
    """One less than half is refused, with both figures in the message."""
    proof = Proof("targets", measure=measure)
    if not refused:
        judge(proof, Baseline(measure=100), NOBODY, "tasks")
        return
    with pytest.raises(RefusedError, match="saw 49 documents, expected at least 50: half of the 100") as caught:
        judge(proof, Baseline(measure=100), NOBODY, "tasks")
    assert caught.value.guard == "targets"
    assert "maintenance-agent run tasks --accept targets" in str(caught.value)


@pytest.mark.parametrize("measure, refused", [(19, True), (20, False)])
def test_what_the_agent_deleted_itself_is_no_drop(measure: int, refused: bool) -> None:
    """Half of what was left after the agent's own deletions is enough."""
    baseline = Baseline(measure=100, deleted_since=60)
    if refused:
        with pytest.raises(RefusedError, match="less 60 deleted by the agent"):
            judge(Proof("targets", measure=measure), baseline, NOBODY, "tasks")
    else:
        judge(Proof("targets", measure=measure), baseline, NOBODY, "tasks")


def test_more_deletions_than_the_baseline_expect_nothing() -> None:
    """A count that was restored and deleted again must not make the expectation negative."""
    judge(Proof("targets", measure=0), Baseline(measure=5, deleted_since=9), NOBODY, "tasks")


def test_another_volume_is_refused_however_many_directories_it_has() -> None:
    """The marker's content is pinned at the first good run."""
    with pytest.raises(RefusedError, match="another volume: 'b' instead of 'a'"):
        judge(Proof("root", measure=99, identity="b"), Baseline(measure=1, identity="a"), NOBODY, "apps")


def test_an_operator_consents_by_the_guards_own_name() -> None:
    """Another name is no consent."""
    proof = Proof("root", refusal="the marker is missing")
    judge(proof, None, frozenset({"root"}), "apps")
    with pytest.raises(RefusedError):
        judge(proof, None, frozenset({"cap", "targets"}), "apps")


def test_nobody_can_consent_to_a_root_that_cannot_be_read() -> None:
    """Then the message offers no consent either."""
    with pytest.raises(RefusedError) as caught:
        judge(Proof("root", refusal="/data does not exist", consent=False), None, frozenset({"root"}), "apps")
    assert "--accept" not in str(caught.value)
    assert caught.value.consent is None


@pytest.mark.parametrize(
    "limit, found, population, refused",
    [
        (Limit(items=10), 10, 10, False),
        (Limit(items=10), 11, 1000, True),
        (Limit(items=0), 0, 10, False),
        (Limit(items=0), 1, 10, True),
        (Limit(items=100, fraction=0.25), 25, 100, False),
        (Limit(items=100, fraction=0.25), 26, 100, True),
        (Limit(items=100, fraction=0.25, floor=50), 50, 60, False),
        (Limit(items=100, fraction=0.25, floor=50), 51, 60, True),
        (Limit(items=100, fraction=1.0), 100, 100, False),
        (Limit(items=100, fraction=0.0, floor=1), 1, 100, False),
        (Limit(items=100, fraction=0.0, floor=1), 2, 100, True),
    ],
)
def test_the_cap_refuses_above_its_lines_and_not_on_them(
    limit: Limit, found: int, population: int, refused: bool
) -> None:
    """The absolute number, and the fraction above the floor."""
    assert (cap(limit, found, population, truncates=False) is not None) == refused


def test_a_kind_that_truncates_knows_no_absolute_number() -> None:
    """The fraction refuses it all the same."""
    assert cap(Limit(items=10), 11, 100, truncates=True) is None
    assert cap(Limit(items=10, fraction=0.1), 11, 100, truncates=True) is not None


def test_a_refusal_by_the_cap_says_how_to_consent() -> None:
    """With the job's name in the command."""
    error = refuse_cap("11 items are more than limit.items = 10", "old")
    assert (error.guard, error.consent) == ("cap", "cap")
    assert str(error).endswith("maintenance-agent run old --accept cap")
