import itertools
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from kit.drawings import fits
from matplotlib.colors import same_color
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from resnotes.errors import UsageError
from resnotes.figures import unraveled
from resnotes.figures.style import FADED_TEXT
from resnotes.models import build
from resnotes.unravel import enumeration, gradients_along

PATHS_OF_3 = ["", "1", "2", "3", "12", "13", "23", "123"]
ROWS = ["shortcuts", "f1", "f2", "f2·f1", "f3", "f3·f1", "f3·f2", "f3·f2·f1"]  # from top to bottom


def boxes(ax):
    """Middle, text, and whether it is alive, of every box of a residual branch."""
    found = []
    for patch in ax.patches:
        if isinstance(patch, FancyBboxPatch) and patch.get_width() == unraveled.BOX_WIDTH:
            middle = (patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2)
            (text,) = [t.get_text() for t in ax.texts if np.allclose(t.get_position(), middle)]
            found.append((*middle, text, patch.get_linestyle() == "solid"))
    return found


def rows(ax):
    """The texts of a tree's rows, from top to bottom: the name of the path, and its number."""
    edge = min(patch.get_x() for patch in ax.patches if isinstance(patch, FancyBboxPatch)) - 0.11
    texts = [text for text in ax.texts if text.get_position()[0] < edge and text.get_position()[1] < 0.1]
    by_row = {}
    for text in sorted(texts, key=lambda t: t.get_position()[0]):
        by_row.setdefault(round(-text.get_position()[1] / unraveled.ROW), []).append(text)
    return [by_row[row] for row in range(len(by_row))]


def plain(text):
    return text.get_text().replace(r"$\cdot$", "·").replace("$", "").replace("_{", "").replace("}", "")


def is_faded(text):
    return same_color(text.get_color(), FADED_TEXT)


def title(ax):
    return ax.texts[-1].get_text()


def true_to_scale(fig):
    """An inch is an inch, in a figure as wide as a page."""
    assert fig.get_size_inches()[0] == 7
    for ax in fig.axes:
        size = ax.get_window_extent().size / fig.dpi
        np.testing.assert_allclose(size, [np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())])


@pytest.mark.parametrize("n", [0, 1, 2, 3, 6])
def test_all_paths_are_in_order(n):
    expected = [
        [unit in taken for unit in range(n)] for k in range(n + 1) for taken in itertools.combinations(range(n), k)
    ]
    paths = enumeration.all_paths(n)
    assert paths.dtype == torch.bool and paths.shape == (2**n, n)
    assert paths.tolist() == expected


def test_all_paths_of_three_units():
    found = ["".join(str(i + 1) for i in range(3) if path[i]) for path in enumeration.all_paths(3)]
    assert found == PATHS_OF_3


@pytest.mark.parametrize("n", [-1, 21])
def test_too_many_paths_are_refused(n):
    with pytest.raises(UsageError, match=f"0 to 20 units.*{n}"):
        enumeration.all_paths(n)


@pytest.mark.parametrize("deleted", [*itertools.combinations(range(5), 2), (), (0,), (0, 1, 2, 3, 4)])
def test_surviving_paths_go_around_what_is_deleted(deleted):
    paths = enumeration.all_paths(5)
    survives = enumeration.surviving(paths, deleted)
    assert survives.tolist() == [not any(path[unit] for unit in deleted) for path in paths.tolist()]
    assert survives.sum() == 2 ** (5 - len(deleted))


def test_one_deleted_unit_or_several():
    paths = enumeration.all_paths(3)
    assert torch.equal(enumeration.surviving(paths, 1), enumeration.surviving(paths, [1]))
    assert torch.equal(enumeration.surviving(paths, np.int64(1)), enumeration.surviving(paths, [1]))
    assert not enumeration.surviving(torch.ones(1, 3, dtype=torch.bool), 1).any(), "a feed-forward network"
    for wrong in (3, -1, [0, 3]):
        with pytest.raises(UsageError, match="units 0 to 2"):
            enumeration.surviving(paths, wrong)


