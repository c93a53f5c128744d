"""What a setting's type says: which keys it has, what it takes, in words and by shape.

One reading of the annotations serves messages ("give a whole number from 1 to 65535"), the environment (is ``123`` text
or a number here?) and the reference.
"""

from __future__ import annotations

import datetime as dt
import operator
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from agent.settings.values import Accepts, format_duration

_LISTS = (list, tuple, set, frozenset, Sequence)
_SCALARS: Mapping[Any, str] = {
    **dict.fromkeys((str, SecretStr, Path, dt.timedelta, Literal), "text"),
    **dict.fromkeys((int, float), "number"),
    bool: "bool",
    type(None): "null",
}
_WORDS: Mapping[Any, str] = {
    str: "a string",
    SecretStr: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: "a path",
    Any: "anything",
    type(None): "null",
}


def kind_of(job: type[BaseModel]) -> str:
    """The name of the kind that a class of jobs is."""
    field = job.model_fields["kind"]
    values = get_args(field.annotation)
    return str(values[0] if values else field.default)


def annotation_of(field: FieldInfo) -> Any:
    """The whole type of a field, with the constraints that pydantic took apart from it."""
    if not field.metadata:
        return field.annotation
    return operator.getitem(Annotated, (field.annotation, *field.metadata))


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model under the names that a configuration uses, without those that are filled in."""
    return {field.alias or name: field for name, field in model.model_fields.items() if not field.exclude}


def options(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, else the annotation itself."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return tuple(option for arg in get_args(annotation) for option in options(arg))
    return (annotation,)


def bare(annotation: Any) -> Any:
    """The annotation without its constraints."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, or may be."""
    for option in options(bare(annotation)):
        inner = bare(option)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return None


def inside(annotation: Any, key: str | int) -> Any:
    """The type of what stands under ``key`` in a value of this type; ``None`` where there can be nothing."""
    for option in options(bare(annotation)):
        inner = bare(option)
        model = model_in(inner)
        if model is not None:
            field = fields_of(model).get(str(key))
            if field is not None:
                return annotation_of(field)
        elif inner is Any:
            return Any
        elif get_origin(inner) in {dict, Mapping} and isinstance(key, str):
            return get_args(inner)[1]
        elif get_origin(inner) in _LISTS and isinstance(key, int):
            return get_args(inner)[0]
    return None


def keys_of(annotation: Any) -> tuple[str, ...]:
    """The keys that a value of this type may have, where they are known."""
    for option in options(bare(annotation)):
        inner = bare(option)
        model = model_in(inner)
        if model is not None:
            return tuple(fields_of(model))
        if get_origin(inner) in {dict, Mapping} and get_origin(get_args(inner)[0]) is Literal:
            return tuple(str(key) for key in get_args(get_args(inner)[0]))
    return ()


def shapes(annotation: Any) -> frozenset[str]:
    """Which shapes a value of this type may have: text, bool, number, null, list, mapping, any."""
    return frozenset(shape for option in options(bare(annotation)) for shape in _shapes(option))


def _shapes(option: Any) -> Iterable[str]:
    inner = bare(option)
    origin = get_origin(inner) or inner
    if len(options(inner)) > 1:
        return shapes(inner)
    if origin in _LISTS:
        return ("list",)
    if origin in {dict, Mapping} or model_in(inner):
        return ("mapping",)
    return (_SCALARS.get(origin, "any"),)


def accepted(annotation: Any) -> str:
    """What a value of this type may be, in words."""
    metadata = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    own = [entry.words for entry in metadata if isinstance(entry, Accepts)]
    if own:
        return own[0] + _bounds(metadata)
    choices = options(bare(annotation))
    if len(choices) > 1:
        return " or ".join(dict.fromkeys(accepted(choice) for choice in choices))
    return _words(choices[0]) + _bounds(metadata)


def _words(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return accepted(annotation)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(f"`{value}`" for value in args)
    if origin in _LISTS:
        return f"a list, each entry {accepted(args[0])}" if args else "a list"
    if origin in {dict, Mapping}:
        return f"a mapping, each value {accepted(args[1])}" if args[1] is not Any else "a mapping"
    model = model_in(annotation)
    if model is not None:
        return "a mapping with the keys " + ", ".join(fields_of(model))
    return _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounds(metadata: Iterable[Any]) -> str:
    """The constraints in words: `` from 1 to 65535``."""
    low = next((entry.ge for entry in metadata if isinstance(entry, at.Ge)), None)
    high = next((entry.le for entry in metadata if isinstance(entry, at.Le)), None)
    pattern = next((entry.pattern for entry in metadata if getattr(entry, "pattern", None)), None)
    words = ""
    if low is not None:
        words = f" from {_bound(low)} to {_bound(high)}" if high is not None else f", at least {_bound(low)}"
    elif high is not None:
        words = f", at most {_bound(high)}"
    if any(isinstance(entry, at.MinLen) for entry in metadata):
        words += ", not empty"
    return words + (f" that matches {pattern}" if pattern else "")


def _bound(value: Any) -> str:
    return format_duration(value) if isinstance(value, dt.timedelta) else str(value)
