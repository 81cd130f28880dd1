"""Shortcuts, orders of layers, bottlenecks and networks without BN, against the formulas of He et al. 2016."""

import ast
import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kit.networks import bn, conv, option_a, small
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import datasets, models, unravel
from resnotes.analysis import propagation
from resnotes.errors import UsageError
from resnotes.models import Block, Network, count_parameters
from resnotes.models.shortcuts import Gate
from resnotes.training.loop import save_weights, train
from resnotes.training.recipe import Recipe


@torch.no_grad()
def spread_gates(network: Network) -> Network:
    """Move every gate's bias off its common initial value, each channel's by another amount."""
    for module in network.modules():
        if isinstance(module, Gate):
            module.conv.bias += torch.randn_like(module.conv.bias)
    return network


def gates_of(network: nn.Module) -> list[Gate]:
    return [module for module in network.modules() if isinstance(module, Gate)]


class Unit:
    """What the formulas of Table 1 are made of, for one unit of resnet-N and its input x."""

    def __init__(self, block: Block, x: Tensor, stride: int) -> None:
        self.block, self.x, self.stride = block, x, stride

    @property
    def identity(self) -> Tensor:
        return option_a(self.x) if self.stride == 2 else self.x

    @property
    def projection(self) -> Tensor:
        return bn(conv(self.x, self.block.shortcut.conv, self.stride), self.block.shortcut.bn)

    @property
    def option_b(self) -> Tensor:
        return self.projection if self.stride == 2 else self.x

    @property
    def branch(self) -> Tensor:
        layers = self.block.residual
        layers = layers.branch if hasattr(layers, "branch") else layers
        inner = bn(conv(self.x, layers.conv1, self.stride), layers.bn1).clamp(min=0)
        return bn(conv(inner, layers.conv2), layers.bn2)

    @property
    def gate(self) -> Tensor:
        gate = gates_of(self.block)[0].conv
        return 1 / (1 + torch.exp(-F.conv2d(self.x, gate.weight, gate.bias, stride=self.stride)))


Part = Callable[[Unit], Tensor]


def branch(u: Unit) -> Tensor:
    return u.branch


# Shortcut and residual branch of every row of He et al. 2016, Table 1 (dropout as it is at test time).
TABLE_1: dict[str, tuple[Part, Part]] = {
    "A": (lambda u: u.identity, branch),
    "B": (lambda u: u.option_b, branch),
    "C": (lambda u: u.projection, branch),
    "scaling:0,1": (lambda u: torch.zeros_like(u.branch), branch),
    "scaling:0.5,1": (lambda u: u.identity / 2, branch),
    "scaling:0.5": (lambda u: u.identity / 2, branch),
    "scaling:0.5,0.5": (lambda u: u.identity / 2, lambda u: u.branch / 2),
    "scaling:-2,0.25": (lambda u: -2 * u.identity, lambda u: u.branch / 4),
    **{
        f"exclusive-gating:{b}": (lambda u: (1 - u.gate) * u.identity, lambda u: u.gate * u.branch) for b in (0, -6, -7)
    },
    **{f"shortcut-gating:{b}": (lambda u: (1 - u.gate) * u.identity, branch) for b in (0, -6)},
    "dropout:0.5": (lambda u: u.identity, branch),
}
ORDERS = ["original", "bn-after-addition", "relu-before-addition", "relu-only-pre-activation", "pre-activation"]

