"""What is measured once is the same when it is read, and is measured again after any change that could matter."""

from __future__ import annotations

import dataclasses
import linecache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from IPython.core.interactiveshell import InteractiveShell
from kit.runs import SHORT

from resnotes import datasets, provenance
from resnotes.errors import ResnotesError
from resnotes.runs import measurements
from resnotes.runs.measurements import measured_once, published_once, recorded_once
from resnotes.runs.store import RunStore


class Notebook:
    """Cells that were executed, and how often something was measured in them."""

    def __init__(self) -> None:
        self.user_ns: dict[str, Any] = {"In": ["", "x = 1", "def f(): ..."]}
        self.count = 0

    def measure(self, value: Any = 1, name: str = "a", **options: Any) -> Any:
        def compute() -> Any:
            self.count += 1
            return value

        return measured_once(name, compute, **{"on": [], **options})


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    notebook = Notebook()
    monkeypatch.setenv("RESNOTES_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(measurements, "get_ipython", lambda: notebook)
    return notebook


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "runs" / ".measurements").glob("*"))


# What is kept

numbers = stn.arrays(
    st.sampled_from(["int64", "int32", "uint8", "float32", "float64", "bool"]), st.shared(st.integers(0, 5), key="rows")
)
texts = st.shared(st.integers(0, 5), key="rows").flatmap(
    lambda rows: st.lists(st.text() | st.none(), min_size=rows, max_size=rows)
)
mixed = st.shared(st.integers(0, 5), key="rows").flatmap(
    lambda rows: st.lists(st.none() | st.integers() | st.booleans(), min_size=rows, max_size=rows).map(
        lambda values: pd.Series(values, dtype=object)
    )
)
tables = st.dictionaries(st.text(max_size=5), numbers | texts | mixed, max_size=4).map(pd.DataFrame)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables, start=st.integers(-3, 3))
def test_a_table_is_what_it_was(notebook: Notebook, table: pd.DataFrame, start: int) -> None:
    table.index = pd.RangeIndex(start, start + len(table), name="row") if start else table.index
    table = pd.concat([table, table])  # an index that repeats itself
    restored = measurements._restored(measurements._stored(table))
    pd.testing.assert_frame_equal(restored, table, check_exact=True, check_index_type="equiv", check_column_type=False)


@given(st.recursive(leaves, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(leaves, inner)))
def test_a_value_is_what_it_was(value: Any) -> None:
    assert repr(measurements._restored(measurements._stored(value))) == repr(value)  # in which NaN is NaN, 1 is not 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_a_tensor_is_what_it_was(notebook: Notebook, dtype: torch.dtype) -> None:
    tensor = torch.randint(2, (3, 4)).to(dtype).T  # not contiguous
    for _ in range(2):
        found = notebook.measure({"t": [tensor, tensor]})
        assert all(each.dtype == dtype and each.equal(tensor) for each in found["t"])
    assert notebook.count == 1


@pytest.mark.parametrize("value", [np.float64(1), pd.Series([1]), lambda: 1, [{"a": object()}]])
def test_what_cannot_be_kept_is_named(notebook: Notebook, tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="a measurement cannot keep"):
        notebook.measure(value)
    assert kept(tmp_path) == []


# When it is made again


def test_once_is_enough(notebook: Notebook) -> None:
    assert [notebook.measure(), notebook.measure(), notebook.measure(name="b")] == [1, 1, 1]
    assert notebook.count == 2


