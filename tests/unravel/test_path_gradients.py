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
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.networks import small
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import models
from resnotes.errors import UsageError
from resnotes.models import Block, Network
from resnotes.unravel import (
    coherence,
    gradients,
    gradients_along,
    length_distribution,
    mean_length,
    path_gradients,
    path_shares,
    sampled_path_gradients,
    share_of_lengths,
    shortest_interval,
)

IMAGES = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([3, 1, 4, 1])

# Six units each, unless the name says otherwise; down-sampling ones among them.
NETWORKS: list[tuple[str, dict[str, object]]] = [
    ("resnet-14", {}),
    ("preresnet-14", {}),
    ("resnet-14", {"shortcut": "B"}),
    ("preresnet-14", {"shortcut": "C"}),
    ("resnet-14", {"order": "bn-after-addition"}),
    ("resnet-14", {"order": "relu-before-addition"}),
    ("resnet-14", {"order": "relu-only-pre-activation"}),
    ("preresnet-14", {"shortcut": "scaling:0.5,2"}),
    ("preresnet-14", {"shortcut": "exclusive-gating:0"}),
    ("resnet-14", {"shortcut": "shortcut-gating:-1"}),
    ("preresnet-14", {"batch_norm": False}),
    ("bottleneck-20", {}),
    ("plain-14", {}),
]
IDS = [models.label(*network) for network in NETWORKS]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(name: str, **options: object) -> Network:
    """Narrow, in float64, with BN of its own in every layer."""
    return small(name, in_channels=1, **options)


