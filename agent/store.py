"""MongoDB: a few generic, guarded verbs, and no policy. The only importer of motor, pymongo and bson.

Every verb translates the driver's exceptions into ours (``agent.errors``), reads from the primary, and writes with
majority concern. How long a verb may take is the caller's: ``time_limit`` bounds all verbs called inside it, on the
server as well. Values are decoded leniently (a date outside Python's range, a string that is not UTF-8), since one odd
document must not stop a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import bson
import pymongo
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, json_util
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorClientSession, AsyncIOMotorCollection
from pymongo import ReadPreference, ReturnDocument, errors, monitoring
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from agent.errors import (
    ConflictError,
    DuplicateError,
    StoreDeniedError,
    StoreError,
    StoreSlowError,
    StoreUnavailableError,
    TooLargeError,
)

__all__ = [
    "Binary",
    "Collection",
    "DatetimeMS",
    "Decimal128",
    "Document",
    "Index",
    "Int64",
    "Key",
    "MaxKey",
    "MinKey",
    "Namespace",
    "ObjectId",
    "RawBSONDocument",
    "RawCollection",
    "Session",
    "Store",
    "Write",
    "comparable",
    "decode",
    "encode",
    "exact_json",
    "from_extended_json",
    "from_extended_mapping",
    "id_of",
    "id_to_json",
    "is_storable",
    "time_limit",
    "to_extended_json",
    "type_name",
]

Document = dict[str, Any]
Key = tuple[Any, ...]
Session = AsyncIOMotorClientSession
RawCollection = AsyncIOMotorCollection[Document] | AsyncCollection[Document]
T = TypeVar("T")
CommandObserver = Callable[[str, float, bool], None]
Rest = Callable[[float], Awaitable[None]]
"""Awaited between two round trips of a cursor, with the seconds that the last one took."""

SERVER_SELECTION_SECONDS = 5.0  # how long a verb looks for a primary before it says that there is none
CONNECT_SECONDS = 5.0
CHUNK = 1000  # documents a network round trip: decoding a thousand holds the interpreter for about a millisecond
RAW_CHUNK = 10_001  # whole documents a round trip, one more than a batch; the server ends a round at 16 MiB anyway
PORTION = 200  # documents that are handed out in one turn of the event loop
LARGE_CHUNK = 16  # documents that are decoded at a time where each may take 16 MiB
TRANSACTION_PAUSE_SECONDS = 0.05  # first pause before a transaction is tried again; doubles, with full jitter
TRANSACTION_PAUSE_MAX_SECONDS = 2.0
CONFLICT_TRIES = 4  # tries of a transaction that conflicts before the caller is asked to make it smaller
COMMIT_SECONDS = 10.0  # a commit without an answer is asked for again after this long

_TYPE_NAMES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (type(None), "null"),
    (Code, "javascript"),  # a subclass of str that compares with no text
    (str, "string"),
    (ObjectId, "objectId"),
    ((dt.datetime, DatetimeMS), "date"),
    (bytes, "binData"),
    (list, "array"),
    (dict, "object"),
)
_OPTIONS: CodecOptions[Document] = CodecOptions(
    document_class=dict,
    tz_aware=True,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(
    document_class=RawBSONDocument,
    tz_aware=True,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
    unicode_decode_error_handler="replace",
)
_JSON = json_util.JSONOptions(
    json_mode=json_util.JSONMode.RELAXED, tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
_EXACT = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL, tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO
)
_WRITE = WriteConcern(w="majority")
_EXTENDED_KEYS = {"$oid", "$date", "$numberInt", "$numberLong", "$numberDouble", "$numberDecimal", "$uuid", "$binary"}
_OBJECT_ID_IN_FRONT = b"\x07_id\0"
_DUPLICATE_CODE = 11000
_DENIED_CODES = {13, 18, 8000}  # Unauthorized, AuthenticationFailed, and Atlas' own
_CONFLICT_CODES = {112, 24, 251}  # WriteConflict, LockTimeout, NoSuchTransaction
_SLOW_CODES = {50, 262}  # MaxTimeMSExpired, ExceededTimeLimit
_TOO_LARGE_CODES = {10334, 17419, 17420}
# What the drivers' specification of retryable reads calls transient, and a write concern that was not reached in time
# (64). The driver acts on these codes only where it may retry; a single server or a router in trouble answers them too.
_TRANSIENT_CODES = {6, 7, 64, 89, 91, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436}


class Namespace(NamedTuple):
    """A collection in a database."""

    database: str
    collection: str

    def __str__(self) -> str:
        return f"{self.database}.{self.collection}"


@dataclass(frozen=True, slots=True)
class Index:
    """An index that a query of a job needs: its keys in order, and the filter of a partial one."""

    keys: tuple[tuple[str, int], ...]
    partial: Document = field(default_factory=dict)
    unique: bool = False
    expire_after: dt.timedelta | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """One guarded write of a batch: which documents, under which condition, and what to set (``None``: delete)."""

    filter: Document
    set: Document | None
    increment: str | None = None


def encode(document: Mapping[str, Any]) -> bytes:
    """The document as BSON."""
    return bytes(bson.encode(document, codec_options=_OPTIONS))


def decode(data: bytes) -> Document:
    """The document that ``encode`` made, or that the server holds."""
    return bson.decode(data, codec_options=_OPTIONS)


def is_storable(value: object) -> bool:
    """Whether MongoDB can hold the value at all: integers have 64 bits, text is UTF-8, keys have no NUL."""
    try:
        encode({"": value})
    except (bson.errors.BSONError, OverflowError, UnicodeEncodeError, RecursionError, TypeError):
        return False
    return True


def id_of(document: RawBSONDocument) -> Any:
    """The ``_id`` of a raw document. Looks at an ObjectId in front where it stands: to decode the whole takes long."""
    raw = bytes(document.raw)
    if raw[4:9] == _OBJECT_ID_IN_FRONT:
        return ObjectId(raw[9:21])
    return document["_id"]


def type_name(value: object) -> str:
    """The BSON type of a value; all numbers are one type, as they are to the server's comparison."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float | Decimal128):
        return "number"
    return next((name for kind, name in _TYPE_NAMES if isinstance(value, kind)), type(value).__name__)


