"""Whatever is called in whatever order, the ledger does what a dictionary would do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from typing import Any, TypeVar

from bson import Int64, ObjectId
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from motor.motor_asyncio import AsyncIOMotorClient

from agent.ledger import (
    RESOURCES,
    BookingExistsError,
    BookingNotFoundError,
    InsufficientCapacityError,
    Ledger,
    LedgerError,
    LedgerResult,
    MalformedProviderError,
    ProviderInactiveError,
    VersionConflictError,
    encode_key,
)
from tests.conftest import Database

Amounts = dict[str, int]
Call = tuple[str, Any, Amounts | None, int | None]
Outcome = tuple[type, bool]
T = TypeVar("T")

P = "provider"
EXAMPLES = max(20, round(500 * float(os.environ.get("FAULTS_SCALE", "0"))))  # of thirty steps each
KEYS = st.sampled_from(["a", "b", "", "a.b", "$set", "%24", "0", 0, 7, b"a", ObjectId("6" * 24), "6" * 24])
AMOUNT = st.one_of(st.integers(0, 12), st.sampled_from([0, 2**62, 2**63 - 1]))
REQUEST = st.dictionaries(st.sampled_from(RESOURCES), AMOUNT)
CAPACITY = st.sampled_from([0, 5, 20, 2**62, 2**63 - 1])
BEHIND = st.sampled_from([None, None, None, 0, 0, -1, 1])  # none is expected, the right version, or one beside it


def full(request: Amounts) -> Amounts:
    """A request with everything that it leaves out."""
    return {name: request.get(name, 0) for name in RESOURCES}


class Model:
    """The books as a dictionary, and the rule in the words of the documentation."""

    def __init__(self) -> None:
        self.capacity = full({"cpu": 20, "memory": 20, "storage": 20})
        self.bookings: dict[str, Amounts] = {}
        self.version = 0
        self.status = "active"

    @property
    def allocated(self) -> Amounts:
        """The sum of the bookings."""
        return {name: sum(booking[name] for booking in self.bookings.values()) for name in RESOURCES}

    def call(self, kind: str, name: str, want: Amounts | None, expected: int | None) -> Outcome:
        """Does what a call does, and says how it ends: with what, and whether that changed anything."""
        had = self.bookings.get(name)
        if had == want:
            return LedgerResult, False
        if (refusal := self._refusal(kind, had, want, expected)) is not None:
            return refusal, False
        self.version += 1
        if want is None:
            del self.bookings[name]
        else:
            self.bookings[name] = want
        return LedgerResult, True

    def _refusal(
        self, kind: str, had: Amounts | None, want: Amounts | None, expected: int | None
    ) -> type[LedgerError] | None:
        growth = {name: (want or full({}))[name] - (had or full({}))[name] for name in RESOURCES}
        allocated = self.allocated
        if expected not in (None, self.version):
            return VersionConflictError
        if kind == "allocate" and had is not None:
            return BookingExistsError
        if kind == "resize" and had is None:
            return BookingNotFoundError
        if self.status != "active" and (kind == "allocate" or any(more > 0 for more in growth.values())):
            return ProviderInactiveError
        if any(more > 0 and allocated[name] + more > self.capacity[name] for name, more in growth.items()):
            return InsufficientCapacityError
        return None


class Books(RuleBasedStateMachine):
    """Runs the ledger and the model side by side; after each step the document is what the model says."""

    uri = ""
    database = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = Model()
        self.last: Call = ("release", "a", None, None)
        self.run(self.open())

    def run(self, what: Awaitable[T]) -> T:
        """Waits for it, on the loop of this example."""

        async def wait() -> T:
            return await what

        return self.runner.run(wait())

    async def open(self) -> None:
        """A client of the example's own loop, and a provider of which nothing is booked."""
        self.client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(self.uri)
        self.providers = self.client[self.database]["providers"]
        self.ledger = Ledger(self.providers, active=["active"])
        await self.providers.replace_one(
            {"_id": P}, {"_id": P, "status": "active", **self.ledger.blank(self.model.capacity)}, upsert=True
        )

    def teardown(self) -> None:
        """Closes the loop."""
        self.client.close()
        self.runner.close()

    @rule(key=KEYS, request=REQUEST, behind=BEHIND)
    def allocate(self, key: Any, request: Amounts, behind: int | None) -> None:
        """Books."""
        self.call("allocate", key, request, behind)

    @rule(key=KEYS, request=REQUEST, behind=BEHIND)
    def resize(self, key: Any, request: Amounts, behind: int | None) -> None:
        """Changes a booking."""
        self.call("resize", key, request, behind)

    @rule(key=KEYS, behind=BEHIND)
    def release(self, key: Any, behind: int | None) -> None:
        """Gives back."""
        self.call("release", key, None, behind)

    @rule()
    def say_it_again(self) -> None:
        """The last call, word by word."""
        self.compare([self.last])

    @rule(calls=st.lists(st.tuples(KEYS, st.one_of(st.none(), st.integers(0, 12))), min_size=2, max_size=6))
    def several_at_once(self, calls: list[tuple[Any, int | None]]) -> None:
        """Different keys, each changed in the way that it can be, where there is enough for all."""
        free = self.model.capacity["cpu"] - self.model.allocated["cpu"]
        if self.model.status == "active" and free > 100:
            chosen = {encode_key(key): (key, amount) for key, amount in calls}
            self.compare([self.able(key, amount) for key, amount in chosen.values()])

    def able(self, key: Any, amount: int | None) -> Call:
        """A call that suits what is booked under the key."""
        if amount is None:
            return "release", key, None, None
        return "resize" if encode_key(key) in self.model.bookings else "allocate", key, {"cpu": amount}, None

    @rule(resource=st.sampled_from(RESOURCES), amount=CAPACITY)
    def the_application_changes_the_capacity(self, resource: str, amount: int) -> None:
        """Also below what is booked."""
        self.model.capacity[resource] = amount
        self.set(**{f"capacity.{resource}": Int64(amount)})

    @rule()
    def the_application_grows_everything(self) -> None:
        """To more than anybody asks for."""
        self.model.capacity = dict.fromkeys(RESOURCES, 2**63 - 1)
        self.set(capacity={name: Int64(2**63 - 1) for name in RESOURCES}, status="active")
        self.model.status = "active"

    @rule(status=st.sampled_from(["active", "active", "draining"]))
    def the_application_changes_the_status(self, status: str) -> None:
        """To one that grants capacity or not."""
        self.model.status = status
        self.set(status=status)

    def set(self, **fields: Any) -> None:
        """Sets fields of the provider."""
        self.run(self.providers.update_one({"_id": P}, {"$set": fields}))

    def call(self, kind: str, key: Any, request: Amounts | None, behind: int | None) -> None:
        """One call."""
        self.last = (kind, key, request, None if behind is None else self.model.version + behind)
        self.compare([self.last])

    def compare(self, calls: list[Call]) -> None:
        """Makes the calls at once, and asks the model how each should have ended."""
        results = self.run(self.together(calls))
        for (kind, key, request, expected), result in zip(calls, results, strict=True):
            want = None if request is None else full(request)
            outcome = self.model.call(kind, encode_key(key), want, expected)
            assert (type(result), getattr(result, "changed", False)) == outcome, (kind, key, want, expected, result)
            assert not isinstance(result, MalformedProviderError)
        for result in results:
            if isinstance(result, LedgerResult) and len(calls) == 1:
                assert (result.version, result.allocated) == (self.model.version, self.model.allocated)
                assert result.booked == self.model.bookings.get(encode_key(result.key), {})
                assert result.capacity == self.model.capacity

    async def together(self, calls: list[Call]) -> list[LedgerResult | BaseException]:
        """All calls at the same time."""
        pending = []
        for kind, key, request, expected in calls:
            arguments = [P, key] if request is None else [P, key, request]
            pending.append(getattr(self.ledger, kind)(*arguments, expect_version=expected))
        return list(await asyncio.gather(*pending, return_exceptions=True))

    @invariant()
    def the_document_is_what_the_model_says(self) -> None:
        """To the last field."""
        assert self.run(self.providers.find_one({"_id": P})) == {
            "_id": P,
            "status": self.model.status,
            "ledger_format": 1,
            "version": self.model.version,
            "capacity": self.model.capacity,
            "allocated": self.model.allocated,
            "bookings": self.model.bookings,
        }


def test_the_ledger_does_what_a_dictionary_would_do(database: Database) -> None:
    """Random calls with repeated, hostile and huge values, among changes of capacity and status by the application."""
    machine = type("Machine", (Books,), {"uri": database.uri, "database": database.name})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            derandomize=False,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
