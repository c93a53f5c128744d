"""Puts a configuration together: built-in values, old variables, file, environment, command line; and checks it all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel

from agent.errors import ConfigurationError
from agent.settings import document, legacy
from agent.settings.document import Key
from agent.settings.draft import Draft, Origin, Origins, from_words
from agent.settings.environment import PREFIX, environment_name, lay_environment
from agent.settings.model import DEFAULT_JOBS, SECTIONS, SHARED, Settings
from agent.settings.problems import refusal, suggestion, unknown_key
from agent.settings.shapes import annotation_of, fields_of, kind_of
from agent.settings.values import JOB_NAME, format_duration

J = TypeVar("J", bound=BaseModel)

MAX_FILE = 2**20  # bytes; the longest configuration has a few hundred lines
MAX_URI_FILE = 2**16

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def load(
    kinds: Sequence[type[J]],
    *,
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any] = _NOTHING,
) -> Settings[J]:
    """The settings that file, environment and command line say together.

    ``kinds`` are the classes of jobs; ``overrides`` holds what the command line says, under the keys of the file. Keeps
    nothing: to reload, load again. Raises ``ConfigurationError`` with all problems at once.
    """
    draft = Draft({kind_of(kind): kind for kind in kinds})
    old = legacy.lay_legacy(draft, environ)
    _lay_file(draft, path)
    with draft.layer():
        lay_environment(draft, {name: text for name, text in environ.items() if name not in legacy.NAMES})
    with draft.layer():
        _lay_overrides(draft, overrides)
    _read_uri(draft)
    _lay_kind_defaults(draft, old)
    _check_tls(draft)
    sections = _sections(draft)
    jobs = _jobs(draft, sections)
    _fit_jitter(draft, sections, jobs)
    if draft.problems:
        raise ConfigurationError(draft.problems)
    warnings = [*draft.warnings, *legacy.shadowed(draft, old), *_oddities(draft, sections)]
    return Settings(**sections, jobs=jobs, schedule_enabled=old.clock, warnings=warnings)


def _lay_file(draft: Draft, path: Path | None) -> None:
    """Lays the file, and the built-in jobs where it lists none, over the draft."""
    built_in = {name: dict(job) for name, job in DEFAULT_JOBS.items() if job["kind"] in draft.kinds}
    draft.put(("jobs",), built_in, from_words(None))
    if path is None:
        return
    try:
        parsed = document.parse(_text(path), str(path))
    except ConfigurationError as error:
        draft.problems.extend(error.problems)
        return
    if parsed.value is None:
        draft.problems.append(f"{path}: the file is empty; write {{}} to run on the defaults")
    elif not isinstance(parsed.value, dict):
        draft.problems.append(f"{path}: {refusal(parsed.value, 'give a mapping, such as http: {port: 9190}')}")
    else:
        _lay_document(draft, parsed, path)


def _lay_document(draft: Draft, parsed: document.Parsed, path: Path) -> None:
    origins = _origins_in(parsed, path)
    values = dict(parsed.value)
    if "jobs" in values:
        draft.put(("jobs",), values.pop("jobs"), origins)
    draft.check_pairs()
    with draft.layer():
        draft.lay((), values, origins)


def _text(path: Path) -> str:
    """The content of the configuration file. Raises ``ConfigurationError``."""
    try:
        data = _read(path, MAX_FILE)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError([f"{path}: not UTF-8: byte {error.start + 1} is not text"]) from error
    except ValueError as error:
        raise ConfigurationError([f"{path}: {error}"]) from error


def _read(path: Path, limit: int) -> bytes:
    """What a file holds. Raises ``ValueError`` in words for a person."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError as error:
        raise ValueError("there is no such file") from error
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ValueError(f"the file cannot be read: {reason}") from error
    if len(data) > limit:
        raise ValueError(f"the file is larger than {limit // 1024} KiB")
    return data


def _origins_in(parsed: document.Parsed, path: Path) -> Origins:
    def origin(key: Key) -> Origin | None:
        place = parsed.places.get(key)
        return Origin(f"{path}, line {place.line}", place.text) if place else Origin(str(path))

    return origin


def _lay_overrides(draft: Draft, overrides: Mapping[str, Any]) -> None:
    values = dict(overrides)
    jobs = values.pop("jobs", {})
    for name in jobs:
        if name in draft.jobs:
            draft.lay(("jobs", name), dict(jobs[name]), from_words("command line"))
        else:
            draft.problems.append(f"jobs.{name}: there is no such job; {suggestion(name, draft.jobs)} (command line)")
    draft.lay((), values, from_words("command line"))


def _lay_kind_defaults(draft: Draft, old: legacy.Legacy) -> None:
    """The old variables stand in for the defaults of two kinds, in every job that does not say otherwise."""
    for name, raw in draft.jobs.items():
        kind = draft.kind(name)
        for key, (value, variable) in old.kinds.get(str(raw.get("kind")), {}).items():
            if kind is not None and key in fields_of(kind) and key not in raw:
                draft.put(("jobs", name, key), value, from_words(variable))


def _read_uri(draft: Draft) -> None:
    """Puts what ``mongodb.uri_file`` holds in the place of ``mongodb.uri``."""
    path: Key = ("mongodb", "uri_file")
    name = draft.get(path)
    if not isinstance(name, str | Path) or not str(name):
        return
    try:
        text = _read(Path(name), MAX_URI_FILE).decode().strip()
    except UnicodeDecodeError:
        draft.refuse(path, "the file is not text")
    except ValueError as error:
        draft.refuse(path, str(error))
    else:
        if text:
            draft.put(("mongodb", "uri"), text, from_words(str(name)))
        else:
            draft.refuse(path, "the file is empty")


