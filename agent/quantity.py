"""Amounts of CPU, memory and storage: Kubernetes quantities, the fields of a platform, the requests of a pod.

Everything is exact: a quantity is a ``Decimal``, an amount is an integer of millicores or bytes. Floats are taken by
their shortest decimal form, so that 0.1 is a tenth. What Kubernetes rounds up is rounded up here, at the same places.

Sources: the grammar and the canonical form are those of ``k8s.io/apimachinery/pkg/api/resource`` (quantity.go,
suffix.go); a pod's requests follow ``k8s.io/component-helpers/resource`` (``PodRequests``) and the proposals it names,
KEP-753 (sidecar containers), KEP-2837 (pod-level resources) and KEP-1287 (resize in place).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_UP, Context, Decimal, Inexact, InvalidOperation
from enum import Enum
from typing import Any, Final

from agent.errors import QuantityError, UsageError, shown

MAX_TEXT: Final = 64  # characters; the longest quantity of use is a signed 64-bit integer with nine decimals: 31
MAX_EXPONENT: Final = 30  # of `1e30`; beyond it a short text would stand for a number that fills the memory
LARGEST: Final = 2**63 - 1  # what Kubernetes can represent, and what MongoDB's 64-bit integer holds

BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}
DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
SUFFIXES: Final = ", ".join([*(name for name in DECIMAL if name), *BINARY])

CPU_UNITS: Final = {"cores": Decimal(1), "millicores": Decimal("0.001")}
BYTE_UNITS: Final = {
    "bytes": Decimal(1),
    **{f"{prefix}iB": Decimal(1024**power) for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}B": Decimal(1000**power) for power, prefix in enumerate("KMGT", 1)},
}

# [0-9], not \d: other scripts' digits are no quantity. The suffix is looked up apart, so that a wrong one gets a hint.
_QUANTITY: Final = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:([eE][+-]?[0-9]+)|([A-Za-z]*))")
# Wide enough for every sum and product below; were it ever not, the trap would tell instead of rounding silently.
_EXACT: Final = Context(prec=400, traps=[Inexact, InvalidOperation])
_ROUNDING: Final = Context(prec=400, traps=[InvalidOperation])
_NANO: Final = Decimal("1e-9")
_ZERO: Final = Decimal(0)


class Style(Enum):
    """The three ways in which Kubernetes writes a quantity; it keeps the one that it read."""

    DECIMAL = "decimal"
    BINARY = "binary"
    EXPONENT = "exponent"


@dataclass(frozen=True, slots=True)
class Amounts:
    """Amounts of the three resources: CPU in millicores, memory and storage in bytes."""

    millicores: int = 0
    memory: int = 0
    storage: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(self.millicores + other.millicores, self.memory + other.memory, self.storage + other.storage)

    def times(self, count: int) -> Amounts:
        """The amounts of so many equal things."""
        return Amounts(self.millicores * count, self.memory * count, self.storage * count)


NOTHING: Final = Amounts()


# ------------------------------------------------------------------------------------------------------- reading


def parse(value: object) -> Decimal:
    """The exact value of a quantity: text such as ``500m``, ``2Gi``, ``1e3``, ``.5``, or a number.

    Raises QuantityError for anything else, naming the value: a wrong suffix, NaN, an infinity, a truth value, nothing
    at all, and what is larger than 2**63 - 1, which Kubernetes would silently cut off.
    """
    exact = _of_text(value)[0] if isinstance(value, str) else _of_number(value)
    if exact.copy_abs() > LARGEST:
        raise QuantityError(f"{shown(value)} is too large for a quantity: at most {LARGEST}")
    return exact


def style_of(value: object) -> Style:
    """How a quantity is written; numbers are decimal. Raises QuantityError as `parse` does."""
    return _of_text(value)[1] if isinstance(value, str) else Style.DECIMAL


def _of_text(text: str) -> tuple[Decimal, Style]:
    if len(text) > MAX_TEXT:
        raise QuantityError(f"{shown(text)} is no quantity: longer than {MAX_TEXT} characters")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise QuantityError(f"{shown(text)} is no quantity: expected a number and a suffix, as in 500m or 2Gi")
    number, exponent, suffix = match.groups()
    if exponent is not None:
        return _scaled(number, _exponent(text, exponent)), Style.EXPONENT
    if suffix in BINARY:
        return _EXACT.multiply(Decimal(number), Decimal(BINARY[suffix])), Style.BINARY
    if suffix in DECIMAL:
        return _scaled(number, DECIMAL[suffix]), Style.DECIMAL
    raise QuantityError(f"{shown(text)} has an unknown suffix{_hint(suffix)}; there are {SUFFIXES}")


def _scaled(number: str, exponent: int) -> Decimal:
    return _EXACT.scaleb(Decimal(number), Decimal(exponent))


def _exponent(text: str, exponent: str) -> int:
    power = int(exponent[1:])
    if abs(power) > MAX_EXPONENT:
        raise QuantityError(f"{shown(text)} is no quantity: its exponent is beyond {MAX_EXPONENT}")
    return power


def _hint(suffix: str) -> str:
    """Name the suffix that was probably meant: another case (``gi``, ``K``), or the unit written out (``GiB``)."""
    known = {name.lower(): name for name in (*DECIMAL, *BINARY) if name}
    meant = known.get(suffix.lower()) or known.get(suffix.lower().removesuffix("b"))
    return f" (did you mean {meant}?)" if meant else ""


def _of_number(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise QuantityError(f"{shown(value)} is no quantity: expected text such as 500m or 2Gi, or a number")
    if isinstance(value, int):
        return Decimal(value) if value.bit_length() <= MAX_TEXT else _refuse_large(value)
    number = Decimal(repr(value)) if isinstance(value, float) else value
    if not number.is_finite():
        raise QuantityError(f"{number} is no quantity: expected a finite number")
    if (number and abs(number.adjusted()) > MAX_TEXT) or len(number.as_tuple().digits) > MAX_TEXT:
        raise QuantityError(f"{shown(value)} is no quantity: more than {MAX_TEXT} digits")
    return number


def _refuse_large(value: int) -> Decimal:
    raise QuantityError(f"an integer of {value.bit_length()} bits is too large for a quantity: at most {LARGEST}")


# ------------------------------------------------------------------------------------------------- units of a platform


def to_millicores(value: object, unit: str = "cores") -> int:
    """CPU in whole millicores, rounded up as Kubernetes does (its ``MilliValue``).

    A number is in ``unit`` (one of CPU_UNITS), also where it is written as text; text with a suffix is a quantity,
    whatever the unit. Raises QuantityError for the value, UsageError for the unit.
    """
    return _whole(value, _factor(unit, CPU_UNITS), 1000)


def to_bytes(value: object, unit: str = "bytes") -> int:
    """Memory or storage in whole bytes, rounded up as Kubernetes does (its ``Value``).

    A number is in ``unit`` (one of BYTE_UNITS; ``GiB`` is 2**30, ``GB`` 10**9), also where it is written as text; text
    with a suffix is a quantity, whatever the unit. Raises QuantityError for the value, UsageError for the unit.
    """
    return _whole(value, _factor(unit, BYTE_UNITS))


def _factor(unit: str, units: Mapping[str, Decimal]) -> Decimal:
    if unit not in units:
        near = difflib.get_close_matches(unit, units, 1) or [name for name in units if name.lower() == unit.lower()]
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(f"{shown(unit)} is no unit here{hint}; there are {', '.join(units)}")
    return units[unit]


def _in_unit(value: object, factor: Decimal) -> Decimal:
    number = parse(value)
    carries_suffix = isinstance(value, str) and value[-1:].isalpha()
    return number if carries_suffix else _EXACT.multiply(number, factor)


def _whole(value: object, factor: Decimal, parts: int = 1) -> int:
    """The value in so many parts of its unit, rounded away from zero to an integer that 64 bits hold."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST:
        whole = int(value) * int(factor * parts)  # as exact as with decimals, in a tenth of the time
    else:
        number = _EXACT.multiply(_in_unit(value, factor), Decimal(parts))
        whole = int(number.to_integral_value(ROUND_UP, _EXACT))
    if abs(whole) > LARGEST:
        raise QuantityError(f"{shown(value)} is too large: {whole} is beyond {LARGEST}")
    return whole


