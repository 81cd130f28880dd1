"""The views of paths: which units and paths are drawn, what a lesion takes away, and the enumeration behind them."""

import itertools
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from kit.drawings import fits
from matplotlib.colors import same_color
from matplotlib.patches import FancyBboxPatch, Rectangle

from resnotes.errors import UsageError
from resnotes.figures import unraveled
from resnotes.figures.style import FADED_TEXT
from resnotes.models import build
from resnotes.unravel import enumeration, gradients_along

ROWS = ["shortcuts", "f1", "f2", "f2·f1", "f3", "f3·f1", "f3·f2", "f3·f2·f1"]  # from top to bottom
WEIGHTS = torch.linspace(1e-9, 3e-8, 8)


def boxes(ax):
    """Of every residual branch, but that of the key: middle, number, and whether it is alive."""
    found = []
    for patch in ax.patches:
        if isinstance(patch, FancyBboxPatch) and patch.get_width() == unraveled.BOX_WIDTH:
            middle = (patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2)
            (text,) = [plain(t) for t in ax.texts if np.allclose(t.get_position(), middle)]
            if "i" not in text:
                found.append((*middle, int(text.strip("f↓")), patch.get_linestyle() == "solid"))
    return found


def rows(ax):
    """The names of a tree's rows, from top to bottom, and whether they are alive."""
    names = [text for text in ax.texts if plain(text) in ROWS and text.get_position()[0] < 0]
    names.sort(key=lambda text: -text.get_position()[1])
    return {plain(text): not same_color(text.get_color(), FADED_TEXT) for text in names}


def plain(text):
    return text.get_text().replace("$", "").replace("_{", "").replace("}", "")


@pytest.mark.parametrize("n", [0, 1, 2, 3, 6])
def test_all_paths_are_in_order(n):
    expected = [
        [unit in taken for unit in range(n)] for k in range(n + 1) for taken in itertools.combinations(range(n), k)
    ]
    paths = enumeration.all_paths(n)
    assert paths.dtype == torch.bool and paths.shape == (2**n, n)
    assert paths.tolist() == expected


@pytest.mark.parametrize("n", [-1, 21])
def test_too_many_paths_are_refused(n):
    with pytest.raises(UsageError, match=f"0 to 20 units.*{n}"):
        enumeration.all_paths(n)


@pytest.mark.parametrize("deleted", [*itertools.combinations(range(5), 2), (), (0,), (0, 1, 2, 3, 4), 3])
def test_surviving_paths_go_around_what_is_deleted(deleted):
    paths = enumeration.all_paths(5)
    units = (deleted,) if isinstance(deleted, int) else deleted
    survives = enumeration.surviving(paths, deleted)
    assert survives.tolist() == [not any(path[unit] for unit in units) for path in paths.tolist()]
    with pytest.raises(UsageError, match="units 0 to 4"):
        enumeration.surviving(paths, 5)


def test_table_of_paths():
    table = unraveled.path_table(build("resnet-8"), deleted=1, weights=range(8))
    assert table.path.tolist() == ["shortcuts", "f1", "f2", "f3", "f2·f1", "f3·f1", "f3·f2", "f3·f2·f1"]
    assert table.length.tolist() == [0, 1, 1, 1, 2, 2, 2, 3]
    assert table.survives.tolist() == ["f2" not in path for path in table.path]
    assert table.weight.tolist() == list(range(8))
    longer = unraveled.path_table(build("resnet-14", width=1))
    assert len(longer) == 2**6 and longer.survives.all() and "weight" not in longer


def test_units_are_those_of_the_network():
    first, *others = unraveled.read_units(build("resnet-8"))
    assert first == unraveled.PathUnit("f1", after="ReLU")
    assert others == [unraveled.PathUnit(f"f{i}", downsamples=True, on_shortcut="↓", after="ReLU") for i in (2, 3)]
    units = unraveled.read_units(build("prebottleneck-20"))
    assert [unit.on_shortcut for unit in units] == ["$h$", "", "↓", "", "↓", ""], "the first widens the map"
    assert {unit.after for unit in units} == {""}