def comparable(value: object) -> Hashable:  # noqa: PLR0911 - one line a type, the most frequent first
    """A hashable stand-in for a value: equal stand-ins mean that the server compares the values as equal.

    The opposite does not hold (a nested number, a collation): ask the server before unequal is taken for different.
    """
    if type(value) is ObjectId:
        return value.binary  # hashes much faster, and nothing else is stood in for by bytes
    if type(value) is str:
        return value
    if type(value) is int:
        return ("number", value)
    if isinstance(value, tuple):
        return tuple([comparable(entry) for entry in value])  # a generator takes twice as long
    if value is None or (isinstance(value, str) and not isinstance(value, Code)):
        return value
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, Decimal128):
        number = value.to_decimal()
        return ("number", "nan") if number.is_nan() else ("number", number)
    if isinstance(value, int | float):
        return ("number", "nan") if value != value else ("number", value)  # noqa: PLR0124 - only NaN differs from itself
    return ("bson", encode({"": value}))


def to_extended_json(value: object) -> Any:
    """``value`` as plain JSON types, BSON types as relaxed Extended JSON; dates as ISO 8601 with a Z.

    Source: MongoDB Extended JSON v2. Dates are written as text because people read the records of runs.
    """
    if isinstance(value, Mapping):
        return {str(key): to_extended_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_extended_json(entry) for entry in value]
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, bool | str | int | None) and not isinstance(value, Int64):
        return value
    if isinstance(value, Int64):
        return int(value)
    return json.loads(json_util.dumps(value, json_options=_JSON))


def id_to_json(id: object) -> Any:
    """An ``_id`` as relaxed Extended JSON, of which ``from_extended_json`` makes the same ``_id`` again.

    Here a date is no mere text, since a text could be somebody's ``_id`` too.
    """
    return json.loads(json_util.dumps(id, json_options=_JSON))