def _sections(draft: Draft) -> dict[str, Any]:
    """The sections; a bad one is a problem, and its defaults stand in for it while the rest is checked."""
    known = fields_of(Settings)
    for key in [key for key in draft.values if key not in known]:
        draft.problem((key,), unknown_key((key,), draft.values[key], known))
    sections = {}
    for name in SECTIONS:
        sections[name] = known[name].get_default()
        if name in draft.values:
            checked = draft.check((name,), draft.values[name], annotation_of(known[name]))
            sections[name] = checked if checked is not None else sections[name]
    return sections


def _check_tls(draft: Draft) -> None:
    cert, key = (draft.get(("http", name)) for name in ("tls_cert", "tls_key"))
    if (cert is None) != (key is None):
        given, missing = ("tls_key", "tls_cert") if cert is None else ("tls_cert", "tls_key")
        draft.problem(("http", given), f"needs `{missing}` too: a certificate and its key are given together")


def _jobs(draft: Draft, sections: Mapping[str, Any]) -> dict[str, Any]:
    raw_jobs = draft.values["jobs"]
    if not isinstance(raw_jobs, dict):
        draft.refuse(("jobs",), "give a mapping of jobs by name; {} for none, no key at all for the built-in ones")
        return {}
    _check_names(draft, list(raw_jobs))
    jobs = {}
    for name, raw in raw_jobs.items():
        kind = _check_kind(draft, name, raw)
        if kind is not None:
            _check_shared(draft, name, raw, kind)
            jobs[name] = draft.check(("jobs", name), _complete(name, raw, kind, sections), kind)
    return jobs


def _fit_jitter(draft: Draft, sections: dict[str, Any], jobs: Mapping[str, Any]) -> None:
    """A jitter past half of an interval would let slots overtake each other: one that is given is refused, else cut."""
    schedule = sections["schedule"]
    intervals = {name: job.every for name, job in jobs.items() if job is not None and job.enabled and job.every}
    name = min(intervals, key=intervals.__getitem__, default="")
    if not name or schedule.jitter <= intervals[name] / 2:
        return
    if draft.has(("schedule", "jitter")):
        most, every = format_duration(intervals[name] / 2), format_duration(intervals[name])
        draft.refuse(("schedule", "jitter"), f"give at most {most}, half of the {every} at which `{name}` runs")
    else:
        sections["schedule"] = schedule.model_copy(update={"jitter": intervals[name] / 2})


def _check_names(draft: Draft, names: Sequence[str]) -> None:
    by_variable: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_variable[environment_name(name)].append(name)
        if not JOB_NAME.fullmatch(name):
            draft.problem(("jobs", name), "a job's name is made of small letters, digits, `_` and `-`")
    for variable, group in by_variable.items():
        for name in group[1:]:
            same = f"has the same name as `{group[0]}` in the environment ({PREFIX}JOBS__{variable})"
            draft.problem(("jobs", name), f"{same}; rename one")


def _check_kind(draft: Draft, name: str, raw: Any) -> type[BaseModel] | None:
    """The kind of a job, if it can be one."""
    path: Key = ("jobs", name)
    kinds = "one of " + ", ".join(f"`{kind}`" for kind in draft.kinds)
    if not isinstance(raw, dict):
        draft.refuse(path, f"give a mapping with the key kind, {kinds}")
        return None
    kind = raw.get("kind")
    if kind is None:
        built_in = DEFAULT_JOBS.get(name, {}).get("kind")
        hint = f"; the built-in job of this name is of the kind `{built_in}`" if built_in in draft.kinds else ""
        draft.problem((*path, "kind"), f"missing; give {kinds}{hint}")
    elif draft.kind(name) is None:
        hint = suggestion(kind, draft.kinds) if isinstance(kind, str) else ""
        draft.refuse((*path, "kind"), f"give {kinds}" + (f"; {hint}" if hint.startswith("did") else ""))
    return draft.kind(name)


def _check_shared(draft: Draft, name: str, raw: Mapping[str, Any], kind: type[BaseModel]) -> None:
    """What every job may say is checked as the sections say it; the rest is the kind's."""
    path: Key = ("jobs", name)
    known = fields_of(kind)
    if "name" in raw and "name" not in known:
        draft.problem((*path, "name"), unknown_key((*path, "name"), raw["name"], known))
    for key, annotation in SHARED.items():
        if raw.get(key) is not None and key in known:
            draft.check((*path, key), raw[key], annotation)


def _complete(name: str, raw: Mapping[str, Any], kind: type[BaseModel], sections: Mapping[str, Any]) -> dict[str, Any]:
    """The job with all that it takes from the sections where it says nothing itself."""
    schedule, known = sections["schedule"], fields_of(kind)
    has_cron = raw.get("cron") is not None
    own_rhythm = "every" in known and known["every"].get_default(call_default_factory=True) is not None
    inherited: dict[str, Any] = {
        "database": sections["mongodb"].database,
        "timezone": schedule.timezone,
        "run_on_startup": schedule.run_on_startup,
        **dict(sections["defaults"]),
    }
    if has_cron or not own_rhythm:
        inherited["every"] = None if has_cron else schedule.every
    inherited = {key: value for key, value in inherited.items() if key in known}
    given = {key: value for key, value in raw.items() if value is not None or key not in {"every", "cron", "timezone"}}
    return {**inherited, **given, "name": name}


def _oddities(draft: Draft, sections: Mapping[str, Any]) -> list[str]:
    """What is odd, but not wrong."""
    odd = [] if draft.jobs else ["jobs: there are none; nothing will ever be done"]
    for key in ("tokens_file", "tls_cert", "tls_key"):
        path = getattr(sections["http"], key)
        if path is not None and not _is_file(path):
            odd.append(f"http.{key}: there is no file {path}")
    return odd


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False
