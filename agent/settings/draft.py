"""The configuration while it is put together: raw values, layer over layer, and where each of them came from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from agent.settings import problems
from agent.settings.document import Key
from agent.settings.model import Settings
from agent.settings.shapes import fields_of, inside, model_in


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from, in words; ``text`` is what stands there, if that may differ from the value."""

    words: str
    text: str | None = None


Origins = Callable[[Key], Origin | None]


def from_words(words: str | None) -> Origins:
    """One origin for all that is laid together; ``None`` for what is built in."""
    return lambda _: Origin(words) if words else None


class Draft:
    """Raw values under the keys of the configuration, and all that is wrong or odd with them so far."""

    def __init__(self, kinds: Mapping[str, type[BaseModel]]) -> None:
        self.kinds = kinds
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._origins: dict[Key, Origin | None] = {}
        self._refused: set[Key] = set()

    def get(self, path: Key) -> Any:
        """The raw value at a path; ``None`` where there is none."""
        value: Any = self.values
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def has(self, path: Key) -> bool:
        """Whether something, be it null, was given at a path."""
        parent = self.get(path[:-1])
        return isinstance(parent, dict) and path[-1] in parent

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """The jobs that are mappings, as they ought to be."""
        jobs = self.values.get("jobs")
        return {name: job for name, job in jobs.items() if isinstance(job, dict)} if isinstance(jobs, dict) else {}

    def kind(self, job: str) -> type[BaseModel] | None:
        """The kind that a job says it is."""
        name = self.get(("jobs", job, "kind"))
        return self.kinds.get(name) if isinstance(name, str) else None

    def annotation(self, path: Key) -> Any:
        """The type of what belongs at a path; ``None`` where nothing does, or nobody can tell."""
        if path[:1] == ("jobs",) and len(path) > 1:
            annotation: Any = self.kind(str(path[1]))
            path = path[2:]
        else:
            annotation = Settings
        for part in path:
            annotation = inside(annotation, part) if annotation is not None else None
        return annotation

    def default(self, path: Key) -> Any:
        """What a field of a section or of a job is without being given."""
        model = model_in(self.annotation(path[:-1]))
        field = fields_of(model).get(str(path[-1])) if model is not None else None
        return field.get_default(call_default_factory=True) if field is not None and not field.is_required() else None

    def origin(self, path: Key) -> Origin | None:
        """Where the value at a path, or else what it is part of, came from."""
        return next((self._origins[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._origins), None)

    def put(self, path: Key, value: Any, origins: Origins) -> None:
        """Sets a value, in the place of all that stood there."""
        for known in [known for known in self._origins if known[: len(path)] == path]:
            del self._origins[known]
        parent: dict[Any, Any] = self.values
        for part in path[:-1]:
            if not isinstance(parent.get(part), dict):
                parent[part] = {}
            parent = parent[part]
        parent[path[-1]] = copy.deepcopy(value)
        self._note(path, value, origins)

    def _note(self, path: Key, value: Any, origins: Origins) -> None:
        self._origins[path] = origins(path)
        for key, entry in _entries(value):
            self._note((*path, key), entry, origins)

    def lay(self, path: Key, value: Any, origins: Origins) -> None:
        """Lays a value over what is there: key by key where the keys are known, else in its place."""
        known = not path or path == ("jobs",) or model_in(self.annotation(path)) is not None
        if not isinstance(value, dict) or not known or (path and not isinstance(self.get(path), dict)):
            self.put(path, value, origins)
            return
        for key, entry in value.items():
            self.lay((*path, key), entry, origins)

    @contextmanager
    def layer(self) -> Iterator[None]:
        """What is laid inside is one layer: of two keys that exclude each other, the one that it gives wins."""
        before = {path: self._take(path) for pair in self._pairs() for path in pair if self.has(path)}
        yield
        for pair in self._pairs():
            given = [path for path in pair if self.get(path) is not None]
            self._check_pair(pair)
            parent = self.get(pair[0][:-1])
            if not given and isinstance(parent, dict):
                parent.update({path[-1]: before[path] for path in pair if path in before and not self.has(path)})

    def check_pairs(self) -> None:
        """Two keys that exclude each other, both given."""
        for pair in self._pairs():
            self._check_pair(pair)

    def _check_pair(self, pair: tuple[Key, Key]) -> None:
        one, other = pair
        if self.get(one) is not None and self.get(other) is not None:
            self.problem(one, f"give either `{one[-1]}` or `{other[-1]}`, not both")

    def _pairs(self) -> list[tuple[Key, Key]]:
        jobs: list[tuple[Key, Key]] = [(("jobs", name, "every"), ("jobs", name, "cron")) for name in self.jobs]
        return [(("mongodb", "uri"), ("mongodb", "uri_file")), *jobs]

    def _take(self, path: Key) -> Any:
        return self.get(path[:-1]).pop(path[-1])

    def problem(self, path: Key, message: str) -> None:
        """Something is wrong at a path."""
        origin = self.origin(path)
        line = problems.line(path, message, origin.words if origin else None)
        if line not in self.problems:
            self.problems.append(line)

    def refuse(self, path: Key, wanted: str, value: Any = None) -> None:
        """The value at a path is not what is wanted."""
        self.problem(path, problems.refusal(self.get(path) if value is None else value, wanted, path))

    def check(self, path: Key, data: Any, annotation: Any) -> Any:
        """The value that ``data``, given at a path, stands for; what is wrong with it goes to the problems."""
        found = list(problems.booleans_for_numbers(data, annotation))
        value = None
        try:
            value = TypeAdapter(annotation).validate_python(data)
        except ValidationError as error:
            found += problems.from_validation(error, data, annotation, lambda key: self._written(path, key))
        for inner, message in found:
            if (*path, *inner) not in self._refused:
                self._refused.add((*path, *inner))
                self.problem((*path, *inner), message)
        return value

    def _written(self, path: Key, inner: Key) -> str | None:
        origin = self.origin((*path, *inner))
        return origin.text if origin else None


def _entries(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []
