"""The command serve."""

from __future__ import annotations

import gc
import sys

from agent import log
from agent.app import Service
from agent.cli import process
from agent.cli.configuration import log_of_service
from agent.cli.output import Answer
from agent.cli.words import Call

MARGIN_SECONDS = 1.0  # before the end of the shutdown's budget, in which the orchestrator would kill

# How long a thread that renders metrics may keep the interpreter from the event loop at a time: by Python's own 5 ms a
# scrape of 10,000 series stops the loop for up to 28 ms, by this for 19.
SWITCH_SECONDS = 0.001

_log = log.get_logger(__name__)


class Serving(Service):
    """The service as a process of its own: its end may be cut."""

    def stop(self) -> None:
        """Asks for the end; where it does not come within the budget, it is made. What is cut the next run settles."""
        budget = self.settings.shutdown.budget.total_seconds()
        process.cut_after(max(budget - MARGIN_SECONDS, MARGIN_SECONDS), 0)
        super().stop()


async def serve(call: Call) -> Answer:
    """Serves until a signal says stop."""
    service = Serving(call.configuration)
    log_of_service(service.settings)
    sys.setswitchinterval(SWITCH_SECONDS)
    service.handle_signals(on_second=lambda: process.end_at_once(process.ENDED_BY_SIGNAL))
    await service.run(ready=_keep_what_is_loaded)
    return Answer(0, None)


def _keep_what_is_loaded(port: int) -> None:
    """Takes it out of the garbage collector's sight: a full collection would stop the event loop for 60 ms."""
    del port
    gc.collect()
    gc.freeze()
