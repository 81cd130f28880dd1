import matplotlib.pyplot as plt
import pytest
import torch
from kit.drawings import fits
from matplotlib.patches import Circle, FancyBboxPatch
from torch import nn

from resnotes.errors import UsageError
from resnotes.figures import drawings
from resnotes.models import Block, build
from resnotes.models.residual import ORDERS
from resnotes.models.shortcuts import Gate, Gated, GatedShortcut

CONV, GATE = "3×3 conv", ["1×1 conv", "sigmoid"]

# He et al. 2016, Fig. 4, from top to bottom; "weight" there is a 3x3 convolution.
FIG_4 = {
    "(a) original": [CONV, "BN", "ReLU", CONV, "BN", "+", "ReLU"],
    "(b) BN after\naddition": [CONV, "BN", "ReLU", CONV, "+", "BN", "ReLU"],
    "(c) ReLU before\naddition": [CONV, "BN", "ReLU", CONV, "BN", "ReLU", "+"],
    "(d) ReLU-only\npre-activation": ["ReLU", CONV, "BN", "ReLU", CONV, "BN", "+"],
    "(e) full\npre-activation": ["BN", "ReLU", CONV, "BN", "ReLU", CONV, "+"],
}
# He et al. 2016, Fig. 2: what stands last on the residual branch, and what at its right, column by column.
FIG_2 = {
    "(a) original": ([], []),
    "(b) constant scaling": (["× 0.5"], ["× 0.5"]),
    "(c) exclusive gating": (["×"], ["$g$", *GATE, "$1-g$", "×"]),
    "(d) shortcut-only gating": ([], [*GATE, "$1-g$", "×"]),
    "(e) conv shortcut": ([], ["1×1 conv", "BN"]),
    "(f) dropout shortcut": ([], ["dropout 0.5"]),
}
TITLES = {*FIG_4, *FIG_2, "building block", "bottleneck"}
DRAWN = (drawings.building_block, drawings.activation_orders, drawings.shortcut_variants)


def laid_out(fig):
    """As `figures.save` leaves it."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    fig.canvas.draw()
    return fig


def written(ax):
    return [text for text in ax.texts if text.get_text() not in TITLES]


def column(ax):
    """The texts in the column of the residual branch, downwards."""
    texts = [text for text in written(ax) if text.get_position()[0] == 0]
    return [text.get_text() for text in sorted(texts, key=lambda t: -t.get_position()[1])]


def beside(ax):
    """The other texts, column by column, each downwards."""
    texts = [text for text in written(ax) if text.get_position()[0] != 0]
    return [text.get_text() for text in sorted(texts, key=lambda t: (t.get_position()[0], -t.get_position()[1]))]


def titles(fig):
    return [text.get_text() for ax in fig.axes for text in ax.texts if text.get_text() in TITLES]


def draw(block, **options):
    fig, ax = plt.subplots(figsize=(2.8, 4.6))
    drawings.draw_unit(ax, block, **options)
    return laid_out(fig), ax


def test_activation_orders_are_those_of_the_paper():
    assert list(drawings.ORDERS.values()) == list(ORDERS)
    fig = drawings.activation_orders()
    assert titles(fig) == list(FIG_4)
    assert [column(ax) for ax in fig.axes] == [["$x_l$", *nodes, "$x_{l+1}$"] for nodes in FIG_4.values()]
    assert all(beside(ax) == [] for ax in fig.axes), "every shortcut is an identity"


def test_shortcut_variants_are_those_of_the_paper():
    fig = drawings.shortcut_variants()
    assert titles(fig) == list(FIG_2)
    for ax, (scaled, shortcut) in zip(fig.axes, FIG_2.values(), strict=True):
        assert column(ax) == ["$x_l$", CONV, "BN", "ReLU", CONV, "BN", *scaled, "+", "ReLU", "$x_{l+1}$"]
        assert beside(ax) == shortcut
    additions = {text.get_position() for ax in fig.axes for text in ax.texts if text.get_text() == "+"}
    assert len(additions) == 1, "the additions are aligned"


def test_building_block_is_that_of_the_paper():
    block, bottleneck = drawings.building_block().axes
    assert column(block) == ["$x$", "weight layer", "ReLU", "weight layer", "+", "ReLU"]
    assert column(bottleneck) == ["$x$", "1×1 conv", "ReLU", CONV, "ReLU", "1×1 conv", "+", "ReLU"]
    for ax in (block, bottleneck):
        assert beside(ax) == [r"$\mathcal{F}(x)$", r"$\mathcal{F}(x)+x$", "$x$\nidentity"]


def test_plain_unit_has_neither_addition_nor_shortcut():
    fig, ax = draw(build("plain-14").blocks[1])
    assert column(ax) == ["$x_l$", CONV, "BN", "ReLU", CONV, "BN", "ReLU", "$x_{l+1}$"]
    assert len(ax.texts) == 8
    assert not [patch for patch in ax.patches if isinstance(patch, Circle)]
    fits(fig)


@pytest.mark.parametrize(
    ("name", "shortcut", "expected"),
    [
        ("resnet-8", "A", ["zero padding"]),
        ("resnet-8", "B", ["1×1 conv", "BN"]),
        ("resnet-8", "dropout:0.25", ["zero padding", "dropout 0.25"]),
        ("preresnet-8", "exclusive-gating:0", ["$g$", *GATE, "$1-g$", "zero padding", "×"]),
        ("prebottleneck-11", "shortcut-gating:0", [*GATE, "$1-g$", "zero padding", "×"]),
    ],
)
def test_unit_that_changes_the_shape(name, shortcut, expected):
    fig, ax = draw(build(name, shortcut=shortcut).blocks[1])
    assert beside(ax) == expected
    fits(fig)


def test_unknown_module_is_refused_by_its_type():
    for branch in (nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh()), nn.Tanh()):
        with pytest.raises(UsageError, match="Tanh"):
            draw(Block(branch, None, nn.Identity()))


def test_gates_that_no_drawing_shows_are_refused():
    conv, gates = nn.Conv2d(4, 4, 1), [Gate(4, 4, 1, 0) for _ in range(2)]
    shortcut = GatedShortcut(nn.Identity(), gates[0], shared=False)
    for block in (
        Block(Gated(conv, gates[1]), shortcut, nn.ReLU()),
        Block(Gated(conv, gates[0]), nn.Identity(), nn.ReLU()),
        Block(Gated(conv, gates[0]), None, nn.ReLU()),
        Block(conv, nn.Sequential(shortcut, nn.ReLU()), nn.ReLU()),
    ):
        with pytest.raises(UsageError, match="gates"):
            draw(block)


def test_drawing_takes_nothing_from_the_random_generator():
    before = torch.get_rng_state()
    drawings.activation_orders()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("function", DRAWN)
def test_nothing_overlaps_or_is_clipped(function):
    fig = laid_out(function())
    fits(fig)
    sizes = {
        tuple(round(float(size), 1) for size in patch.get_window_extent().size)
        for ax in fig.axes
        for patch in ax.patches
        if isinstance(patch, FancyBboxPatch)
    }
    assert len(sizes) == 1, "all boxes have one size"
