"""The identity equations, gradients unit by unit and shattered gradients, against autograd and every single path."""

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from kit.networks import build, option_a
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import models, unravel
from resnotes.analysis.propagation import (
    gradient_flow,
    gradient_norms,
    gradient_step_gain,
    identity_errors,
    layer_responses,
    unit_statistics,
)
from resnotes.analysis.shattering import gradient_correlation
from resnotes.errors import UsageError
from resnotes.models import Block, Network, batch_statistics
from resnotes.models.network import Statistics

IMAGES = torch.randn(16, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(16) % 10
MEASURES: list[Callable[[Network, Tensor, Tensor], object]] = [
    identity_errors,
    gradient_flow,
    gradient_correlation,
    lambda network, images, _: unit_statistics(network, images),
]


def signals_of(network: Network) -> list[Tensor]:
    """The input of every unit and the last one's output, with their gradients, by hooks on a pass in training mode."""
    network = copy.deepcopy(network).train()
    signals: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].retain_grad()
        signals.append(args[0])

    for part in (*network.blocks, network.head):
        part.register_forward_pre_hook(note)
    F.cross_entropy(network(IMAGES), LABELS).backward()
    return signals


def vjp(function: Callable[[Tensor], Tensor], x: Tensor, cotangent: Tensor) -> Tensor:
    """The gradient at `x` of what has the gradient `cotangent` behind `function`."""
    found: Tensor = torch.autograd.functional.vjp(function, x.detach(), cotangent)[1]
    return found


# Eqs (4), (5), (7) and (8) between any two units


@pytest.mark.parametrize(
    "options",
    [
        *({"shortcut": shortcut} for shortcut in ("A", "scaling:0.5", "scaling:1.1", "scaling:0.5,2")),
        *({"order": order} for order in ("relu-only-pre-activation", "relu-before-addition")),
    ],
    ids=str,
)
def test_pure_shortcuts_obey_the_equations_exactly(options: dict[str, object]) -> None:
    """And so does every order of layers without activation after the addition."""
    found = identity_errors(build("resnet-20", **{"order": "pre-activation", **options}), IMAGES, LABELS)
    assert found[["forward", "backward"]].max(axis=None) < 1e-10
    pairs = {(stage + 1, 3 * stage + l, 3 * stage + m) for stage in range(3) for m in range(1, 4) for l in range(m)}  # noqa: E741
    assert sorted(zip(found.stage, found.l, found.L, strict=True)) == sorted(pairs)


def test_across_stages_the_equations_hold_from_the_first_unit_to_every_later_one() -> None:
    network = build("preresnet-14", shortcut="scaling:0.9")
    found = identity_errors(network, IMAGES, LABELS, across=True)
    assert found.l.tolist() == [0] * 6
    assert found.L.tolist() == list(range(1, 7))
    assert found[["forward", "backward"]].max(axis=None) < 1e-12
    assert identity_errors(build("resnet-14"), IMAGES, LABELS, across=True).forward.min() > 1e-3


def branch(block: Block, x: Tensor, stride: int) -> Tensor:
    """F of the original order, with BN on the statistics of the batch."""

    def bn(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
        return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True)

    layers = block.residual
    inner = bn(F.conv2d(x, layers.conv1.weight, stride=stride, padding=1), layers.bn1).clamp(min=0)
    return bn(F.conv2d(inner, layers.conv2.weight, padding=1), layers.bn2)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_by_how_much_the_equations_fail_is_found_by_hand_too(factor: float) -> None:
    """Spelt out for ReLU after the addition, where there is an error to be measured."""
    network = build("resnet-14", shortcut=f"scaling:{factor}")
    signals = signals_of(network)
    found = identity_errors(network, IMAGES, LABELS)
    assert len(found) == 9
    for row in found.itertuples():
        first, last = int(row.l), int(row.L)
        narrows = first in (2, 4)  # the first unit of the second and the third stage

        def right_side(x: Tensor, first: int = first, last: int = last, narrows: bool = narrows) -> Tensor:
            total = factor ** (last - first) * (option_a(x) if narrows else x)
            for i in range(first, last):
                halves = narrows and i == first
                added = branch(network.blocks[i], x, 2 if halves else 1)
                total = total + factor ** (last - 1 - i) * added
                x = (factor * (option_a(x) if halves else x) + added).clamp(min=0)
            return total

        forward = (signals[last] - right_side(signals[first])).norm() / signals[last].norm()
        backward = signals[first].grad - vjp(right_side, signals[first], signals[last].grad)
        assert row.forward == pytest.approx(forward.item(), rel=1e-9)
        assert row.backward == pytest.approx((backward.norm() / signals[first].grad.norm()).item(), rel=1e-9)
        assert min(row.forward, row.backward) > 1e-3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain-8", {}),
        ("preresnet-8", {"shortcut": "shortcut-gating:-6"}),
        ("resnet-8", {"shortcut": "dropout:0.5"}),
        ("resnet-8", {"shortcut": "B"}),
    ],
    ids=str,
)
def test_other_shortcuts_are_refused(name: str, options: dict[str, str]) -> None:
    message = rf"{name} .*{options.get('shortcut', '')}.*: expected shortcuts that are identities, scalings or zero"
    with pytest.raises(UsageError, match=message):
        identity_errors(build(name, **options), IMAGES, LABELS)


