"""Many runs, independent of each other: one that fails does not keep the others from being trained."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import closing
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, cast

from tqdm import tqdm

from resnotes import distributed, progress
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

Arguments = ParamSpec("Arguments")
Given = TypeVar("Given")


def begun(function: Callable[Arguments, Generator[Given | None]]) -> Callable[Arguments, Generator[Given]]:
    """Have a generator run to its first `yield`, which gives nothing, as soon as it is made.

    One that has not begun can be closed without ending what it was given to end.
    """

    @wraps(function)
    def beginning(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Generator[Given]:
        generator = function(*args, **kwargs)
        next(generator)
        return cast(Generator[Given], generator)

    return beginning


def here(specs: Sequence[RunSpec], get: Callable[[RunSpec], Run]) -> Outcomes:
    """The outcomes of `get`, called for each of `specs` in turn."""
    for spec in progress.bar(specs, desc="runs", unit="run"):
        yield _outcome(spec, partial(get, spec))


@begun
def elsewhere(
    executor: Executor,
    specs: Sequence[RunSpec],
    training: Mapping[str, Future[ResnotesError | None]],
    get: Callable[[RunSpec], Run],
) -> Generator[Outcome | None]:
    """The outcomes of `get`: first for runs that are not being trained, then for each whose training has ended.

    Args:
        executor: what trains; shut down in the end, or when the iterator is closed.
        specs: what is asked for.
        training: of some of them, by name; what it gives is the error that the run failed with, if it did.
        get: gives a run that is there, or has been trained.
    """

    def got(spec: RunSpec) -> Run:
        if spec.name in training:
            try:
                error = training[spec.name].result()
            except ResnotesError:
                raise
            except CancelledError as gone:
                raise RunError("not trained, as the connection to the scheduler broke") from gone
            except Exception as unexpected:
                raise RunError(f"{type(unexpected).__name__}: {unexpected}") from unexpected
            if error:
                raise error
        return get(spec)

    with executor, progress.bar(total=len(training), desc="runs", unit="run") as bar:
        yield None
        for spec in specs:
            if spec.name not in training:
                yield _outcome(spec, partial(got, spec))
        for name in as_completed(training, bar):
            for spec in specs:
                if spec.name == name:
                    yield _outcome(spec, partial(got, spec))


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


@begun
def in_order(specs: Sequence[RunSpec], outcomes: Outcomes) -> Generator[Run | None]:
    """The runs in the order of `specs`, each as soon as it and those before it are there.

    Raises:
        ResnotesError: in place of the first run that failed, after all others have been trained.
    """
    arrived: dict[str, Run | ResnotesError] = {}
    with closing(outcomes):
        yield None
        for spec in specs:
            while spec.name not in arrived:
                other, result = next(outcomes)
                arrived[other.name] = result
            result = arrived[spec.name]
            if isinstance(result, ResnotesError):
                arrived.update({other.name: result for other, result in outcomes})
                raise failure([result for result in arrived.values() if isinstance(result, ResnotesError)])
            yield result
        for _ in outcomes:  # of runs that were asked for twice; closed before its end, it would end the processes
            pass


def failure(errors: Sequence[ResnotesError]) -> ResnotesError:
    """One error for several that each name a run; of their type, if they have one in common."""
    unique = {str(error): error for error in errors}
    if len(unique) == 1:
        return errors[0]
    types = {type(error) for error in errors}
    message = "\n".join([f"{len(unique)} runs failed, all others are there:", *unique])
    return (types.pop() if len(types) == 1 else RunError)(message)


def _outcome(spec: RunSpec, get: Callable[[], Run]) -> Outcome:
    try:
        return Outcome(spec, get())
    except ResnotesError as error:
        # Processes that train together all see a run diverge, but any other error may be that of one of them.
        if distributed.size() > 1 and not isinstance(error, TrainingDiverged):
            raise
        if spec.name in str(error):
            return Outcome(spec, error)
        named = type(error)(f"{spec.name}: {error}")
        named.__cause__ = error
        return Outcome(spec, named)
