"""Weights of torchvision's, as if somebody had put them beside the data."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from resnotes.runs import RunSpec
from resnotes.training.recipe import Recipe

FILE = "resnet18.pth"


SPEC = RunSpec(
    model="pspnet-resnet18",
    dataset="scenes",
    seed=0,
    recipe=Recipe(iterations=1, batch_size=2, precision="float32"),
    options={"head_width": 4},
    data={"train": 2, "test": 1},
    pretrained=FILE,
)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A classifier's of torchvision, with BN statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).train()
    with torch.no_grad():
        network(torch.randn(2, 3, 64, 64))
    return dict(network.state_dict())


@pytest.fixture
def weights(root: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, in the folder of the data sets."""
    monkeypatch.setenv("RESNOTES_DATA", str(root))
    path = root / "weights" / FILE
    path.parent.mkdir()
    torch.save(state, path)
    return path