# ------------------------------------------------------------------------------------------------------------ writing


def canonical(value: object) -> str:
    """A quantity in Kubernetes' canonical form, in the style in which it came. Raises QuantityError as `parse` does."""
    return write(parse(value), style_of(value))


def write(number: Decimal, style: Style = Style.DECIMAL) -> str:
    """A number as Kubernetes writes it: no fraction, the largest suffix, no sign but minus (``1.5Gi`` is ``1536Mi``).

    Where binary suffixes would lose something (a fraction) or say nothing (below 1024), the form is decimal. Digits
    below a nano are rounded up. Raises QuantityError for what `parse` refuses.
    """
    number = parse(number).quantize(_NANO, ROUND_UP, _ROUNDING)
    if style is Style.BINARY and number.copy_abs() >= BINARY["Ki"] and number == number.to_integral_value():
        return _with_binary_suffix(int(number))
    return _with_power_of_ten(number, style)


def _with_binary_suffix(number: int) -> str:
    for suffix, size in reversed(BINARY.items()):
        if number % size == 0:
            return f"{number // size}{suffix}"
    return str(number)


def _with_power_of_ten(number: Decimal, style: Style) -> str:
    nanos = int(_EXACT.scaleb(number, Decimal(9)))
    if nanos == 0:
        return "0"
    power = max(power for power in DECIMAL.values() if nanos % 10 ** (power + 9) == 0)
    mantissa = nanos // 10 ** (power + 9)
    if style is Style.EXPONENT:
        return f"{mantissa}e{power}" if power else str(mantissa)
    return f"{mantissa}{_suffix_of(power)}"


