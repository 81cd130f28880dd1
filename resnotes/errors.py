"""Errors that say what was found, what was expected and what to do."""

import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher, get_close_matches

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in Python's `<function f at 0x7f3a...>`: it helps nobody


class ResnotesError(Exception):
    """Base of every error the command line reports in one message instead of a traceback."""

    def __init__(self, *said: object) -> None:
        super().__init__(*(_ADDRESS.sub("", each) if isinstance(each, str) else each for each in said))


class UsageError(ResnotesError, ValueError):
    """A name or value outside what is allowed; the message lists what is."""


class DatasetError(ResnotesError):
    """A data set, or a file of weights, is missing, damaged or not laid out as expected."""


class RunError(ResnotesError):
    """A run in the store is damaged, or was made on other data than is at hand."""


class TrainingDiverged(ResnotesError):
    """The loss became NaN or infinite; the message names epoch and learning rate."""


def unknown(kind: str, found: object, allowed: Iterable[object], *, most: int = 30) -> UsageError:
    """A `UsageError` for a `kind` of name that is not among the `allowed` ones.

    It names these, and those that may be meant; of more than `most`, only the three that are most alike.
    """
    names = [str(name) for name in allowed]
    if len(names) > most:
        letters = str(found).lower()  # which may be a name's beginning
        alike = {name: SequenceMatcher(None, letters, name.lower()[: len(letters)]).ratio() for name in names}
        near = sorted(names, key=lambda name: -alike[name])[:3]
        return UsageError(f"unknown {kind} {found!r}; of {len(names)}, the most alike are {', '.join(near)}")
    return UsageError(f"unknown {kind} {found!r}; allowed: {', '.join(names)}{did_you_mean(found, names)}")


def did_you_mean(found: object, names: Iterable[str]) -> str:
    """`; did you mean seed?`: those of `names` that hold what was found, or are spelled alike; empty for none."""
    by_letters = {name.lower(): name for name in names}
    letters = str(found).lower()
    near = [name for name in by_letters if letters and letters in name] or get_close_matches(letters, by_letters)
    return f"; did you mean {' or '.join(by_letters[name] for name in near[:3])}?" if near else ""


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turn errors into a message and an exit status, and what a console has no letters for into escapes.

    The status is 2 for a `UsageError`, 1 for any other error of ours, and 130 for Ctrl+C, as for any command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it would be noticed again at the end
        sys.exit(1)
    except (ResnotesError, OSError) as error:  # the latter: a folder that is a file, or not ours to write; a full disk
        print(f"resnotes: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print("resnotes: interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(130)