def exact_json(value: object) -> str:
    """``value`` as canonical Extended JSON, in which even numbers say of which type they are."""
    return json_util.dumps(value, json_options=_EXACT)


def from_extended_json(text: str) -> Any:
    """The value that Extended JSON ``text`` says.

    Raises ``ValueError`` where it is not Extended JSON.
    """
    try:
        return json_util.loads(text, json_options=_JSON)
    except (ValueError, TypeError, KeyError, RecursionError, ArithmeticError, bson.errors.BSONError) as error:
        raise ValueError(str(error)) from error


def from_extended_mapping(mapping: Mapping[str, Any]) -> Document:
    """A mapping of plain values in which Extended JSON (``{"$oid": ...}``) stands for what YAML cannot say."""
    return {key: _from_extended(value) for key, value in mapping.items()}


def _from_extended(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_extended(entry) for entry in value]
    if isinstance(value, Mapping):
        if len(value) <= 2 and any(key in _EXTENDED_KEYS for key in value):  # noqa: PLR2004 - a type has one or two keys
            return from_extended_json(json.dumps(dict(value), default=str))
        return from_extended_mapping(value)
    return value


def _translate(error: errors.PyMongoError) -> StoreError:  # noqa: PLR0911 - one line an error, in order of precedence
    """Our error for the driver's. The message is the server's, which carries names and values but no credentials."""
    code = error.code if isinstance(error, errors.OperationFailure) else None
    text = str(error).partition(", full error:")[0]
    if isinstance(error, errors.BulkWriteError):
        details = error.details.get("writeErrors") or [{}]
        code, text = details[0].get("code"), str(details[0].get("errmsg", error))
    if isinstance(error, errors.DuplicateKeyError) or code == _DUPLICATE_CODE:
        return DuplicateError(text)
    if code in _DENIED_CODES:
        return StoreDeniedError(text)
    if code in _SLOW_CODES:
        return StoreSlowError(text)
    if code in _CONFLICT_CODES:
        return ConflictError(text)
    if isinstance(error, errors.DocumentTooLarge) or code in _TOO_LARGE_CODES:
        return TooLargeError(text)
    if isinstance(error, errors.ConnectionFailure | errors.ConfigurationError) or error.timeout:
        return StoreUnavailableError(text.partition(", Timeout:")[0])
    if code in _TRANSIENT_CODES:
        return StoreUnavailableError(text)
    if error.has_error_label("TransientTransactionError") or error.has_error_label("RetryableWriteError"):
        return StoreUnavailableError(text)
    return StoreError(text)


@contextlib.contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except errors.PyMongoError as error:
        raise _translate(error) from error
    except (bson.errors.BSONError, OverflowError, UnicodeEncodeError) as error:
        raise StoreError(f"not a value that MongoDB stores: {error}") from error


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Bounds all verbs inside to ``seconds`` together, in the driver and (by ``maxTimeMS``) on the server."""
    with pymongo.timeout(max(seconds, 0.001)):
        yield


class _Listener(monitoring.CommandListener):
    """Tells an observer each command's name, seconds and success. Called in the driver's threads."""

    def __init__(self, observe: CommandObserver) -> None:
        self._observe = observe

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Nothing to tell before the answer."""

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        self._observe(event.command_name, event.duration_micros / 1e6, True)  # noqa: FBT003 - the observer's shape

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self._observe(event.command_name, event.duration_micros / 1e6, False)  # noqa: FBT003 - the observer's shape


