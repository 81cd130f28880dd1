"""The notebooks: finding them, checking what they are given, executing them with papermill.

`python -m resnotes.book.notebooks` refreshes the outputs of the committed ones.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import nbformat
import yaml
from ipykernel.kernelspec import write_kernel_spec

from resnotes import paths
from resnotes.book.ledger import OUTCOME, merge
from resnotes.book.lifeline import Lifeline
from resnotes.book.tidy import PARAMETERS_TAG, hygiene, tidied
from resnotes.errors import ResnotesError, UsageError, reporting_errors, unknown
from resnotes.files import write_atomic
from resnotes.provenance import code_version, machine

CELL_TIMEOUT = 24 * 3600  # seconds; against notebooks that hang, not against long trainings

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Notebook:
    """A notebook of the suite, such as `notebooks/01_degradation.ipynb`."""

    path: Path

    @property
    def stem(self) -> str:
        """File name without its ending: `01_degradation`."""
        return self.path.stem

    @property
    def overview(self) -> bool:
        """Whether it is about the others' claims, so that it is executed after them: number 00."""
        return self.stem.startswith("00_")

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """Defaults by name, from the cell tagged `parameters`.

        Raises:
            ResnotesError: the file is no notebook, or the cell holds something other than named literals.
        """
        try:
            return {name: ast.literal_eval(value) for name, value in _assignments(ast.parse(self._parameters_source))}
        except (SyntaxError, ValueError) as error:
            raise ResnotesError(f"{self.path}: the parameters cell may only hold literals: {error}") from error

    @property
    def comments(self) -> dict[str, str]:
        """What the parameters cell says of each parameter, after its value."""
        found = re.findall(r"^(\w+)\b[^#\n]*#\s*(.*)$", self._parameters_source, re.MULTILINE)
        return {name: comment.strip() for name, comment in found}

    @property
    def title(self) -> str:
        """Its first heading."""
        return title_of(read(self.path))

    @cached_property
    def _parameters_source(self) -> str:
        cells = read(self.path).cells
        return "\n".join(cell.source for cell in cells if PARAMETERS_TAG in cell.metadata.get("tags", []))


@dataclass(frozen=True)
class Execution:
    """What became of one notebook: where its executed copy lies, how long it took, why it failed if so."""

    notebook: Notebook
    output: Path
    seconds: float
    failure: str | None


def read(path: Path) -> Any:
    """The notebook at `path` as nbformat's node, in format 4.

    Raises:
        ResnotesError: it is missing or no notebook.
    """
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat lets errors of json, jsonschema and its own through
        raise ResnotesError(f"{path} is not a readable notebook: {error}") from error


def title_of(notebook: Any) -> str:
    """The first Markdown heading; papermill may have put a note on an error above it."""
    lines = (line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "").replace("*", "")


def discover() -> list[Notebook]:
    """The notebooks of the checkout, in their order."""
    return [Notebook(path) for path in sorted((paths.project_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))]


def select(names: Sequence[str]) -> list[Notebook]:
    """Notebooks by number (`01`), stem (`01_degradation`) or name (`degradation`), in order; all for none.

    Raises:
        UsageError: there is no such notebook.
        ResnotesError: there is none at all.
    """
    if not (found := discover()):
        raise ResnotesError(
            f"no notebooks in {paths.project_root() / 'notebooks'}; they come with a checkout of the project, not with"
            " the installed package"
        )
    chosen = set()
    for name in names:
        matches = [book for book in found if name in (book.stem, *book.stem.split("_", 1))]
        if not matches:
            raise unknown("notebook", name, [book.stem for book in found])
        chosen.update(matches)
    return [book for book in found if book in chosen] if names else found


def profiles() -> list[str]:
    """Names of the profiles."""
    return sorted(path.stem for path in (Path(__file__).parents[1] / "runs" / "profiles").glob("*.toml"))