# Gradients unit by unit

UNITS: list[tuple[str, dict[str, object]]] = [
    ("plain-8", {}),
    ("preresnet-8", {}),
    ("resnet-8", {}),
    ("resnet-8", {"shortcut": "C"}),
    ("preresnet-8", {"shortcut": "scaling:0.5,2"}),
    ("resnet-8", {"shortcut": "exclusive-gating:0"}),
    ("resnet-8", {"order": "bn-after-addition"}),
    ("prebottleneck-11", {"alpha": 0.7}),
]
IDS = [models.label(*network) for network in UNITS]


@pytest.mark.parametrize(("name", "options"), UNITS, ids=IDS)
def test_signal_and_gradient_are_those_of_every_unit(name: str, options: dict[str, object]) -> None:
    network = build(name, **options)
    found = gradient_flow(network, IMAGES, LABELS)
    signals = signals_of(network)
    assert found.unit.tolist() == [0, 1, 2, 3]
    rms = [signal.square().mean().sqrt().item() for signal in signals]
    norms = [signal.grad.norm().item() for signal in signals]
    assert min(norms) > 1e-6
    assert found.signal.tolist() == pytest.approx(rms, rel=1e-12)
    assert found.gradient.tolist() == pytest.approx(norms, rel=1e-9)
    assert (found.share[3], found.direct[3]) == pytest.approx((1, norms[3]), rel=1e-12)


def after_addition(network: Network, i: int, cotangent: Tensor, signals: list[Tensor]) -> Tensor:
    """Back through what follows the addition of unit `i`: a mask where it is a ReLU, nothing where it is nothing."""
    block = network.blocks[i]
    if isinstance(block.after, nn.Identity):
        return cotangent
    if isinstance(block.after, nn.ReLU):
        return cotangent * (signals[i + 1] > 0)
    y = block.shortcut(signals[i]) + block.residual(signals[i])
    return vjp(block.after, y, cotangent)


def along(network: Network, path: tuple[bool, ...], signals: list[Tensor]) -> Tensor:
    """The gradient that arrives at the first of the last ``len(path)`` units on one path; True takes the branch."""
    network = copy.deepcopy(network).train()
    cotangent = signals[-1].grad
    units = range(len(network.blocks) - len(path), len(network.blocks))
    for i, takes_branch in reversed(list(zip(units, path, strict=True))):
        block = network.blocks[i]
        cotangent = after_addition(network, i, cotangent, signals)
        cotangent = vjp(block.residual if takes_branch else block.shortcut, signals[i], cotangent)
    return cotangent


@pytest.mark.parametrize(("name", "options"), UNITS[1:], ids=IDS[1:])
def test_the_gradient_is_the_sum_over_all_paths(name: str, options: dict[str, object]) -> None:
    """Of 2 to the n, the one without a residual branch is `direct`, and its part of the sum is `share`."""
    network = build(name, **options)
    signals = signals_of(network)
    found = gradient_flow(network, IMAGES, LABELS)
    for unit in range(4):
        gradient = signals[unit].grad
        paths = list(itertools.product([False, True], repeat=3 - unit))
        gradients = [along(network, path, signals) for path in paths]
        torch.testing.assert_close(sum(gradients), gradient, rtol=1e-9, atol=1e-12)
        shares = [((part * gradient).sum() / gradient.square().sum()).item() for part in gradients]
        assert sum(shares) == pytest.approx(1, rel=1e-9)
        assert not any(paths[0])
        assert found.direct[unit] == pytest.approx(gradients[0].norm().item(), rel=1e-9)
        assert found.share[unit] == pytest.approx(shares[0], rel=1e-9, abs=1e-12)
        if unit < 3:
            assert abs(shares[0] - 1) > 1e-6, "a branch has a share, too"


# What a unit adds to its shortcut


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize(("name", "options"), UNITS, ids=IDS)
def test_units_add_what_their_branches_put_out(name: str, options: dict[str, object], statistics: Statistics) -> None:
    network = build(name, **options)
    found = unit_statistics(network, IMAGES, statistics=statistics)
    network.train(statistics == "batch")
    x = network.stem(IMAGES)
    for row, block in zip(found.itertuples(), network.blocks, strict=True):
        branch, shortcut = block.residual(x), torch.zeros(1) if block.shortcut is None else block.shortcut(x)
        assert row.branch == pytest.approx(branch.square().mean().sqrt().item(), rel=1e-9)
        assert row.shortcut == pytest.approx(shortcut.square().mean().sqrt().item(), rel=1e-9)
        assert row.negative == pytest.approx(((branch + shortcut) < 0).double().mean().item(), abs=1e-6)
        x = block(x)
    assert found.unit.tolist() == [0, 1, 2]
    assert found.stage.tolist() == [1, 2, 3]


