"""Errors that say what was found, what was expected and what to do."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ResnotesError(Exception):
    """Base of every error the command line reports in one message instead of a traceback."""


class UsageError(ResnotesError, ValueError):
    """A name or value outside what is allowed; the message lists what is."""


class DatasetError(ResnotesError):
    """A data set, or a file of weights, is missing, damaged or not laid out as expected."""


class RunError(ResnotesError):
    """A run in the store is damaged, or was made on other data than is at hand."""


class TrainingDiverged(ResnotesError):
    """The loss became NaN or infinite; the message names epoch and learning rate."""


def unknown(kind: str, found: object, allowed: Iterable[object]) -> UsageError:
    """A `UsageError` for a `kind` of name that is not among the `allowed` ones."""
    return UsageError(f"unknown {kind} {found!r}; allowed: {', '.join(map(str, allowed))}")


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turn errors into a message and an exit status.

    That is 2 for a `UsageError`, 1 for any other error of ours, and 130 for Ctrl+C, as for any command.
    """
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
