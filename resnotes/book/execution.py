"""Executing notebooks: each through papermill, in a process of its own, into the folder of a run."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import nbformat
from ipykernel.kernelspec import write_kernel_spec

from resnotes import paths
from resnotes.book.lifeline import Lifeline
from resnotes.book.notebooks import Notebook, read
from resnotes.book.results import NOTE, merge
from resnotes.errors import ResnotesError
from resnotes.files import write_atomic
from resnotes.provenance import code_version, machine

CELL_TIMEOUT = 24 * 3600  # seconds; against notebooks that hang, not against long trainings

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


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
        report: receives a line at each start and finish.
    """
    out = out.resolve()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = max(1, min(jobs or cores, len(notebooks)))
    lock = Lock()  # or lines of notebooks that start together would mix, and what they write of the run

    (out / "index.html").unlink(missing_ok=True)  # of before; whoever started this writes it anew at the end
    with tempfile.TemporaryDirectory() as kernels, ThreadPoolExecutor(jobs) as pool, Lifeline() as lifeline:
        # `python3` must mean this interpreter, whatever kernels the user has installed under that name.
        write_kernel_spec(Path(kernels) / "kernels" / "python3")
        environment = _environment(out, Path(kernels), threads=max(1, cores // jobs), workers=cores)

        def one(book: Notebook) -> Execution:
            with lock:  # what is there of another execution goes, and with it what was claimed then
                report(f"{book.stem}: started")
                _clear(book, out)
                merge(out)
            return _execute(book, parameters, out, environment, cell_timeout, lifeline)

        done: list[Execution] = []
        try:
            for last in (False, True):
                futures = [pool.submit(one, book) for book in notebooks if (book.number == "00") is last]
                for future in as_completed(futures):
                    done.append(execution := future.result())
                    outcome = "failed" if execution.failure else "done"
                    with lock:
                        report(f"{execution.notebook.stem}: {outcome} after {execution.seconds:.1f} s")
                        merge(out)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # or an interrupt would start those still waiting
            raise
    return sorted(done, key=lambda execution: notebooks.index(execution.notebook))


def _environment(out: Path, kernels: Path, threads: int, workers: int) -> dict[str, str]:
    """Environment of a kernel: this very package, absolute locations, its share of the cores.

    For training it has all cores: while one notebook measures, or is the last, another may train.
    """
    package = str(Path(__file__).resolve().parents[2])

    def prepended(variable: str, first: str) -> str:
        return os.pathsep.join(filter(None, [first, os.environ.get(variable)]))

    return {
        "OMP_NUM_THREADS": str(threads),
        "RESNOTES_WORKERS": str(workers),
        **os.environ,  # counts that the user set are theirs to choose
        "PYTHONPATH": prepended("PYTHONPATH", package),
        "JUPYTER_PATH": prepended("JUPYTER_PATH", str(kernels)),
        "RESNOTES_OUT": str(out),
        # Notebooks start in the project's root, where a relative location would mean another folder.
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
    write_atomic(output, "{}")
    figures = (out / "figures").rglob(f"{book.number}_*")
    for stale in (_ledger(book, out), output.with_suffix(".html"), *figures):
        stale.unlink(missing_ok=True)


def _execute(
    book: Notebook,
    parameters: Mapping[str, Any],
    out: Path,
    environment: dict[str, str],
    cell_timeout: int,
    lifeline: Lifeline,
) -> Execution:
    """Execute one notebook, and note in it what became of it: the last thing that is written."""
    output = _output(book, out)
    given = {name: value for name, value in parameters.items() if name in book.parameters}
    start = time.perf_counter()
    process = lifeline.papermill(
        environment,
        input_path=str(book.path),
        output_path=str(output),
        parameters=given,
        kernel_name="python3",
        cwd=str(paths.project_root()),
        execution_timeout=cell_timeout,
        progress_bar=False,
    )
    seconds = time.perf_counter() - start
    notebook = _left(output)
    failure = _failure(book, notebook, process.stderr, cell_timeout, output) if process.returncode else None
    if failure:
        _ledger(book, out).unlink(missing_ok=True)
    if notebook is None:
        output.unlink(missing_ok=True)
        return Execution(book, output, seconds, failure)
    notebook.metadata[NOTE] = {
        "seconds": round(seconds, 1),
        "failed": failure is not None,  # papermill does not tell a notebook whose kernel died from one that went well
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "parameters": {**book.parameters, **given},
        "machine": machine(),
        **code_version(),
    }
    write_atomic(output, nbformat.writes(notebook) + "\n")
    try:
        from resnotes.book.rendering import notebook_page

        write_atomic(output.with_suffix(".html"), notebook_page(notebook, book.stem))
    except Exception as error:  # what is in a notebook may be too much for nbconvert; the others are to go on
        kept = f"the notebook is there: {output}"
        failure = failure or f"{book.stem}: no page could be made of it, {type(error).__name__}: {error}\n{kept}"
    return Execution(book, output, seconds, failure)


def _left(output: Path) -> Any:
    """The notebook that papermill left; None if it wrote none, or was killed while it did."""
    with contextlib.suppress(ResnotesError):
        return read(output) or None
    return None


def _failure(book: Notebook, notebook: Any, stderr: str, cell_timeout: int, output: Path) -> str:
    """Which cell failed and why, and where the partial notebook lies."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"] if notebook else []
    started = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
    errors = [entry for cell in started[-1:] for entry in cell.outputs if entry.output_type == "error"]
    if "CellTimeoutError" in stderr:
        reason = f"took longer than {cell_timeout} s and was stopped"
    elif "DeadKernelError" in stderr:
        reason = "ended its kernel: the process was killed, ran out of memory or exited"
    elif errors:
        traceback = _ANSI.sub("", "\n".join(errors[0].traceback))
        reason = f"raised {errors[0].ename}: {errors[0].evalue}\n{traceback}"
    else:
        reason = "\n".join(["could not be executed", *_ANSI.sub("", stderr).strip().splitlines()[-5:]])
    # A kernel that dies at once does not even tell the number of the cell that it was given.
    number = started and (started[-1].execution_count or 1 + max(cell.execution_count or 0 for cell in started))
    place = f"cell In [{number}] " if number else ""
    return f"{book.stem}: {place}{reason}\n{f'partial notebook: {output}' if notebook else 'no cell was executed'}"