def test_a_change_around_it(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is taken back: x is not what it was when 2 was measured, though the same cell is the last."""
    for number, x in enumerate((1, 2, 1)):
        notebook.user_ns["In"].append(f"x = {x}")
        assert notebook.measure(number) == number
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "0"})
    assert notebook.measure("version") == "version"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert notebook.measure("threads") == "threads"


def test_cells_count_where_no_history_of_them_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in nbval; and what it measured serves whoever executes the same cells with a history."""
    monkeypatch.setenv("RESNOTES_RUNS", str(tmp_path / "runs"))
    found = []
    for x, history in ((1, False), (2, False), (2, True), (1, True)):
        shell = InteractiveShell(ipython_dir=str(tmp_path))
        monkeypatch.setattr(linecache, "cache", {})  # as in a new process
        monkeypatch.setattr(measurements, "get_ipython", lambda shell=shell: shell)
        for cell in ("from resnotes.runs.measurements import measured_once", f"x = {x}\n", "%pwd"):
            shell.run_cell(cell, store_history=history).raise_error()
        shell.user_ns["number"] = len(found)
        shell.run_cell("found = measured_once('a', lambda: [x, number], on=[])", store_history=history).raise_error()
        found.append(shell.user_ns["found"])
    assert found == [[1, 0], [2, 1], [2, 1], [1, 0]]


@pytest.mark.parametrize("changed", ["package/inner/module.py", "package/quick.toml", "papers/he2015.csv"])
def test_a_change_of_the_package_or_of_a_papers_number(
    notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    monkeypatch.setattr(measurements, "resnotes", SimpleNamespace(__file__=str(tmp_path / "package" / "__init__.py")))
    monkeypatch.setattr(measurements.paths, "papers_root", lambda: tmp_path / "papers")
    (tmp_path / changed).parent.mkdir(parents=True)
    for number, text in enumerate(("a = 1", "a = 2"), start=1):
        (tmp_path / changed).write_text(text)
        measurements._code.cache_clear()
        assert notebook.measure(number) == number
    measurements._code.cache_clear()


def test_a_change_of_what_it_is_made_on(notebook: Notebook, tmp_path: Path) -> None:
    store = RunStore(recorded=tmp_path / "none")
    run, other = (store.get(dataclasses.replace(SHORT, seed=seed), device="cpu") for seed in (0, 1))
    assert run.name != other.name
    data, file = datasets.load("digits"), tmp_path / "weights"
    file.write_text("1")
    things: list[list[Any]] = [[run], [other], [run, other], [data], [data.train_subset(50)], [file]]
    for number, on in enumerate(things):
        assert notebook.measure(number, on=on) == number
    file.write_text("2")
    assert notebook.measure("changed", on=[file]) == "changed"
    assert [notebook.measure("again", on=on) for on in things[:5]] == list(range(5))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_what_is_damaged_is_made_again(notebook: Notebook, tmp_path: Path, damage: str) -> None:
    notebook.measure(torch.arange(5))
    [path] = kept(tmp_path)
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"cut": content[:-1], "flipped": flipped, "empty": b""}[damage])
    assert notebook.measure(7) == 7
    assert notebook.measure(8) == 7


def test_outside_of_notebooks_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNOTES_RUNS", str(tmp_path / "runs"))
    assert [measured_once("a", iter(values).__next__, on=[]) for values in ([1], [2])] == [1, 2]
    assert kept(tmp_path) == []


# Around it


def test_random_numbers_afterwards_are_the_same(notebook: Notebook) -> None:
    after = []
    for _ in range(2):
        torch.manual_seed(3)
        measured_once("drawn", lambda: torch.rand(5), on=[])
        after.append(torch.rand(3))
    assert after[0].equal(after[1])


def test_a_store_without_room_keeps_nothing(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(measurements, "write_atomic", full)
    assert [notebook.measure(1), notebook.measure(2)] == [1, 2]


def test_old_measurements_make_room(notebook: Notebook, tmp_path: Path) -> None:
    notebook.measure(name="a-other")  # of another name, though it begins alike
    for number in range(measurements.KEPT + 3):
        notebook.user_ns["In"] = ["", str(number)]
        notebook.measure(number)
    assert len(kept(tmp_path)) == measurements.KEPT + 1
    assert notebook.measure("again") == number


# What comes with the repository


@pytest.mark.parametrize(
    ("once", "root"),
    [(published_once, "published_root"), (recorded_once, "recorded_root")],
    ids=["published", "recorded"],
)
def test_what_is_kept_is_made_only_when_asked_for(
    once: Any, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements.paths, root, lambda: tmp_path)
    table = pd.DataFrame({"network": ["NA", "", "b"], "value": [1.5, np.nan, 1 / 3], "k": [1, 2, 3]})

    def never() -> pd.DataFrame:
        raise AssertionError("it is there")

    with pytest.raises(ResnotesError, match=r"lengths\.csv is not there; with \w+=True the notebook makes it"):
        once("lengths", never, anew=False)
    for found in (once("lengths", lambda: table, anew=True), once("lengths", never, anew=False)):
        pd.testing.assert_frame_equal(found[list(table)], table, check_dtype=False, rtol=1e-5)
        assert {"commit", "dirty"} <= set(found), "says which code made it"
