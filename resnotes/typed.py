"""Fields of a dataclass and arguments of a function, checked against type hints: what users give may be anything."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from resnotes.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Rule(NamedTuple):
    """What `Annotated` adds to a type, in words and as a function."""

    words: str
    holds: Callable[[Any], bool]


POSITIVE = Rule("must be positive", lambda value: value > 0)
NOT_NEGATIVE = Rule("must not be negative", lambda value: value >= 0)

_WORDS = {
    int: "must be a whole number of at most 31 bits",
    float: "must be a finite number",
    bool: "must be True or False",
    str: "must be a text",
}


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Arguments of a function as its type hints have them.

    Lists, which TOML and JSON have in place of tuples, become tuples; whole numbers will do for any number.

    Raises:
        UsageError: it names `what` has such an argument, the argument, its value, and what it must be.
    """
    fitted = {}
    for name, value in arguments.items():
        try:
            fitted[name] = _fitted(value, _hints(function)[name])
        except TypeError as misfit:
            raise UsageError(f"{what}: {name} {misfit}, found {value!r}") from None
        except LookupError as allowed:
            raise UsageError(f"{what}: unknown {name} {value!r}; allowed: {', '.join(allowed.args)}") from None
    return fitted


def check_fields(instance: DataclassInstance, what: str) -> None:
    """`check_arguments` for the fields of a dataclass, frozen or not, which are then as the hints have them."""
    fields = {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    for name, value in check_arguments(type(instance), fields, what).items():
        object.__setattr__(instance, name, value)


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function, include_extras=True)


def _fitted(value: Any, hint: Any) -> Any:
    """`value` as `hint` has it, else a `TypeError` with what it must be, or a `LookupError` with what is allowed.

    How long a tuple is, is for a rule to say.
    """
    kind, parts = get_origin(hint) or hint, get_args(hint)
    value = tuple(value) if isinstance(value, list) else value
    if kind is Annotated:
        value, rule = _fitted(value, parts[0]), parts[1]
        if not rule.holds(value):
            raise TypeError(rule.words)
        return value
    if kind in (Union, UnionType):  # of one type and None
        return None if value is None else _fitted(value, parts[0])
    if kind is tuple and isinstance(value, tuple):
        return tuple(_fitted(each, parts[0]) for each in value)
    if kind is Mapping and isinstance(value, Mapping):
        return {key: _fitted(each, parts[1]) for key, each in value.items()}
    if kind is Literal:
        if value not in parts:
            raise LookupError(*parts)
        return value
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    whole = kind is int and type(value) is int and abs(value) < 2**31
    if not (hint is Any or whole or (kind not in (int, float) and isinstance(value, kind))):
        raise TypeError(_WORDS.get(hint, f"must be {hint}"))
    return value
