"""YAML: what it means here, where it stands, and what is refused."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ConfigurationError
from agent.settings.document import parse


@pytest.mark.parametrize(
    "text, value",
    [
        ("", None),
        ("# nothing", None),
        ("{}", {}),
        ("a: true", {"a": True}),
        ("a: FALSE", {"a": False}),
        # Words that older YAML takes for true and false stay words, as keys and as values.
        ("on: off", {"on": "off"}),
        ("yes: no", {"yes": "no"}),
        ("n: y", {"n": "y"}),
        ("true: 1", {"true": 1}),
        ("5: x", {"5": "x"}),
        ("null: x", {"null": "x"}),
        ("a: 08", {"a": "08"}),
        ("a: 0123", {"a": "0123"}),
        ("a: 12:30", {"a": "12:30"}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: 0x1F", {"a": 31}),
        ("a: 0o17", {"a": 15}),
        ("a: -5", {"a": -5}),
        ("a: 1e3", {"a": 1000.0}),
        ("a: .5", {"a": 0.5}),
        ("a: -.inf", {"a": -math.inf}),
        ("a: ~", {"a": None}),
        ("a:", {"a": None}),
        ("a: ''", {"a": ""}),
        ("a: '5'", {"a": "5"}),
        ("a: !!str 5", {"a": "5"}),
        ("a: 2026-01-31", {"a": dt.date(2026, 1, 31)}),
        ("a: 2026-01-31T12:00:00Z", {"a": dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)}),
        ("a: 2026-02-30", {"a": "2026-02-30"}),
        ("{a: mongodb://h/?x=1&y=2, b: what?}", {"a": "mongodb://h/?x=1&y=2", "b": "what?"}),
        ("a: &x {p: 1}\nb: *x", {"a": {"p": 1}, "b": {"p": 1}}),
        ("a: &x {p: 1, q: 2}\nb: {q: 3, <<: *x}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
        ("- &x {p: 1}\n- &y {p: 2, q: 2}\n- {<<: [*x, *y]}", [{"p": 1}, {"p": 2, "q": 2}, {"p": 1, "q": 2}]),
        ("[1, [a]]", [1, ["a"]]),
        ("just text", "just text"),
    ],
    ids=repr,
)
def test_a_document_is_read(text: str, value: Any) -> None:
    """As YAML 1.2 reads it, but for dates; keys are text."""
    assert parse(text, "f.yaml").value == value


IN_A_LIST = "not YAML: while parsing a flow sequence"
ONE_DOCUMENT = "not YAML: expected a single document in the stream"
A_TAB = "found character '\\t' that cannot start any token (indent with spaces)"


@pytest.mark.parametrize(
    "text, problems",
    [
        ("a: 1\nb: 2\na: 3", ["a: stands twice (f.yaml, lines 1 and 3)"]),
        ("a: {b: 1, b: 2, b: 3}", ["a.b: stands twice (f.yaml, lines 1 and 1)"] * 2),
        ("a: b: c", ["f.yaml, line 1, column 5: not YAML: mapping values are not allowed here"]),
        ("\ta: 1", [f"f.yaml, line 1, column 1: not YAML: while scanning for the next token, {A_TAB}"]),
        ("a: [1", [f"f.yaml, line 1, column 6: {IN_A_LIST}, expected ',' or ']', but got '<stream end>'"]),
        ("a: 1\n---\nb: 2", [f"f.yaml, line 2, column 1: {ONE_DOCUMENT}, but found another document"]),
        ("a: *b", ["f.yaml, line 1, column 4: not YAML: found undefined alias 'b'"]),
        ("a: \x01", ["f.yaml: not YAML: character 4 is not allowed"]),
        ("a: !!python/name:os.system x", ["f.yaml, line 1: the tag !!python/name:os.system is not supported"]),
        ("a: !secret x", ["f.yaml, line 1: the tag !secret is not supported"]),
        ("a: !!set {x}", ["f.yaml, line 1: the tag !!set is not supported"]),
        ("? [a]\n: 1", ["f.yaml, line 1: a key has to be plain text"]),
        ("a: {<<: 5}", ["f.yaml, line 1: << takes a mapping"]),
        ("&a [*a]", ["f.yaml, line 1: more than 50 levels"]),
        ("[" * 52 + "]" * 52, ["f.yaml, line 1: more than 50 levels"]),
        ("[" * 500, ["f.yaml: not YAML that can be read: it is nested too deeply"]),
    ],
    ids=lambda value: f"{value[:30]}({len(value)})" if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_refused_with_its_place(text: str, problems: list[str]) -> None:
    """One sentence a problem."""
    with pytest.raises(ConfigurationError) as caught:
        parse(text, "f.yaml")
    assert caught.value.problems == problems


def test_a_document_at_the_limit_of_depth_is_read() -> None:
    """The other side of the line."""
    assert parse("[" * 51 + "]" * 51, "f.yaml").value


def test_aliases_of_aliases_do_not_unfold_for_ever() -> None:
    """Ten lines that would be a billion values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(ConfigurationError, match="more than 20000 values"):
        parse("\n".join(lines), "f.yaml")


def test_each_value_has_its_line_and_its_text() -> None:
    """A key has the line of the key; a merged value the line where it is written."""
    parsed = parse("a:\n  b: 08\n  c: &x\n    d:\n      - 1\n      - 2\ne:\n  <<: *x\n", "f.yaml")
    lines = {path: place.line for path, place in parsed.places.items()}
    assert lines == {
        (): 1,
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "c", "d"): 4,
        ("a", "c", "d", 0): 5,
        ("a", "c", "d", 1): 6,
        ("e",): 7,
        ("e", "d"): 4,
        ("e", "d", 0): 5,
        ("e", "d", 1): 6,
    }
    assert parsed.places["a", "b"].text == "08"


# The library itself does not bring these line ends back.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029"))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)


@settings(deadline=None)
@given(PLAIN)
def test_what_another_program_writes_is_read_as_it_was_meant(value: Any) -> None:
    """YAML that is made by a library comes back, whatever is in it."""
    assert parse(yaml.safe_dump(value, allow_unicode=True), "f.yaml").value == value


@settings(deadline=None)
@given(st.text() | st.text(alphabet="ab:{}[],-?!&*#'\"|>\n \t0129~<%@"))
def test_any_text_is_a_document_or_a_problem(text: str) -> None:
    """Never another exception."""
    problems: list[str] = []
    try:
        parse(text, "f.yaml")
    except ConfigurationError as error:
        problems = error.problems
    assert all(len(problem.splitlines()) == 1 for problem in problems)
