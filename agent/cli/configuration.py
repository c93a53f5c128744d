"""The configuration as the command line names it, and the log that it asks for."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TextIO, cast

from agent import log
from agent.errors import ConfigurationError, StoreError, StoreUnavailableError
from agent.job import Job
from agent.jobs import KINDS
from agent.settings import Settings, load
from agent.store import Store

_log = log.get_logger(__name__)


class Configuration:
    """Loads the settings, as often as it is called; the last ones stay in ``settings``."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.settings: Settings[Job] | None = None

    def __call__(self) -> Settings[Job]:
        """The settings as they are now. Raises ``ConfigurationError``."""
        settings: Settings[Job] = load(KINDS, path=self._path, environ=os.environ)
        _check_uri(settings)
        self.settings = settings
        return settings

    def unreachable(self, error: StoreUnavailableError) -> str:
        """What is said of a MongoDB that cannot be reached: where, why, and what to look at. No password."""
        where = f" at {self.settings.shown()['mongodb']['uri']}" if self.settings is not None else ""
        why = str(error).partition(" (configured timeouts")[0]
        return f"MongoDB cannot be reached{where}: {why}. Check mongodb.uri, that the server runs, and the way to it."


def _check_uri(settings: Settings[Job]) -> None:
    """Whether the driver takes the connection string. It connects to nothing yet."""
    key = "mongodb.uri_file" if settings.mongodb.uri_file is not None else "mongodb.uri"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again, and are logged, when the agent is made
            Store(settings.mongodb.uri.get_secret_value())
    except StoreError as error:
        raise ConfigurationError([f"{key}: is no connection string that MongoDB's driver takes: {error}"]) from error


class _Stderr:
    """The standard error as it is when something is written: a progress bar puts itself in its place for a while."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.__stderr__ is not None and sys.__stderr__.isatty()


def log_of_service(settings: Settings[Job]) -> None:
    """The log of a service: as configured."""
    _configure(settings, settings.log.level)


def log_of_command(settings: Settings[Job]) -> None:
    """The log of a command: on a terminal only what the answer does not say."""
    level = "WARNING" if settings.log.level == "INFO" and sys.stderr.isatty() else settings.log.level
    _configure(settings, level)


def _configure(settings: Settings[Job], level: str) -> None:
    stream = cast("TextIO", _Stderr())
    log.configure(cast("log.Level", level.lower()), settings.log.format, stream=stream)
    for warning in settings.warnings:
        _log.warning("configuration", problem=warning)
