"""Quantities are read exactly, refused by name, written as Kubernetes writes them; pods add up as for the scheduler."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import quantity
from agent.errors import QuantityError, UsageError
from agent.quantity import LARGEST, Amounts, Style

Json = dict[str, Any]

GOOD = {
    "0": "0",
    "-0": "0",
    "500m": "0.5",
    "2Gi": str(2 * 2**30),
    "1.5Gi": str(3 * 2**29),
    "1e3": "1000",
    "1E3": "1000",
    "1e+3": "1000",
    "25e-1": "2.5",
    "1E": str(10**18),
    "1Ei": str(2**60),
    "2n": "0.000000002",
    "3u": "0.000003",
    ".5": "0.5",
    "1.": "1",
    "+1": "1",
    "-1": "-1",
    "1.k": "1000",
    "0.1n": "0.0000000001",
    "9223372036854775807": str(LARGEST),
}

BAD = {
    "": "'' is no quantity: expected a number and a suffix, as in 500m or 2Gi",
    "abc": "'abc' is no quantity",
    "1.2.3": "'1.2.3' is no quantity",
    ".": "'.' is no quantity",
    "--1": "'--1' is no quantity",
    " 1": "' 1' is no quantity",
    "1\n": "'1\\n' is no quantity",
    "1 Gi": "'1 Gi' is no quantity",
    "1_000": "'1_000' is no quantity",
    "0x10": "'0x10' is no quantity",
    "٣": "'٣' is no quantity",
    "nan": "'nan' is no quantity",
    "Infinity": "'Infinity' is no quantity",
    "1e": "'1e' has an unknown suffix",
    "1e1.5": "'1e1.5' is no quantity",
    "1gi": "'1gi' has an unknown suffix (did you mean Gi?); there are n, u, m, k, M, G, T, P, E, Ki",
    "1GiB": "'1GiB' has an unknown suffix (did you mean Gi?)",
    "1KB": "'1KB' has an unknown suffix (did you mean k?)",
    "1x": "'1x' has an unknown suffix; there are",
    "1e31": "'1e31' is no quantity: its exponent is beyond 30",
    "1e999999999": "'1e999999999' is no quantity: its exponent is beyond 30",
    "9223372036854775808": "'9223372036854775808' is too large for a quantity: at most 9223372036854775807",
    "8Ei": "'8Ei' is too large for a quantity",
    "9" * 65: "is no quantity: longer than 64 characters",
}

CANONICAL = {
    "1500m": "1500m",
    "1.5": "1500m",
    "1000m": "1",
    "1000": "1k",
    "1500": "1500",
    "1024": "1024",
    "1.5Gi": "1536Mi",
    "1024Mi": "1Gi",
    "1500Mi": "1500Mi",
    "0.5Ki": "512",
    "1.5Ki": "1536",
    "0.1Mi": "104857600m",
    "-2048Ki": "-2Mi",
    "12e6": "12e6",
    "100e1": "1e3",
    "1.5e0": "1500e-3",
    "1E3": "1e3",
    "1e0": "1",
    "0Gi": "0",
    "+5": "5",
    "0.1n": "1n",
    "-0.1n": "-1n",
    "10000000000000000000e-1": "1e18",
}


@pytest.mark.parametrize("text,value", GOOD.items(), ids=GOOD)
def test_a_quantity_is_read_exactly(text: str, value: str) -> None:
    """Each form of the grammar stands for exactly one number."""
    assert quantity.parse(text) == Decimal(value)


@pytest.mark.parametrize("text,message", BAD.items(), ids=[repr(text) for text in BAD])
def test_what_is_no_quantity_is_refused_by_name(text: str, message: str) -> None:
    """The error names the value, what is wrong with it, and what was probably meant."""
    with pytest.raises(QuantityError) as refused:
        quantity.parse(text)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "value,expected",
    [(0, "0"), (3, "3"), (-7, "-7"), (0.1, "0.1"), (2.5, "2.5"), (1e18, "1e18"), (Decimal("1.25"), "1.25")],
    ids=str,
)
def test_numbers_are_taken_as_they_are_written(value: object, expected: str) -> None:
    """A float is its shortest decimal form: a tenth stays a tenth."""
    assert quantity.parse(value) == Decimal(expected)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, [], {}, b"1", float("nan"), float("inf"), Decimal("NaN"), Decimal("-Infinity")),
        *(2**63, 10**10_000, 1e19, Decimal("1e999999"), Decimal("1e-999999"), Decimal("1." + "1" * 100)),
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:12] if not isinstance(value, int) else value.bit_length()}",
)
def test_other_values_are_refused(value: object) -> None:
    """Truth values, nothing, containers, what is not finite and what is too large are no quantities."""
    with pytest.raises(QuantityError):
        quantity.parse(value)


def test_a_refusal_does_not_repeat_a_long_or_secret_value() -> None:
    """Of long text only the start is shown, of a container only its type."""
    with pytest.raises(QuantityError) as long:
        quantity.parse("x" * 10_000)
    assert len(str(long.value)) < 200
    with pytest.raises(QuantityError, match="a value of type dict"):
        quantity.parse({"password": "hunter2"})


def test_a_quantity_error_is_a_usage_error_and_a_value_error() -> None:
    """Callers that know either of the two catch it."""
    assert issubclass(QuantityError, UsageError)
    assert issubclass(QuantityError, ValueError)


@pytest.mark.parametrize("text,canonical", CANONICAL.items(), ids=CANONICAL)
def test_a_quantity_is_written_in_canonical_form(text: str, canonical: str) -> None:
    """No fraction, the largest suffix, and the style in which it came."""
    assert quantity.canonical(text) == canonical


@given(
    st.sampled_from(["", "+", "-"]),
    st.integers(0, 10**9),
    st.none() | st.text("0123456789", max_size=6),
    st.sampled_from([*quantity.DECIMAL, *quantity.BINARY, "e3", "E-2", "e+6"]),
)
@settings(deadline=None)
def test_reading_and_writing_agree(sign: str, whole: int, fraction: str | None, suffix: str) -> None:
    """What is written reads as what was read (rounded up at a nano), and writing it again changes nothing."""
    text = f"{sign}{whole}{'' if fraction is None else '.' + fraction}{suffix}"
    exact = _exactly(sign, whole, fraction or "", suffix)
    if abs(exact) > LARGEST:
        with pytest.raises(QuantityError):
            quantity.parse(text)
        return
    assert Fraction(quantity.parse(text)) == exact
    written = quantity.canonical(text)
    assert 0 <= abs(Fraction(quantity.parse(written))) - abs(exact) < Fraction(1, 10**9)
    assert quantity.canonical(written) == written
    assert "." not in written


def _exactly(sign: str, whole: int, fraction: str, suffix: str) -> Fraction:
    number = Fraction(int(f"{whole}{fraction}"), 10 ** len(fraction)) * (-1 if sign == "-" else 1)
    if suffix in quantity.BINARY:
        return number * quantity.BINARY[suffix]
    power = quantity.DECIMAL[suffix] if suffix in quantity.DECIMAL else int(suffix[1:])
    return number * Fraction(10) ** power


@given(st.text(max_size=80) | st.text("0123456789.eEinumkKMGTP+-", max_size=20))
@settings(deadline=None)
def test_any_text_is_a_quantity_or_an_error_of_ours(text: str) -> None:
    """No text, however odd, raises anything but QuantityError, and none stands for an unbounded number."""
    try:
        value = quantity.parse(text)
    except QuantityError:
        return
    assert abs(value) <= LARGEST
    assert quantity.canonical(quantity.canonical(text)) == quantity.canonical(text)


@given(st.integers(-LARGEST, LARGEST), st.sampled_from(list(Style)))
@settings(deadline=None)
def test_integers_survive_in_every_style(number: int, style: Style) -> None:
    """An amount of the ledger can be written as a quantity and read back."""
    assert quantity.parse(quantity.write(Decimal(number), style)) == number


@pytest.mark.parametrize(
    "value,unit,millicores",
    [
        ("500m", "cores", 500),
        ("500m", "millicores", 500),
        (2, "cores", 2000),
        ("2", "cores", 2000),
        (2.5, "cores", 2500),
        (0.1, "cores", 100),
        (250, "millicores", 250),
        ("250", "millicores", 250),
        ("1n", "cores", 1),
        ("1000001n", "cores", 2),
        (0.0001, "cores", 1),
        (0, "cores", 0),
    ],
    ids=repr,
)
def test_cpu_becomes_whole_millicores(value: object, unit: str, millicores: int) -> None:
    """A number is in the unit, a quantity with a suffix speaks for itself, and fractions go up."""
    assert quantity.to_millicores(value, unit) == millicores


@pytest.mark.parametrize(
    "value,unit,amount",
    [
        ("2Gi", "bytes", 2**31),
        ("2Gi", "GB", 2**31),
        (2, "GiB", 2**31),
        ("2", "GiB", 2**31),
        (1.5, "GiB", 3 * 2**29),
        (2, "GB", 2 * 10**9),
        (1, "TiB", 2**40),
        (1, "TB", 10**12),
        (1, "MiB", 2**20),
        (1, "MB", 10**6),
        (1, "KiB", 1024),
        (1, "KB", 1000),
        ("1e3", "KiB", 1024_000),
        ("1500m", "bytes", 2),
        (0.3, "KiB", 308),
    ],
    ids=repr,
)
def test_memory_becomes_whole_bytes(value: object, unit: str, amount: int) -> None:
    """A number is in the unit, binary and decimal units differ, and fractions go up."""
    assert quantity.to_bytes(value, unit) == amount


def test_what_fits_no_64_bit_integer_is_refused() -> None:
    """The ledger's integers have 64 bits: just below the bound is taken, just above is not."""
    assert quantity.to_bytes(8 * 2**20 - 1, "TiB") == (8 * 2**20 - 1) * 2**40
    with pytest.raises(QuantityError, match="too large"):
        quantity.to_bytes(8 * 2**20, "TiB")
    with pytest.raises(QuantityError, match="too large"):
        quantity.to_millicores("9223372036854775807")


