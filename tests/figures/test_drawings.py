"""Residual units: what is drawn is the block, and the blocks are those of the papers."""

import pytest
from kit.drawings import fits
from torch import nn

from resnotes.errors import UsageError
from resnotes.figures import drawings
from resnotes.figures.canvas import Canvas, blank
from resnotes.models import Block, build
from resnotes.models.residual import ORDERS

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


def column(ax):
    """The texts in the column of the residual branch, downwards."""
    texts = [text for text in ax.texts if text.get_position()[0] == 0]
    return [text.get_text() for text in sorted(texts, key=lambda t: -t.get_position()[1])]


def beside(ax):
    """The other texts, column by column, each downwards."""
    texts = [text for text in ax.texts if text.get_position()[0] != 0]
    return [text.get_text() for text in sorted(texts, key=lambda t: (t.get_position()[0], -t.get_position()[1]))]


def test_activation_orders_are_those_of_the_paper():
    assert list(drawings.ORDERS.values()) == list(ORDERS)
    fig = drawings.activation_orders()
    fits(fig)
    assert [column(ax) for ax in fig.axes] == [["$x_l$", *nodes, "$x_{l+1}$", title] for title, nodes in FIG_4.items()]
    assert all(beside(ax) == [] for ax in fig.axes), "every shortcut is an identity"


def test_shortcut_variants_are_those_of_the_paper():
    fig = drawings.shortcut_variants()
    fits(fig)
    for ax, (title, (scaled, shortcut)) in zip(fig.axes, FIG_2.items(), strict=True):
        assert column(ax) == ["$x_l$", CONV, "BN", "ReLU", CONV, "BN", *scaled, "+", "ReLU", "$x_{l+1}$", title]
        assert beside(ax) == shortcut


def test_building_block_is_that_of_the_paper():
    fig = drawings.building_block()
    fits(fig)
    block, bottleneck = fig.axes
    assert column(block) == ["$x$", CONV, "ReLU", CONV, "+", "ReLU", "", "building block"]
    assert column(bottleneck) == ["$x$", "1×1 conv", "ReLU", CONV, "ReLU", "1×1 conv", "+", "ReLU", "", "bottleneck"]
    for ax in (block, bottleneck):
        assert beside(ax) == [r"$\mathcal{F}(x)$", r"$\mathcal{F}(x)+x$", "$x$\nidentity"]


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
    unit, fig = drawings.read_unit(build(name, shortcut=shortcut).blocks[1]), blank(5)
    drawings.draw_unit(Canvas(fig, 1, 1), unit, max(6, len(unit.residual) + 1))
    assert beside(fig.axes[0]) == expected
    fits(fig)


def test_what_cannot_be_drawn_is_named():
    for branch in (nn.Sequential(nn.Conv2d(4, 4, 3), nn.Tanh()), nn.Tanh()):
        with pytest.raises(UsageError, match="Tanh"):
            drawings.read_unit(Block(branch, nn.Identity(), nn.Identity()))
    with pytest.raises(UsageError, match="without a shortcut"):
        drawings.read_unit(build("plain-8").blocks[0])
