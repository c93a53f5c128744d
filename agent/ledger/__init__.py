"""Capacity that adds up: book, change and give back a provider's capacity, for the application to import.

The rule: what is booked on a provider is never more than it has, never less than nothing, and always the sum of its
bookings. Each call is one atomic operation of the server on the provider's one document. It checks the capacity, adds
to ``allocated``, sets or removes the booking under the database's id, and increments ``version``: all of that, for
all resources of the request, or nothing. Nobody reads first and writes later, so concurrent callers cannot overrun it.

    ledger = Ledger(client["platform"]["providers"], active=["active"])
    result = await ledger.allocate(provider_id, database_id, {"cpu": 500, "memory": 2 * 2**30, "storage": 10 * 2**30})
    await ledger.resize(provider_id, database_id, {"cpu": 1000, "memory": 2 * 2**30, "storage": 10 * 2**30})
    await ledger.release(provider_id, database_id)

Amounts are whole millicores of CPU and whole bytes, never floats; ``agent.quantity`` turns ``500m`` and ``2Gi`` into
them. The document of a provider holds, at paths that can be configured:

    capacity    {cpu, memory, storage}   what there is; the application sets it
    allocated   {cpu, memory, storage}   the sum of the bookings
    bookings    {<name of the key>: {cpu, memory, storage}}
    version     the number of changes so far
    status      only where ``active`` names the statuses in which capacity is granted

A document that breaks this contract is refused by the name of the field, never guessed at; ``adopt`` brings one there
whose quantities are text, floats, or numbers in another unit.

Every call may be repeated. What stands already as asked is a success with ``changed=False``, whatever version was
expected: so an answer that was lost on the way neither books twice nor turns into a conflict. Use an id as a key once:
a key that is booked anew after its release could still meet a straggling call from its first life.

The ledger tries again by itself where that can help (a lost connection, an election, a change by somebody else while
it looked), with growing random pauses and within a budget; never where it cannot (no capacity, another version).
Where the budget ends with StoreUnavailableError, the last try may have been applied: repeat the call until it answers.
"""

from agent.errors import (
    BookingExistsError,
    BookingKeyError,
    BookingNotFoundError,
    InsufficientCapacityError,
    LedgerError,
    MalformedProviderError,
    ProviderInactiveError,
    ProviderNotFoundError,
    RequestError,
    VersionConflictError,
)
from agent.ledger.documents import Amounts, Books, Paths
from agent.ledger.keys import decode_key, encode_key
from agent.ledger.ledger import RESOURCES, Ledger, LedgerResult, Retry

__all__ = [
    "RESOURCES",
    "Amounts",
    "BookingExistsError",
    "BookingKeyError",
    "BookingNotFoundError",
    "Books",
    "InsufficientCapacityError",
    "Ledger",
    "LedgerError",
    "LedgerResult",
    "MalformedProviderError",
    "Paths",
    "ProviderInactiveError",
    "ProviderNotFoundError",
    "RequestError",
    "Retry",
    "VersionConflictError",
    "decode_key",
    "encode_key",
]
