"""The environment as a source of settings: ``MAINTENANCE_`` and the path of a key, joined by ``__``.

A value is read by the type of its key: text stays text, all else is YAML (``true``, ``5``, ``90s``, ``{a: b}``). Where
a key may be null, nothing, ``null`` and ``~`` are null. ``-`` in a job's name is ``_`` here. Jobs that are there can be
adjusted, none can be added. What is unknown is a warning, since a container's environment is not only its own; what
Kubernetes sets for a Service whose name starts with ``maintenance`` is not even that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from agent.errors import ConfigurationError
from agent.settings import document, legacy
from agent.settings.document import Key
from agent.settings.draft import Draft, from_words
from agent.settings.model import Settings
from agent.settings.problems import nearest
from agent.settings.shapes import annotation_of, fields_of, keys_of, model_in, shapes

PREFIX = "MAINTENANCE_"

# Source: Kubernetes, "Service environment variables", and the Docker links that they imitate.
_INJECTED = re.compile(
    r"MAINTENANCE_([A-Z0-9_]+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)?)"
)
_LINK = re.compile(r"(tcp|udp|sctp)://")


def environment_name(name: str) -> str:
    """A key or a job's name as it stands in a variable's name."""
    return name.upper().replace("-", "_")


def lay_environment(draft: Draft, environ: Mapping[str, str]) -> None:
    """Lays the variables, except for the ``legacy`` ones that the caller leaves out, over the draft."""
    # A whole before its parts; a job's kind first, since it says which keys there are.
    names = sorted(environ, key=lambda name: (not name.endswith("__KIND"), name.count("__"), name))
    for name in names:
        if not name.startswith(PREFIX):
            continue
        path = _find(draft, name.removeprefix(PREFIX))
        if path is not None:
            _lay(draft, path, environ[name], name)
        elif not _is_injected(draft, name, environ[name]):
            draft.warnings.append(_unknown(draft, name))


def _lay(draft: Draft, path: Key, text: str, name: str) -> None:
    try:
        value = _read(text, draft.annotation(path), name)
    except ConfigurationError as error:
        draft.problems.extend(error.problems)
        return
    if path == ("jobs",):
        for job in [job for job in value if job not in draft.jobs] if isinstance(value, dict) else []:
            draft.warnings.append(f"{name}: there is no job `{job}` to adjust; ignored")
            del value[job]
    for end in range(1, len(path)):
        _open(draft, path[:end])
    draft.lay(path, value, from_words(name))


def _open(draft: Draft, path: Key) -> None:
    """Makes a mapping of what stands at a path, so that one key of it can be set; it starts from the default."""
    if isinstance(draft.get(path), dict):
        return
    default = None if model_in(draft.annotation(path)) is not None else draft.default(path)
    value = dict(default) if isinstance(default, Mapping) and not draft.has(path) else {}
    draft.put(path, value, from_words(None))


def _read(text: str, annotation: Any, name: str) -> Any:
    """The value that a variable's text stands for. Raises ``ConfigurationError`` where it is not YAML but has to be."""
    takes = shapes(annotation) if annotation is not None else frozenset({"any"})
    if "null" in takes and text.strip().lower() in {"", "null", "~"}:
        return None
    is_container = text.lstrip()[:1] in {"{", "["} and takes & {"list", "mapping"}
    is_text = "text" in takes and not is_container
    return text if is_text or not text.strip() else document.parse(text, name).value


def _find(draft: Draft, rest: str) -> Key | None:
    """The path that a variable's name means, without the prefix; ``None`` where it means none."""
    path: Key = ()
    parts = rest.split("__")
    if rest.startswith("JOBS__"):
        rest = rest.removeprefix("JOBS__")
        job = _job(draft, rest)
        if job is None:
            return None
        path = ("jobs", job)
        parts = rest[len(job) :].split("__")[1:]
    for part in parts:
        key = _key(draft, path, part)
        if key is None:
            return None
        path = (*path, key)
    return path


def _job(draft: Draft, rest: str) -> str | None:
    """The job that the name starts with; the longest, since a job's name may have ``__`` in it too."""
    fitting = [job for job in draft.jobs if f"{rest}__".startswith(f"{environment_name(job)}__")]
    return max(fitting, key=len, default=None)


def _key(draft: Draft, path: Key, part: str) -> str | None:
    """The key under a path that a part of a variable's name means."""
    annotation = Settings if not path else draft.annotation(path)
    if annotation is None:
        return part.lower() if path[:1] == ("jobs",) and draft.kind(str(path[1])) is None else None
    known = {environment_name(key): key for key in (*keys_of(annotation), *_written_keys(draft, path))}
    if part in known or keys_of(annotation) or not shapes(annotation) & {"mapping", "any"}:
        return known.get(part)
    return part.lower() or None


def _written_keys(draft: Draft, path: Key) -> tuple[str, ...]:
    """The keys that a mapping has now, or has by default."""
    if not path or model_in(draft.annotation(path)) is not None:
        return ()
    value = draft.get(path) if draft.has(path) else draft.default(path)
    return tuple(str(key) for key in value) if isinstance(value, Mapping) else ()


def _is_injected(draft: Draft, name: str, value: str) -> bool:
    """Whether Kubernetes set it, rather than somebody who forgot an underscore (``MAINTENANCE_HTTP_PORT``)."""
    if not _INJECTED.fullmatch(name) or "__" in name:
        return False
    return bool(_LINK.match(value)) or name not in {known.replace("__", "_") for known in _known(draft)}


def _unknown(draft: Draft, name: str) -> str:
    hint = _hint(draft, name)
    if name.startswith(f"{PREFIX}JOBS__") and _job(draft, name.removeprefix(f"{PREFIX}JOBS__")) is None:
        jobs = ", ".join(draft.jobs) or "none"
        return f"{name}: there is no such job to adjust (jobs: {jobs}); ignored{hint}"
    return f"{name}: unknown, ignored{hint}"


def _hint(draft: Draft, name: str) -> str:
    """The nearest known name: among those that start as well, where there are such, else among all."""
    known = set(_known(draft))
    parts = name.split("__")
    starts = ["__".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
    start = next((f"{start}__" for start in starts if start in known), PREFIX)
    # What is alike is left out: it would make all names alike.
    rests = sorted(entry.removeprefix(start) for entry in known if entry.startswith(start))
    near = nearest(name.removeprefix(start), rests, cutoff=0.75 if start == PREFIX else 0.6)
    return f"; did you mean {start}{near}?" if near else ""


def _known(draft: Draft) -> Iterator[str]:
    """The names of all variables that mean something now."""
    yield from legacy.NAMES
    yield from _names(PREFIX.removesuffix("_"), "_", Settings)
    for job in draft.jobs:
        kind = draft.kind(job)
        name = f"{PREFIX}JOBS__{environment_name(job)}"
        yield name
        if kind is not None:
            yield from _names(name, "__", kind)


def _names(start: str, joint: str, model: type[BaseModel]) -> Iterator[str]:
    for key, field in fields_of(model).items():
        name = f"{start}{joint}{environment_name(key)}"
        yield name
        inner = model_in(annotation_of(field))
        if inner is not None:
            yield from _names(name, "__", inner)
