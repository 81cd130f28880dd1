"""Many runs, independent of each other: one that fails does not keep the others from being trained."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from resnotes import distributed
from resnotes.errors import ResnotesError, RunError, TrainingDiverged

if TYPE_CHECKING:
    from resnotes.runs.folder import Run
    from resnotes.runs.spec import RunSpec

REFRESH_SECONDS = 0.2  # between two looks at what is being trained


class Outcome(NamedTuple):
    """A run that was asked for, or the error that took its place."""

    spec: RunSpec
    result: Run | ResnotesError


Outcomes = Generator[Outcome]


def outcome(spec: RunSpec, get: Callable[..., Run | None], *args: Any) -> Outcome | None:
    """What `get` gives for `spec`, if anything, or an error of ours, which names the run."""
    try:
        run = get(spec, *args)
        return Outcome(spec, run) if run else None
    except ResnotesError as error:
        return failed(spec, error)


def failed(spec: RunSpec, error: ResnotesError) -> Outcome:
    """The error, which names the run, in its place.

    Raises:
        ResnotesError: itself, where processes train together: all see a run diverge, but any other error may be that of
            one of them.
    """
    if distributed.size() > 1 and not isinstance(error, TrainingDiverged):
        raise error
    if spec.name in str(error):
        return Outcome(spec, error)
    named = type(error)(f"{spec.name}: {error}")
    named.__cause__ = error
    return Outcome(spec, named)


def as_completed(training: Mapping[str, Future[Any]], bar: tqdm[Any]) -> Iterator[str]:
    """The names of runs whose training has ended; `bar` counts them while they are waited for."""
    pending = set(training)
    while pending:
        wait([training[name] for name in pending], timeout=REFRESH_SECONDS, return_when=FIRST_COMPLETED)
        ended = {name for name in pending if training[name].done()}
        pending -= ended
        bar.update(len(ended))
        bar.refresh()
        if ended:
            bar.clear()  # before whoever takes the run goes on: that may take long, and have a bar of its own
        yield from sorted(ended)


def in_order(specs: Sequence[RunSpec], outcomes: Outcomes) -> Generator[Run]:
    """The runs in the order of `specs`, each as soon as it and those before it are there; closes `outcomes`.

    Raises:
        ResnotesError: in place of the first run that failed, after all others have been trained.
    """
    arrived: dict[str, Run | ResnotesError] = {}
    with closing(outcomes):
        for spec in specs:
            while spec.name not in arrived:
                other, arrived[other.name] = next(outcomes)
            if isinstance(run := arrived[spec.name], ResnotesError):
                arrived.update({other.name: result for other, result in outcomes})
                raise failure([result for result in arrived.values() if isinstance(result, ResnotesError)])
            yield run
        for _ in outcomes:  # none is left; closed before its end, it would kill the processes, and not let them end
            pass


def failure(errors: Sequence[ResnotesError]) -> ResnotesError:
    """One error for several that each name a run; of their type, if they have one in common."""
    if len(errors) == 1:
        return errors[0]
    types = {type(error) for error in errors}
    message = "\n".join([f"{len(errors)} runs failed, all others are there:", *map(str, errors)])
    return (types.pop() if len(types) == 1 else RunError)(message)