# Shattered gradients


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()


@pytest.mark.parametrize("distance", [0, 0.3, 1])
def test_gradients_of_a_linear_classifier_never_change(distance: float) -> None:
    assert gradient_correlation(linear(), IMAGES, LABELS, distance) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("distance", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", ["plain-8", "preresnet-8"])
def test_correlation_is_numpys_image_by_image(name: str, distance: float) -> None:
    network = build(name).train()

    def gradients(images: Tensor) -> np.ndarray:
        images = images.detach().clone().requires_grad_()
        logits = network(images)
        sum(logits[i, label] for i, label in enumerate(LABELS.tolist())).backward()
        return images.grad.flatten(1).numpy()

    neighbours = torch.stack([(1 - distance) * IMAGES[i] + distance * IMAGES[i - 1] for i in range(16)])
    each = [np.corrcoef(*two)[0, 1] for two in zip(gradients(IMAGES), gradients(neighbours), strict=True)]
    assert min(each) < 0.99
    assert gradient_correlation(network, IMAGES, LABELS, distance) == pytest.approx(np.mean(each), rel=1e-9)


def test_on_running_statistics_images_do_not_depend_on_each_other() -> None:
    network = build("resnet-8").train()
    recalibrated = models.recalibrate(network, IMAGES)

    def gradient(image: Tensor, label: int) -> Tensor:
        image = image.clone().requires_grad_()
        return torch.autograd.grad(recalibrated(image[None])[0, label], image)[0].flatten()

    neighbours = (IMAGES + IMAGES.roll(1, 0)) / 2
    each = [
        np.corrcoef(gradient(image, label), gradient(neighbour, label))[0, 1]
        for image, neighbour, label in zip(IMAGES, neighbours, LABELS.tolist(), strict=True)
    ]
    found = gradient_correlation(network, IMAGES, LABELS, 0.5, statistics="running")
    assert found == pytest.approx(np.mean(each), rel=1e-9)
    assert abs(found - gradient_correlation(network, IMAGES, LABELS, 0.5)) > 1e-3


@pytest.mark.parametrize("measure", [unit_statistics, lambda *data, **how: gradient_correlation(*data, LABELS, **how)])
def test_other_statistics_are_refused(measure: Callable[..., object]) -> None:
    with pytest.raises(UsageError, match="unknown statistics 'eval'; allowed: batch, running"):
        measure(build("resnet-8"), IMAGES, statistics="eval")


def test_an_image_without_gradient_counts_as_zero() -> None:
    classifier = linear()
    with torch.no_grad():
        classifier[1].weight[0] = 0
    without = (LABELS == 0).double().mean().item()
    assert 0 < without < 1
    assert gradient_correlation(classifier, IMAGES, LABELS) == pytest.approx(1 - without, abs=1e-12)


# What all of them leave alone


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "measure",
    [
        *(*MEASURES, gradient_norms, gradient_step_gain, lambda network, images, _: layer_responses(network, images)),
        *(unravel.path_gradients, unravel.unit_shares, unravel.refinement),
        lambda *data: unravel.path_norms(*data, 1, torch.Generator()),
    ],
)
def test_measuring_changes_nothing(measure: Callable[[Network, Tensor, Tensor], object], training: bool) -> None:
    network = build("resnet-8").train(training)
    frozen = network.head.fc.weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    measure(network, images := IMAGES.clone(), LABELS)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert all(module.training == training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.requires_grad == (parameter is not frozen) for parameter in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert images.equal(IMAGES)
    assert not images.requires_grad


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_measured_does_not_depend_on_the_mode(measure: Callable[[Network, Tensor, Tensor], object]) -> None:
    """BN is on the statistics of the batch, whatever mode the network is in."""
    network = build("preresnet-8")
    first, second = measure(network.train(), IMAGES, LABELS), measure(network.eval(), IMAGES, LABELS)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("measure", [gradient_flow, gradient_correlation, gradient_step_gain, unravel.refinement])
def test_dropout_is_refused(measure: Callable[..., object]) -> None:
    network = build("resnet-8", shortcut="dropout:0.5").train()
    with pytest.raises(UsageError, match="expected no active dropout"):
        measure(network, IMAGES, LABELS)


def test_statistics_of_the_batch_are_used_for_a_while_and_leave_no_trace() -> None:
    network = build("resnet-8").eval()
    network.blocks[0].train()
    modes = [module.training for module in network.modules()]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), batch_statistics(network):
        inside = network(IMAGES)
        raise KeyboardInterrupt
    assert torch.equal(inside, copy.deepcopy(network).train()(IMAGES))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
