"""The command line: `resnotes`, also `python -m resnotes`.

Commands import what they need when they run, so that help and usage errors come at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from resnotes import __version__, paths
from resnotes.errors import ResnotesError, RunError, UsageError, reporting_errors, unknown

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from resnotes.book.notebooks import Notebook
    from resnotes.runs.spec import RunSpec
    from resnotes.runs.store import Run, RunStore


class _Commands(typer.core.TyperGroup):
    """Commands that report errors in our way; left alone, Typer handles Ctrl+C, differently by version."""

    def invoke(self, ctx: Any) -> Any:
        with reporting_errors():
            return super().invoke(ctx)


def _example(command: str) -> str:
    """What ends the help of a command; the first character keeps the next lines as they are."""
    return f"\b\nExample:\n  resnotes {command}"


app = typer.Typer(
    name="resnotes",
    cls=_Commands,
    help="Residual networks, measured: run the notebooks, look at their claims, take their figures.",
    epilog=_example("run 01"),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Many = list[str] | None
# Paths are texts up to here, as an empty one would be taken for the current folder: see `paths.expanded`.
Results = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="What `run` wrote, by default $RESNOTES_OUT or out.")
]
Profile = Annotated[str, typer.Option(help="Scale of the experiments, such as desk.")]
Studies = Annotated[Many, typer.Option(help="A study of the profile; may be repeated, first things first; else all.")]
Recorded = Annotated[bool, typer.Option("--recorded", help="The recorded runs in place of the store's.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"resnotes {__version__}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command(epilog=_example("run 01 -p seed=3 --out out/seed3"))
def run(
    notebooks: Annotated[Many, typer.Argument(help="Numbers or names, such as 01 or degradation; all if none.")] = None,
    profile: Annotated[str | None, typer.Option(help="Scale of the experiments, such as quick.")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Receives the results, by default $RESNOTES_OUT or out.")
    ] = None,
    parameter: Annotated[
        Many, typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="Set a notebook's parameter.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Notebooks side by side, by default one per core.")] = None,
    formats: Annotated[
        str, typer.Option("--format", envvar="RESNOTES_FIGURES", help="Of figures: png, and by commas pdf and svg.")
    ] = "png",
    listed: Annotated[bool, typer.Option("--list", help="Only list notebooks, their parameters and last run.")] = False,
) -> None:
    """Execute notebooks and write what they found to a folder, with an index."""
    from resnotes.book.notebooks import parse_overrides, select

    folder = _folder(out)
    selected = select(notebooks or [])
    if listed:
        raise typer.Exit(_list(selected, folder))
    settings = ([] if profile is None else [f"profile={profile}"]) + (parameter or [])
    overrides = parse_overrides(settings, selected)
    from resnotes.book.execution import execute  # seconds, which a wrong parameter need not wait for
    from resnotes.book.pages import write_index
    from resnotes.figures import saving

    kinds = saving.formats(formats)
    done = execute(selected, overrides, folder, jobs=jobs, formats=kinds, report=typer.echo)
    failures = [execution.failure for execution in done if execution.failure]
    for failure in failures:  # before an index that may fail itself
        typer.echo(failure, err=True)
    typer.echo(write_index(folder))
    raise typer.Exit(1 if failures else 0)


@app.command(epilog=_example("train --profile desk --study degradation"))
def train(
    profile: Profile,
    study: Studies = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at once; by default on a GPU 1, else $RESNOTES_WORKERS or all threads."),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="Scheduler of a Dask cluster that is to train.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps; of each worker, on a cluster.")] = "auto",
) -> None:
    """Train the runs of a profile that are not in the run store yet.

    `torchrun --nproc-per-node N -m resnotes train ...` trains each run in N processes together.
    """
    from tqdm import tqdm

    from resnotes import distributed
    from resnotes.runs.catalogue import summary
    from resnotes.runs.store import RunStore
    from resnotes.runs.sweep import failure

    specs = _specs(profile, study)
    store = RunStore()
    errors = []
    with distributed.joined(device), _executor(store, device, workers, cluster) as executor:
        with closing(store.sweep(specs, device=device, executor=executor)) as outcomes:
            for _, result in outcomes:
                if isinstance(result, ResnotesError):
                    errors.append(result)
                elif distributed.rank() == 0:
                    tqdm.write(summary(result))
        if errors:
            raise failure(errors)


@app.command(epilog=_example("claims --notebook 01 --verdict false --format md"))
def claims(
    notebook: Annotated[Many, typer.Option(metavar="NAME", help="Of this notebook, as 01; repeatable.")] = None,
    verdict: Annotated[Many, typer.Option(metavar="true|false|undecided", help="Of this verdict; repeatable.")] = None,
    scope: Annotated[Many, typer.Option(metavar="live|recorded|published", help="Decided there; repeatable.")] = None,
    form: Annotated[str, typer.Option("--format", metavar="table|json|md", help="How they are written.")] = "table",
    results: Results = None,
) -> None:
    """Print the claims of a run: whether each holds, what the paper says and what was measured at each scope."""
    from resnotes.book import listing
    from resnotes.book.notebooks import select
    from resnotes.book.results import read_results

    if form not in listing.FORMATS:
        raise unknown("format", form, listing.FORMATS)
    folder = _folder(results)
    stems = [book.stem for book in select(notebook)] if notebook else []
    entries = read_results(folder).claims
    found = listing.chosen(entries, notebooks=stems, verdicts=verdict or [], scopes=scope or [])
    if not entries:
        raise ResnotesError(f"no claims in {folder}; `resnotes run` makes them")
    if not found:
        raise ResnotesError(f"none of the {len(entries)} claims in {folder} passes all filters")
    typer.echo(listing.FORMATS[form](found), nl=False, color=False if os.environ.get("NO_COLOR") else None)


@app.command(epilog=_example("figures 01_degradation 03_runs --lang zh --out slides"))
def figures(
    names: Annotated[Many, typer.Argument(help="Figures, such as 01_degradation; all if none.")] = None,
    lang: Annotated[str, typer.Option(help="en, or zh, which `run` draws as PNG alone.")] = "en",
    out: Annotated[str | None, typer.Option(metavar="FOLDER", help="Receives the figures.")] = None,
    to: Annotated[str | None, typer.Option(hidden=True, help="The former name of --out.")] = None,
    formats: Annotated[
        str, typer.Option("--format", help="Any of png, pdf and svg that `run` drew, by commas.")
    ] = "png",
    results: Results = None,
) -> None:
    """Copy the figures of a run to a folder and print Markdown that shows them."""
    from resnotes.book.exports import export
    from resnotes.figures import saving

    targets = [paths.folder(each) for each in (out, to) if each is not None]
    if len(targets) != 1:  # with both, --out is what --results is now
        raise UsageError("expected --out, the folder that receives the figures, alone; that of the run is --results")
    kinds = saving.formats(formats)
    for snippet in export(targets[0], _folder(results), names=names or (), formats=kinds, lang=lang):
        typer.echo(snippet)


@app.command(epilog=_example("report 01 03 --lang zh --week 8 --out reports/week8"))
def report(
    notebooks: Annotated[Many, typer.Argument(help="Numbers or names, such as 01 03; all if none.")] = None,
    lang: Annotated[str, typer.Option(help="en or zh.")] = "en",
    out: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Receives the report, by default report in that of the run.")
    ] = None,
    week: Annotated[int | None, typer.Option(min=0, help="Number of the report, for its title.")] = None,
    author: Annotated[str, typer.Option(help="Who hands it in.")] = "",
    results: Results = None,
    full: Annotated[bool, typer.Option("--full", help="All claims, figures and statements, as an appendix.")] = False,
) -> None:
    """Write a weekly report from a run: Markdown, one HTML page, and the figures; six pages, unless --full."""
    from resnotes.book.notebooks import select
    from resnotes.book.report import write_report
    from resnotes.book.results import read_results

    folder = _folder(results)
    to = folder / "report" if out is None else paths.folder(out)
    stems = [book.stem for book in select(notebooks)] if notebooks else []
    path = write_report(read_results(folder), to, lang=lang, week=week, author=author, notebooks=stems, full=full)
    typer.echo(path)
    typer.echo(path.with_suffix(".html"))


runs_app = typer.Typer(
    no_args_is_help=True, help="The run store: what has been trained.", epilog=_example("runs list --recorded")
)
app.add_typer(runs_app, name="runs")


@runs_app.command("list", epilog=_example("runs list --recorded"))
def list_runs(recorded: Recorded = False) -> None:
    """One line per finished run: name, iterations, data, training and test error, studies, options, what differs."""
    from resnotes.runs import catalogue

    for line in catalogue.lines(_finished(recorded)):
        typer.echo(line)


@runs_app.command(epilog=_example("runs show resnet-56-cifar10 --recorded"))
def show(
    name: Annotated[str, typer.Argument(help="Name of a run, or its beginning.")], recorded: Recorded = False
) -> None:
    """All that is known of a run: what was asked for, what it ran on, its history."""
    import json

    for run in _matching([name], recorded):
        typer.echo(f"{run.folder}\n\n{run.spec.to_json()}\n{json.dumps(run.facts, indent=2)}\n")
        typer.echo(run.history.to_string(index=False, float_format="{:.4g}".format))


@runs_app.command(epilog=_example("runs verify resnet-56 --recorded"))
def verify(
    names: Annotated[Many, typer.Argument(help="Names of runs, or their beginnings; all if none.")] = None,
    recorded: Recorded = False,
    tolerance: Annotated[float, typer.Option(min=0, help="Points by which other processors may round.")] = 0.2,
) -> None:
    """Check the files of runs, evaluate their weights again and compare with the test error on record."""
    from resnotes.runs import recording

    failed = False
    for run in _matching(names or [], recorded):
        try:
            stored, measured = recording.verify(run)
        except ResnotesError as error:  # such as data that is not at hand: other runs may be on other data
            agrees, said = False, str(error)
        else:
            agrees = measured is None or abs(stored - measured) <= tolerance
            again = "recorded without weights" if measured is None else f"{measured:.2f} % measured"
            said = f"{stored:.2f} % stored, {again}"
        failed |= not agrees
        typer.echo(f"{'ok' if agrees else 'FAILED':<8} {run.name}: {said}")
    raise typer.Exit(1 if failed else 0)


@runs_app.command(epilog=_example("runs record --profile desk --study degradation"))
def record(
    profile: Profile,
    study: Studies = None,
    weights: Annotated[bool, typer.Option(help="With the weights, or only the errors.")] = True,
) -> None:
    """Copy the finished runs of a profile to data/recorded, to be committed."""
    from resnotes.runs import recording
    from resnotes.runs.store import RunStore

    store = RunStore()
    finished = store.find_all(_specs(profile, study))
    if not finished:
        raise RunError(f"no finished run of profile {profile} in {store.root}; `resnotes train` makes them")
    for run in finished:
        typer.echo(recording.record(run, store.recorded, weights=weights).folder)
        if run.facts["code"]["dirty"]:
            typer.echo(f"{run.name} was made from code that no commit has; commit, and train it again", err=True)


data_app = typer.Typer(
    no_args_is_help=True,
    help="Data sets, and networks that others published: what is at hand, and getting the rest.",
    epilog=_example("data status"),
)
app.add_typer(data_app, name="data")


@data_app.command(epilog=_example("data status"))
def status() -> None:
    """Say of every data set, and of networks that others published, whether it is at hand, and how to get it if not."""
    from resnotes import datasets
    from resnotes.models.published_networks import status as status_of_published

    for entry in [*datasets.status(), status_of_published()]:
        typer.echo(f"{entry.name:<10} {'found' if entry.found else 'missing'}\n{'':<10} {entry.where}")


@data_app.command(epilog=_example("data fetch cifar10"))
def fetch(
    name: Annotated[str, typer.Argument(help="Name of a data set, or published, for networks that others trained.")],
) -> None:
    """Download a data set, or the published networks, to $RESNOTES_DATA, unless they are there."""
    from resnotes import datasets
    from resnotes.models.published_networks import fetch as fetch_published

    if name == "published":
        fetch_published()
    elif name in datasets.names():
        datasets.fetch(name)
    else:
        raise unknown("data set", name, [*datasets.names(), "published"])


def main() -> None:
    """Run the command line, reporting expected errors without a traceback."""
    app()


@contextmanager
def _executor(store: RunStore, device: str, workers: int | None, cluster: str | None) -> Iterator[Executor | None]:
    """What trains the runs of a sweep; None for this process."""
    from resnotes import distributed
    from resnotes.runs.workers import local_workers

    if [cluster is not None, workers is not None, distributed.size() > 1].count(True) > 1:
        raise UsageError("of --cluster, --workers and torchrun, expected one at most: each has processes of its own")
    if cluster is None:
        yield local_workers(device, workers)
        return
    from resnotes.runs.cluster import connected

    with connected(cluster, store.root) as executor:
        typer.echo(f"{executor.workers} workers; dashboard: {executor.dashboard or 'none'}", err=True)
        yield executor


def _specs(profile: str, studies: Sequence[str] | None) -> list[RunSpec]:
    """The runs of some studies of a profile, in this order, or of all in the profile's."""
    from resnotes.runs import profiles

    loaded = profiles.load(profile)
    return [spec for name in studies or loaded.studies for spec in loaded.study(name).all_specs()]


def _finished(recorded: bool) -> list[Run]:
    """All finished runs, of which there must be one."""
    from resnotes.runs.store import RunStore

    store = RunStore()
    if finished := store.finished(recorded=recorded):
        return finished
    raise RunError(f"no runs in {store.recorded if recorded else store.root}; `resnotes train` makes them")


def _matching(names: list[str], recorded: bool) -> list[Run]:
    """Finished runs whose names begin with one of `names`; all for none."""
    finished = _finished(recorded)
    for name in names:
        if not name or not any(run.name.startswith(name) for run in finished):
            raise unknown("run", name, [run.name for run in finished], most=3)
    return [run for run in finished if not names or run.name.startswith(tuple(names))]


def _list(notebooks: Sequence[Notebook], folder: Path) -> int:
    """Print the notebooks, what they take and what became of them in `folder`; 1 if one cannot be read, else 0."""
    from resnotes.book.listing import described

    status = 0
    for book in notebooks:
        try:
            typer.echo(described(book, folder))
        except ResnotesError as error:  # the others can be listed all the same
            typer.echo(f"resnotes: {error}", err=True)
            status = 1
    return status


def _folder(of_run: str | None) -> Path:
    return paths.out_root() if of_run is None else paths.folder(of_run)