def test_tree_has_each_unit_as_often_as_it_is_computed():
    conventional, tree = unraveled.unraveled_view(build("resnet-8")).axes
    assert Counter(unit for *_, unit, _ in boxes(tree)) == {1: 4, 2: 2, 3: 1}
    assert [unit for *_, unit, _ in sorted(boxes(conventional))] == [1, 2, 3]
    assert all(alive for ax in (conventional, tree) for *_, alive in boxes(ax))


def test_each_row_leads_through_the_units_of_its_path():
    """Followed from its row to the output, a path meets its boxes and no others."""
    _, tree = unraveled.unraveled_view(build("resnet-8")).axes
    found = {(round(x / unraveled.STEP + 0.5), round(-y / unraveled.ROW)): unit for x, y, unit, _ in boxes(tree)}
    assert list(rows(tree)) == ROWS
    for start, label in enumerate(ROWS):
        row, taken = start, []
        for unit in (1, 2, 3):
            if (unit, row) in found:
                taken.append(f"f{found[unit, row]}")
                row -= 2 ** (unit - 1)  # up to the addition
        assert row == 0
        assert "·".join(reversed(taken)) == label.replace("shortcuts", "")


def test_bars_are_the_weights():
    torch.manual_seed(0)
    network = build("resnet-8", width=4).eval()
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    norms = gradients_along(network, images, labels, enumeration.all_paths(3)).flatten(1).norm(dim=1)
    tree = unraveled.unraveled_view(network, weights=norms).axes[1]
    weights = unraveled.path_table(network, weights=norms).set_index("path").loc[ROWS].weight
    bars = sorted((patch for patch in tree.patches if isinstance(patch, Rectangle)), key=lambda bar: -bar.get_y())
    widths = np.array([bar.get_width() for bar in bars])
    np.testing.assert_allclose(widths / widths.max(), weights / weights.max())
    assert {f"{weight:.2g}" for weight in weights} <= {text.get_text() for text in tree.texts}


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_lesion_takes_half_of_the_paths_or_the_only_one(deleted):
    residual, feed_forward = unraveled.lesioned_view(build("resnet-8"), deleted=deleted).axes
    name = f"f{deleted + 1}"
    assert rows(residual) == {row: name not in row for row in ROWS}
    assert f"resnet-8 without {name}:\n4 of 8 paths left" in plain(residual.texts[-1])
    assert f"feed-forward network without {name}:\n0 of 1 path left" in plain(feed_forward.texts[-1])
    assert not any(alive for *_, alive in boxes(feed_forward))
    assert len(residual.lines) == 2 * 2 ** (2 - deleted), "each is crossed out"
    assert len(feed_forward.lines) == 2 * 2, "once there and once in the key"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("network", ["resnet-8", "preresnet-8", "bottleneck-11"])
def test_nothing_overlaps_or_moves_when_saved(network, tmp_path):
    drawn = build(network, shortcut="C")
    for fig in (
        unraveled.unraveled_view(drawn),
        unraveled.unraveled_view(drawn, weights=WEIGHTS),
        unraveled.lesioned_view(drawn, deleted=2),
    ):
        fits(fig)
        fig.savefig(tmp_path / "once.png", dpi=50)
        fig.savefig(tmp_path / "again.png", dpi=50)
        assert (tmp_path / "once.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_networks_that_cannot_be_drawn_are_refused():
    with pytest.raises(UsageError, match=r"1 to 3 units.*found 6"):
        unraveled.unraveled_view(build("resnet-14"))
    with pytest.raises(UsageError, match="plain-8 has no shortcut in unit 1"):
        unraveled.lesioned_view(build("plain-8"), deleted=0)
    with pytest.raises(UsageError, match="units 0 to 2 to delete, found 3"):
        unraveled.lesioned_view(build("resnet-8"), deleted=3)
    assert not plt.get_fignums(), "no empty figures are left"
