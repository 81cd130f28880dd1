"""Errors that say what was found, what was expected and what to do."""


class ResnotesError(Exception):
    """Base of every error the command line reports in one message instead of a traceback."""


class UsageError(ResnotesError, ValueError):
    """A name or value outside what is allowed; the message lists what is."""


class DatasetError(ResnotesError):
    """A data set is missing, damaged or not laid out as expected."""


class RunError(ResnotesError):
    """A run in the store is damaged, or was made on other data than is at hand."""


class TrainingDiverged(ResnotesError):
    """The loss became NaN or infinite; the message names epoch and learning rate."""


def unknown(kind: str, found: object, allowed: object) -> UsageError:
    """A `UsageError` for a `kind` of name that is not among the `allowed` ones (an iterable of names)."""
    names = ", ".join(str(name) for name in allowed)  # type: ignore[attr-defined]
    return UsageError(f"unknown {kind} {found!r}; allowed: {names}")
