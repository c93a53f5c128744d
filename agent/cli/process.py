"""The process: signals while a command works, and an end that nothing can hang.

The first SIGINT or SIGTERM asks for an end (runs stop between two batches, anything else is broken off), the second one
ends the process at once. At the very end a thread may still wait for a file system or a server that does not answer:
Python would wait for it, so the process is cut instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, NoReturn, TypeVar

T = TypeVar("T")

PATIENCE_SECONDS: Final = 1.0  # for idle threads and buffers, once all that matters is done
ENDED_BY_SIGNAL: Final = 1
# Objects made before the collector of cycles looks, and how often its longer looks come. Decoded documents are many
# objects and no cycles: by Python's own figures (700, 10, 10) it walks the heap again and again while a page of them is
# decoded, which takes three times as long as the decoding.
COLLECTOR: Final = (20_000, 20, 20)


def calm_collector() -> None:
    """Has Python's collector of cycles look less often."""
    gc.set_threshold(*COLLECTOR)


class Signals:
    """What SIGINT and SIGTERM do while a command works."""

    def __init__(self) -> None:
        self.asked = False
        self._work: asyncio.Task[Any] | None = None
        self._politely: Callable[[], None] | None = None

    def handle(self) -> None:
        """Takes the signals over, for the task that calls this."""
        self._work = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end)

    @contextlib.contextmanager
    def politely(self, ask: Callable[[], None]) -> Iterator[None]:
        """Inside, the first signal calls ``ask`` and the work goes on to its own end; else it is cancelled."""
        self._politely = ask
        try:
            yield
        finally:
            self._politely = None

    def _end(self) -> None:
        if self.asked:
            end_at_once(ENDED_BY_SIGNAL)
        self.asked = True
        if self._politely is not None:
            self._politely()
        elif self._work is not None:
            self._work.cancel()


def run(runner: asyncio.Runner, work: Callable[[Signals], Coroutine[Any, Any, T]]) -> T:
    """Does the work on the runner's event loop, with the signals handled."""

    async def handled() -> T:
        signals = Signals()
        signals.handle()
        return await work(signals)

    return runner.run(handled())


def cut_after(seconds: float, code: int) -> None:
    """Ends the process with ``code`` that many seconds from now, unless it has ended by then."""

    def cut() -> None:
        time.sleep(seconds)
        end_at_once(code)

    # A daemon: the one sort of thread that neither keeps the interpreter from ending nor ends before it.
    threading.Thread(target=cut, name="cut", daemon=True).start()


def end_at_once(code: int) -> NoReturn:
    """Ends the process without waiting for anything but the buffers of its output."""
    for flush in (logging.shutdown, sys.stdout.flush, sys.stderr.flush):
        with contextlib.suppress(OSError, ValueError):
            flush()
    os._exit(code)