VARIANTS: list[tuple[str, dict[str, object]]] = [
    *(("resnet-8", {"shortcut": shortcut}) for shortcut in TABLE_1),
    *(("resnet-8", {"order": order}) for order in ORDERS),
    *((f"bottleneck-{depth}", {"order": order}) for depth, order in zip((11, 20, 11, 20, 11), ORDERS, strict=True)),
    ("resnet-14", {"shortcut": "exclusive-gating:-6", "order": "pre-activation"}),
    ("resnet-14", {"shortcut": "scaling:0.5,0.5", "order": "relu-before-addition"}),
    ("preresnet-14", {"shortcut": "shortcut-gating:-6"}),
    ("prebottleneck-20", {}),
    ("prebottleneck-11", {"shortcut": "exclusive-gating:-6"}),
    ("bottleneck-11", {"shortcut": "A"}),
    ("plain-14", {"order": "pre-activation"}),
    ("resnet-14", {"batch_norm": False}),
    ("resnet-8", {"batch_norm": False, "shortcut": "C", "order": "bn-after-addition"}),
    ("prebottleneck-11", {"batch_norm": False}),
    ("preresnet-14", {"batch_norm": False, "alpha": 0.3}),
    ("bottleneck-11", {"alpha": -1, "shortcut": "exclusive-gating:0"}),
]
each_variant = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=[models.label(*variant) for variant in VARIANTS]
)


# Shortcuts: He et al. 2016, Table 1


@pytest.mark.parametrize("index", [1, 2, 3])  # number 2 is the first of the second stage: it down-samples
@pytest.mark.parametrize("shortcut", TABLE_1)
@torch.no_grad()
def test_shortcut_is_the_papers_arithmetic(shortcut: str, index: int) -> None:
    block = spread_gates(small("resnet-14", shortcut=shortcut)).blocks[index]
    x = torch.randn(2, 8 if index == 3 else 4, 7, 10, dtype=torch.float64)
    unit = Unit(block, x, 2 if index == 2 else 1)
    h, f = (part(unit) for part in TABLE_1[shortcut])
    torch.testing.assert_close(block.shortcut(x), h)
    torch.testing.assert_close(block.residual(x), f)
    torch.testing.assert_close(block(x), (h + f).clamp(min=0))


@pytest.mark.parametrize("kind", ["exclusive-gating", "shortcut-gating"])
def test_each_unit_has_one_gate_that_begins_at_its_bias(kind: str) -> None:
    network = models.build("resnet-14", width=4, shortcut=f"{kind}:-6")
    gates = gates_of(network)
    assert len(gates) == len(network.blocks)
    for gate in gates:
        assert (gate.conv.bias == -6).all()
        assert gate.conv.weight.std() > 0.1
    surplus = count_parameters(network) - count_parameters(models.build("resnet-14", width=4))
    assert surplus == sum(count_parameters(gate) for gate in gates)  # a shared one counts once


@pytest.mark.parametrize("index", [1, 2])
@torch.no_grad()
def test_dropout_acts_on_the_shortcut_in_training_mode_only(index: int) -> None:
    network = small("resnet-14", shortcut="dropout:0.25").train()
    block, x = network.blocks[index], torch.randn(16, 4, 16, 16, dtype=torch.float64)
    identity = option_a(x) if index == 2 else x
    torch.manual_seed(5)
    dropped = block.shortcut(x)
    torch.manual_seed(5)
    assert torch.equal(dropped, F.dropout(identity, 0.25))
    assert torch.equal(block.residual(x), block.residual(x))
    network.eval()
    assert torch.equal(block.shortcut(x), identity)


# Orders of layers: He et al. 2016, Table 2


def norm(x: Tensor, layers: nn.Module, name: str, batch_norm: bool) -> Tensor:
    """BN by the layer of that name; without BN, x."""
    return bn(x, getattr(layers, name)) if batch_norm else x


