"""The rate limit: how many changes a token may ask for.

A bucket a token: full at the start, refilled evenly over the minute. Asked only after authentication, so that nobody
without a token can use up somebody's share, and there are never more buckets than tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

PER_MINUTE: Final = 60  # a person clicking fast stays below it, a script in a loop does not


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
