"""Company for allocations: what a process wants from one document at the same time goes there together.

Operations on one document cannot run side by side; they only get in each other's way. So while one is under way, those
that come after it wait, and the next one takes all of them along. Who comes alone is not held up.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from agent.errors import AgentError, StoreUnavailableError

Wish = TypeVar("Wish")
Answer = TypeVar("Answer")

COMPANY: Final = 100  # wishes that one operation takes along: more gain little, and it stays far below any limit


@dataclass(slots=True)
class _Waiting(Generic[Wish, Answer]):
    wish: Wish
    # The answer; or None: ask alone.
    future: asyncio.Future[Answer | None]


@dataclass(slots=True)
class _Lane(Generic[Wish, Answer]):
    waiting: deque[_Waiting[Wish, Answer]] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None


class Lanes(Generic[Wish, Answer]):
    """One lane a document, for as long as somebody is in it.

    ``alone`` fulfils one wish or raises. ``together`` fulfils what it can of the wishes that it is given, no two of the
    same ``name``, and returns their answers in the same order; where an answer is ``None``, or where it raises, the
    wish is asked for alone and gets an answer of its own.
    """

    def __init__(
        self,
        *,
        alone: Callable[[Wish], Awaitable[Answer]],
        together: Callable[[Sequence[Wish]], Awaitable[Sequence[Answer | None]]],
        name: Callable[[Wish], Hashable],
    ) -> None:
        self._alone = alone
        self._together = together
        self._name = name
        self._lanes: dict[Hashable, _Lane[Wish, Answer]] = {}

    async def ask(self, document: Hashable, wish: Wish) -> Answer:
        """Fulfils a wish, alone or in company. Raises what ``alone`` raises, or StoreUnavailableError."""
        lane = self._lanes.get(document)
        if lane is None:
            lane = self._lanes[document] = _Lane()
            try:
                return await self._alone(wish)
            finally:
                self._go_on(document, lane)
        waiting = _Waiting[Wish, Answer](wish, asyncio.get_running_loop().create_future())
        lane.waiting.append(waiting)
        answer = await waiting.future
        return await self._alone(wish) if answer is None else answer

    def _go_on(self, document: Hashable, lane: _Lane[Wish, Answer]) -> None:
        """Serves who still waits. A task of its own does: callers may be cancelled without a loss to the others."""
        if all(waiting.future.done() for waiting in lane.waiting):
            del self._lanes[document]
            return
        # Not in the context of a caller: its time limit is none of the others'.
        lane.task = asyncio.create_task(self._serve(document, lane), context=contextvars.Context())

    async def _serve(self, document: Hashable, lane: _Lane[Wish, Answer]) -> None:
        try:
            while company := self._company(lane):
                await self._serve_company(company)
        finally:
            self._go_on(document, lane)

    def _company(self, lane: _Lane[Wish, Answer]) -> list[_Waiting[Wish, Answer]]:
        """Takes from the lane who can go together; leaves out who was cancelled meanwhile."""
        company: dict[Hashable, _Waiting[Wish, Answer]] = {}
        later = []
        while lane.waiting and len(company) < COMPANY:
            waiting = lane.waiting.popleft()
            name = self._name(waiting.wish)
            if name in company:
                later.append(waiting)
            elif not waiting.future.done():
                company[name] = waiting
        lane.waiting.extendleft(reversed(later))
        return list(company.values())

    async def _serve_company(self, company: Sequence[_Waiting[Wish, Answer]]) -> None:
        answers: Sequence[Answer | None] | None = None  # a company of one gains nothing: it asks alone
        error: StoreUnavailableError | None = None
        try:
            if len(company) > 1:
                answers = await self._together([waiting.wish for waiting in company])
        except StoreUnavailableError as unavailable:
            error = unavailable
        except AgentError:
            answers = None  # one of them is refused for a reason of its own
        finally:
            for waiting, answer in zip(company, answers or [None] * len(company), strict=True):
                if not waiting.future.done():
                    _settle(waiting.future, answer, error)


def _settle(future: asyncio.Future[Answer | None], answer: Answer | None, error: StoreUnavailableError | None) -> None:
    if error is None:
        future.set_result(answer)
    else:  # an exception of its own for each: they are raised in different tasks
        own = StoreUnavailableError(str(error))
        own.__cause__ = error
        future.set_exception(own)
