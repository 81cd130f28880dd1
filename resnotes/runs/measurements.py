"""Measurements that a notebook keeps: made once, taken from the run store when the notebook is executed again.

A measurement is made again when anything changes that it could depend on: a line of this package, a number of a paper,
a cell executed before it, a run or data set that it is made on, a version. A cell that is executed twice in a session
is such a change, as variables may then have other values. What is kept is data alone; reading it executes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import linecache
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
import torch
from IPython.core.getipython import get_ipython
from torch import Tensor
from torch.utils._pytree import tree_map

import resnotes
from resnotes import paths, provenance
from resnotes.datasets import Classification, Segmentation
from resnotes.errors import ResnotesError
from resnotes.files import sealed, unsealed, write_atomic
from resnotes.runs.folder import Run

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

KEPT = 8  # measurements of one name: notebooks are executed with several parameters, and before and after changes
_DIGITS = 16  # of the hash in a file name
_TABLE = "a table"  # marks a dictionary that is one

Measurement = TypeVar("Measurement")


def measured_once(
    name: str, compute: Callable[[], Measurement], *, on: Iterable[Run | Classification | Segmentation | Path]
) -> Measurement:
    """What `compute` gives; in a notebook, kept in the run store, and not computed again while it would be the same.

    PyTorch's generator is left as it was, so that a computation which is skipped changes no later draw.

    Args:
        name: of the measurement, such as ``"03-pairs"``; part of a file name.
        compute: without arguments; gives a table (strings or numbers in columns named by strings), a tensor, a
            number, a string, None, or lists, tuples and dictionaries of these.
        on: the runs, data sets and files that it is made on.

    Raises:
        TypeError: `compute` gives something else.
        RunError: a run is damaged.
    """
    shell = get_ipython()
    if shell is None:
        return compute()
    folder = paths.runs_root() / ".measurements"
    path = folder / f"{name}-{_key(name, _cells(shell), on)}"
    with contextlib.suppress(OSError):
        if (content := unsealed(path.read_bytes())) is not None:
            kept: Measurement = _restored(content)
            return kept
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        found = compute()
    content = _stored(found)
    with contextlib.suppress(OSError):  # a store that may not be written to, or a full disk
        write_atomic(path, sealed(content))
        for old in sorted(folder.glob(f"{name}-{'?' * _DIGITS}"), key=lambda each: -each.stat().st_mtime)[KEPT:]:
            old.unlink(missing_ok=True)
    return found


def published_once(name: str, measure: Callable[[], pd.DataFrame], *, anew: bool) -> pd.DataFrame:
    """What was measured on published networks, as it comes with the repository in `data/published/{name}.csv`.

    Args:
        name: of the measurement.
        measure: makes it, which takes the networks' weights and CIFAR-10, and minutes.
        anew: make it, and write it with the version of the code; else read what is there.

    Raises:
        ResnotesError: there is none yet, and it is not to be made.
    """
    return _once(paths.published_root() / f"{name}.csv", measure, anew, "evaluate_published")


def recorded_once(name: str, measure: Callable[[], pd.DataFrame], *, anew: bool) -> pd.DataFrame:
    """What was measured on recorded runs, in `data/recorded/measurements/{name}.csv`; all else as `published_once`."""
    return _once(paths.recorded_root() / "measurements" / f"{name}.csv", measure, anew, "measure_recorded")


def _once(path: Path, measure: Callable[[], pd.DataFrame], anew: bool, parameter: str) -> pd.DataFrame:
    if anew:
        table = measure().assign(**provenance.code_version())
        write_atomic(path, table.to_csv(index=False, float_format="%.6g").encode())
    if not path.exists():
        raise ResnotesError(f"{path} is not there; with {parameter}=True the notebook makes it")
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])  # "NA" may be a name
    return table.fillna(dict.fromkeys(table.columns.difference(table.select_dtypes("number").columns), ""))


def _cells(shell: InteractiveShell) -> list[str]:
    """The cells that were executed, the one at work last."""
    history: list[str] = shell.user_ns["In"]
    if len(history) > 1:
        return history
    # nbval has no history kept; for tracebacks each cell is kept once all the same.
    names = [name for name in linecache.cache if shell.compile.format_code_name(name)]
    return [*history, *("".join(linecache.getlines(name)).rstrip("\n") for name in names)]


def _key(name: str, cells: Iterable[str], on: Iterable[Any]) -> str:
    """A hash of all that a measurement could depend on."""
    parts = [name, list(cells), [_identity(each) for each in on], _code(), provenance.versions()]
    text = json.dumps([*parts, torch.get_num_threads()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _identity(thing: Any) -> Any:
    if isinstance(thing, Run):
        return thing.facts["files"]
    if isinstance(thing, Path):
        return hashlib.sha256(thing.read_bytes()).hexdigest()
    return [thing.variant, thing.fingerprint, *thing.sizes]  # a subset has the fingerprint of the whole


@functools.cache
def _code() -> dict[str, str]:
    """Hashes of the files of this package, and of the papers' numbers."""
    roots = (Path(resnotes.__file__).parent, paths.papers_root())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for root in roots
        for path in root.rglob("*")
        if path.suffix in {".py", ".toml", ".csv"}
    }


def _stored(value: Any) -> bytes:
    """A file of `torch.save`, which tells no type of class but tensors; tables are dictionaries in it.

    Raises:
        TypeError: what is stored would not be read back.
    """
    buffer = io.BytesIO()
    try:
        torch.save(tree_map(_plain, value), buffer)
        _restored(buffer.getvalue())
    except Exception as error:  # of whatever cannot be pickled, or unpickled without running code
        raise TypeError(
            f"a measurement cannot keep {type(value).__name__} {value!r:.100}; give tables, tensors or numbers"
        ) from error
    return buffer.getvalue()


def _restored(content: bytes) -> Any:
    stored = torch.load(io.BytesIO(content), weights_only=True)
    return tree_map(_built, stored, is_leaf=lambda each: isinstance(each, dict) and _TABLE in each)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()  # of a view, not all that it is a view of
    if isinstance(value, pd.DataFrame):
        types = [str(value.index.dtype), *value.dtypes.astype(str)]
        return {_TABLE: value.to_dict("tight"), "types": types}
    return value


def _built(value: Any) -> Any:
    if not (isinstance(value, dict) and _TABLE in value):
        return value
    table = pd.DataFrame.from_dict(value[_TABLE], orient="tight", dtype=object)
    index, *columns = value["types"]
    return table.set_axis(table.index.astype(index)).astype(dict(zip(table.columns, columns, strict=True)))