def parse_overrides(settings: Sequence[str], notebooks: Sequence[Notebook]) -> dict[str, Any]:
    """Parameters from `name=value` texts: values are Python or JSON literals, anything else is a string.

    Raises:
        UsageError: a text has no `=`, no notebook takes the name, or the default is of another type.
    """
    overrides = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UsageError(f"parameter {setting!r} is not of the form name=value")
        takers = [book for book in notebooks if name in book.parameters]
        if not takers:
            raise UsageError(f"unknown parameter {name!r}; allowed: {'; '.join(map(_signature, notebooks))}")
        value = _literal(text)
        if name == "profile" and value not in profiles():
            raise unknown("profile", value, profiles())
        for book in takers:
            try:
                value = _as_type_of(book.parameters[name], value)
            except TypeError as error:
                raise UsageError(f"parameter {name!r} {error}; allowed: {_signature(book)}") from error
        overrides[name] = value
    return overrides


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

    A notebook that fails keeps the cells it finished and loses its claims; the others still run. An overview runs
    last, when the claims of all others are in `out/claims.json`. An interrupt ends all that were started, and so does
    the end of this process.

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
    done: dict[Notebook, Execution] = {}
    lock = Lock()

    (out / "index.html").unlink(missing_ok=True)  # of before; whoever started this writes it anew at the end

    def say(line: str) -> None:
        with lock:  # or lines of notebooks that start together would mix
            report(line)

    with Lifeline() as lifeline, tempfile.TemporaryDirectory() as kernels, ThreadPoolExecutor(jobs) as pool:
        # `python3` must mean this interpreter, whatever kernels the user has installed under that name.
        write_kernel_spec(Path(kernels) / "kernels" / "python3")
        environment = _environment(out, Path(kernels), threads=max(1, cores // jobs), workers=cores)

        def one(book: Notebook) -> Execution:
            say(f"{book.stem}: started")
            given = {name: value for name, value in parameters.items() if name in book.parameters}
            with lock:  # what is there of another execution goes, and with it what was claimed then
                _clear(book, out)
                merge(out)
            return _execute(book, given, out, environment, cell_timeout, lifeline)

        try:
            for overview in (False, True):
                futures = [pool.submit(one, book) for book in notebooks if book.overview is overview]
                for future in as_completed(futures):
                    execution = future.result()
                    done[execution.notebook] = execution
                    outcome = "failed" if execution.failure else "done"
                    say(f"{execution.notebook.stem}: {outcome} after {execution.seconds:.1f} s")
                    with lock:
                        merge(out)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # or an interrupt would start those still waiting
            lifeline.cut()
            raise
    return [done[book] for book in notebooks]


def refresh() -> None:
    """Execute the committed notebooks with their defaults and put clean outputs in their place.

    Raises:
        ResnotesError: a notebook fails or would not be fit to commit; that one stays as it was.
    """
    problems = []
    with tempfile.TemporaryDirectory() as scratch:
        for execution in execute(discover(), {}, Path(scratch)):
            path = execution.notebook.path
            if execution.failure:
                problems.append(execution.failure)
                continue
            roots = {str(Path(scratch).resolve()): "out", str(paths.project_root()): "."}
            notebook = tidied(read(execution.output), roots)
            if violations := hygiene(notebook):
                problems.append("\n".join(f"{path.name}: {violation}" for violation in violations))
            else:
                write_atomic(path, nbformat.writes(notebook) + "\n")
    if problems:
        raise ResnotesError("\n".join(problems))


def _environment(out: Path, kernels: Path, threads: int, workers: int) -> dict[str, str]:
    """Environment of a kernel: this very package, absolute locations, its share of the cores.

    For training it has all cores: while one notebook measures, or is the last, another may train.
    """
    package = str(Path(__file__).resolve().parents[2])
    inherited = os.environ

    def prepended(variable: str, first: str) -> str:
        return os.pathsep.join(filter(None, [first, inherited.get(variable)]))

    return {
        "OMP_NUM_THREADS": str(threads),
        "RESNOTES_WORKERS": str(workers),
        **inherited,  # counts that the user set are theirs to choose
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
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, "{}")
    figures = (out / "figures").rglob(f"{book.stem.split('_')[0]}_*")
    for stale in (_ledger(book, out), output.with_suffix(".html"), *figures):
        stale.unlink(missing_ok=True)


def _execute(
    book: Notebook,
    parameters: dict[str, Any],
    out: Path,
    environment: dict[str, str],
    cell_timeout: int,
    lifeline: Lifeline,
) -> Execution:
    """Execute one notebook through papermill's command line, in a process of its own."""
    output, ledger = _output(book, out), _ledger(book, out)
    # Papermill reads YAML, which takes JSON's 1e-05 for a string: write what its own parser reads back.
    values = base64.b64encode(yaml.safe_dump(parameters).encode()).decode()
    arguments = [str(book.path), str(output), "--kernel", "python3", "--no-progress-bar", "--log-level", "ERROR"]
    arguments += ["--cwd", str(paths.project_root()), "--execution-timeout", str(cell_timeout)]
    arguments += ["--parameters_base64", values] if parameters else []
    start = time.perf_counter()
    process = lifeline.papermill(arguments, environment)
    seconds = time.perf_counter() - start
    failure = None
    if process.returncode != 0:
        failure = _failure(book, output, process.stderr, cell_timeout)
        ledger.unlink(missing_ok=True)
    if _kept(output):
        outcome = {
            "seconds": round(seconds, 1),
            "failed": failure is not None,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "parameters": {**book.parameters, **parameters},
            "machine": machine(),
            **code_version(),
        }
        try:
            _finish(output, outcome)
        except Exception as error:  # what is in a notebook may be too much for nbconvert; the others are to go on
            kept = f"the notebook is there: {output}"
            failure = failure or f"{book.stem}: no page could be made of it, {type(error).__name__}: {error}\n{kept}"
    else:
        output.unlink(missing_ok=True)
    return Execution(book, output, seconds, failure)


def _failure(book: Notebook, output: Path, stderr: str, cell_timeout: int) -> str:
    """Which cell failed and why, and where the partial notebook lies."""
    cells = read(output).cells if _kept(output) else []
    code = [cell for cell in cells if cell.cell_type == "code"]
    started = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
    errors = [entry for cell in started[-1:] for entry in cell.outputs if entry.output_type == "error"]
    log = _ANSI.sub("", stderr).strip().splitlines()
    if "CellTimeoutError" in stderr:
        reason = f"took longer than {cell_timeout} s and was stopped"
    elif "DeadKernelError" in stderr:
        reason = "ended its kernel: the process was killed, ran out of memory or exited"
    elif errors:
        traceback = _ANSI.sub("", "\n".join(errors[0].traceback))
        reason = f"raised {errors[0].ename}: {errors[0].evalue}\n{traceback}"
    else:
        reason = "could not be executed\n" + "\n".join(log[-5:])
    # A kernel that dies at once does not even tell the number of the cell that it was given.
    number = started and (started[-1].execution_count or 1 + max(cell.execution_count or 0 for cell in started))
    place = f"cell In [{number}] " if number else ""
    kept = f"partial notebook: {output}" if _kept(output) else "no cell was executed"
    return f"{book.stem}: {place}{reason}\n{kept}"


def _kept(output: Path) -> bool:
    """Whether papermill left a notebook there, and was not killed while it wrote it."""
    with contextlib.suppress(ResnotesError):
        return bool(read(output))
    return False


def _finish(path: Path, outcome: dict[str, Any]) -> None:
    """Note the outcome in an executed notebook and render it beside as HTML."""
    from resnotes.book.rendering import notebook_page

    notebook = read(path)
    # Papermill's own note does not tell a notebook whose kernel died from one that went well.
    notebook.metadata[OUTCOME] = outcome
    write_atomic(path, nbformat.writes(notebook) + "\n")
    write_atomic(path.with_suffix(".html"), notebook_page(notebook, path.stem))


def _assignments(tree: ast.Module) -> list[tuple[str, ast.expr]]:
    """Names and values of the plain assignments that a parameters cell consists of."""
    pairs = []
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pairs.append((name, value))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pairs.append((name, value))
            case _:
                raise ValueError(f"line {statement.lineno} assigns no single name")
    return pairs


def _literal(text: str) -> Any:
    """`text` as a JSON or Python literal, or else as itself."""
    for parse in (json.loads, ast.literal_eval):  # JSON first: Python reads its surrogate pairs differently
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text


def _as_type_of(default: Any, value: Any) -> Any:
    """`value`, checked against the type of `default`; whole numbers become floats where those are meant.

    Raises:
        TypeError: it is of another type.
    """
    if default is None:
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return [_as_type_of(default[0], element) for element in value] if default else list(value)
    if type(value) is not type(default):
        raise TypeError(f"expects {type(default).__name__} like {default!r}, found {value!r}")
    return value


def _signature(book: Notebook) -> str:
    """`01_degradation takes profile='quick', seed=0`."""
    takes = ", ".join(f"{name}={default!r}" for name, default in book.parameters.items())
    return f"{book.stem} takes {takes or 'no parameters'}"


if __name__ == "__main__":
    with reporting_errors():
        refresh()
