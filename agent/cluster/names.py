"""Names and labels that go to Kubernetes: checked against its syntax, or refused by name; never pasted.

Source: "Object Names and IDs" and "Labels and Selectors" of the Kubernetes documentation, which follow RFC 1123 and
RFC 1035.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from agent.errors import UsageError, shown

_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"  # RFC 1123
_WORD: Final = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_NAMESPACE: Final = re.compile(_LABEL)
_RFC1035: Final = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_LABEL_NAME: Final = re.compile(_WORD)
_LABEL_VALUE: Final = re.compile(rf"(?:{_WORD})?")
# A key of a Secret or ConfigMap, which is what a mounted file is called. `..data` and its kind are the kubelet's own.
_FILE: Final = re.compile(r"(?!\.\.|\.\Z)[-._a-zA-Z0-9]{1,253}")

LabelValue = str | tuple[str, ...] | None


def namespace(name: object) -> str:
    """The name of a namespace, as it is. Raises UsageError for what cannot be one."""
    return _checked(name, _NAMESPACE, "namespace", "small letters, digits and -, at most 63")


def api_group(name: object) -> str:
    """The group of a custom resource (``kubedb.com``), as it is. Raises UsageError for what cannot be one."""
    return _checked(name, _SUBDOMAIN, "API group", "small letters, digits, - and dots, at most 253")


def api_version(name: object) -> str:
    """The version of a custom resource (``v1alpha2``), as it is. Raises UsageError for what cannot be one."""
    return _checked(name, _RFC1035, "API version", "small letters, digits and -, first a letter, at most 63")


def api_plural(name: object) -> str:
    """The plural of a custom resource (``postgreses``), as it is. Raises UsageError for what cannot be one."""
    return _checked(name, _RFC1035, "plural of a resource", "small letters, digits and -, first a letter, at most 63")


def file_name(name: object) -> str:
    """The name of a file directly in a mounted directory, as it is. Raises UsageError for what cannot be one."""
    return _checked(name, _FILE, "name for a file", "letters, digits, -, _ and dots, not two dots first, at most 253")


def label_selector(labels: Mapping[str, LabelValue]) -> str:
    """The selector for objects that carry all the labels.

    A value is text (equal to it), several texts (one of them) or None (any value). Without labels it is empty: all
    objects. Raises UsageError for a key or a value that is no label.
    """
    return ",".join(_requirement(_label_key(key), value) for key, value in sorted(labels.items()))


def _requirement(key: str, value: LabelValue) -> str:
    if value is None:
        return key
    if isinstance(value, str):
        return f"{key}={_label_value(value)}"
    if not value:
        raise UsageError(f"the label {key} needs at least one value")
    return f"{key} in ({','.join(_label_value(one) for one in value)})"


def _label_key(key: object) -> str:
    prefix, slash, name = key.partition("/") if isinstance(key, str) else ("", "", "")
    if not slash:
        prefix, name = "", prefix
    if not _LABEL_NAME.fullmatch(name) or (slash and not _SUBDOMAIN.fullmatch(prefix)):
        raise UsageError(
            f"{shown(key)} is no key of a label: expected letters, digits, -, _ and dots, at most 63, "
            "after a domain and a slash where there is one"
        )
    return f"{prefix}{slash}{name}"


def _label_value(value: object) -> str:
    return _checked(value, _LABEL_VALUE, "value of a label", "letters, digits, -, _ and dots, at most 63")


def _checked(value: object, syntax: re.Pattern[str], what: str, expected: str) -> str:
    if not isinstance(value, str) or not syntax.fullmatch(value):
        raise UsageError(f"{shown(value)} is no {what}: expected {expected}")
    return value
