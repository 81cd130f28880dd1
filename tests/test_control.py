"""The control of refactorings notices what it is there for."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.control import ROOT, differences, probe


@pytest.fixture(scope="module")
def before() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNOTES_DATA", "none")  # digits will do
        yield probe(ROOT, 2)


def changed(tree: Path, file: str, old: str, new: str) -> Path:
    """A copy of the package in which one thing is different."""
    for part in ("resnotes", "data/recorded", "data/papers", "pyproject.toml"):
        source = ROOT / part
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tree / part)
    path = tree / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return tree


def test_a_version_is_equal_to_itself(before: dict[str, Any]) -> None:
    assert before["data"] == "digits"
    assert before["recorded"]
    assert not differences(before, probe(ROOT, 2))


def test_other_arithmetic_is_noticed(before: dict[str, Any], tmp_path: Path) -> None:
    tree = changed(tmp_path, "resnotes/training/loop.py", "momentum=recipe.momentum", "momentum=1e-6 + recipe.momentum")
    assert differences(before, probe(tree, 2)) == ["weights differ", "history differ"]


def test_other_addresses_are_noticed(before: dict[str, Any], tmp_path: Path) -> None:
    tree = changed(tmp_path, "resnotes/runs/spec.py", 'separators=(",", ":")', 'separators=(", ", ":")')
    first, *others = differences(before, probe(tree, 2))
    assert first == "address differ"
    assert len(others) == len(before["recorded"])