def test_table_of_paths():
    table = unraveled.path_table(3, deleted=1, weights=range(8))
    assert table.path.tolist() == ["identity", "f1", "f2", "f3", "f2·f1", "f3·f1", "f3·f2", "f3·f2·f1"]
    assert table.length.tolist() == [len(path) for path in PATHS_OF_3]
    assert table.survives.tolist() == ["2" not in path for path in PATHS_OF_3]
    assert table.weight.tolist() == list(range(8))
    whole = unraveled.path_table(build("resnet-8"))
    assert list(whole) == ["path", "length", "survives"] and whole.survives.all()
    assert whole.path[0] == "shortcuts", "two of them are no identities"
    assert len(unraveled.path_table(build("resnet-20", width=1), deleted=[0, 5])) == 2**9


def test_units_are_those_of_the_network():
    first, *others = unraveled.read_units(build("resnet-8"))
    assert first == unraveled.PathUnit("f1", downsamples=False, identity=True, after="ReLU")
    assert others == [unraveled.PathUnit(f"f{i}", downsamples=True, identity=False, after="ReLU") for i in (2, 3)]
    units = unraveled.read_units(build("prebottleneck-20"))
    assert [unit.downsamples for unit in units] == [False, False, True, False, True, False]
    assert [unit.on_shortcut for unit in units] == ["h", "", "↓", "", "↓", ""], "the first widens the map"
    assert {unit.after for unit in units} == {""}


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_tree_has_each_unit_as_often_as_it_is_computed(n):
    conventional, tree = unraveled.unraveled_view(n).axes
    drawn = Counter(text for *_, text, _ in boxes(tree))
    assert drawn == {f"$f_{{{i}}}$": 2 ** (n - i) for i in range(1, n + 1)}
    assert sum(text.get_text() == "+" for text in tree.texts) == 2**n - 1
    in_a_row = [text for _, y, text, _ in sorted(boxes(conventional)) if y == 0]
    assert in_a_row == [f"$f_{{{i}}}$" for i in range(1, n + 1)]
    assert title(tree) == f"(b) unraveled view: {2**n} paths"


def test_each_row_leads_through_the_units_of_its_path():
    """Followed from its row to the output, a path meets its boxes and no others."""
    _, tree = unraveled.unraveled_view(build("resnet-8")).axes
    found = {(round(x / unraveled.STEP + 0.5), round(-y / unraveled.ROW)): text for x, y, text, _ in boxes(tree)}
    labels = [plain(name) for (name,) in rows(tree)]
    assert labels == ROWS
    for start, label in enumerate(labels):
        row, taken = start, []
        for unit in (1, 2, 3):
            if (unit, row) in found:
                taken.append(found[unit, row].strip("$↓").replace("_{", "").strip("}"))
                row -= 2 ** (unit - 1)  # up to the addition
        assert row == 0
        assert "·".join(reversed(taken)) == label.replace("shortcuts", "")


def test_down_sampling_is_shown():
    conventional, tree = unraveled.unraveled_view(build("resnet-8")).axes
    assert [text for _, y, text, _ in sorted(boxes(conventional)) if y == 0] == ["$f_{1}$", "$f_{2}$↓", "$f_{3}$↓"]
    assert sum(text.get_text() == "↓" for text in tree.texts) == 2 + 1, "on the shortcuts of the additions 2 and 3"
    texts = [text.get_text() for text in conventional.texts]
    assert "half the resolution" in texts and "addition, then ReLU" in texts
    texts = [text.get_text() for text in unraveled.unraveled_view(3).axes[0].texts]
    assert "half the resolution" not in texts and "addition" in texts


