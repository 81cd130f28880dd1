"""Fields of a dataclass and arguments of a function, checked against type hints: what users give may be anything."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
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
Count = Annotated[int, Rule("must be a whole number of at least 1", lambda value: value >= 1)]

_WORDS = {int: "a whole number of at most 31 bits", float: "a finite number", bool: "True or False", str: "a text"}


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Arguments of a function as its type hints have them.

    Lists, which TOML and JSON have in place of tuples, become tuples; whole numbers will do for any number.

    Raises:
        UsageError: it names `what` has such an argument, the argument, its value, and what it must be.
    """
    hints = _hints(function)
    fitted = {}
    for name, value in arguments.items():
        try:
            fitted[name] = _fitted(value, hints[name])
        except TypeError as misfit:
            raise UsageError(f"{what}: {name} {misfit}, found {value!r}") from None
    return fitted


def check_fields(instance: DataclassInstance, what: str) -> None:
    """`check_arguments` for the fields of a dataclass, frozen or not, which are then as the hints have them."""
    found = {field.name: getattr(instance, field.name) for field in fields(instance)}
    for name, value in check_arguments(type(instance), found, what).items():
        object.__setattr__(instance, name, value)


def check_entry(kind: type[DataclassInstance], entry: Any, what: str) -> dict[str, Any]:
    """`check_arguments` for what stands in a file, maybe among other things, as the fields of a dataclass.

    Raises:
        UsageError: no table, one without a field that has no default, or see `check_arguments`.
    """
    needed = [field.name for field in fields(kind) if field.default is MISSING]
    if not isinstance(entry, Mapping) or not entry.keys() >= set(needed):
        raise UsageError(f"found {entry!r:.200}, expected {what} with {', '.join(needed)}")
    return check_arguments(kind, {each.name: entry[each.name] for each in fields(kind) if each.name in entry}, what)


@cache
def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    """What `function` expects, evaluated once: hints are texts until then, and networks are asked for by the dozen."""
    return get_type_hints(function, include_extras=True)


def _fitted(value: Any, hint: Any) -> Any:
    """`value` as `hint` has it, else a `TypeError` with what it must be; how long a tuple is, is for a rule to say."""
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
    if kind is Literal and value not in parts:
        raise TypeError(f"must be one of {', '.join(map(str, parts))}")
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    whole = kind is int and type(value) is int and abs(value) < 2**31
    if not (kind in (Any, Literal) or whole or (kind not in (int, float) and isinstance(value, kind))):
        raise TypeError(f"must be {_WORDS.get(hint, hint)}")
    return value
