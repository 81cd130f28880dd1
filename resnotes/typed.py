"""Fields of a dataclass and arguments of a function, checked against type hints: what users give may be anything."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from resnotes.errors import UsageError

_WORDS = {int: "a whole number of at most 31 bits", float: "a finite number", bool: "True or False", str: "a text"}


def check(instance: Any, what: str) -> None:
    """Refuse a dataclass with a field of another type than its hint; whole numbers will do for any number.

    How long a tuple is, and which words are allowed, is for the class itself to say.

    Raises:
        UsageError: it names `what` has such a field, the field, its value, and what it must be.
    """
    for name, hint in _hints(instance.__class__).items():
        if not _fits(value := getattr(instance, name), hint):
            raise UsageError(f"{what}: {name} must be {_WORDS.get(hint, hint)}, found {value!r}")


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], what: str) -> None:
    """Refuse arguments of other types than the function's hints, as `check` does."""
    hints = _hints(function)
    for name, value in arguments.items():
        if not _fits(value, hints[name]):
            raise UsageError(f"{what}: {name} must be {_WORDS.get(hints[name], hints[name])}, found {value!r}")


@cache
def _hints(kind: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if hint is Any or kind is Literal:
        return True
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(part, parts[0]) for part in value)
    if hint is int:
        return type(value) is int and abs(value) < 2**31
    if hint is float:  # a NaN is a number that no range contains
        return type(value) in (int, float) and (value != value or abs(value) <= sys.float_info.max)
    return isinstance(value, kind or hint)