@pytest.mark.parametrize("unit,meant", [("Gib", "GiB"), ("gib", "GiB"), ("byte", "bytes")])
def test_an_unknown_unit_is_refused_with_the_nearest(unit: str, meant: str) -> None:
    """A misspelt unit is no silent factor of one."""
    with pytest.raises(UsageError, match=f"did you mean {meant}"):
        quantity.to_bytes(1, unit)


def test_a_unit_of_the_other_kind_is_refused() -> None:
    """CPU is not measured in bytes, nor memory in cores."""
    with pytest.raises(UsageError, match="there are cores, millicores"):
        quantity.to_millicores(1, "GiB")
    with pytest.raises(UsageError, match="'cores' is no unit here"):
        quantity.to_bytes(1, "cores")


# --------------------------------------------------------------------------------------------------- requests of a pod


def container(cpu: object = None, memory: object = None, *, name: str = "c", restart: str | None = None) -> Json:
    """Make a container, or with ``restart="Always"`` a native sidecar."""
    requests = {key: value for key, value in {"cpu": cpu, "memory": memory}.items() if value is not None}
    return {"name": name, "resources": {"requests": requests}, **({"restartPolicy": restart} if restart else {})}


def pod(containers: list[Json], init: list[Json] | None = None, *, status: Json | None = None, **spec: Any) -> Json:
    """Make a pod as the API returns it."""
    return {"spec": {"containers": containers, "initContainers": init or [], **spec}, "status": status or {}}


