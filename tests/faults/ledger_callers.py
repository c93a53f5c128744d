"""Many processes that book on a few providers as fast as they can, and write down what they ask and what they are told.

    python ledger_callers.py ORDER

``ORDER`` is a JSON file, see ``Order``. One process imports everything and forks the callers; at random moments it
kills one with SIGKILL, and another takes its place. Each life of a caller keeps a journal of its own in the order's
folder: a line before each call, and one with its answer. The number of calls so far stands in the file ``progress``.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from motor.motor_asyncio import AsyncIOMotorClient

from agent.errors import ConflictError, LedgerError, StoreUnavailableError
from agent.ledger import RESOURCES, Ledger, Retry

Amounts = dict[str, int]
Line = dict[str, Any]

PR_SET_PDEATHSIG = 1
POLL = 0.01
# Long enough for a server that is killed and started again, on a machine that does a lot beside.
RETRY = Retry(
    budget=timedelta(seconds=90),
    attempt=timedelta(seconds=20),
    first=timedelta(milliseconds=5),
    longest=timedelta(milliseconds=500),
)


@dataclass(frozen=True)
class Order:
    """What is wanted."""

    uri: str
    database: str
    folder: str
    seed: int
    providers: int
    callers: int
    tasks: int  # of each caller, at the same time
    calls: int  # of all together
    kills: int

    @classmethod
    def read(cls, path: str) -> Order:
        """The order in a file."""
        return cls(**json.loads(Path(path).read_text()))

    def write(self, path: Path) -> None:
        """Writes it for ``read``."""
        path.write_text(json.dumps(asdict(self)))


class Counters:
    """How many calls each caller has begun; they live in memory that all processes share, and survive a kill."""

    def __init__(self, callers: int) -> None:
        self._memory = mmap.mmap(-1, 8 * callers)
        self._callers = callers

    def of(self, caller: int) -> int:
        """The calls of one caller, in all its lives."""
        count: int = struct.unpack_from("q", self._memory, 8 * caller)[0]
        return count

    def add(self, caller: int) -> None:
        """One more."""
        struct.pack_into("q", self._memory, 8 * caller, self.of(caller) + 1)

    def all(self) -> int:
        """The calls of all."""
        return sum(self.of(caller) for caller in range(self._callers))


class Caller:
    """One life of a caller: its tasks share a client, a ledger and a journal; each has bookings of its own."""

    def __init__(self, order: Order, counters: Counters, number: int, life: int) -> None:
        self._order = order
        self._counters = counters
        self._number = number
        self._name = f"{number}-{life}"
        self._rng = random.Random(f"{order.seed}-{self._name}")
        self._journal = os.open(Path(order.folder, f"{self._name}.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._calls = 0
        self._versions: dict[int, int] = {}

    async def live(self) -> None:
        """Calls until the share of this caller is done."""
        client: AsyncIOMotorClient[Line] = AsyncIOMotorClient(self._order.uri, serverSelectionTimeoutMS=20_000)
        self._ledger = Ledger(client[self._order.database]["providers"], active=["active"], retry=RETRY)
        await asyncio.gather(*[self._work(task) for task in range(self._order.tasks)])
        client.close()

    async def _work(self, task: int) -> None:
        mine: dict[tuple[int, str], Amounts] = {}
        last: Line | None = None
        while self._counters.of(self._number) < self._order.calls / self._order.callers:
            if last is not None and self._rng.random() < 0.1:
                await self._call(last)  # a caller that is not sure whether it was heard
                continue
            last = self._choose(mine, f"{self._name}-{task}-{self._calls}")
            if await self._call(last):
                place = (last["provider"], last["key"])
                mine.pop(place, None)
                if last["want"] is not None:
                    mine[place] = last["want"]

    def _choose(self, mine: dict[tuple[int, str], Amounts], fresh: str) -> Line:
        rng = self._rng
        want = {name: rng.randrange(40) for name in RESOURCES}
        kind = rng.choices(["allocate", "resize", "release"], [5, 2, 3])[0] if mine else "allocate"
        provider, key = (rng.randrange(self._order.providers), fresh) if kind == "allocate" else rng.choice(list(mine))
        expected = self._versions.get(provider) if rng.random() < 0.15 else None
        return {
            "do": kind,
            "provider": provider,
            "key": key,
            "expected": expected,
            "want": None if kind == "release" else want,
        }

    async def _call(self, call: Line) -> bool:
        """Calls until there is an answer; says whether it is a yes."""
        arguments = (
            [call["provider"], call["key"]] if call["want"] is None else [call[k] for k in ("provider", "key", "want")]
        )
        while True:
            self._calls += 1
            number = self._calls
            self._counters.add(self._number)
            self._write({"call": number, **call})
            try:
                result = await getattr(self._ledger, call["do"])(*arguments, expect_version=call["expected"])
            except LedgerError as refusal:
                self._write({"answer": number, "said": type(refusal).__name__})
                return False
            except (StoreUnavailableError, ConflictError) as error:
                self._write({"answer": number, "said": None, "error": str(error)})
            else:
                self._versions[call["provider"]] = result.version
                told = {"version": result.version, "free": result.free, "allocated": result.allocated}
                self._write({"answer": number, "said": "changed" if result.changed else "unchanged", **told})
                return True

    def _write(self, line: Line) -> None:
        os.write(self._journal, json.dumps(line).encode() + b"\n")  # in one piece, and there also after a kill


def run(order: Order) -> None:
    """Forks the callers, kills some, and returns when the others have done all that there is to do."""
    rng = random.Random(order.seed)
    counters = Counters(order.callers)
    kills = sorted(rng.randrange(order.calls) for _ in range(order.kills))
    lives = dict.fromkeys(range(order.callers), 0)
    living = {_fork(order, counters, caller, 0): caller for caller in lives}
    while living:
        progress = counters.all()
        Path(order.folder, "progress").write_text(str(progress))
        while kills and kills[0] <= progress:
            kills.pop(0)
            os.kill(rng.choice(list(living)), signal.SIGKILL)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            time.sleep(POLL)
        elif status != 0:
            caller = living.pop(pid)
            if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
                raise RuntimeError(f"caller {caller} failed: {status}")
            lives[caller] += 1
            living[_fork(order, counters, caller, lives[caller])] = caller
        else:
            del living[pid]


def _fork(order: Order, counters: Counters, caller: int, life: int) -> int:
    parent = os.getpid()
    if pid := os.fork():
        return pid
    status = 1
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            asyncio.run(Caller(order, counters, caller, life).live())
            status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    run(Order.read(sys.argv[1]))
