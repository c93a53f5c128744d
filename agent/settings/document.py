"""YAML as configurations need it: plain values with the line of each, and no surprises.

Read as YAML 1.2 reads it, but for dates: ``on``, ``off``, ``yes`` and ``no`` are text (which a setting that is true or
false takes), ``08`` and ``0123`` are text and not octal, ``12:30`` is text and not a number of seconds. Keys are text.
A key that stands twice in a mapping is a problem. Anchors, aliases and merge keys (``<<``) work; tags do not.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner
from yaml.tokens import ScalarToken

from agent.errors import ConfigurationError

Key = tuple[str | int, ...]

MAX_NODES = 20_000  # aliases of aliases make a few lines unfold to gigabytes
MAX_DEPTH = 50

_PREFIX = "tag:yaml.org,2002:"
_MERGE = f"{_PREFIX}merge"
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,60})|0o[0-7]{1,60}|0x[0-9a-fA-F]{1,60}")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[-+][0-9]{2}:[0-9]{2})?)?"
)


class _Resolver(BaseResolver):
    """Tags plain scalars; what they are worth is decided in ``_scalar``."""


_Resolver.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
_Resolver.add_implicit_resolver(f"{_PREFIX}null", re.compile(rf"^({_NULL.pattern})$"), ["~", "n", "N", ""])
_Resolver.add_implicit_resolver(f"{_PREFIX}bool", re.compile(rf"^({_BOOL.pattern})$"), list("tTfF"))
_Resolver.add_implicit_resolver(f"{_PREFIX}int", re.compile(rf"^({_INT.pattern})$"), list("-+0123456789"))
_Resolver.add_implicit_resolver(f"{_PREFIX}float", re.compile(rf"^({_FLOAT.pattern})$"), list("-+0123456789."))
_Resolver.add_implicit_resolver(f"{_PREFIX}timestamp", re.compile(rf"^({_DATE.pattern})$"), list("0123456789"))


class _Scanner(Reader, Scanner):
    """Allows a question mark inside text between braces, as YAML 1.2 does: URIs have one."""

    def scan_plain(self) -> ScalarToken:
        token: ScalarToken = super().scan_plain()
        while self.flow_level and self.peek() == "?" and self.index == token.end_mark.index:
            self.forward()
            rest: ScalarToken = super().scan_plain()
            token = ScalarToken(f"{token.value}?{rest.value}", True, token.start_mark, rest.end_mark)  # noqa: FBT003
        return token


class _Loader(_Scanner, Parser, Composer, _Resolver):
    """From text to nodes."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Resolver.__init__(self)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: its line, and a scalar's text as it is written there."""

    line: int
    text: str | None = None


@dataclass
class Parsed:
    """A document: its value, and the place of each value in it."""

    value: Any = None
    places: dict[Key, Place] = field(default_factory=dict)


def parse(text: str, source: str) -> Parsed:
    """Reads one YAML document. Raises ``ConfigurationError`` with lines that name ``source``."""
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ConfigurationError([_syntax(error, source)]) from error
    except ReaderError as error:
        raise ConfigurationError([f"{source}: not YAML: character {error.position + 1} is not allowed"]) from error
    except (RecursionError, ValueError) as error:
        raise ConfigurationError([f"{source}: not YAML that can be read: it is nested too deeply"]) from error
    building = _Building(source)
    value = building.value(node, ()) if node is not None else None
    if building.problems:
        raise ConfigurationError(building.problems)
    return Parsed(value, building.places)


def _syntax(error: yaml.MarkedYAMLError, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = ", ".join(part for part in (error.context, error.problem) if part).replace("\n", " ")
    hint = " (indent with spaces)" if "\\t" in problem else ""
    return f"{source}{place}: not YAML: {problem}{hint}"


class _Building:
    """Makes values of nodes, and notes where each stands."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.places: dict[Key, Place] = {}
        self.problems: list[str] = []
        self._nodes = 0

    def value(self, node: yaml.Node, path: Key) -> Any:
        """The value of a node. What is wrong goes to ``problems``."""
        self._nodes += 1
        if len(path) > MAX_DEPTH or self._nodes > MAX_NODES:
            limit = f"{MAX_DEPTH} levels" if len(path) > MAX_DEPTH else f"{MAX_NODES} values"
            raise ConfigurationError([f"{self.source}, line {node.start_mark.line + 1}: more than {limit}"])
        if isinstance(node, yaml.MappingNode):
            self._place(node, path)
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            self._place(node, path)
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        self._place(node, path, str(node.value))
        return self._scalar(node)

    def _place(self, node: yaml.Node, path: Key, text: str | None = None) -> None:
        # The line of a key is noted before its value is looked at; a merged one has the line where it is written.
        known = self.places.get(path)
        self.places[path] = Place(known.line if known else node.start_mark.line + 1, text)

    def _mapping(self, node: yaml.MappingNode, path: Key) -> dict[str, Any]:
        self._supported(node, "map")
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                merged |= self._merged(value_node, path)
            elif not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(f"{self.source}, line {line}: a key has to be plain text")
            elif (key := str(key_node.value)) in own:
                first = self.places[*path, key].line
                self.problems.append(f"{_dotted((*path, key))}: stands twice ({self.source}, lines {first} and {line})")
            else:
                if (*path, key) in self.places:
                    self._forget((*path, key))
                self.places[*path, key] = Place(line)
                own[key] = self.value(value_node, (*path, key))
        return {**merged, **own}

    def _merged(self, node: yaml.Node, path: Key) -> dict[str, Any]:
        """What ``<<`` brings in: a mapping, or several, of which the first that has a key counts."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Any] = {}
        for part in reversed(parts):
            if isinstance(part, yaml.MappingNode):
                result |= self.value(part, path)
            else:
                self.problems.append(f"{self.source}, line {node.start_mark.line + 1}: << takes a mapping")
        return result

    def _forget(self, path: Key) -> None:
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]

    def _supported(self, node: yaml.Node, *kinds: str) -> None:
        if node.tag not in {f"{_PREFIX}{kind}" for kind in kinds}:
            tag = node.tag.replace(_PREFIX, "!!")
            self.problems.append(f"{self.source}, line {node.start_mark.line + 1}: the tag {tag} is not supported")

    def _scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        kind = str(node.tag).removeprefix(_PREFIX)
        if kind == "null":
            return None
        if kind == "bool" and _BOOL.fullmatch(text):
            return text.lower() == "true"
        if kind == "int" and _INT.fullmatch(text):
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if kind == "float" and _FLOAT.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if kind == "timestamp":
            return _date(text)
        self._supported(node, "str", "merge")
        return text


def _date(text: str) -> dt.date | str:
    """The date or the instant that the text says; what is none (a 30th of February) stays text."""
    try:
        has_time = len(text) > len("2026-01-31")
        return dt.datetime.fromisoformat(text.upper()) if has_time else dt.date.fromisoformat(text)
    except ValueError:
        return text


def _dotted(path: Key) -> str:
    return ".".join(str(part) for part in path)