def test_containers_add_up() -> None:
    """Without anything else the requests of the containers are the pod's."""
    assert quantity.pod_amounts(pod([container("500m", "1Gi"), container("250m", "512Mi")])) == Amounts(750, 3 * 2**29)


def test_the_neediest_init_container_counts_where_it_needs_more() -> None:
    """Init containers run one after the other: their most, not their sum, and for each resource by itself."""
    init = [container("2", "1Mi"), container("1", "2Mi")]
    assert quantity.pod_amounts(pod([container("500m", "1Gi")], init)) == Amounts(2000, 2**30)


def test_native_sidecars_run_on_and_count_with_the_containers() -> None:
    """An init container that restarts always is part of the sum."""
    init = [container("100m", "64Mi", restart="Always"), container("200m", "1Mi")]
    assert quantity.pod_amounts(pod([container("1", "1Gi")], init)) == Amounts(1100, 2**30 + 64 * 2**20)


def test_an_init_container_needs_its_own_and_the_sidecars_before_it() -> None:
    """A sidecar that starts later is not there yet (KEP-753)."""
    before = [container("1", restart="Always"), container("4"), container("2", restart="Always")]
    after = [container("4"), container("1", restart="Always"), container("2", restart="Always")]
    assert quantity.pod_amounts(pod([container("1")], before)).millicores == 5000
    assert quantity.pod_amounts(pod([container("1")], after)).millicores == 4000


