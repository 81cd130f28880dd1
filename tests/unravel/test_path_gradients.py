"""Gradients by path length, against every single path, polynomials of matrices and autograd."""

import copy
import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from kit.networks import build, first_gradient
from torch import Tensor
from torch.nn import functional as F

from resnotes import models
from resnotes.errors import UsageError
from resnotes.models import Network
from resnotes.unravel import (
    gradients,
    gradients_along,
    length_distribution,
    mean_length,
    path_gradients,
    path_norms,
    path_shares,
    share_of_lengths,
    unit_shares,
)

IMAGES = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([3, 1, 4, 1])

# Six units each, unless the name says otherwise; down-sampling ones among them.
NETWORKS: list[tuple[str, dict[str, object]]] = [
    ("resnet-14", {}),
    ("preresnet-14", {}),
    ("preresnet-14", {"shortcut": "C"}),
    ("resnet-14", {"order": "bn-after-addition"}),
    ("preresnet-14", {"shortcut": "scaling:0.5,2"}),
    ("resnet-14", {"shortcut": "shortcut-gating:-1"}),
    ("preresnet-14", {"batch_norm": False, "alpha": 0.7}),
    ("bottleneck-20", {}),
    ("plain-14", {}),
]
IDS = [models.label(*network) for network in NETWORKS]


def one_path(network: Network, branches: tuple[bool, ...]) -> Tensor:
    """The gradient along one path: autograd on a network with the same values, all other ways detached."""
    network = copy.deepcopy(network)
    x = start = network.stem(IMAGES).detach().requires_grad_()
    for block, branch in zip(network.blocks, branches, strict=True):
        residual = block.residual(x)
        shortcut = torch.zeros_like(residual) if block.shortcut is None else block.shortcut(x)
        x = block.after(shortcut.detach() + residual if branch else shortcut + residual.detach())
    loss = F.cross_entropy(network.head(x), LABELS, reduction="sum")
    (found,) = torch.autograd.grad(loss, start, allow_unused=True)
    return torch.zeros_like(start) if found is None else found


def every_path(n: int) -> list[tuple[bool, ...]]:
    return list(itertools.product([False, True], repeat=n))


# Against every single path


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=IDS)
def test_each_length_is_the_sum_over_its_paths(name: str, options: dict[str, object], training: bool) -> None:
    network = build(name, **options).train(training)
    assert len(network.blocks) == 6
    paths = every_path(6)
    singly = torch.stack([one_path(network, path) for path in paths])
    scale = singly.abs().max().item()
    found = path_gradients(network, IMAGES, LABELS)
    assert found.shape == (7, *singly.shape[1:])
    for k in range(7):
        expected = singly[[sum(path) == k for path in paths]].sum(0)
        torch.testing.assert_close(found[k], expected, rtol=0, atol=1e-12 * scale * math.comb(6, k))
    along = gradients_along(network, IMAGES, LABELS, torch.tensor(paths))
    torch.testing.assert_close(along, singly, rtol=0, atol=1e-12 * scale)
    passing, total = torch.tensor(paths, dtype=torch.float64).T, singly.flatten(1).sum(0)
    of_units = passing @ (singly.flatten(1) @ total) / (total @ total)
    torch.testing.assert_close(unit_shares(network, IMAGES, LABELS), of_units, rtol=1e-8, atol=1e-8)
    assert of_units.sum() == pytest.approx(mean_length(path_shares(found).share), rel=1e-8)
    if name != "plain-14":
        assert found.flatten(1).norm(dim=1).min() > 1e-9 * scale, "every length has a gradient"


