"""Logs: one line an event, JSON for machines or coloured text for a terminal, and never a secret.

Every line has ``timestamp`` (UTC, ISO 8601), ``level``, ``logger`` and ``event``; the fields of ``context``
(request_id, run, job) stand on every line logged inside it. What libraries log through the standard library takes the
same path and the same form. Below INFO only the agent itself is heard: drivers write commands and bodies there.

Values whose key names a secret are blanked, and so is what looks like one inside any text: the user part of a URI, a
bearer token, ``password=...``, a private key. A traceback is rendered without local variables.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Final, Literal, TextIO

import structlog
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

__all__ = ["REDACTED", "Format", "Level", "configure", "context", "get_logger", "redact"]

Format = Literal["auto", "json", "console"]
Level = Literal["debug", "info", "warning", "error", "critical"]

REDACTED: Final = "[redacted]"
OURS: Final = "agent"
# Heard from WARNING on: below it they tell what the agent's own lines already tell, or what nobody needs.
QUIET: Final = ("aiohttp.access", "apscheduler", "asyncio", "kubernetes_asyncio", "motor", "pymongo", "urllib3")
DEPTH: Final = 8  # how deep a value is looked into; what lies deeper is rendered as text first

_SECRET_KEY = re.compile(
    r"pass(?:word|wd|phrase)|secret|token|authorization|credential|cookie|kubeconfig|private_?key|api_?key",
    re.IGNORECASE,
)
_HARMLESS_KEY = re.compile(r"(?:_file|_name|_path|_count|_line)s?$", re.IGNORECASE)
# Taken whole and cut at the last `@`: a password may hold an unescaped `@` or `/`.
_MONGODB_URI = re.compile(r"(mongodb(?:\+srv)?://)([^\s\"'<>]*)", re.IGNORECASE)
_SECRET_TEXT: Final = (
    (re.compile(r"\b([a-z][a-z0-9+.-]{0,30}://)[^\s\"'<>/@]*@", re.IGNORECASE), rf"\1{REDACTED}@"),
    (re.compile(r"\b(bearer\s+)[^\s\"']{8,}", re.IGNORECASE), rf"\1{REDACTED}"),
    (
        re.compile(
            r"\b(pass(?:word|wd|phrase)|secret|token|api[_-]?key|client-key-data)([\"']?\s{0,3}[=:]\s{0,3}[\"']?)[^\s\"',;&]+",
            re.IGNORECASE,
        ),
        rf"\1\2{REDACTED}",
    ),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), REDACTED),
)

context = bound_contextvars
"""``with context(request_id=..., run=..., job=...):`` puts the fields on every line logged inside, tasks included."""


def get_logger(name: str) -> FilteringBoundLogger:
    """The logger of a module: ``get_logger(__name__)``."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


def configure(level: Level = "info", format: Format = "auto", stream: TextIO | None = None) -> None:
    """Sends all logs to ``stream`` (default: the standard error output) in one form, from ``level`` on.

    ``auto`` is ``console`` on a terminal and ``json`` elsewhere. May be called again; module loggers follow, since
    they are not cached. Whoever logs in a loop binds its logger before it: then a line below the level costs nothing.
    """
    out = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(out)
    handler.setFormatter(_formatter(out, format))
    handler.addFilter(_wanted)
    number = logging.getLevelNamesMapping()[level.upper()]
    _route_standard_logging(handler, number)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_common(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(number),
    )


def _route_standard_logging(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, structlog.stdlib.ProcessorFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(level, logging.INFO))
    logging.getLogger(OURS).setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(capture=True)


def _wanted(record: logging.LogRecord) -> bool:
    """Keeps two things out.

    Bodies that libraries log at DEBUG, even where one of their loggers was given that level; and a traceback for every
    port scanner that speaks no HTTP.
    """
    if record.levelno < logging.INFO:
        return record.name.partition(".")[0] == OURS
    error = record.exc_info[0] if record.exc_info else None
    return error is None or error.__module__ != "aiohttp.http_exceptions"


def _common() -> list[Processor]:
    """What every line passes, ours and those of the standard library."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(stream: TextIO, format: Format) -> structlog.stdlib.ProcessorFormatter:
    console = format == "console" or (format == "auto" and stream.isatty())
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_common(),
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _redact_event,
            _console(stream) if console else structlog.processors.JSONRenderer(),
        ],
    )


def _console(stream: TextIO) -> Processor:
    colours = stream.isatty() and "NO_COLOR" not in os.environ
    return structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)


def _redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: _redact_entry(key, value, DEPTH) for key, value in event.items()}


def _redact_entry(key: str, value: object, depth: int) -> object:
    if value is not None and not isinstance(value, bool) and _SECRET_KEY.search(key) and not _HARMLESS_KEY.search(key):
        return REDACTED
    return _redact_value(value, depth)


def _redact_value(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if isinstance(value, Mapping) and depth:
        return {str(key): _redact_entry(str(key), entry, depth - 1) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth:
        return [_redact_value(entry, depth - 1) for entry in value]
    return redact(str(value))


def redact(text: str) -> str:
    """``text`` without what looks like a secret in it."""
    text = _MONGODB_URI.sub(_without_user, text)
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _without_user(uri: re.Match[str]) -> str:
    user, at, rest = uri[2].rpartition("@")
    return f"{uri[1]}{REDACTED}@{rest}" if user or at else uri[0]
