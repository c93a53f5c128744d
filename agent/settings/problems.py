"""What is wrong with a configuration, one line each: the key's path, the value, what is accepted, where it stands."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from agent.settings.document import Key
from agent.settings.secrets import HIDDEN, is_secret, without_secrets
from agent.settings.shapes import accepted, inside, keys_of, model_in, shapes

MAX_VALUE = 80  # characters of a value that a message shows

_LINE_ENDS = re.compile("[\x7f-\x9f\u2028\u2029]")


def dotted(path: Key) -> str:
    """``jobs.old_tasks.never[0]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return _one_line(text.removeprefix("."))


def line(path: Key, message: str, origin: str | None = None) -> str:
    """A problem at a path, and where the value came from."""
    return f"{dotted(path)}: {message}" + (f" ({origin})" if origin else "")


def shown(value: Any, key: object = "") -> str:
    """The value in one short line, without its secrets."""
    open_value = without_secrets(value, key)
    text = HIDDEN if open_value == HIDDEN else _one_line(json.dumps(open_value, ensure_ascii=False, default=str))
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"


def _one_line(text: str) -> str:
    return _LINE_ENDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\n", "\\n").replace("\r", "\\r"))


def refusal(value: Any, wanted: str, path: Key = ()) -> str:
    """``"x" is not accepted; give ...``."""
    key = next((part for part in reversed(path) if isinstance(part, str)), "")
    return f"{shown(value, key)} is not accepted; {wanted}"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like ``name``."""
    plain = {entry.lower().replace("-", "_"): entry for entry in known}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1, cutoff=cutoff)
    return plain[close[0]] if close else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """``did you mean `keep`?``, or what is known."""
    known = list(known)
    near = nearest(name, known)
    if near:
        return f"did you mean `{near}`?"
    return f"known here: {', '.join(known)}" if known else "nothing is known here"


def unknown_key(path: Key, value: Any, known: Iterable[str]) -> str:
    """What is said of a key that nobody knows."""
    name = str(path[-1])
    given = "" if value is None or isinstance(value, dict | list) else f" (with the value {shown(value, name)})"
    given = given.replace(f"the value {HIDDEN}", "a value that is not shown")
    return f"unknown key{given}; {suggestion(name, known)}"


def from_validation(
    error: ValidationError, data: Any, annotation: Any, written: Callable[[Key], str | None]
) -> Iterator[tuple[Key, str]]:
    """The problems that pydantic found in ``data``: the path of each in it, and the message.

    ``written`` says what stands at a path in the file, where that is not the value itself.
    """
    found: dict[Key, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_path(detail, data), []).append(detail)
    for path, details in found.items():
        # Of a union every alternative is reported; the one that got further into the value is the one that was meant.
        if not any(len(other) > len(path) and other[: len(path)] == path for other in found):
            yield (
                path,
                _message(path, details, data, annotation) + _quotes(details[0], path, at(data, path), written(path)),
            )


def _path(detail: ErrorDetails, data: Any) -> Key:
    """The path in the data; pydantic's also names the alternatives of unions."""
    path: list[str | int] = []
    for part in detail["loc"]:
        if part in _keys(data):
            data = data[part]
            path.append(part)
    if detail["type"] == "missing":
        path.append(detail["loc"][-1])
    return tuple(path)


def _message(path: Key, details: list[ErrorDetails], data: Any, root: Any) -> str:
    value, parent = at(data, path), annotation_at(root, path[:-1])
    annotation = inside(parent, path[-1]) if path else root
    types = {detail["type"] for detail in details}
    if "extra_forbidden" in types or any(detail["loc"][-1:] == ("[key]",) for detail in details):
        return unknown_key(path, value, keys_of(parent))
    if "missing" in types:
        return f"missing; give {accepted(annotation)}"
    own = [str(detail["ctx"]["error"]) for detail in details if detail["type"] in {"value_error", "assertion_error"}]
    if own and isinstance(value, dict) and model_in(annotation) is not None:
        return "; ".join(dict.fromkeys(own))  # about several of its keys
    return refusal(value, "; ".join(dict.fromkeys(own)) or f"give {accepted(annotation)}", path)


def _quotes(detail: ErrorDetails, path: Key, value: Any, written: str | None) -> str:
    """Advice for text that YAML takes for a number, a date, true or false."""
    if detail["type"] not in {"string_type", "path_type"} or value is None or isinstance(value, dict | list):
        return ""
    if any(is_secret(part) for part in path):
        return ""
    return f": write {shown(written or str(value))} in quotes"


def annotation_at(root: Any, path: Key) -> Any:
    """The type of what belongs at a path inside a value of the type ``root``."""
    for part in path:
        root = inside(root, part)
    return root


def at(data: Any, path: Key) -> Any:
    """The value at a path; ``None`` where there is none."""
    for part in path:
        data = data[part] if part in _keys(data) else None
    return data


def _keys(data: Any) -> Container[str | int]:
    if isinstance(data, Mapping):
        return data
    return range(len(data)) if isinstance(data, list | tuple) else ()


def booleans_for_numbers(data: Any, annotation: Any, path: Key = ()) -> Iterator[tuple[Key, str]]:
    """Where ``true`` stands for a number, which pydantic would read as 1."""
    if isinstance(data, bool) and annotation is not None and "number" in (takes := shapes(annotation)):
        if not takes & {"bool", "any"}:
            yield path, refusal(data, f"give {accepted(annotation)}", path)
    elif isinstance(data, dict):
        for key, value in data.items():
            within = inside(annotation, key) if annotation is not None else None
            yield from booleans_for_numbers(value, within, (*path, key))