def by_hand(order: str, first: bool, block: Block, x: Tensor, stride: int, batch_norm: bool) -> tuple[Tensor, Part]:
    """F(x), and f as a function of the sum, as Fig. 4 draws them, with two convolutions or with three."""
    layers = dict(block.residual.named_children())
    count = 3 if "conv3" in layers else 2
    opened = order == "pre-activation" and not first  # the first unit's was activated by the stem, before the split
    y = norm(x, block.residual, "bn1", batch_norm).relu() if opened else x
    if order == "relu-only-pre-activation" and not first:
        y = y.relu()
    for i in range(1, count + 1):
        y = conv(y, layers[f"conv{i}"], stride if i == 1 else 1)
        if i < count or order in ("original", "relu-before-addition", "relu-only-pre-activation"):
            y = norm(y, block.residual, f"bn{i + opened}", batch_norm)
        if i < count or order == "relu-before-addition":
            y = y.relu()
    if order == "bn-after-addition":
        return y, lambda total: norm(total, block.after, "bn1", batch_norm).relu()
    return y, torch.relu if order == "original" else lambda total: total


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("index", [0, 1, 2, 3])  # number 2 is the first of the second stage: it down-samples
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["plain-14", "resnet-14", "bottleneck-20"])
@torch.no_grad()
def test_unit_has_the_papers_order(name: str, order: str, index: int, batch_norm: bool) -> None:
    block = small(name, order=order, batch_norm=batch_norm).blocks[index]
    deep, stride = name == "bottleneck-20", 2 if index == 2 else 1
    x = torch.randn(2, ([4, 16, 16, 32] if deep else [4, 4, 4, 8])[index], 7, 10, dtype=torch.float64)
    residual, after = by_hand(order, index == 0, block, x, stride, batch_norm)
    torch.testing.assert_close(block.residual(x), residual)
    # A bottleneck changes the shape in the very first unit, too; where it does stands a projection.
    skipped = option_a(x) if index == 2 and not deep else x
    if deep and index in (0, 2):
        skipped = norm(conv(x, block.shortcut.conv, stride), block.shortcut, "bn", batch_norm)
    torch.testing.assert_close(block(x), after(residual if name == "plain-14" else skipped + residual))


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@torch.no_grad()
def test_stem_and_head_of_every_order(order: str, batch_norm: bool) -> None:
    """The stem activates; where the branch opens with an activation, one more follows the last addition."""
    network = small("resnet-8", order=order, batch_norm=batch_norm)
    images, maps = (torch.randn(2, c, 9, 9, dtype=torch.float64) for c in (3, 16))
    stem, head = network.stem, network.head
    torch.testing.assert_close(stem(images), norm(conv(images, stem.conv), stem, "bn", batch_norm).relu())
    if order == "pre-activation":
        activated = norm(maps, head, "bn", batch_norm).relu()
    else:
        activated = maps.relu() if order == "relu-only-pre-activation" else maps
    torch.testing.assert_close(head(maps), F.linear(activated.mean(dim=(2, 3)), head.fc.weight, head.fc.bias))


# Bottlenecks


PER_N = {"plain": 6, "resnet": 6, "preresnet": 6, "bottleneck": 9, "prebottleneck": 9}


@given(family=st.sampled_from(sorted(PER_N)), depth=st.integers(0, 2500))
@example(family="bottleneck", depth=0)
def test_depths_between_are_refused_with_their_neighbours(family: str, depth: int) -> None:
    allowed = [PER_N[family] * n + 2 for n in range(1, 500)]
    if depth in allowed:
        depth += 1
    above = next(d for d in allowed if d > max(depth, allowed[0]))
    below = allowed[allowed.index(above) - 1]
    message = rf"{family}-{depth}: depth must be {PER_N[family]}n \+ 2 .*nearest: {below}, {above}$"
    with pytest.raises(UsageError, match=message):
        models.build(f"{family}-{depth}")


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "exclusive-gating:-6"])
@pytest.mark.parametrize("family", ["bottleneck", "prebottleneck"])
def test_depth_counts_what_is_off_the_shortcuts(family: str, shortcut: str) -> None:
    network = models.build(f"{family}-20", width=2, shortcut=shortcut)
    weighted = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    # A shared gate stands in the residual branch, and is no layer of it.
    besides = {module for block in network.blocks for module in block.shortcut.modules()}
    besides |= {gate.conv for gate in gates_of(network)}
    assert len([module for module in weighted if module not in besides]) == 20
    assert network.stages == (2, 2, 2)


