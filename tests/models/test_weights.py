"""Files of weights as people have them: read where they are weights, named for what they are where not."""

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from resnotes.errors import DatasetError
from resnotes.models.weights import read_weights, without_prefix

WEIGHTS = {"conv1.weight": torch.ones(1), "layer1.conv1.weight": torch.zeros(1), "fc.bias": torch.ones(1)}
WRAPPED = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
OTHERS = {"head.conv1.weight": torch.zeros(1), "other.layer1.conv1.weight": torch.ones(1)}


def written(path: Path, content: Any) -> Path:
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.pth", WEIGHTS),
        ("a.safetensors", save(WEIGHTS)),
        ("a.bin", save(WEIGHTS)),
        ("a.pth.tar", {"epoch": 3, "state_dict": WRAPPED, "optimizer": {"state": {}}, "best": torch.tensor(7.0)}),
        ("a.pt", {"model": {**OTHERS, **WRAPPED}, "step": 1}),
        ("a.bin", {"state_dict": WEIGHTS, "ema": OTHERS}),
    ],
)
def test_weights_are_found_under_the_names_of_the_network(tmp_path: Path, file: str, content: Any) -> None:
    state, _ = read_weights(written(tmp_path / file, content), "", "")
    assert without_prefix(state, WEIGHTS) == WEIGHTS


class Runs:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.system, ("touch pwned",)


MORE = "holds more than weights: .*{}.* trust it.* torch.save"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"is empty; expected a state dict .*; get it again"),
        (b"no file of PyTorch", r"is no file of weights, or damaged \(\w+\); expected a state dict .*; get it again"),
        (Runs(), MORE.format("system")),
        (nn.Linear(1, 1), MORE.format("Linear")),
        ({"state_dict": WEIGHTS, "args": Namespace()}, MORE.format("Namespace")),
        ({"a": torch.tensor([1.0, float("nan")])}, "holds NaN, or .*, first as a; get it again"),
        ({"a": torch.zeros(1, device="meta")}, "no plain finite numbers, first as a"),
        ([1, 2], "holds a list .*, expected a state dict"),
        ({"student": WEIGHTS, "teacher": WEIGHTS}, r"holds a dict \['student', 'teacher'\], expected"),
    ],
)
def test_what_is_no_state_dict_is_named_and_runs_nothing(
    tmp_path: Path, content: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=said):
        read_weights(written(tmp_path / "file.pth", content), "", "get it again")
    assert not (tmp_path / "pwned").exists()
