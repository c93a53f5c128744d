"""The log: one form for all, and no secret in it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from aiohttp.http_exceptions import BadHttpMessage

from agent import log


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Puts the process' logging back as it was: it is global, and the next test has its own idea of it."""
    root = logging.getLogger()
    names = [log.OURS, *log.QUIET]
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The JSON lines of a stream."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def logged(level: log.Level = "debug") -> io.StringIO:
    """Configures JSON into a stream."""
    stream = io.StringIO()
    log.configure(level, "json", stream)
    return stream


def test_a_line_has_time_level_logger_event_and_fields() -> None:
    """Every line carries time (UTC), level, logger, event and the fields."""
    stream = logged()
    log.get_logger("agent.runner").info("run ended", outcome="succeeded", seconds=1.5)
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {
        "event": "run ended",
        "level": "info",
        "logger": "agent.runner",
        "outcome": "succeeded",
        "seconds": 1.5,
    }


def test_the_standard_library_takes_the_same_form() -> None:
    """A library that logs through the standard library is written in the same form."""
    stream = logged()
    logging.getLogger("some.library").warning("%s of %d", "three", 4)
    (line,) = lines(stream)
    assert line["event"] == "three of 4"
    assert set(line) == {"event", "level", "logger", "timestamp"}


async def test_context_stands_on_every_line_inside_and_in_tasks() -> None:
    """The fields of a context reach tasks and libraries, and end with it."""
    stream = logged()
    logger = log.get_logger("agent.runner")

    async def work() -> None:
        logger.info("inside a task")

    with log.context(request_id="r1", job="orphan_apps"):
        await asyncio.create_task(work())
        logging.getLogger("some.library").info("inside a library")
    logger.info("outside")
    task, library, outside = lines(stream)
    assert task["request_id"] == library["request_id"] == "r1"
    assert task["job"] == "orphan_apps"
    assert "request_id" not in outside


def test_auto_is_console_on_a_terminal_and_json_elsewhere() -> None:
    """``auto`` looks at the stream."""
    terminal = Terminal()
    log.configure("info", "auto", terminal)
    log.get_logger("agent").info("hello", job="a")
    assert "hello" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    file = io.StringIO()
    log.configure("info", "auto", file)
    log.get_logger("agent").info("hello")
    assert lines(file)[0]["event"] == "hello"


def test_console_has_no_colours_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """``NO_COLOR`` is respected."""
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    log.configure("info", "console", terminal)
    log.get_logger("agent").warning("hello")
    assert "\x1b" not in terminal.getvalue()


def test_configuring_again_replaces_the_handler_and_loggers_follow() -> None:
    """A reload changes stream and level for loggers that exist already."""
    first = logged()
    logger = log.get_logger("agent")
    logger.info("one")
    second = logged("error")
    logger.info("two")
    logger.error("three")
    assert [line["event"] for line in lines(first)] == ["one"]
    assert [line["event"] for line in lines(second)] == ["three"]


@pytest.mark.parametrize("name", ["kubernetes_asyncio.client.rest", "pymongo.command", "aiohttp.access", "asyncio"])
def test_bodies_that_libraries_log_at_debug_are_never_written(name: str) -> None:
    """Even a library logger that was set to DEBUG writes nothing at DEBUG."""
    stream = logged("debug")
    library = logging.getLogger(name)
    library.debug("response body: a kubeconfig")
    library.setLevel(logging.DEBUG)
    library.debug("response body: a kubeconfig")
    library.setLevel(logging.NOTSET)
    assert stream.getvalue() == ""


def test_a_client_that_speaks_no_http_is_no_error() -> None:
    """What the server logs of a malformed request is dropped; other failures of the server are not."""
    stream = logged()
    for error in (BadHttpMessage("no HTTP"), RuntimeError("a mistake")):
        logging.getLogger("aiohttp.server").error("Error handling request", exc_info=error)
    (line,) = lines(stream)
    assert "a mistake" in line["exception"]


def test_warnings_become_lines() -> None:
    """Python's warnings are log lines."""
    stream = logged()
    logging.getLogger("py.warnings").warning("something is old")
    assert lines(stream)[0]["level"] == "warning"


@pytest.mark.parametrize(
    "key", ["password", "Authorization", "token", "http_tokens", "client_secret", "kubeconfig", "api_key", "privateKey"]
)
def test_values_of_secret_keys_are_blanked_at_any_depth(key: str) -> None:
    """A key that names a secret hides its value, however deep it lies."""
    stream = logged()
    log.get_logger("agent").info("x", **{key: "hunter2", "settings": {"deep": [{key: "hunter2"}]}})
    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0]["settings"] == {"deep": [{key: log.REDACTED}]}


def test_names_of_secrets_are_no_secrets() -> None:
    """The path of a secret, the name of a token and an absent value are shown."""
    stream = logged()
    log.get_logger("agent").info("x", tokens_file="/run/tokens", token_name="ann", token=None)  # noqa: S106 - no password
    line = lines(stream)[0]
    assert (line["tokens_file"], line["token_name"], line["token"]) == ("/run/tokens", "ann", None)


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach mongodb://ann:hunter2@db:27017/app?x=1",
        "cannot reach mongodb+srv://ann:p@ss/hunter2@db/app",
        "proxy https://ann:hunter2@proxy:3128 refused",
        "Authorization: Bearer hunter2hunter2",
        "password=hunter2&x=1",
        '{"token": "hunter2"}',
        "client-key-data: hunter2==",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2",
    ],
)
def test_what_looks_like_a_secret_in_a_text_is_blanked(text: str) -> None:
    """Secrets inside texts are blanked in events, fields, values of other types and libraries."""
    stream = logged()
    log.get_logger("agent").info(text, detail=text, deep={"a": [text]}, other=ValueError(text))
    logging.getLogger("some.library").error("failed: %s", text)
    assert stream.getvalue().count(log.REDACTED) >= 5
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "http://host:9190/livez answers",
        "28 records of app.generated_applications",
        "http.tokens_file: line 3 has no colon",
        "jobs.orphan_apps.every: 90 is no duration",
        "mail to ann@example.org",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """A text without a secret is left as it is."""
    assert log.redact(text) == text


def test_redacting_a_long_text_takes_no_long_time() -> None:
    """No pattern goes back and forth: a hundred kilobytes of nothing but beginnings."""
    for start in ("mongodb://", "a://", "bearer ", "password", "-----BEGIN PRIVATE KEY-----"):
        log.redact(start * 10_000)


def fail(password: str) -> None:
    """Fails with a secret in its message and in its locals."""
    raise RuntimeError(f"no answer from mongodb://ann:{password}@db")


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_carries_neither_locals_nor_secrets(form: log.Format) -> None:
    """An exception is written with its traceback, without locals, with secrets blanked."""
    stream = io.StringIO()
    log.configure("info", form, stream)
    try:
        fail("hunter" + "2")
    except RuntimeError:
        log.get_logger("agent").exception("it failed")
    assert "RuntimeError: no answer" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()
