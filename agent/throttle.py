"""Throttle: keeps a run gentle with the database, between its reads and between its batches.

After each of them it pauses for a share of the time that it took, so that a slow database is asked for less; it waits
while secondaries lag behind the primary by more than is allowed; and it makes batches smaller when the server finds
them too slow, larger again when it does not.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Literal, Protocol

import structlog

from agent.errors import StoreError
from agent.store import Store

log = structlog.get_logger()

Reason = Literal["lag", "pace"]
LAG_POLL_SECONDS = 1.0
SECONDARY = 2  # a member's state, of replSetGetStatus
PRIMARY = 1


class Settings(Protocol):
    """What the throttle is told."""

    @property
    def max_lag(self) -> dt.timedelta | None:
        """How far secondaries may lag behind; ``None``: it is not looked at."""

    @property
    def pace(self) -> float:
        """The pause after a batch as a share of the batch's own time."""


class Throttle:
    """The pauses of one run."""

    def __init__(self, store: Store, settings: Settings, throttled: Callable[[Reason, float], None]) -> None:
        """``throttled`` is told each pause."""
        self._store = store
        self._settings = settings
        self._throttled = throttled
        self._sees_lag = settings.max_lag is not None

    async def pause(self, batch_seconds: float) -> None:
        """Pauses after a batch that took so long."""
        await self.rest(batch_seconds)
        while self._settings.max_lag is not None and await self._lag() > self._settings.max_lag:
            await asyncio.sleep(LAG_POLL_SECONDS)
            self._throttled("lag", LAG_POLL_SECONDS)

    async def rest(self, seconds: float) -> None:
        """Leaves the database alone for a share of the time that it was just asked to work."""
        pause = seconds * self._settings.pace
        if pause > 0:
            await asyncio.sleep(pause)
            self._throttled("pace", pause)

    async def _lag(self) -> dt.timedelta:
        """How far the slowest healthy secondary is behind; nothing where that cannot be told."""
        if not self._sees_lag or not await self._store.has_transactions():
            return dt.timedelta(0)
        try:
            status = await self._store.command("admin", {"replSetGetStatus": 1})
        except StoreError as error:
            # A privilege that is missing, or mongos: said once a run, and never a reason to fail it.
            log.info("replication_lag_unknown", error=str(error))
            self._sees_lag = False
            return dt.timedelta(0)
        members = status["members"]
        latest = max((one["optimeDate"] for one in members if one["state"] == PRIMARY), default=None)
        behind = [latest - one["optimeDate"] for one in members if one["state"] == SECONDARY and latest is not None]
        return max(behind, default=dt.timedelta(0))


class Sizer:
    """How many items a batch takes: half as many after one that was too slow, and back up by doubling."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = most

    def too_slow(self) -> None:
        """The server did not finish a batch in its time."""
        self.size = max(1, self.size // 2)

    def fine(self) -> None:
        """A batch was finished."""
        self.size = min(self._most, self.size * 2)