def test_overhead_comes_on_top() -> None:
    """What the runtime class costs is added after the greater of the two was found."""
    overhead = {"cpu": "250m", "memory": "120Mi"}
    found = quantity.pod_amounts(pod([container("1", "1Gi")], [container("2")], overhead=overhead))
    assert found == Amounts(2250, 2**30 + 120 * 2**20)


@pytest.mark.parametrize("phase,millicores", [("Succeeded", 0), ("Failed", 0), ("Running", 1000), ("Pending", 1000)])
def test_pods_that_have_ended_hold_nothing(phase: str, millicores: int) -> None:
    """A terminal pod is left out; one that waits or runs is not."""
    assert quantity.pod_amounts(pod([container("1")], status={"phase": phase})).millicores == millicores


def test_requests_of_the_pod_as_a_whole_take_the_place_of_the_sum() -> None:
    """KEP-2837: cpu and memory may be requested by the pod; overhead still comes on top."""
    whole = {"requests": {"cpu": "3", "example.com/dongle": "7"}}
    found = quantity.pod_requests(pod([container("1", "1Gi")], resources=whole, overhead={"cpu": "1"}))
    assert found == {"cpu": Decimal(4), "memory": Decimal(2**30)}


def resized(*, allocated: str, actual: str, infeasible: bool) -> Json:
    """Make a pod that wants 2 cores, of whose container the node granted and runs something else."""
    granted = {"name": "c", "allocatedResources": {"cpu": allocated}, "resources": {"requests": {"cpu": actual}}}
    condition = {"type": "PodResizePending", "reason": "Infeasible" if infeasible else "Deferred"}
    return pod([container("2")], status={"containerStatuses": [granted], "conditions": [condition]})


@pytest.mark.parametrize(
    "allocated,actual,infeasible,millicores",
    [("1", "1", False, 2000), ("3", "1", False, 3000), ("1", "4", False, 4000), ("1", "1", True, 1000)],
    ids=repr,
)
def test_while_a_resize_is_under_way_the_most_counts(
    allocated: str, actual: str, infeasible: bool, millicores: int
) -> None:
    """KEP-1287: wanted, granted or in effect, whichever is more; what can never be granted is not wanted."""
    found = quantity.pod_amounts(resized(allocated=allocated, actual=actual, infeasible=infeasible))
    assert found.millicores == millicores


def test_fractions_are_rounded_once_a_pod() -> None:
    """Two halves of a millicore are one, not two."""
    assert quantity.pod_amounts(pod([container("500u"), container("500u")])).millicores == 1


@pytest.mark.parametrize("empty", [{}, {"spec": None, "status": None}, pod([])], ids=json.dumps)
def test_a_pod_without_requests_has_none(empty: Json) -> None:
    """What is missing counts as nothing."""
    assert quantity.pod_amounts(empty) == Amounts()


@pytest.mark.parametrize(
    "malformed",
    [pod([container("lots")]), {"spec": []}, {"spec": {"containers": "x"}}, {"spec": {"containers": ["x"]}}],
    ids=json.dumps,
)
def test_a_malformed_pod_is_an_error_and_no_zero(malformed: Json) -> None:
    """What cannot be understood is not silently nothing."""
    with pytest.raises(QuantityError):
        quantity.pod_amounts(malformed)


millis = st.integers(0, 4000)
plain = st.lists(st.tuples(millis, st.booleans()), max_size=5)


@given(st.lists(millis, max_size=4), plain, millis)
@settings(deadline=None)
def test_requests_follow_the_formula_of_the_proposal(
    running: list[int], init: list[tuple[int, bool]], extra: int
) -> None:
    """For any pod: max(containers + sidecars, each init container + the sidecars before it) + overhead."""
    sidecars = [cpu for cpu, always in init if always]
    moments = [
        cpu + sum(before for before, always in init[:index] if always)
        for index, (cpu, always) in enumerate(init)
        if not always
    ]
    subject = pod(
        [container(f"{cpu}m") for cpu in running],
        [container(f"{cpu}m", restart="Always" if always else None) for cpu, always in init],
        overhead={"cpu": f"{extra}m"},
    )
    expected = max([sum(running) + sum(sidecars), *moments]) + extra
    assert quantity.pod_amounts(subject).millicores == expected