def test_bars_are_the_weights():
    torch.manual_seed(0)
    network = build("resnet-8", width=4).eval()
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    norms = gradients_along(network, images, labels, enumeration.all_paths(3)).flatten(1).norm(dim=1)
    fig = unraveled.unraveled_view(network, weights=norms)
    tree = fig.axes[1]
    table = unraveled.path_table(network, weights=norms).set_index("path").loc[ROWS]
    bars = sorted((patch for patch in tree.patches if isinstance(patch, Rectangle)), key=lambda bar: -bar.get_y())
    widths = np.array([bar.get_width() for bar in bars])
    np.testing.assert_allclose(widths / widths.max(), table.weight / table.weight.max())
    assert [float(number.get_text()) for _, number in rows(tree)] == [float(f"{w:.2g}") for w in table.weight]


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_lesion_takes_half_of_the_paths_or_the_only_one(deleted):
    residual, feed_forward = unraveled.lesioned_view(build("resnet-8"), deleted=deleted).axes
    name, symbol = f"f{deleted + 1}", f"$f_{{{deleted + 1}}}$"
    for (label,) in rows(residual):
        assert is_faded(label) == (name in plain(label)), label
    assert title(residual) == f"(a) resnet-8 without {symbol}:\n4 of 8 paths left"
    assert title(feed_forward) == f"(b) feed-forward network without {symbol}:\n0 of 1 path left"
    assert not any(alive for _, y, _, alive in boxes(feed_forward) if y == 0), "above the key"
    crossed = [text for *_, text, _ in boxes(residual) if text.startswith(symbol)]
    assert len(residual.lines) == 2 * len(crossed) == 2 * 2 ** (2 - deleted), "each is crossed out"
    assert len(feed_forward.lines) == 2 * 2, "once there and once in the key"


def test_a_box_is_faded_if_no_path_through_it_is_left():
    residual, _ = unraveled.lesioned_view(3, deleted=1).axes
    alive = Counter((text, alive) for *_, text, alive in boxes(residual))
    assert alive == {("$f_{1}$", True): 2, ("$f_{1}$", False): 2, ("$f_{2}$", False): 2, ("$f_{3}$", True): 1}


def test_nothing_is_faded_in_the_whole_network():
    for ax in unraveled.unraveled_view(3, weights=range(8)).axes:
        assert not any(is_faded(text) for text in ax.texts)
        assert all(alive for *_, alive in boxes(ax))
        assert all(p.get_linestyle() == "solid" for p in ax.patches if isinstance(p, FancyArrowPatch))


@pytest.mark.parametrize("weights", [None, torch.linspace(1e-9, 3e-8, 8), torch.zeros(8)])
def test_nothing_overlaps(weights):
    for network in (3, build("preresnet-8", shortcut="C")):
        for fig in (unraveled.unraveled_view(network, weights=weights), unraveled.lesioned_view(network)):
            fits(fig)
            true_to_scale(fig)
            (_, y0), (_, y1) = (ax.get_position().max for ax in fig.axes)
            assert y0 == pytest.approx(y1), "side by side"


@pytest.mark.parametrize("n", [1, 2, 4])
def test_nothing_overlaps_with_other_numbers_of_units(n):
    for weights in (None, range(2**n)):
        fits(unraveled.unraveled_view(n, weights=weights))
    fits(unraveled.lesioned_view(n, deleted=n - 1))


@pytest.mark.filterwarnings("error")
def test_saving_moves_nothing(tmp_path):
    fig = unraveled.unraveled_view(3)
    before = [ax.get_position().bounds for ax in fig.axes]
    for extension in ("png", "pdf", "png"):
        fig.savefig(tmp_path / f"view.{extension}", dpi=50)
    assert [ax.get_position().bounds for ax in fig.axes] == before


def test_wrong_arguments_are_refused():
    for view in (unraveled.unraveled_view, unraveled.lesioned_view):
        for many in (5, build("resnet-14"), build("resnet18")):
            with pytest.raises(UsageError, match="at most 4 units"):
                view(many)
        with pytest.raises(UsageError, match="plain-8 has no shortcut in unit 1"):
            view(build("plain-8"))
        with pytest.raises(UsageError, match="at least one unit"):
            view(0)
    with pytest.raises(UsageError, match="8 weights, one for each path, found 7"):
        unraveled.unraveled_view(3, weights=range(7))
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="finite and not negative"):
            unraveled.unraveled_view(3, weights=[1.0] * 7 + [wrong])
    for wrong in (3, -1):
        with pytest.raises(UsageError, match=f"units 0 to 2 to delete, found {wrong}"):
            unraveled.lesioned_view(3, deleted=wrong)
    assert not plt.get_fignums(), "no empty figures are left"
