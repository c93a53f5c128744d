"""Names and labels are Kubernetes' or refused by name: nothing that means something else gets into a request."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cluster import CustomResource, UsageQuery, label_selector, names
from agent.errors import UsageError

HOSTILE = [
    "",
    "a,b=c",
    "a=b",
    "a!=b",
    "a in (b)",
    "a)",
    "'",
    '"; drop',
    "../secrets",
    "..",
    "a/../b",
    "a/b/c",
    "$where",
    "${jndi:ldap://x}",
    "a\n",
    "a\r\nAuthorization: x",
    "a b",
    "a%2fb",
    "a?watch=true",
    "a#b",
    "ä",
    "\uff11",
    "-a",
    "a-",
    "x" * 254,
    "\x00",
]

CHECKS: list[Callable[[object], str]] = [names.namespace, names.api_group, names.api_version, names.api_plural]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_hostile_name_is_refused_by_name(check: Callable[[object], str], name: str) -> None:
    """Whatever could mean something in a path or a query is no name of anything."""
    with pytest.raises(UsageError, match="is no ") as refused:
        check(name)
    assert repr(name[:80]) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_hostile_label_is_refused_as_key_and_as_value(name: str) -> None:
    """A selector can be widened by neither side of a label; only the empty value is one."""
    with pytest.raises(UsageError, match="is no key of a label"):
        label_selector({name: "value"})
    if name:
        with pytest.raises(UsageError, match="is no value of a label"):
            label_selector({"key": name})
        with pytest.raises(UsageError, match="is no value of a label"):
            label_selector({"key": ("good", name)})


@pytest.mark.parametrize("value", [None, 1, True, b"a", ["a"]], ids=repr)
def test_what_is_no_text_is_no_name(value: object) -> None:
    """A number or a list from a document is not made into text."""
    with pytest.raises(UsageError):
        names.namespace(value)


@pytest.mark.parametrize(
    "labels,selector",
    [
        ({}, ""),
        ({"app": "db"}, "app=db"),
        ({"app": ""}, "app="),
        ({"b": "2", "a": "1"}, "a=1,b=2"),
        ({"app.kubernetes.io/managed-by": "kubedb.com"}, "app.kubernetes.io/managed-by=kubedb.com"),
        ({"tier": ("x", "y")}, "tier in (x,y)"),
        ({"tier": None}, "tier"),
        ({"K_e.y-1": "V_a.l-1"}, "K_e.y-1=V_a.l-1"),
        ({"k" * 63: "v" * 63}, f"{'k' * 63}={'v' * 63}"),
    ],
    ids=repr,
)
def test_a_selector_says_all_the_labels(labels: dict[str, names.LabelValue], selector: str) -> None:
    """Equality, one of several, and any value; sorted, so that the same labels make the same request."""
    assert label_selector(labels) == selector


@pytest.mark.parametrize(
    "key", ["k" * 64, "/a", "a/", "Ex.com/a", f"{'a' * 254}/b", ".com/a", "a..b/c", "a/b/c"], ids=lambda key: key[:20]
)
def test_a_key_of_a_label_follows_its_syntax(key: str) -> None:
    """A domain in small letters, a slash, a name of at most 63 characters."""
    with pytest.raises(UsageError):
        label_selector({key: "x"})


def test_a_value_of_a_label_has_at_most_63_characters() -> None:
    """One more is refused, and so is a choice among no values, which would select everything or nothing."""
    with pytest.raises(UsageError):
        label_selector({"a": "v" * 64})
    with pytest.raises(UsageError, match="at least one value"):
        label_selector({"a": ()})


@pytest.mark.parametrize("name", ["a", "a.b", "kube-config_1.yaml", "A" * 253, ".hidden"], ids=lambda name: name[:20])
def test_a_file_has_the_name_of_a_secrets_key(name: str) -> None:
    """Letters, digits, dashes, underscores and dots."""
    assert names.file_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "..data", "a/b", "/etc/passwd", "a\\b", "a\x00", "A" * 254, "a\n"], ids=repr
)
def test_a_file_is_never_elsewhere(name: str) -> None:
    """No separator, no parent, not the directory itself, none of the kubelet's own links."""
    with pytest.raises(UsageError, match="is no name for a file"):
        names.file_name(name)


@given(st.text(max_size=70), st.text(max_size=70))
@settings(deadline=None)
def test_no_text_gets_more_into_a_selector_than_one_equality(key: str, value: str) -> None:
    """For any text the selector is exactly one key and one value, or an error."""
    try:
        selector = label_selector({key: value})
    except UsageError:
        return
    assert selector == f"{key}={value}"
    assert not set(selector.replace("=", "", 1)) & set(",=!()<> \t\r\n\"'$&?#%\\")


@pytest.mark.parametrize(
    "query",
    [
        lambda: UsageQuery(labels={"a=b": "c"}),
        lambda: UsageQuery(namespaces=("kube-system", "../x")),
        lambda: CustomResource("kubedb.com", "v1", "postgreses/status"),
        lambda: CustomResource("KubeDB.com", "v1", "postgreses"),
        lambda: CustomResource("kubedb.com", "1", "postgreses"),
        lambda: CustomResource("kubedb.com", "v1", "postgreses", cpu="spec..cpu"),
        lambda: UsageQuery(resources=(CustomResource("kubedb.com", "v1", "postgreses", labels={"a": "b c"}),)),
    ],
    ids=["label", "namespace", "plural", "group", "version", "path", "label-of-resource"],
)
def test_settings_are_refused_when_they_are_made(query: Callable[[], object]) -> None:
    """A wrong name shows at the start, not with the first request."""
    with pytest.raises(UsageError):
        query()
