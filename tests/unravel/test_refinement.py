"""What blocks add to an estimate, against autograd by hand, image by image."""

import copy
import math

import pytest
import torch
from kit.networks import build
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.models import Block, Network
from resnotes.unravel import refinement

IMAGES = torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([3, 1, 4, 1, 5, 9])
MEASURES = ["cosine", "norm_ratio", "angle", "lens_error", "lens_loss"]


def cosine(first: Tensor, second: Tensor) -> float:
    return (first.flatten() @ second.flatten() / (first.norm() * second.norm())).item()


def by_hand(network: Network, block: int) -> list[float]:
    """The measures at a block, from one image at a time; NaN where there are none."""
    rows = []
    for image, label in zip(IMAGES[:, None], LABELS[:, None], strict=True):
        x = network.stem(image)
        for before in network.blocks[:block]:
            x = before(x)
        x = x.detach().requires_grad_()
        y = z = network.blocks[block](x)
        for behind in network.blocks[block + 1 :]:
            z = behind(z)
        (gradient,) = torch.autograd.grad(F.cross_entropy(network.head(z), label), x)
        unit = network.blocks[block]
        added, skipped = unit.residual(x), None if unit.shortcut is None else unit.shortcut(x)
        fits = y.shape[1] == network.head.fc.in_features
        lens = network.head(y) if fits else None
        rows.append(
            [
                cosine(added, -gradient) if skipped is not None and added.shape == x.shape else math.nan,
                (added.norm() / skipped.norm()).item() if skipped is not None else math.nan,
                math.degrees(math.acos(cosine(x, y))) if x.shape == y.shape else math.nan,
                100.0 * (lens.argmax() != label).item() if lens is not None else math.nan,
                F.cross_entropy(lens, label).item() if lens is not None else math.nan,
            ]
        )
    return torch.tensor(rows, dtype=torch.float64).mean(0).tolist()


@pytest.mark.parametrize("name", ["resnet-14", "preresnet-14", "plain-14"])
def test_measures_are_those_by_hand(name: str) -> None:
    network = build(name)
    found = refinement(network, IMAGES, LABELS)
    assert found.block.tolist() == list(range(6))
    for block in range(6):
        expected = by_hand(network, block)
        assert found.loc[block, MEASURES].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)
    assert found.lens_error.isna().tolist() == [True, True, True, True, False, False]


def test_tiny_gradients_have_a_direction_in_float32() -> None:
    """Their squares are below what float32 can hold."""
    network, faint = build("resnet-14"), build("resnet-14").float()
    for each in (network, faint):
        each.head.fc.weight.data *= 1e-25
    expected = refinement(network, IMAGES, LABELS).cosine
    assert refinement(faint, IMAGES.float(), LABELS).cosine.to_numpy() == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_in_training_mode_the_lens_of_the_last_block_is_the_loss_on_the_batch() -> None:
    network = build("preresnet-14").train()
    loss = F.cross_entropy(copy.deepcopy(network)(IMAGES), LABELS).item()
    assert refinement(network, IMAGES, LABELS).lens_loss[5] == pytest.approx(loss)


def test_an_image_that_a_branch_does_not_move_does_not_count() -> None:
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    network = Network(nn.Identity(), [Block(nn.ReLU(), nn.Identity(), nn.Identity())], head)
    images, labels = torch.rand(2, 3, 2, 2) * torch.tensor([-1, 1])[:, None, None, None], torch.tensor([1, 2])
    [both], [moved] = (refinement(network, images[i:], labels[i:]).cosine for i in (0, 1))
    assert both == pytest.approx(moved) and moved != 0


def test_an_image_without_logits_is_wrong_and_no_other() -> None:
    class Head(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x.flatten(1))
            return logits + torch.zeros(len(x), 1).index_fill(0, torch.tensor([0]), torch.nan)

    torch.manual_seed(0)
    head = Head(12, 5)
    network = Network(nn.Identity(), [Block(nn.ReLU(), nn.Identity(), nn.Identity())], head)
    images = torch.rand(4, 3, 2, 2)
    labels = nn.Linear.forward(head, 2 * images.flatten(1)).argmax(1)
    assert refinement(network, images, labels).lens_error.tolist() == [25]
