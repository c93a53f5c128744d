"""Health: named checks, asked once for all who ask, never piling up."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from agent.errors import StoreUnavailableError
from agent.health import Check, Flag, Health, watch_loop_lag
from agent.metrics import Metrics


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Probe:
    """A probe that counts how often it was asked, and waits until it may answer."""

    def __init__(self, *, waits: bool = False) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.error: BaseException | None = None
        if not waits:
            self.may_answer.set()

    async def __call__(self) -> str | None:
        self.asked += 1
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return None


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_all_is_well() -> None:
    """The verbose answer has one line a check, in the order of registration."""
    health = Health()
    health.register(Check("mongodb", Probe()))
    verdict = await health.ask("readyz")
    assert verdict.ok
    assert verdict.text == "[+]event-loop ok\n[+]mongodb ok\nreadyz check passed\n"


@pytest.mark.parametrize(
    "error, reason",
    [
        (StoreUnavailableError("no primary"), "no primary"),
        (ConnectionRefusedError("refused"), "refused"),
        (TimeoutError(), "TimeoutError"),
        (StoreUnavailableError("no answer from mongodb://ann:hunter2@db\nat all"), "[redacted]@db at all"),
        (ZeroDivisionError("secret"), "the check itself broke (ZeroDivisionError)"),
    ],
    ids=["ours", "os", "without words", "secret", "a mistake"],
)
async def test_an_error_is_a_reason_without_secrets(error: BaseException, reason: str) -> None:
    """Ours and the system's say what they say; of a mistake in the check only its kind is told."""
    health, probe = Health(), Probe()
    probe.error = error
    health.register(Check("mongodb", probe))
    verdict = await health.ask("readyz")
    assert not verdict.ok
    assert verdict.text.splitlines()[1].startswith("[-]mongodb failed: ")
    assert verdict.text.splitlines()[1].endswith(reason)
    assert verdict.text.endswith("\nreadyz check failed\n")


async def test_live_does_not_ask_what_ready_asks() -> None:
    """MongoDB away: not ready, never dead. healthz asks everything."""
    health, probe = Health(), Probe()
    probe.error = StoreUnavailableError("away")
    health.register(Check("mongodb", probe, frozenset({"readyz"})))
    health.register(Check("neither", Flag("of no importance"), frozenset()))
    assert (await health.ask("livez")).ok
    assert probe.asked == 0
    assert health.names("livez") == ["event-loop"]
    assert health.names("readyz") == ["event-loop", "mongodb"]
    assert health.names("healthz") == ["event-loop", "mongodb", "neither"]
    assert not (await health.ask("healthz")).ok


async def test_a_result_is_kept_for_a_second_and_the_check_recovers() -> None:
    """However many ask, the dependency is asked once a second."""
    clock, probe = Clock(), Probe()
    health = Health(monotonic=clock)
    health.register(Check("mongodb", probe))
    probe.error = StoreUnavailableError("away")
    verdicts = await asyncio.gather(*(health.ask("readyz") for _ in range(100)))
    assert probe.asked == 1
    assert not any(verdict.ok for verdict in verdicts)
    probe.error = None
    clock.now = 0.9
    assert not (await health.ask("readyz")).ok
    clock.now = 1.0
    assert (await health.ask("readyz")).ok
    assert probe.asked == 2


async def test_probes_do_not_pile_up_on_what_does_not_answer() -> None:
    """Each request gives up after its patience; the one probe in flight is shared, and its end is noticed."""
    clock, probe = Clock(), Probe(waits=True)
    health = Health(monotonic=clock, patience=0)
    health.register(Check("mongodb", probe))
    for _ in range(5):
        verdict = await health.ask("readyz")
        assert "[-]mongodb failed: no answer within 0 s" in verdict.text
        clock.now += 2
    await settle()
    assert probe.asked == 1
    probe.may_answer.set()
    await settle()
    assert (await health.ask("readyz")).ok
    assert probe.asked == 1


async def test_a_cancelled_request_leaves_the_probe_to_the_others() -> None:
    """A prober that hangs up does not fail the check."""
    probe = Probe(waits=True)
    health = Health()
    health.register(Check("mongodb", probe))
    first = asyncio.create_task(health.ask("readyz"))
    second = asyncio.create_task(health.ask("readyz"))
    await settle()
    first.cancel()
    await settle()
    probe.may_answer.set()
    assert (await second).ok
    assert probe.asked == 1


async def test_checks_can_be_excluded() -> None:
    """An excluded check is not asked; a name that no check has is a warning, not an error."""
    health, probe = Health(), Probe()
    probe.error = StoreUnavailableError("away")
    health.register(Check("mongodb", probe))
    verdict = await health.ask("readyz", ["mongodb", "etcd"])
    assert verdict.ok
    assert probe.asked == 0
    assert verdict.text == (
        "[+]event-loop ok\n"
        "[+]mongodb excluded: ok\n"
        'warn: some health checks cannot be excluded: no matches for "etcd"\n'
        "readyz check passed\n"
    )


async def test_one_check_can_be_asked() -> None:
    """By its name, where the endpoint has it."""
    health = Health()
    health.register(Check("mongodb", Flag("away")))
    verdict = await health.ask_one("readyz", "mongodb")
    assert verdict is not None
    assert verdict.text == "[-]mongodb failed: away\nreadyz check failed\n"
    assert await health.ask_one("livez", "mongodb") is None
    assert await health.ask_one("readyz", "etcd") is None


async def test_a_flag_is_raised_and_cleared() -> None:
    """What start-up and shutdown use; both are told at once, not when a second has passed since the last answer."""
    flag = Flag("starting")
    health = Health(monotonic=Clock())
    health.register(Check("startup", flag))
    assert "[-]startup failed: starting" in (await health.ask("readyz")).text
    flag.clear()
    assert (await health.ask("readyz")).ok
    flag.fail("shutting down: mongodb://ann:secret@db/")
    said = (await health.ask("readyz")).text
    assert "[-]startup failed: shutting down" in said
    assert "secret" not in said


async def test_closing_ends_the_probes_in_flight() -> None:
    """Nothing is left behind on the loop."""
    probe = Probe(waits=True)
    health = Health(patience=0)
    health.register(Check("mongodb", probe))
    await health.ask("readyz")
    await health.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert "cancelled" in (await health.ask("readyz")).text


class Told(Metrics):
    """Metrics that notice that they were told of a lag."""

    told = asyncio.Event()

    def loop_lag(self, seconds: float) -> None:
        """Notices it."""
        super().loop_lag(seconds)
        self.told.set()


async def test_the_lag_of_the_loop_is_measured() -> None:
    """A loop that is held up shows in the metric."""
    metrics = Told("1.2.3", [])
    watching = asyncio.create_task(watch_loop_lag(metrics, every=0))
    await asyncio.sleep(0)
    await metrics.told.wait()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    lag = metrics.registry.get_sample_value("maintenance_event_loop_lag_seconds")
    metrics.close()
    assert lag is not None
    assert lag >= 0
