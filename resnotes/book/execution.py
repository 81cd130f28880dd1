"""Executing notebooks: each through papermill, in a process of its own (`lifeline`), into the folder of a run."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CompletedProcess
from threading import Lock
from typing import Any

import nbformat
from ipykernel.kernelspec import write_kernel_spec

from resnotes import paths
from resnotes.book.lifeline import execute_in_child, lifeline
from resnotes.book.notebooks import Notebook, read
from resnotes.book.results import NOTE, merge
from resnotes.book.words import Words
from resnotes.errors import ResnotesError
from resnotes.files import write_atomic
from resnotes.provenance import code_version, machine

CELL_TIMEOUT = 24 * 3600  # seconds; against notebooks that hang, not against long trainings


@dataclass(frozen=True)
class Execution:
    """What became of one notebook: where its executed copy lies, how long it took, why it failed if so."""

    notebook: Notebook
    output: Path
    seconds: float
    failure: str | None


def execute(
    notebooks: Sequence[Notebook],
    parameters: Mapping[str, Any],
    out: Path,
    *,
    jobs: int | None = None,
    cell_timeout: int = CELL_TIMEOUT,
    formats: Sequence[str] = ("png",),
    report: Callable[[str], None] = print,
) -> list[Execution]:
    """Execute notebooks, each in its own processes, into `out/notebooks`, with an HTML rendering beside each.

    A notebook that fails keeps the cells it finished and loses its claims; the others still run. Number 00 runs last,
    when the claims of all others are in `out/claims.json`. An interrupt ends all that were started, and so does the
    end of this process.

    Args:
        notebooks: what to execute.
        parameters: checked values, as from `parse_overrides`; each notebook is given those that it takes.
        out: folder of the run; notebooks find it in `RESNOTES_OUT`.
        jobs: how many run side by side, sharing the cores evenly; by default as many as there are cores.
        cell_timeout: longest time for one cell, in seconds.
        formats: of `resnotes.figures.saving.FORMATS`, in which figures are drawn beside PNG.
        report: receives a line at each start and finish.

    Returns:
        What became of each, in this order, 00 last.

    Raises:
        ResnotesError: a notebook and its words disagree, which it would find out only after it has trained.
    """
    for book in notebooks:
        if (words := Words(book.stem, book.path.parent)).path.exists():
            words.check_uses()
    out = out.resolve()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = max(1, min(jobs or cores, len(notebooks)))
    lock = Lock()  # or lines of notebooks that start together would mix, and what they write of the run

    (out / "index.html").unlink(missing_ok=True)  # of before; whoever started this writes it anew at the end
    with tempfile.TemporaryDirectory() as kernels, ThreadPoolExecutor(jobs) as pool, lifeline() as held:
        # `python3` must mean this interpreter, whatever kernels the user has installed under that name.
        write_kernel_spec(Path(kernels) / "kernels" / "python3")
        call = functools.partial(
            execute_in_child,
            held,
            _environment(out, Path(kernels), formats, threads=max(1, cores // jobs), workers=cores),
            kernel_name="python3",
            cwd=str(paths.project_root()),
            execution_timeout=cell_timeout,
            progress_bar=False,
        )

        def one(book: Notebook) -> Execution:
            given = {name: value for name, value in parameters.items() if name in book.parameters}
            try:
                with lock:  # what is there of another execution goes, and with it what was claimed then
                    report(f"{book.stem}: started")
                    _clear(book, out)
                    _merge(out)
                execution = _execute(book, given, out, call)
            except OSError as error:  # such as a full disk; why others failed is not to be lost
                execution = Execution(book, _output(book, out), 0.0, f"{book.stem}: {error}")
            with lock:
                report(f"{book.stem}: {'failed' if execution.failure else 'done'} after {execution.seconds:.1f} s")
                _merge(out)
            return execution

        # An error, such as an interrupt, cancels what still waits.
        done = list(pool.map(one, [book for book in notebooks if book.number != "00"]))
        return done + list(pool.map(one, [book for book in notebooks if book.number == "00"]))


def _merge(out: Path) -> None:
    """`merge`, where it can be; what is damaged is said at the end, by whoever writes the index, after all failures."""
    with contextlib.suppress(ResnotesError, OSError):
        merge(out)


def _environment(out: Path, kernels: Path, formats: Sequence[str], *, threads: int, workers: int) -> dict[str, str]:
    """Environment of a kernel: this very package, absolute locations, its share of the cores.

    For training it has all cores: while one notebook measures, or is the last, another may train.
    """
    package = str(Path(__file__).resolve().parents[2])

    def prepended(variable: str, first: str) -> str:
        others = filter(None, os.environ.get(variable, "").split(os.pathsep))
        return os.pathsep.join([first, *map(os.path.abspath, others)])

    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take a busy core from the one they wait for
        "RESNOTES_WORKERS": str(workers),
        **os.environ,  # counts that the user set are theirs to choose
        "PYTHONPATH": prepended("PYTHONPATH", package),
        "JUPYTER_PATH": prepended("JUPYTER_PATH", str(kernels)),
        "RESNOTES_OUT": str(out),
        "RESNOTES_FIGURES": ",".join(formats),
        # Notebooks start in the project's root, where a relative location would mean another folder.
        "RESNOTES_CALLED_FROM": str(Path.cwd()),
        "RESNOTES_DATA": str(paths.data_root()),
        "RESNOTES_CACHE": str(paths.cache_root()),
        "RESNOTES_RUNS": str(paths.runs_root()),
    }


def _output(book: Notebook, out: Path) -> Path:
    return out / "notebooks" / book.path.name


def _ledger(book: Notebook, out: Path) -> Path:
    return out / "claims" / f"{book.stem}.json"


def _clear(book: Notebook, out: Path) -> None:
    """Remove what an earlier execution left; from the first moment on, there is a notebook that is not finished."""
    output = _output(book, out)
    write_atomic(output, "")
    figures = (out / "figures").glob(f"{book.number}_*")
    for stale in (_ledger(book, out), output.with_suffix(".html"), *figures):
        stale.unlink(missing_ok=True)


def _execute(
    book: Notebook, given: Mapping[str, Any], out: Path, call: Callable[..., CompletedProcess[str]]
) -> Execution:
    """Execute one notebook by `call`, and note in it what became of it: the last thing that is written."""
    output = _output(book, out)
    start = time.perf_counter()
    process = call(input_path=str(book.path), output_path=str(output), parameters=given)
    seconds = time.perf_counter() - start
    said = process.stdout or f"papermill ended with status {process.returncode}\n{process.stderr[-1000:]}"
    said = f"{book.stem}: {said.strip()}"
    failure = f"{said}\npartial notebook: {output}" if process.returncode else None
    if failure:
        _ledger(book, out).unlink(missing_ok=True)
    try:
        notebook = read(output)
    except ResnotesError:  # papermill wrote none, or was killed while it did
        output.unlink()
        return Execution(book, output, seconds, f"{said}\nno cell was executed")
    notebook.metadata[NOTE] = {
        "seconds": round(seconds, 1),
        "failed": failure is not None,  # papermill does not tell a notebook whose kernel died from one that went well
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "parameters": {**book.parameters, **given},
        "machine": machine(),
        **code_version(),
    }
    try:
        from resnotes.book.rendering import notebook_page

        write_atomic(output, nbformat.writes(notebook) + "\n")
        write_atomic(output.with_suffix(".html"), notebook_page(notebook, book.stem, out / "figures"))
    except Exception as error:  # what is in a notebook may be too much for nbconvert; the others are to go on
        failure = failure or f"{book.stem}: no page could be made of {output}, {type(error).__name__}: {error}"
    return Execution(book, output, seconds, failure)
