"""The command line: `resnotes`, also `python -m resnotes`.

Commands import what they need when they run, so that help and usage errors come at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from resnotes import paths
from resnotes.errors import ResnotesError, UsageError

app = typer.Typer(
    name="resnotes",
    help="Residual networks, measured: run the notebooks, look at their claims, take their figures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Out = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run.  [default: out, or $RESNOTES_OUT]")
]


@app.command()
def run(
    notebooks: Annotated[
        list[str] | None,
        typer.Argument(help="Numbers or names, such as 01 or degradation; all if none is given."),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Scale of the experiments, such as quick.")] = None,
    out: Out = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME=VALUE", help="Set a notebook's parameter."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Notebooks side by side.  [default: one per core]")
    ] = None,
    cell_timeout: Annotated[int, typer.Option(min=1, help="Longest time for one cell, in seconds.")] = 24
    * 3600,
) -> None:
    """Execute notebooks and write what they found to a folder, with an index."""
    from resnotes import notebooks as suite
    from resnotes import report

    folder = _folder(out)
    selected = suite.select(notebooks or [])
    settings = ([] if profile is None else [f"profile={profile}"]) + (parameter or [])
    overrides = suite.parse_overrides(settings, selected)
    done = suite.execute(selected, overrides, folder, jobs=jobs, cell_timeout=cell_timeout, report=typer.echo)
    index = report.write_index(folder)
    failures = [execution.failure for execution in done if execution.failure]
    for failure in failures:
        typer.echo(failure, err=True)
    typer.echo(index)
    if failures:
        raise typer.Exit(1)


@app.command()
def claims(out: Out = None) -> None:
    """Print the claims of a run: whether each holds, what was expected and what was measured."""
    from resnotes.claims import WORDS, load

    path = _folder(out) / "claims.json"
    entries = load(path) if path.exists() else []
    if not entries:
        typer.echo(f"no claims in {path.parent}; `resnotes run` makes them")
    for claim in entries:
        typer.echo(f"{WORDS[claim['holds']]:<10} {claim['id']}: {claim['statement']}")
        typer.echo(f"{'':<10} expected {claim['expected']}; measured {claim['measured']['text']}")


@app.command()
def figures(
    to: Annotated[Path, typer.Option(help="Folder that receives the figures.")],
    out: Out = None,
) -> None:
    """Copy the figures of a run to a folder and print Markdown that shows them."""
    from resnotes.figures import export

    for snippet in export(to, _folder(out) / "figures"):
        typer.echo(snippet)


def main() -> None:
    """Run the command line, reporting expected errors without a traceback."""
    with reporting_errors():
        app()


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turn a `UsageError` into a message and exit status 2, any other error of ours into one and status 1."""
    try:
        yield
    except ResnotesError as error:
        print(f"resnotes: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _folder(out: Path | None) -> Path:
    return paths.out_root() if out is None else out.expanduser().resolve()
