"""What every command is handed, and how it opens the agent."""

from __future__ import annotations

import argparse
import getpass
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from agent.app import Agent, open_agent
from agent.cli.configuration import Configuration, log_of_command
from agent.cli.process import Signals
from agent.job import Job
from agent.settings import Settings
from agent.store import time_limit

REACH_SECONDS = 5.0
LOOK_SECONDS = 30.0  # for what only reads a few documents; a server that is frozen must not hold up a person for ever


@dataclass(frozen=True)
class Call:
    """One call of a command: the words, the configuration, the signals."""

    given: argparse.Namespace
    configuration: Configuration
    signals: Signals = field(default_factory=Signals)

    def with_signals(self, signals: Signals) -> Call:
        """The same call, with the signals of the event loop that it runs on."""
        return replace(self, signals=signals)

    def settings(self) -> Settings[Job]:
        """The settings, with the log as they ask for it. Raises ``ConfigurationError``."""
        settings = self.configuration()
        log_of_command(settings)
        return settings

    @asynccontextmanager
    async def working(self) -> AsyncIterator[Agent]:
        """An agent that changes things: with its indexes. Raises ``StoreError``."""
        async with open_agent(self.settings()) as agent:
            yield agent

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[Agent]:
        """An agent that only looks, and makes no index. Raises ``StoreError``."""
        agent = Agent(self.settings())
        try:
            with time_limit(REACH_SECONDS):  # a limit is also how long the driver looks for a server
                await agent.store.hello()
            with time_limit(LOOK_SECONDS):
                yield agent
        finally:
            await agent.close()


def person() -> str:
    """Who asks: the name that stands in the records of runs."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user of a container has a number only
        return f"uid {os.getuid()}"
