"""Who wants the same document at the same time goes together, who cannot goes alone, and nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from agent.errors import LedgerError, StoreError, StoreUnavailableError
from agent.ledger.lanes import COMPANY, Lanes


class Document:
    """Stands for a document: writes down who comes and with whom, and answers when the test lets it."""

    def __init__(self) -> None:
        self.visits: list[list[int]] = []
        self.gate = asyncio.Semaphore(0)
        self.refused: set[int] = set()
        self.failure: Exception | None = None
        self.lanes = Lanes[int, str](alone=self.alone, together=self.together, name=lambda wish: wish % 1000)

    async def alone(self, wish: int) -> str:
        """Serves one."""
        self.visits.append([wish])
        await self.gate.acquire()
        if wish in self.refused:
            raise LedgerError("document", f"{wish} is refused")
        return f"{wish} alone"

    async def together(self, wishes: Sequence[int]) -> list[str | None]:
        """Serves several."""
        self.visits.append(list(wishes))
        await self.gate.acquire()
        if self.failure is not None:
            raise self.failure
        return [None if wish in self.refused else f"{wish} together" for wish in wishes]

    def open(self, visits: int = 1000) -> None:
        """Lets so many visits end."""
        for _ in range(visits):
            self.gate.release()

    async def answers(self, *wishes: int) -> list[str | BaseException]:
        """Asks for all at once, lets all visits end once everybody has come, and gathers the answers."""
        tasks = self.ask(*wishes)
        await _turns()
        self.open()
        return await asyncio.gather(*tasks, return_exceptions=True)

    def ask(self, *wishes: int) -> list[asyncio.Task[str]]:
        """Asks for each at once."""
        return [asyncio.create_task(self.lanes.ask("document", wish)) for wish in wishes]


async def _turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_comes_alone_is_served_at_once_and_alone() -> None:
    """One after the other, nobody waits for company."""
    document = Document()
    document.open()
    assert await document.lanes.ask("document", 1) == "1 alone"
    assert await document.lanes.ask("document", 2) == "2 alone"
    assert document.visits == [[1], [2]]


async def test_those_who_come_while_one_is_served_go_together_afterwards() -> None:
    """The first goes alone; all that came meanwhile make one visit, in the order in which they came."""
    document = Document()
    tasks = document.ask(1, 2, 3, 4)
    await _turns()
    assert document.visits == [[1]]
    document.open()
    assert await asyncio.gather(*tasks) == ["1 alone", "2 together", "3 together", "4 together"]
    assert document.visits == [[1], [2, 3, 4]]


async def test_documents_do_not_wait_for_each_other() -> None:
    """A lane is of one document."""
    document = Document()
    tasks = [asyncio.create_task(document.lanes.ask(name, 1)) for name in "ab"]
    await _turns()
    assert document.visits == [[1], [1]]
    document.open()
    await asyncio.gather(*tasks)


async def test_two_of_one_name_go_one_after_the_other() -> None:
    """1002 and 2 are of one name: the second waits for the next visit, and keeps its place before later ones."""
    document = Document()
    await document.answers(1, 2, 1002, 3, 1003)
    assert document.visits == [[1], [2, 3], [1002, 1003]]


async def test_a_company_is_bounded() -> None:
    """More than a hundred make a second visit."""
    document = Document()
    await document.answers(*range(COMPANY + 3))
    assert [len(visit) for visit in document.visits] == [1, COMPANY, 2]


async def test_who_is_not_served_in_company_asks_alone_and_gets_an_answer_of_its_own() -> None:
    """The refusal of one is no refusal of the others."""
    document = Document()
    document.refused = {3}
    answers = await document.answers(1, 2, 3, 4)
    assert [str(answer) for answer in answers] == ["1 alone", "2 together", "3 is refused", "4 together"]
    assert document.visits == [[1], [2, 3, 4], [3]]


@pytest.mark.parametrize(
    "failure", [StoreError("no"), LedgerError("document", "no")], ids=lambda error: type(error).__name__
)
async def test_a_company_that_fails_for_a_reason_of_its_own_separates(failure: Exception) -> None:
    """What is wrong with one of them is found out by each asking alone."""
    document = Document()
    document.failure = failure
    assert await document.answers(1, 2, 3) == ["1 alone", "2 alone", "3 alone"]


async def test_a_server_that_cannot_be_reached_is_told_to_each() -> None:
    """Each gets an exception of its own, with the reason, and may try again."""
    document = Document()
    document.failure = StoreUnavailableError("gone")
    answers = await document.answers(1, 2, 3)
    assert answers[0] == "1 alone"
    assert [type(answer) for answer in answers[1:]] == [StoreUnavailableError] * 2
    assert answers[1] is not answers[2]
    assert document.visits == [[1], [2, 3]]


async def test_who_gives_up_while_waiting_is_left_out() -> None:
    """A cancelled call changes nothing for the others."""
    document = Document()
    tasks = document.ask(1, 2, 3, 4)
    await _turns()
    tasks[2].cancel()
    document.open()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[2], asyncio.CancelledError)
    assert document.visits == [[1], [2, 4]]


async def test_who_gives_up_while_served_does_not_hold_up_those_who_wait() -> None:
    """The first one's cancellation starts the next visit."""
    document = Document()
    tasks = document.ask(1, 2, 3)
    await _turns()
    tasks[0].cancel()
    document.open()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[1:] == ["2 together", "3 together"]


async def test_who_gives_up_on_a_visit_under_way_does_not_end_it() -> None:
    """The others of its company are served."""
    document = Document()
    tasks = document.ask(1, 2, 3)
    await _turns()
    document.open(1)
    await _turns()
    assert document.visits == [[1], [2, 3]]
    tasks[1].cancel()
    await _turns()
    document.open(1)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert answers[2] == "3 together"


async def test_nothing_stays_behind() -> None:
    """When nobody asks any more, there are no lanes and no tasks, however the callers ended."""
    document = Document()
    tasks = document.ask(1, 2, 3, 4)
    await _turns()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await _turns()
    assert document.lanes._lanes == {}
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_loop_that_ends_takes_everybody_along() -> None:
    """The task that serves the others is cancelled as well: whoever waited is cancelled or asks alone."""
    document = Document()
    tasks = document.ask(1, 2, 3)
    await _turns()
    document.open(1)
    await _turns()
    assert document.visits == [[1], [2, 3]]
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await _turns()
    assert asyncio.all_tasks() == {asyncio.current_task()}
