"""What keeps many requests from being too many: the rate limit of changes, and turns on the event loop.

The rate limit is a bucket a token: full at the start, refilled evenly over the minute. Asked only after authentication,
so that nobody without a token can use up somebody's share, and there are never more buckets than tokens.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

PER_MINUTE: Final = 60  # a person clicking fast stays below it, a script in a loop does not
PER_TURN: Final = 16  # requests; at about a millisecond each the health checks and the runs wait no longer than that


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float


class RateLimiter:
    """A token bucket for each name."""

    def __init__(self, per_minute: int = PER_MINUTE, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """``per_minute`` changes at once, and as many again a minute."""
        self.per_minute = per_minute
        self._monotonic = monotonic
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str) -> int:
        """Takes one change from the share of ``name``: 0, or the seconds after which there is one again."""
        now, per_second = self._monotonic(), self.per_minute / 60
        bucket = self._buckets.setdefault(name, _Bucket(self.per_minute, now))
        bucket.level = min(bucket.level + (now - bucket.at) * per_second, self.per_minute)
        bucket.at = now
        if bucket.level >= 1:
            bucket.level -= 1
            return 0
        return max(1, math.ceil((1 - bucket.level) / per_second))


class Turns:
    """Lets a few requests begin in one turn of the event loop, and the others in the next ones, in their order.

    A thousand that arrive at once would otherwise be answered in a single turn, in which nothing else goes on: no
    health check, no scrape, and none of a run's own steps.
    """

    def __init__(self, per_turn: int = PER_TURN) -> None:
        """How many begin in one turn."""
        self._free = asyncio.Semaphore(per_turn)

    async def take(self) -> None:
        """Waits for a place. It is free again in the next turn, however long the request itself takes."""
        await self._free.acquire()
        asyncio.get_running_loop().call_soon(self._free.release)
