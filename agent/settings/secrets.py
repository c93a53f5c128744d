"""Keeps secrets out of what is shown: messages, logs, the API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"

_SECRET_KEY = re.compile(r"passw|pwd|secret|token|credential|api_?key|private|^uri$", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_URI_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\"']*")
_CREDENTIALS_IN_TEXT = re.compile(r":[^:@\s]*@")
_SECRET_OPTION = re.compile(r"(?i)([?&][^=&]*(?:passw|token|secret|mechanismproperties)[^=&]*=)[^&]*")


def is_secret(key: object) -> bool:
    """Whether the value of a key of this name is not for showing; the path of a secret file is."""
    name = str(key)
    return bool(_SECRET_KEY.search(name)) and not name.lower().endswith("_file")


def without_password(uri: str) -> str:
    """The URI with ``***`` for its password and secret options; of what is no URI, nothing."""
    match = _SCHEME.match(uri)
    if not match:
        return HIDDEN
    credentials, found, rest = uri[match.end() :].rpartition("@")
    user, colon, _ = credentials.partition(":")
    shown = f"{user}:***" if colon else user
    return _SECRET_OPTION.sub(r"\1***", f"{match[0]}{shown}{found}{rest}")


def without_secrets(value: Any, key: object = "") -> Any:
    """The value as it may be shown under ``key``."""
    if isinstance(value, Mapping):
        return {str(name): without_secrets(entry, name) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(entry, key) for entry in value]
    if isinstance(value, str) and _SCHEME.match(value):
        return without_password(value)
    if value is not None and is_secret(key):
        return HIDDEN
    if isinstance(value, str):
        return _CREDENTIALS_IN_TEXT.sub(":***@", _URI_IN_TEXT.sub(lambda match: without_password(match[0]), value))
    return value