class Collection:
    """The verbs on one collection. All raise ``StoreError`` or one of its kinds; none raises anything of the driver."""

    def __init__(self, raw: AsyncIOMotorCollection[Document], namespace: Namespace) -> None:
        self._raw = raw
        self.namespace = namespace

    @classmethod
    def wrap(cls, collection: Collection | RawCollection) -> Collection:
        """The verbs on a collection of an application's own client: motor's, or the asynchronous one of pymongo.

        Reads go to the primary and writes are acknowledged by the majority, whatever the client is set to. What only
        ``find`` with a sort, ``aggregate`` and the like need is not promised for pymongo's.
        """
        if isinstance(collection, Collection):
            return collection
        return cls(_tuned(collection), Namespace(collection.database.name, collection.name))

    def find(  # noqa: PLR0913 - the options of a query
        self,
        filter: Document,
        fields: Sequence[str] | None = None,
        *,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
        hint: str | Sequence[tuple[str, int]] | None = None,
        chunk: int = CHUNK,
        large: bool = False,
        rest: Rest | None = None,
        session: Session | None = None,
    ) -> AsyncIterator[Document]:
        """The documents that match, with only ``fields`` (``_id`` only if named), in chunks of one round trip.

        ``large`` says that each may take 16 MiB: then few are in memory at a time.
        """
        cursor = self._raw.find(
            filter,
            _projection(fields),
            sort=list(sort) or None,
            limit=limit,
            hint=hint,
            batch_size=chunk,
            allow_disk_use=bool(sort) or None,
            session=session,
        )
        return _documents(cursor, LARGE_CHUNK if large else chunk, ahead=session is None and not large, rest=rest)

    async def find_all(self, filter: Document, fields: Sequence[str] | None = None, **options: Any) -> list[Document]:
        """The matching documents as a list, for results that are known to be few."""
        return [document async for document in self.find(filter, fields, **options)]

    async def find_one(self, filter: Document, fields: Sequence[str] | None = None, **options: Any) -> Document | None:
        """The first match, or nothing."""
        found = await self.find_all(filter, fields, limit=1, **options)
        return found[0] if found else None

    async def find_raw(
        self,
        filter: Document,
        fields: Sequence[str] | None = None,
        *,
        hint: str | None = None,
        most_bytes: int | None = None,
        session: Session | None = None,
    ) -> tuple[list[RawBSONDocument], bool]:
        """The matching documents byte for byte as the server holds them, and whether these are all.

        With ``fields`` only these, as they stand there. Reading ends with the one that reaches ``most_bytes``.
        """
        documents: list[RawBSONDocument] = []
        size = 0
        cursor: Any = self._raw.find_raw_batches(
            filter, _projection(fields), hint=hint, session=session, batch_size=RAW_CHUNK
        )
        try:
            while most_bytes is None or size < most_bytes:
                with _our_errors():
                    replies = await cursor.to_list(1)
                for document in _raw_documents(replies):
                    documents.append(document)
                    size += len(document.raw)
                    if most_bytes is not None and size >= most_bytes:
                        return documents, False
                if not cursor.alive:
                    return documents, True
            return documents, False
        finally:
            with contextlib.suppress(errors.PyMongoError):
                await cursor.close()

    async def count(
        self, filter: Document, *, hint: str | Sequence[tuple[str, int]] | None = None, session: Session | None = None
    ) -> int:
        """How many documents match, counted (never the estimate of the metadata)."""
        options: Document = {} if hint is None else {"hint": hint}
        with _our_errors():
            return int(await self._raw.count_documents(filter, session=session, **options))

    def aggregate(
        self,
        pipeline: Sequence[Document],
        *,
        hint: str | Sequence[tuple[str, int]] | None = None,
        chunk: int = CHUNK,
        rest: Rest | None = None,
        session: Session | None = None,
    ) -> AsyncIterator[Document]:
        """The results of an aggregation, in chunks."""
        options: Document = {} if hint is None else {"hint": dict(hint) if not isinstance(hint, str) else hint}
        cursor = self._raw.aggregate(list(pipeline), allowDiskUse=True, batchSize=chunk, session=session, **options)
        return _documents(cursor, chunk, ahead=session is None, rest=rest)

    async def insert(self, document: Document, *, session: Session | None = None) -> None:
        """Inserts one document. Raises ``DuplicateError`` where a unique index already holds its key."""
        with _our_errors():
            await self._raw.insert_one(document, session=session)

    async def insert_many(self, documents: Sequence[Mapping[str, Any]], *, session: Session | None = None) -> None:
        """Inserts documents in order; raw documents go in byte for byte."""
        if documents:
            with _our_errors():
                await self._raw.insert_many(cast("list[Document]", list(documents)), session=session)

    async def update_one(
        self,
        filter: Document,
        update: Document | Sequence[Document],
        *,
        upsert: bool = False,
        session: Session | None = None,
    ) -> bool:
        """Updates one document (with operators or a pipeline); says whether one matched or was made."""
        with _our_errors():
            result = await self._raw.update_one(filter, update, upsert=upsert, session=session)
        return bool(result.matched_count or result.upserted_id is not None)

    async def update_many(self, filter: Document, update: Document, *, session: Session | None = None) -> int:
        """Updates all that match; returns how many did."""
        with _our_errors():
            return int((await self._raw.update_many(filter, update, session=session)).matched_count)

    async def find_one_and_update(
        self,
        filter: Document,
        update: Document | Sequence[Document],
        *,
        fields: Sequence[str] | None = None,
        upsert: bool = False,
        session: Session | None = None,
    ) -> Document | None:
        """Updates one document and returns it (only ``fields``) as it is afterwards, or nothing where none matched."""
        with _our_errors():
            return await self._raw.find_one_and_update(
                filter,
                update,
                projection=_projection(fields),
                upsert=upsert,
                return_document=ReturnDocument.AFTER,
                session=session,
            )

    async def delete_many(self, filter: Document, *, session: Session | None = None) -> int:
        """Deletes all that match; returns how many."""
        with _our_errors():
            return int((await self._raw.delete_many(filter, session=session)).deleted_count)

    async def write(self, writes: Sequence[Write], *, session: Session | None = None) -> int:
        """Does guarded writes in one round trip, each on the ``_id`` index; returns how many documents changed.

        The hint matters: with a status in the filter the planner would pick the status index (DESIGN.md section 10).
        """
        if not writes:
            return 0
        with _our_errors():
            result = await self._raw.bulk_write([_operation(write) for write in writes], session=session)
        return int(result.deleted_count + result.matched_count)

    async def upsert_each(
        self, updates: Sequence[tuple[Document, Document | Sequence[Document]]], *, session: Session | None = None
    ) -> None:
        """Updates or makes one document for each pair of filter and update, in one round trip."""
        if not updates:
            return
        operations = [pymongo.UpdateOne(filter, update, upsert=True) for filter, update in updates]
        with _our_errors():
            await self._raw.bulk_write(operations, ordered=False, session=session)

    async def update_each(self, updates: Sequence[tuple[Document, Document]], *, session: Session | None = None) -> int:
        """Updates one document for each pair of filter and update, in one round trip; returns how many matched."""
        if not updates:
            return 0
        operations = [pymongo.UpdateOne(filter, update, hint="_id_") for filter, update in updates]
        with _our_errors():
            result = await self._raw.bulk_write(operations, ordered=False, session=session)
        return int(result.matched_count)

    async def indexes(self) -> dict[str, Document]:
        """The indexes that exist, by name: ``key`` as a list of pairs, and the options."""
        with _our_errors():
            return {name: dict(info) for name, info in (await self._raw.index_information()).items()}

    async def create_index(self, index: Index) -> None:
        """Creates an index unless the same one exists."""
        options: Document = {}
        if index.partial:
            options["partialFilterExpression"] = index.partial
        if index.expire_after is not None:
            options["expireAfterSeconds"] = int(index.expire_after.total_seconds())
        if index.name:
            options["name"] = index.name
        with _our_errors():
            await self._raw.create_index(list(index.keys), unique=index.unique, **options)

    async def size(self) -> int:
        """Bytes of the documents of the collection; 0 where it does not exist."""
        with _our_errors():
            stats = await self._raw.database.command("collStats", self.namespace.collection)
        return int(stats.get("size", 0))

    async def explain(
        self, filter: Document, *, sort: Sequence[tuple[str, int]] = (), hint: str | None = None
    ) -> Document:
        """The plan that the server would take for a ``find``, without running it."""
        command: Document = {"find": self.namespace.collection, "filter": filter}
        command |= {"sort": dict(sort)} if sort else {}
        command |= {"hint": hint} if hint else {}
        with _our_errors():
            return dict(await self._raw.database.command({"explain": command, "verbosity": "queryPlanner"}))


