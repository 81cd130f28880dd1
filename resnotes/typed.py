"""The fields of a dataclass, checked against its own type hints: what comes from a file may be anything."""

from __future__ import annotations

import sys
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


@cache
def _hints(kind: type) -> dict[str, Any]:
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
