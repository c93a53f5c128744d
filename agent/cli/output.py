"""What people and machines get to see: tables on the standard output, sentences on the standard error, or JSON.

Colours and moving things appear on a terminal only. What comes from a database or a directory may hold anything:
control characters are shown as escapes, and nothing of it is taken for markup.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]
Show = Callable[[Console], None]

STYLES: Final[Mapping[str, str]] = {
    "succeeded": "green",
    "ok": "green",
    "yes": "green",
    "refused": "yellow",
    "skipped": "yellow",
    "interrupted": "yellow",
    "warning": "yellow",
    "failed": "red",
    "timed_out": "red",
    "problem": "red",
    "no": "red",
}
NOTHING: Final = "-"
AGES: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
PIPE_COLUMNS: Final = 1000


def _show_nothing(console: Console) -> None:
    del console


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command has to say: the exit code, the document for machines, and what shows it to people."""

    code: int
    document: Any
    show: Show = field(default=_show_nothing)


class _Console(Console):
    """A console that goes on where nobody reads any more: what was begun has to come to its end."""

    def on_broken_pipe(self) -> None:
        """What it writes from now on goes nowhere."""
        _abandon_output()


def console(stream: TextIO) -> Console:
    """A console for text that is not ours: no markup, no emoji, no guessed highlights."""
    # Whatever reads a pipe searches line by line: there a row is a line.
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return _Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def write(answer: Answer, *, as_json: bool) -> int:
    """Writes an answer to the standard output; returns the exit code."""
    tolerate_any_text()
    try:
        if as_json and answer.document is not None:
            sys.stdout.write(json.dumps(answer.document, indent=2) + "\n")
        elif not as_json:
            _present(answer.show)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon_output()  # the reader has seen enough (`| head`): no reason to complain
    except OSError as error:
        _abandon_output()
        complain(f"the output could not be written: {error.strerror}")
        return answer.code or 1
    return answer.code


def _present(show: Show) -> None:
    """Shows an answer; where no person reads it, without the blanks that fill up the rows of a table."""
    to = console(sys.stdout)
    if to.is_terminal:
        show(to)
        return
    with to.capture() as captured:
        show(to)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def complain(*lines: str) -> None:
    """Says sentences on the standard error, a line each."""
    with contextlib.suppress(OSError):
        for line in lines:
            sys.stderr.write(f"{plain(line)}\n")
        sys.stderr.flush()


def tolerate_any_text() -> None:
    """Lets a stream show what its encoding has no character for as an escape, where it would raise otherwise."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # what a test or a caller put in its place
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _abandon_output() -> None:
    """Points the standard output nowhere, so that the interpreter's own last flush finds no broken pipe."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


# ----------------------------------------------------------------------------------------------------------- the parts


def plain(text: str) -> str:
    """The text on one line, its control characters as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def styled(word: str | None) -> Text:
    """A word in its colour."""
    return Text(word or NOTHING, style=STYLES.get(word or "", ""))


def shown(value: object) -> str:
    """A value in a cell: text as it is, an ObjectId by its digits (which are taken for it), the rest as JSON.

    Text that a terminal would not show as it is becomes JSON too: so every ``_id`` that is shown can be given again.
    """
    if isinstance(value, dict) and set(value) == {"$oid"}:
        return str(value["$oid"])
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if plain(text) == text else json.dumps(value)


def counts(values: Mapping[str, int]) -> str:
    """``28 orphan, 2 malformed``."""
    return ", ".join(f"{count:,} {name}" for name, count in values.items()) or NOTHING


def instant(value: str | None) -> str:
    """An instant of a record, to the second."""
    return value.partition(".")[0].replace("T", " ") + "Z" if value else NOTHING


def ago(value: str | None, now: str) -> str:
    """How long ago an instant was, in its largest unit."""
    if value is None:
        return NOTHING
    seconds = max((dt.datetime.fromisoformat(now) - dt.datetime.fromisoformat(value)).total_seconds(), 0)
    unit, size = next(((unit, size) for unit, size in AGES if seconds >= size), AGES[-1])
    return f"{seconds // size:.0f}{unit} ago"


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Sequence[str] = ()) -> Table:
    """A table that wraps what does not fit and cuts nothing; the columns under ``right`` hold numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in columns:
        # An id is for copying: it stays in one piece.
        made.add_column(name, overflow="fold", no_wrap=name == "run", justify="right" if name in right else "left")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in row))
    return made


def grid(rows: Iterable[Sequence[str | Text]]) -> Table:
    """Rows in columns without a head."""
    made = Table.grid(padding=(0, 2))
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in row))
    return made


def say(console: Console, text: str = "", style: str = "", *, whole: bool = False) -> None:
    """A line that is wrapped at words; ``whole`` is for what is copied: a command, an address."""
    console.print(Text(text, style=style), soft_wrap=whole or console.width >= PIPE_COLUMNS)