def _tuned(raw: RawCollection) -> AsyncIOMotorCollection[Document]:
    database: Any = raw.database
    tuned: AsyncIOMotorCollection[Document] = database.get_collection(
        raw.name, codec_options=_OPTIONS, read_preference=ReadPreference.PRIMARY, write_concern=_WRITE
    )
    return tuned


def _projection(fields: Sequence[str] | None) -> Document | None:
    if fields is None:
        return None
    # Of two paths of which one contains the other, MongoDB takes only the outer one.
    outer = [path for path in fields if not any(path.startswith(f"{other}.") for other in fields)]
    projection: Document = dict.fromkeys(outer, 1)
    return projection if "_id" in outer else {**projection, "_id": 0}


async def _documents(cursor: Any, most: int, *, ahead: bool, rest: Rest | None) -> AsyncIterator[Document]:
    """The results of a cursor, ``most`` a round trip; ``ahead`` has the next ones fetched while these are looked at.

    Not in a session, which does one thing at a time, and not where a chunk may be large. ``rest`` comes before each
    round trip but the first.
    """
    coming = asyncio.ensure_future(_chunk(cursor, most))
    try:
        while True:
            with _our_errors():
                documents, seconds = await coming
            last = len(documents) < most
            if ahead and not last:
                coming = asyncio.ensure_future(_chunk(cursor, most, rest, seconds))
            for number, document in enumerate(documents, 1):
                if not number % PORTION:
                    await asyncio.sleep(0)  # who looks at a thousand of them must not keep the loop from all else
                yield document
            if last:
                break
            if not ahead:
                coming = asyncio.ensure_future(_chunk(cursor, most, rest, seconds))
    finally:
        if not coming.cancel() and not coming.cancelled():
            coming.exception()  # looked at, or Python complains: nobody waits for it any more
        with contextlib.suppress(errors.PyMongoError):
            await cursor.close()