def inputs_of(network: Network, images: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Every unit's input and the last one's output, and autograd's gradients of the summed cross-entropy there."""
    signals = [copy.deepcopy(network.stem)(images)]
    for block in copy.deepcopy(network.blocks):
        signals.append(block(signals[-1]))
    loss = F.cross_entropy(copy.deepcopy(network.head)(signals[-1]), labels, reduction="sum")
    found = torch.autograd.grad(loss, signals)
    return [signal.detach() for signal in signals], list(found)


def one_path(network: Network, branches: tuple[bool, ...], images: Tensor, labels: Tensor) -> Tensor:
    """The gradient along one path: autograd on a network with the same values, all other ways detached."""
    network = copy.deepcopy(network)
    x = start = network.stem(images).detach().requires_grad_()
    for block, branch in zip(network.blocks, branches, strict=True):
        residual = block.residual(x)
        shortcut = torch.zeros_like(residual) if block.shortcut is None else block.shortcut(x)
        total = shortcut.detach() + residual if branch else shortcut + residual.detach()
        x = block.after(total)
    loss = F.cross_entropy(network.head(x), labels, reduction="sum")
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
    singly = torch.stack([one_path(network, path, IMAGES, LABELS) for path in paths])
    scale = singly.abs().max().item()
    found = path_gradients(network, IMAGES, LABELS)
    assert found.shape == (7, *singly.shape[1:])
    for k in range(7):
        expected = singly[[sum(path) == k for path in paths]].sum(0)
        torch.testing.assert_close(found[k], expected, rtol=0, atol=1e-12 * scale * math.comb(6, k))
    along = gradients_along(network, IMAGES, LABELS, torch.tensor(paths))
    torch.testing.assert_close(along, singly, rtol=0, atol=1e-12 * scale)
    if name != "plain-14":
        assert found.flatten(1).norm(dim=1).min() > 1e-9 * scale, "every length has a gradient"


@pytest.mark.parametrize("at_once", [1, 700, 2**30])
@pytest.mark.parametrize(("name", "options"), NETWORKS[5:8], ids=IDS[5:8])
def test_how_many_go_back_at_once_does_not_matter(
    name: str, options: dict[str, object], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(name, **options)
    paths = torch.tensor(every_path(6))[::5]
    expected = path_gradients(network, IMAGES, LABELS), gradients_along(network, IMAGES, LABELS, paths)
    norms = sampled_path_gradients(network, IMAGES, LABELS, draws=2)
    monkeypatch.setattr(gradients, "_AT_ONCE", at_once)
    monkeypatch.setattr(gradients, "_PATHS_AT_ONCE", 4 * at_once)
    found = path_gradients(network, IMAGES, LABELS), gradients_along(network, IMAGES, LABELS, paths)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    pd.testing.assert_frame_equal(sampled_path_gradients(network, IMAGES, LABELS, draws=2), norms, rtol=1e-10)


@given(
    st.sampled_from(["resnet-8", "preresnet-8"]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 10**6),
    st.sampled_from(["A", "B", "C", "scaling:0.3", "scaling:-1,0.5", "exclusive-gating:1", "shortcut-gating:-2"]),
    st.booleans(),
)
@settings(max_examples=25)
def test_tiny_random_networks(name: str, width: int, images: int, seed: int, shortcut: str, training: bool) -> None:
    torch.manual_seed(seed)
    network = build(name, width=width, shortcut=shortcut).train(training)
    pixels, labels = torch.randn(images, 1, 8, 8, dtype=torch.float64), torch.randint(0, 10, (images,))
    found = path_gradients(network, pixels, labels)
    singly = {path: one_path(network, path, pixels, labels) for path in every_path(3)}
    scale = max(gradient.abs().max().item() for gradient in singly.values())
    for k in range(4):
        expected = sum(gradient for path, gradient in singly.items() if sum(path) == k)
        torch.testing.assert_close(found[k], expected, rtol=0, atol=1e-11 * scale)


# Against autograd


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
@pytest.mark.parametrize("name", ["preresnet-20", "resnet-56"])
def test_all_lengths_together_are_the_gradient(name: str, dtype: torch.dtype, within: float, training: bool) -> None:
    network = build(name).to(dtype).train(training)
    images = IMAGES.to(dtype)
    expected = inputs_of(network, images, LABELS)[1][0]
    found = path_gradients(network, images, LABELS)
    assert found.dtype == dtype
    if training:
        within *= 3  # BN on the statistics of few images multiplies rounding errors, autograd's own as well
    assert (found.sum(0) - expected).norm() < within * expected.norm()


def test_views_and_repeated_gradients_do_no_harm() -> None:
    """The input of the first unit is a slice, and the gradient at the output of the last is one number per map."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((2, 3))

    class Slice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :, ::2, 1:].expand(-1, 4, -1, -1)

    network = build("preresnet-14")
    network.stem, network.head = Slice(), Sum()
    paths = every_path(6)
    singly = torch.stack([one_path(network, path, IMAGES, LABELS) for path in paths])
    along = gradients_along(network, IMAGES, LABELS, torch.tensor(paths))
    torch.testing.assert_close(along, singly, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(path_gradients(network, IMAGES, LABELS).sum(0), singly.sum(0), rtol=1e-9, atol=1e-9)


def test_dropout_that_drops_nothing_is_none() -> None:
    with_it, without = build("resnet-8", shortcut="dropout:0").train(), build("resnet-8").train()
    without.load_state_dict(with_it.state_dict())
    torch.testing.assert_close(path_gradients(with_it, IMAGES, LABELS), path_gradients(without, IMAGES, LABELS))


# Against polynomials of matrices


def linear_network(residuals: list[Tensor], shortcuts: list[Tensor], head: nn.Module) -> Network:
    """Units of 1x1 convolutions on maps of one pixel, without BN and ReLU: y = S x + F x."""

    def matrix(weights: Tensor) -> nn.Conv2d:
        layer = nn.Conv2d(weights.shape[1], weights.shape[0], 1, bias=False)
        layer.weight = nn.Parameter(weights[:, :, None, None].clone())
        return layer

    blocks = [Block(matrix(f), matrix(s), nn.Identity()) for f, s in zip(residuals, shortcuts, strict=True)]
    return Network(nn.Identity(), blocks, head, stages=(len(blocks),), name="linear", options={})


def linear_case() -> tuple[list[Tensor], list[Tensor], nn.Module, Tensor]:
    widths = [3, 3, 5, 5, 2]
    shapes = list(itertools.pairwise(widths))
    residuals, shortcuts = ([torch.randn(b, a, dtype=torch.float64) for a, b in shapes] for _ in range(2))
    head = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1], 10)).double()
    return residuals, shortcuts, head, torch.randn(4, widths[0], 1, 1, dtype=torch.float64)


def test_lengths_are_the_coefficients_of_a_polynomial_of_matrices() -> None:
    """Σ_k G_k t^k is the product of the S + t F, transposed; polynomials of entries multiplied by numpy."""
    residuals, shortcuts, head, images = linear_case()
    found = path_gradients(linear_network(residuals, shortcuts, head), images, LABELS)
    x = images
    for f, s in zip(residuals, shortcuts, strict=True):
        x = torch.einsum("oi,nihw->nohw", f + s, x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(head(x), LABELS, reduction="sum"), x)

    polynomials = [[np.polynomial.Polynomial([value]) for value in row] for row in gradient.flatten(1).tolist()]
    for f, s in reversed(list(zip(residuals, shortcuts, strict=True))):
        entries = [[np.polynomial.Polynomial(both) for both in row] for row in torch.stack([s.T, f.T], 2).tolist()]
        polynomials = [
            [sum((e * p for e, p in zip(row, image, strict=True)), np.polynomial.Polynomial([0.0])) for row in entries]
            for image in polynomials
        ]
    expected = np.zeros((5, 4, 3))
    for i, image in enumerate(polynomials):
        for c, polynomial in enumerate(image):
            expected[: len(polynomial.coef), i, c] = polynomial.coef
    np.testing.assert_allclose(found.flatten(2).numpy(), expected, rtol=1e-11, atol=1e-13)


# Single paths, drawn at random


@pytest.mark.parametrize("name", ["resnet-14", "preresnet-14"])
def test_the_shortest_and_the_longest_path_are_one_each(name: str) -> None:
    network = build(name)
    found = sampled_path_gradients(network, IMAGES, LABELS, lengths=[0, 6], draws=2)
    assert found.length.tolist() == [0, 0, 6, 6]
    assert found.draw.tolist() == [0, 1, 0, 1]
    for k, branch in ((0, False), (6, True)):
        expected = one_path(network, (branch,) * 6, IMAGES, LABELS)
        rows = found[found.length == k]
        assert rows.norm.tolist() == pytest.approx([expected.norm().item()] * 2, rel=1e-10)
        assert rows.image_norm.tolist() == pytest.approx([expected.flatten(1).norm(dim=1).mean().item()] * 2, rel=1e-10)


def test_draws_are_paths_of_their_length_all_as_often() -> None:
    network = build("resnet-8")
    singly = {path: one_path(network, path, IMAGES, LABELS).norm().item() for path in every_path(3)}
    found = sampled_path_gradients(network, IMAGES, LABELS, draws=300, seed=3)
    for k in range(4):
        norms = [norm for path, norm in singly.items() if sum(path) == k]
        nearest = np.abs(np.subtract.outer(found[found.length == k].norm.to_numpy(), norms)).argmin(1)
        assert found[found.length == k].norm.to_numpy() == pytest.approx(np.array(norms)[nearest], rel=1e-9)
        counts = np.bincount(nearest, minlength=len(norms))
        # Within five standard deviations of 300 / 3.
        assert np.abs(counts - 300 / len(norms)).max() < 41


def test_draws_follow_from_the_seed() -> None:
    network = build("resnet-14")
    usual = sampled_path_gradients(network, IMAGES, LABELS)
    again, other = (sampled_path_gradients(network, IMAGES, LABELS, draws=10, seed=s) for s in (0, 1))
    pd.testing.assert_frame_equal(usual, again)
    assert usual.length.value_counts().to_dict() == dict.fromkeys(range(7), 10)
    assert not np.array_equal(usual.norm, other.norm)


def test_tiny_gradients_have_a_norm_in_float32() -> None:
    """Their squares are below what float32 can hold."""
    network = build("preresnet-14", shortcut="scaling:0.00001").float()
    found = sampled_path_gradients(network, IMAGES.float(), LABELS, lengths=[0], draws=1)
    expected = one_path(network.double(), (False,) * 6, IMAGES, LABELS).norm().item()
    assert expected < 1e-25
    assert found.norm[0] == pytest.approx(expected, rel=1e-4)
    assert found.norm.dtype == np.float64


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


def test_lengths_that_cancel_have_shares_below_zero() -> None:
    shares = path_shares(torch.tensor([[3.0, 0], [-1, 0], [0, 1]]))
    assert shares.share.tolist() == pytest.approx([6 / 5, -2 / 5, 1 / 5])
    assert shares.norm_share.tolist() == pytest.approx([3 / 5, 1 / 5, 1 / 5])


def test_numbers_of_paths_are_exact_beyond_64_bits() -> None:
    assert path_shares(torch.ones(109, 1)).paths[54] == math.comb(108, 54)


def test_coherence_tells_parallel_from_orthogonal() -> None:
    def table(lengths: list[int], norms: list[float]) -> pd.DataFrame:
        return pd.DataFrame({"length": lengths, "norm": norms})

    samples = table([0, 1, 1], [5.0, 3.0, 1.0])
    shares = table([0, 1, 2], [5.0, 4.0, 1.0]).assign(paths=[1, 2, 1])
    found = coherence(shares, samples)
    assert found.length.tolist() == [0, 1]
    assert found.norm.tolist() == [5, 4]
    assert found.parallel.tolist() == [5, 4]
    assert found.orthogonal.tolist() == pytest.approx([5, math.sqrt(2 * (9 + 1) / 2)])
    assert found.coherence.tolist() == [1, 1]


@pytest.mark.parametrize("name", ["preresnet-14", "resnet-14"])
def test_mean_length_is_the_growth_with_scaled_branches(name: str) -> None:
    """d/dt of ⟨Σ G_k t^k, g⟩ / ‖g‖² at t = 1, by differences of networks with scaled backward passes."""
    network = build(name)
    found = mean_length(path_shares(path_gradients(network, IMAGES, LABELS)).share)

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor, factor: float) -> Tensor:
            ctx.factor = factor  # type: ignore[attr-defined]
            return x.clone()

        @staticmethod
        def backward(ctx: object, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            return g * ctx.factor, None  # type: ignore[attr-defined]

    def gradient(factor: float) -> Tensor:
        x = start = network.stem(IMAGES).detach().requires_grad_()
        for block in network.blocks:
            x = block.after(block.shortcut(x) + Backward.apply(block.residual(x), factor))
        return torch.autograd.grad(F.cross_entropy(network.head(x), LABELS, reduction="sum"), start)[0]

    g, step = gradient(1), 1e-4
    growth = ((gradient(1 + step) - gradient(1 - step)) * g).sum() / (2 * step * g.square().sum())
    assert found == pytest.approx(growth.item(), rel=1e-6)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), st.fractions(Fraction(1, 100), 1))
def test_the_shortest_interval_is_the_first_found_by_trying_all(weights: list[int], mass: Fraction) -> None:
    first, last = shortest_interval(weights, float(mass))
    fits = {
        (j - i, -sum(weights[i : j + 1]), i): (i, j)
        for i, j in itertools.combinations_with_replacement(range(len(weights)), 2)
        if sum(weights[i : j + 1]) >= mass * sum(weights)
    }
    best = min(fits)
    assert last - first == best[0]
    assert sum(weights[first : last + 1]) == -best[1]


@pytest.mark.parametrize("weights", [[1 / 3, 1 / 7, 1 / 11], [0, 0.1, 0.2, 0.3, 0], [1e-300], [0.1] * 11])
def test_the_whole_is_held_by_what_is_not_zero(weights: list[float]) -> None:
    inner = [i for i, weight in enumerate(weights) if weight]
    assert shortest_interval(weights, 1) == (inner[0], inner[-1])


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [float("inf")]])
def test_a_mean_length_needs_weights_to_divide_by(weights: list[float]) -> None:
    with pytest.raises(UsageError, match="weights must be finite, and their sum not 0"):
        mean_length(weights)


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


# What is left alone


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("measure", [path_gradients, sampled_path_gradients])
@pytest.mark.parametrize("name", ["preresnet-8", "resnet-8"])
def test_measuring_changes_nothing(name: str, measure: Callable[..., object], training: bool) -> None:
    network = build(name).train(training)
    frozen = network.head.fc.weight.requires_grad_(False)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 3)
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():  # the caller's choice, for his own tensors
        measure(network, images := IMAGES.clone(), LABELS)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert all(module.training == training for module in network.modules())
    assert all((parameter.grad == 3).all() for parameter in network.parameters())
    assert all(parameter.requires_grad == (parameter is not frozen) for parameter in network.parameters())
    assert images.equal(IMAGES)
    assert not images.requires_grad


# What is refused


@pytest.mark.parametrize("length", [-1, 4, 1.5])
def test_lengths_out_of_range_are_refused(length: int) -> None:
    with pytest.raises(UsageError, match=f"3 units has a length of 0 to 3, found {length}"):
        sampled_path_gradients(build("resnet-8"), IMAGES, LABELS, lengths=[0, length])


NARROW = build("resnet-8")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sampled_path_gradients(NARROW, IMAGES, LABELS, draws=0), "draws must be at least 1, found 0"),
        (lambda: sampled_path_gradients(NARROW, IMAGES, LABELS, lengths=[]), "one length of 0 to 3, found none"),
        (lambda: gradients_along(NARROW, IMAGES, LABELS, torch.ones(0, 3).bool()), r"\[P, 3\] .*found bool \[0, 3\]"),
        (lambda: gradients_along(NARROW, IMAGES, LABELS, torch.ones(1, 3).int()), r"bool \[P, 3\] .*found int32"),
        (lambda: gradients_along(NARROW, IMAGES, LABELS, torch.ones(1, 4).bool()), r"found bool \[1, 4\]"),
        (lambda: path_shares(torch.zeros(3, 2)), "gradient that is finite and not zero"),
        (lambda: shortest_interval([1.0], 0), "mass must be above 0 and at most 1, found 0"),
        (lambda: shortest_interval([1.0], 1.01), r"mass must be above 0 and at most 1, found 1\.01"),
        (lambda: shortest_interval([1.0, -1.0]), "weights must be finite and not negative, and one above 0"),
        (lambda: length_distribution(-1), "number of units of at least 0, found -1"),
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