@pytest.mark.parametrize("family", ["bottleneck", "prebottleneck"])
@pytest.mark.parametrize(("depth", "millions"), [(164, 1.7), (1001, 10.2)])
def test_bottlenecks_have_the_papers_parameters(family: str, depth: int, millions: float) -> None:
    """He et al. 2016 give 1.7M and 10.2M: convolutions and classifier round to these; BN adds under 2 %."""
    network = models.build(f"{family}-{depth}")
    norms = sum(count_parameters(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert round((count_parameters(network) - norms) / 1e6, 1) == millions
    assert norms < 0.02 * millions * 1e6


# SkipInit: De & Smith 2020, Sec. 3


@pytest.mark.parametrize("name", ["resnet-14", "preresnet-14", "prebottleneck-20"])
@torch.no_grad()
def test_skipinit_multiplies_every_branch_and_changes_no_other_weight(name: str) -> None:
    torch.manual_seed(0)
    usual = models.build(name, width=4, batch_norm=False)
    torch.manual_seed(0)
    scaled = models.build(name, width=4, batch_norm=False, alpha=0.25)
    states = usual.state_dict(), scaled.state_dict()
    assert set(states[1]) - set(states[0]) == {f"blocks.{i}.residual.skipinit.alpha" for i in range(6)}
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    x = usual.stem(torch.randn(2, 3, 8, 8))
    for block, multiplied in zip(usual.blocks, scaled.blocks, strict=True):
        torch.testing.assert_close(multiplied.residual(x), block.residual(x) / 4)
        x = block(x)


def test_from_alpha_zero_units_begin_as_their_shortcuts_and_learn() -> None:
    network = models.build("preresnet-8", in_channels=1, width=4, batch_norm=False, alpha=0.0)
    digits = datasets.load("digits")
    images, labels = digits.normalization(digits.test_images[:20]), digits.test_labels[:20]
    logits = unravel.lesion_logits(network, [(), (0, 1, 2)], images)
    assert torch.equal(logits[0], logits[1])
    by_length = unravel.path_gradients(network, images, labels)
    assert by_length[0].norm() > 0
    assert not by_length[1:].any()
    assert (propagation.gradient_flow(network, images, labels).share == 1).all()
    train(network, digits, Recipe(iterations=1, pad=0, flip=False, probe_images=20), seed=0, device="cpu")
    assert all(block.residual.skipinit.alpha for block in network.blocks)


# State dicts and copies


@each_variant
@torch.no_grad()
def test_label_and_weights_build_a_variant_again(name: str, options: dict[str, object], tmp_path: Path) -> None:
    network = spread_gates(small(name, **options))
    state = network.state_dict()
    assert len({value.untyped_storage().data_ptr() for value in state.values()}) == len(state)
    assert {key for key, _ in network.named_parameters()} <= set(state)
    save_weights(network, tmp_path / "weights.safetensors")

    assert (network.name, network.options) == (name, network.options | options)
    found_name, found_options = models.from_label(models.label(name, network.options))
    assert (found_name, found_options) == (name, network.options)
    again = models.build(found_name, **found_options).double().eval()
    assert repr(again) == repr(network)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert not torch.allclose(again(images), network(images))
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(again(images), network(images))


@torch.no_grad()
def test_the_copy_of_a_gated_block_has_its_own_shared_gate() -> None:
    original = small("resnet-14", shortcut="exclusive-gating:0").blocks[2]
    copied = copy.deepcopy(original)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    before = original.shortcut(x), original.residual(x)
    (gate,) = gates_of(copied)
    gate.conv.bias += torch.arange(1.0, 9.0, dtype=torch.float64)
    assert torch.equal(original.shortcut(x), before[0])
    assert torch.equal(original.residual(x), before[1])
    unit = Unit(copied, x, 2)
    torch.testing.assert_close(copied.shortcut(x), (1 - unit.gate) * unit.identity)
    torch.testing.assert_close(copied.residual(x), unit.gate * unit.branch)
    assert not torch.allclose(copied.shortcut(x), before[0])


# Structure


@each_variant
@torch.no_grad()
def test_every_variant_is_stem_blocks_and_head(name: str, options: dict[str, object]) -> None:
    network = spread_gates(small(name, **options))
    images = torch.randn(2, 3, 16, 12, dtype=torch.float64)
    x = network.stem(images)
    expansion = 4 if "bottleneck" in name else 1
    assert sum(network.stages) == len(network.blocks)
    shapes = []
    for block in network.blocks:
        before = x.clone()
        total = block.residual(x)
        assert torch.equal(x, before)  # neither branch works in place
        if block.shortcut is not None:
            skipped = block.shortcut(x)
            assert torch.equal(x, before)
            assert skipped.shape == total.shape
            total = skipped + total
        x = block.after(total)
        shapes.append(tuple(x.shape[1:]))
    n = len(network.blocks) // 3
    assert shapes == [(expansion * 4 * 2**s, 16 // 2**s, 12 // 2**s) for s in range(3) for _ in range(n)]
    assert torch.equal(network.head(x), network(images))


# What is refused

FORMS = ["A", "B", "C", "scaling:λ", "scaling:λ,μ", "exclusive-gating:b", "shortcut-gating:b", "dropout:p (0 <= p < 1)"]


@pytest.mark.parametrize(
    "shortcut",
    [
        *("scaling", "scaling:", "scaling:a", "scaling:1,2,3", "scaling:1,", "scaling:1,nan", "scaling:inf"),
        *("exclusive-gating:0,1", "shortcut-gating:-inf", "dropout", "dropout:1", "dropout:-0.1", "dropout:nan"),
        *("A:1", "A:", "a", "", ":", "gating:0", "scaling:0.5, 1"),  # labels are split at spaces
    ],
)
def test_malformed_shortcuts_are_refused(shortcut: str) -> None:
    expected = re.escape(f"unknown shortcut {shortcut!r}; allowed: {', '.join(FORMS)}")
    with pytest.raises(UsageError, match=f"^{expected}$"):
        models.build("resnet-8", width=2, shortcut=shortcut)


# Labels


def stays_text(text: str) -> bool:
    """Whether `text` is one word that Python does not read as a literal."""
    if text.split() != [text] or "=" in text:
        return False
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return True
    except (TypeError, MemoryError, RecursionError):  # see test_a_value_that_is_no_literal_is_text
        return False
    return False


WORDS = st.sampled_from([*TABLE_1, *ORDERS]) | st.text(min_size=1, max_size=12).filter(stays_text)
VALUES = st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | WORDS


@given(
    name=st.sampled_from(["resnet-56", "prebottleneck-164", "resnet18"]),
    options=st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), VALUES, max_size=5),
)
@example(name="resnet-56", options={"width": 4, "batch_norm": False, "shortcut": "exclusive-gating:-6"})
def test_a_label_comes_back(name: str, options: dict[str, object]) -> None:
    found_name, found = models.from_label(models.label(name, options))
    assert found_name == name
    # 1, 1.0 and True are equal, and so are 0.0 and -0.0: compare as written, too.
    assert [(key, type(value), repr(value)) for key, value in found.items()] == [
        (key, type(value), repr(value)) for key, value in options.items()
    ]


def test_labels_as_they_are_written() -> None:
    assert models.label("resnet-56", {}) == "resnet-56"
    assert models.from_label("resnet-56") == ("resnet-56", {})
    text = "resnet-56 shortcut=dropout:0.5 width=8 batch_norm=False"
    options = {"shortcut": "dropout:0.5", "width": 8, "batch_norm": False}
    assert models.label("resnet-56", options) == text
    assert models.from_label(text) == ("resnet-56", options)
    assert models.from_label("  resnet-56   width=8 ") == ("resnet-56", {"width": 8})


@pytest.mark.parametrize("setting", ["shortcut", "=B", "shortcut=", "="])
def test_malformed_labels_are_refused(setting: str) -> None:
    with pytest.raises(UsageError, match=f"expected option=value after its name, found '{setting}'$"):
        models.from_label(f"resnet-56 width=4 {setting}")


def test_a_label_and_a_seed_are_a_network() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    found = models.fresh("resnet-8 width=4", 3, num_classes=5, in_channels=1)
    assert torch.equal(torch.get_rng_state(), before), "the generator is left as it was"
    torch.manual_seed(3)
    expected = models.build("resnet-8", width=4, num_classes=5, in_channels=1)
    torch.testing.assert_close(dict(found.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)