async def _chunk(
    cursor: Any, most: int, rest: Rest | None = None, seconds: float = 0.0
) -> tuple[list[Document], float]:
    """The next results, and the seconds that they took; after a rest from the last ones."""
    if rest is not None:
        await rest(seconds)
    began = time.perf_counter()
    return await cursor.to_list(most), time.perf_counter() - began


def _raw_documents(replies: Sequence[bytes]) -> Iterator[RawBSONDocument]:
    for reply in replies:
        yield from bson.decode_all(reply, codec_options=_RAW)


def _operation(write: Write) -> pymongo.DeleteMany | pymongo.UpdateMany:
    if write.set is None:
        return pymongo.DeleteMany(write.filter, hint="_id_")
    update: Document = {"$set": write.set}
    if write.increment is not None:
        update["$inc"] = {write.increment: 1}
    return pymongo.UpdateMany(write.filter, update, hint="_id_")


class Store:
    """One MongoDB deployment. Made on the event loop; ``close`` ends its connections."""

    def __init__(
        self, uri: str, *, app_name: str = "maintenance-agent", observe: CommandObserver | None = None
    ) -> None:
        """Does not connect yet. Raises ``StoreError`` for a URI that cannot be one."""
        try:
            self._client: AsyncIOMotorClient[Document] = AsyncIOMotorClient(
                uri,
                appname=app_name,
                serverSelectionTimeoutMS=int(SERVER_SELECTION_SECONDS * 1000),
                connectTimeoutMS=int(CONNECT_SECONDS * 1000),
                event_listeners=[_Listener(observe)] if observe else [],
                tz_aware=True,
            )
        except (errors.PyMongoError, ValueError, TypeError) as error:
            raise StoreError(str(error)) from error
        self._transactions: bool | None = None

    def collection(self, namespace: Namespace) -> Collection:
        """The verbs on one collection; reads from the primary, writes with majority, whatever the URI says."""
        return Collection(_tuned(self._client[namespace.database][namespace.collection]), namespace)

    async def hello(self) -> Document:
        """What the server says of itself; ``localTime`` is its clock."""
        with _our_errors():
            return dict(await self._client.admin.command("hello", codec_options=_OPTIONS))

    async def now(self) -> dt.datetime:
        """The database server's time (UTC)."""
        server: dt.datetime = (await self.hello())["localTime"]
        return server

    async def has_transactions(self) -> bool:
        """Whether the deployment has transactions (a replica set or a sharded cluster)."""
        if self._transactions is None:
            answer = await self.hello()
            self._transactions = "setName" in answer or answer.get("msg") == "isdbgrid"
        return self._transactions

    async def command(self, database: str, command: Document) -> Document:
        """Runs a database command."""
        with _our_errors():
            return dict(await self._client[database].command(command, codec_options=_OPTIONS))

    async def collection_names(self, database: str) -> list[str]:
        """The collections of a database."""
        with _our_errors():
            return list(await self._client[database].list_collection_names())

    async def transaction(self, work: Callable[[Session], Awaitable[T]], *, seconds: float) -> T:
        """Runs ``work`` in one transaction and commits it, all or nothing, trying again within ``seconds``.

        A transient fault (a failover) runs ``work`` again; a commit without an answer is asked for again, which the
        server does once. Raises ``ConflictError`` after a few conflicts in a row, so that the caller can take less at a
        time, ``StoreSlowError`` at once for the same reason, and ``StoreUnavailableError`` when the time is up; then a
        commit may still have happened: the documents of the agent, written in the same transaction, tell.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        conflicts = 0
        for attempt in range(1_000_000):
            try:
                return await self._attempt(work, deadline)
            except StoreSlowError:
                raise  # again the same would be as slow
            except (ConflictError, StoreUnavailableError) as error:
                conflicts += isinstance(error, ConflictError)
                pause = _pause(attempt)
                if conflicts >= CONFLICT_TRIES or asyncio.get_running_loop().time() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)
        raise StoreUnavailableError("the transaction found no end")  # pragma: no cover - the deadline comes first

    async def _attempt(self, work: Callable[[Session], Awaitable[T]], deadline: float) -> T:
        left = deadline - asyncio.get_running_loop().time()
        with _our_errors():
            session = await self._client.start_session()
        try:
            with _our_errors(), time_limit(min(left, COMMIT_SECONDS)):
                session.start_transaction(read_concern=ReadConcern("snapshot"), write_concern=_WRITE)
                result = await work(session)
            await self._commit(session, deadline)
            return result
        finally:
            # Ends the session, and aborts the transaction where it is still open.
            with contextlib.suppress(errors.PyMongoError), time_limit(COMMIT_SECONDS):
                await session.end_session()

    async def _commit(self, session: Session, deadline: float) -> None:
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                with time_limit(max(min(left, COMMIT_SECONDS), 0.5)):
                    await session.commit_transaction()
            except errors.PyMongoError as error:
                unknown = error.has_error_label("UnknownTransactionCommitResult") or error.timeout
                if not unknown or asyncio.get_running_loop().time() >= deadline:
                    raise _translate(error) from error
                await asyncio.sleep(TRANSACTION_PAUSE_SECONDS)
            else:
                return

    async def close(self) -> None:
        """Ends all connections."""
        self._client.close()


def _pause(attempt: int) -> float:
    """Seconds before the next try: exponential back-off with full jitter."""
    ceiling = min(TRANSACTION_PAUSE_MAX_SECONDS, TRANSACTION_PAUSE_SECONDS * 2 ** min(attempt, 10))
    return random.uniform(0, ceiling)  # noqa: S311 - spreads load, keeps no secret