@pytest.mark.parametrize("at_once", [1, 700])
def test_how_many_go_back_at_once_does_not_matter(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("preresnet-14", shortcut="C")
    expected, paths = path_gradients(network, IMAGES, LABELS), torch.tensor(every_path(6))
    along = gradients_along(network, IMAGES, LABELS, paths)
    monkeypatch.setattr(gradients, "_AT_ONCE", at_once)
    torch.testing.assert_close(path_gradients(network, IMAGES, LABELS), expected, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(gradients_along(network, IMAGES, LABELS, paths), along, rtol=1e-10, atol=1e-13)


# Against autograd


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
@pytest.mark.parametrize("name", ["preresnet-20", "resnet-56"])
def test_all_lengths_together_are_the_gradient(name: str, dtype: torch.dtype, within: float, training: bool) -> None:
    network = build(name).to(dtype).train(training)
    images = IMAGES.to(dtype)
    expected = first_gradient(network, images, LABELS)
    found = path_gradients(network, images, LABELS)
    assert found.dtype == dtype
    if training:
        within *= 3  # BN on the statistics of few images multiplies rounding errors, autograd's own as well
    assert (found.sum(0) - expected).norm() < within * expected.norm()


def test_dropout_that_drops_nothing_is_none() -> None:
    with_it, without = build("resnet-8", shortcut="dropout:0").train(), build("resnet-8").train()
    without.load_state_dict(with_it.state_dict())
    torch.testing.assert_close(path_gradients(with_it, IMAGES, LABELS), path_gradients(without, IMAGES, LABELS))


# Branches with random signs


@pytest.mark.parametrize("name", ["preresnet-8", "resnet-8"])
@pytest.mark.parametrize("training", [False, True])
def test_over_all_signs_the_paths_are_orthogonal(name: str, training: bool) -> None:
    network = build(name).train(training)
    paths = torch.tensor(every_path(3))
    squares = gradients_along(network, IMAGES, LABELS, paths).flatten(1).square().sum(1)
    expected = torch.stack([squares[paths.sum(1) == k].sum() for k in range(4)])
    drawn = path_norms(network, IMAGES, LABELS, 60, torch.Generator().manual_seed(0))
    assert drawn.shape == (60, 4)
    patterns = {tuple(f"{value:.6e}" for value in row): row for row in drawn.tolist()}
    assert len(patterns) == 4  # of the eight, each pattern and its opposite give the same norms
    torch.testing.assert_close(torch.tensor([*patterns.values()], dtype=torch.float64).mean(0), expected)


def test_signs_are_drawn_from_the_generator() -> None:
    network = build("resnet-14")
    first, again, other = (
        path_norms(network, IMAGES, LABELS, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_tiny_gradients_have_a_norm_in_float32() -> None:
    """Their squares are below what float32 can hold."""
    network = build("preresnet-14", shortcut="scaling:0.00001").float()
    found = path_norms(network, IMAGES.float(), LABELS, 1, torch.Generator())[0, 0].sqrt()
    expected = one_path(network.double(), (False,) * 6).norm().item()
    assert expected < 1e-25
    assert found.item() == pytest.approx(expected, rel=1e-4)


# Summaries


def test_shares_are_those_of_the_definition() -> None:
    found = path_gradients(build("preresnet-14"), IMAGES, LABELS)
    shares = path_shares(found)
    total = found.sum(0)
    assert shares.length.tolist() == list(range(7))
    assert shares.paths.tolist() == [1, 6, 15, 20, 15, 6, 1]
    assert shares.norm.tolist() == pytest.approx([part.norm().item() for part in found], rel=1e-12)
    assert shares.share.sum() == pytest.approx(1, abs=1e-12)
    assert shares.norm_share.sum() == pytest.approx(1, abs=1e-12)
    assert shares.share[2] == pytest.approx(((found[2] * total).sum() / (total * total).sum()).item(), rel=1e-10)


def test_an_image_has_the_shares_that_it_has_alone() -> None:
    network = build("preresnet-14")
    alone = path_shares(path_gradients(network, IMAGES[2:3], LABELS[2:3]))
    pd.testing.assert_frame_equal(path_shares(path_gradients(network, IMAGES, LABELS)[:, 2]), alone)


def test_lengths_that_cancel_have_shares_below_zero() -> None:
    shares = path_shares(torch.tensor([[3.0, 0], [-1, 0], [0, 1]]))
    assert shares.share.tolist() == pytest.approx([6 / 5, -2 / 5, 1 / 5])
    assert shares.norm_share.tolist() == pytest.approx([3 / 5, 1 / 5, 1 / 5])


def test_numbers_of_paths_are_exact_beyond_64_bits() -> None:
    assert path_shares(torch.ones(109, 1)).paths[54] == math.comb(108, 54)


def test_mean_length_of_paths_is_half_the_units() -> None:
    assert mean_length(length_distribution(54)) == pytest.approx(27, rel=1e-12)
    assert mean_length([0, 0, 5, 0]) == 2


# Path lengths are binomial


@pytest.mark.parametrize("n", [0, 1, 2, 9, 12])
def test_lengths_are_counted_over_all_paths(n: int) -> None:
    counts = [0] * (n + 1)
    for path in itertools.product([0, 1], repeat=n):
        counts[sum(path)] += 1
    assert length_distribution(n) == [Fraction(count, 2**n) for count in counts]
    assert sum(length_distribution(n)) == 1


def test_shares_of_lengths_in_the_paper() -> None:
    """0.45 % from 5 to 17 is what the paper says, too; of the paths from 19 to 35 it says 95 %."""
    assert share_of_lengths(54, 19, 35) == 1 - 2 * share_of_lengths(54, 0, 18)
    assert f"{float(share_of_lengths(54, 19, 35)):.4f}" == "0.9802"
    assert f"{float(share_of_lengths(54, 5, 17)):.6f}" == "0.004537"
    assert share_of_lengths(54, 0, 54) == 1
    assert share_of_lengths(3, 1, 1) == Fraction(3, 8)


# What is refused


NARROW = build("resnet-8")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (lambda weights=weights: mean_length(weights), "weights must be finite, and their sum not 0")
            for weights in ([], [1.0, -1.0], [1.0, math.nan])
        ),
        (lambda: path_norms(NARROW, IMAGES, LABELS, 0, torch.Generator()), "draws must be at least 1, found 0"),
        (lambda: gradients_along(NARROW, IMAGES, LABELS, torch.ones(0, 3).bool()), r"\[P, 3\] .*found bool \[0, 3\]"),
        (lambda: gradients_along(NARROW, IMAGES, LABELS, torch.ones(1, 3).int()), r"bool \[P, 3\] .*found int32"),
        (lambda: path_shares(torch.zeros(3, 2)), "gradient that is finite and not zero"),
        (lambda: share_of_lengths(3, 2, 1), "0 <= first <= last <= 3, found 2 to 1"),
    ],
)
def test_other_arguments_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_paths_may_be_lists_or_arrays() -> None:
    paths = [[True, False, True], [False, False, False]]
    expected = gradients_along(NARROW, IMAGES, LABELS, torch.tensor(paths))
    for given_as in (paths, np.array(paths)):
        assert torch.equal(gradients_along(NARROW, IMAGES, LABELS, given_as), expected)  # type: ignore[arg-type]