def _suffix_of(power: int) -> str:
    return next(suffix for suffix, exponent in DECIMAL.items() if exponent == power)


# --------------------------------------------------------------------------------------------------- requests of a pod

Json = Mapping[str, Any]
Requests = dict[str, Decimal]
_RequestsOf = Callable[[Json], Json]

# A pod that has ended holds nothing any more: the scheduler has forgotten it.
TERMINAL_PHASES: Final = frozenset({"Succeeded", "Failed"})
# What a pod may request as a whole (KEP-2837); other resources stay the sum of its containers.
POD_LEVEL: Final = frozenset({"cpu", "memory"})


def pod_amounts(pod: Json) -> Amounts:
    """What the scheduler sets aside for a pod, given as API JSON: millicores and bytes, rounded up once a pod.

    Storage is left at zero: it belongs to claims. Raises QuantityError where a request is no quantity.
    """
    requests = pod_requests(pod)
    return Amounts(to_millicores(requests.get("cpu", 0)), to_bytes(requests.get("memory", 0)))


def pod_requests(pod: Json) -> Requests:
    """The effective requests of a pod by resource, exact, in cores and bytes; none for a pod that has ended.

    For each resource: the sum of the containers and the native sidecars (init containers that restart ``Always``), or
    the most that any init container needs together with the sidecars started before it, whichever is more; what the
    pod requests as a whole takes the place of that; its overhead comes on top. While a resize is under way, the most
    of what is wanted, granted and in effect counts. Raises QuantityError where a request is no quantity.
    """
    status = _part(pod, "status")
    if status.get("phase") in TERMINAL_PHASES:
        return {}
    spec = _part(pod, "spec")
    requests = _most(_of_containers(spec, requested) for requested in _views(status))
    whole = _quantities(_part(_part(spec, "resources"), "requests"))
    requests |= {name: amount for name, amount in whole.items() if name in POD_LEVEL}
    return _sum([requests, _quantities(_part(spec, "overhead"))])


def _views(status: Json) -> list[_RequestsOf]:
    """The ways to look at a container's requests: wanted, granted, in effect (KEP-1287).

    What is wanted does not count where the node said that it can never be granted.
    """
    reported = _reported(status)
    infeasible = any(
        condition.get("type") == "PodResizePending" and condition.get("reason") == "Infeasible"
        for condition in _items(status, "conditions")
    )
    if not reported and not infeasible:
        return [_wanted]  # as everywhere before Kubernetes 1.33; three times the same would cost three times as much

    def granted(container: Json) -> Json:
        allocated = _part(reported.get(container.get("name"), {}), "allocatedResources")
        return allocated or ({} if infeasible else _wanted(container))

    def in_effect(container: Json) -> Json:
        actual = _part(_part(reported.get(container.get("name"), {}), "resources"), "requests")
        return actual or granted(container)

    return [granted, in_effect] if infeasible else [_wanted, granted, in_effect]


def _reported(status: Json) -> dict[object, Json]:
    """What the node says about the resources of its containers, by name."""
    return {
        item.get("name"): item
        for key in ("initContainerStatuses", "containerStatuses")
        for item in _items(status, key)
        if item.get("allocatedResources") or item.get("resources")
    }


def _wanted(container: Json) -> Json:
    return _part(_part(container, "resources"), "requests")


def _of_containers(spec: Json, requested: _RequestsOf) -> Requests:
    """KEP-753: the greater of the running containers' sum and the neediest moment of the initialisation."""
    running = [_quantities(requested(container)) for container in _items(spec, "containers")]
    sidecars: list[Requests] = []
    moments: list[Requests] = []
    for container in _items(spec, "initContainers"):
        requests = _quantities(requested(container))
        moments.append(_sum([*sidecars, requests]))
        if container.get("restartPolicy") == "Always":
            sidecars.append(requests)
    return _most([_sum(running + sidecars), *moments])


def _quantities(requests: Json) -> Requests:
    return {name: parse(value) for name, value in requests.items()}


def _sum(several: Iterable[Requests]) -> Requests:
    total: Requests = {}
    for requests in several:
        for name, amount in requests.items():
            total[name] = _EXACT.add(total.get(name, _ZERO), amount)
    return total


def _most(several: Iterable[Requests]) -> Requests:
    most: Requests = {}
    for requests in several:
        for name, amount in requests.items():
            most[name] = max(most.get(name, amount), amount)
    return most


def _part(document: Json, key: str) -> Json:
    part = document.get(key)
    if part is None:
        return {}
    if not isinstance(part, Mapping):
        raise QuantityError(f"{key} is {shown(part)}, not an object")
    return part


def _items(document: Json, key: str) -> list[Json]:
    items = document.get(key) or []
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise QuantityError(f"{key} is not a list of objects")
    return items
