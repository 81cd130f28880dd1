"""Measurements that a notebook keeps: made once, taken from the run store when the notebook is executed again.

A measurement is made again when anything changes that it could depend on: a line of this package, a number of a paper,
a cell executed before it, a run or data set that it is made on, a version. A cell that is executed twice in a session
is such a change, as variables may then have other values. What is kept is data alone; reading it executes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from IPython.core.getipython import get_ipython
from safetensors.torch import load as load_tensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

import resnotes
from resnotes import paths, provenance
from resnotes.datasets import Classification, Segmentation
from resnotes.files import sealed, unsealed, write_atomic
from resnotes.runs.folder import Run

KEPT = 8  # measurements of one name: notebooks are executed with several parameters, and before and after changes
_DIGITS = 16  # of the hash in a file name

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
    path = folder / f"{name}-{_key(name, shell.user_ns['In'], on)}"
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
    """A safetensors file; how its tensors make up the value is in one of them, as JSON."""
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_described(value, tensors)).encode()
    return to_safetensors({**tensors, "structure": torch.frombuffer(bytearray(structure), dtype=torch.uint8)})


def _described(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its arrays are put into `tensors`."""
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(each, tensors) for each in value]}
    if type(value) is dict:
        return {"dict": [[_described(key, tensors), _described(each, tensors)] for key, each in value.items()]}
    if type(value) is Tensor:
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if type(value) is pd.DataFrame and all(type(column) is str for column in value.columns):
        columns = [_column(value[name], tensors) for name in value.columns]
        return {"table": columns, "index": _column(value.index.to_series(), tensors)}
    raise TypeError(f"a measurement cannot keep {type(value).__name__} {value!r:.100}; give tables, tensors or numbers")


def _column(column: pd.Series[Any], tensors: dict[str, Tensor]) -> Any:
    numbers = isinstance(column.dtype, np.dtype) and column.dtype.kind in "bif"
    values = torch.from_numpy(column.to_numpy(copy=True)) if numbers else column.astype(object).tolist()
    return {"name": column.name, "dtype": str(column.dtype), "values": _described(values, tensors)}


def _restored(content: bytes) -> Any:
    tensors = load_tensors(content)
    return _built(json.loads(tensors["structure"].numpy().tobytes()), tensors)


def _built(structure: Any, tensors: dict[str, Tensor]) -> Any:
    match structure:
        case {"value": value}:
            return value
        case {"tensor": name}:
            return tensors[name]
        case {"list": several}:
            return [_built(each, tensors) for each in several]
        case {"tuple": several}:
            return tuple(_built(each, tensors) for each in several)
        case {"dict": pairs}:
            return {_built(key, tensors): _built(value, tensors) for key, value in pairs}
    index = pd.Index(_built_column(structure["index"], tensors))
    columns = [_built_column(column, tensors).set_axis(index) for column in structure["table"]]
    return pd.concat(columns, axis=1) if columns else pd.DataFrame(index=index)


def _built_column(column: Any, tensors: dict[str, Tensor]) -> pd.Series[Any]:
    values = _built(column["values"], tensors)
    values = values.numpy() if isinstance(values, Tensor) else values
    built: pd.Series[Any] = pd.Series(values, dtype=column["dtype"], name=column["name"])
    return built
