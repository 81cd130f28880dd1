"""What the figures of failures show: colours, panels, confusion matrices, which classes occur together."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from resnotes.analysis.cooccurrence import Cooccurrence, presence
from resnotes.datasets import scenes
from resnotes.errors import UsageError
from resnotes.figures.failures import NEVER, confusion_figure, heat_map, panels
from resnotes.figures.style import palette

CLASSES = ("water", "boat", "car", "sky")


@pytest.fixture(scope="module")
def made() -> Any:
    return scenes.generate(120, 3)


def readable(fig: Figure) -> None:
    """All that is written around the axes and in legends is in the figure, and apart."""
    fig.draw_without_rendering()
    texts = [text for legend in fig.legends for text in legend.get_texts()]
    for ax in fig.axes:
        texts += [*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label]
        texts += legend.get_texts() if (legend := ax.get_legend()) else []
    boxes, frame = [text.get_window_extent() for text in texts if text.get_text()], fig.bbox.padded(1)
    assert all(frame.x0 <= box.x0 < box.x1 <= frame.x1 and frame.y0 <= box.y0 < box.y1 <= frame.y1 for box in boxes)
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_every_class_has_a_colour_of_its_own() -> None:
    assert len({tuple(color) for color in palette(192)}) == 192
    np.testing.assert_array_equal(palette(9), palette(25)[:9])
    np.testing.assert_allclose(palette(1)[0], to_rgb("#0072B2"))
    for count in (0, 193):
        with pytest.raises(UsageError, match=f"1 to 192 classes to colour, found {count}"):
            palette(count)


def failing(**changes: Any) -> dict[str, Any]:
    """What two failures look like: a boat that is called a car, in both images."""
    labels = torch.zeros(2, 24, 24, dtype=torch.int64)
    labels[:, 6:18, 8:16] = 1
    predicted = torch.where(labels == 1, 2, labels)
    labels[1, :4] = 255
    where = {"image": [0, 1], "top": 6, "left": 8, "bottom": 18, "right": 16}
    words = {"kind": ["relationship", "other"], "labelled": "boat", "predicted": "car"}
    return {
        "failures": pd.DataFrame({**where, **words, "pixels": 96, "object_pixels": 96}),
        "images": torch.randint(256, (2, 3, 24, 24), dtype=torch.uint8),
        "labels": labels,
        "predictions": {"FCN": predicted, "PSPNet": labels.where(labels < 255, 0)},
        "classes": CLASSES,
        **changes,
    }


def test_panels_show_the_data() -> None:
    shown = failing()
    fig = panels(**shown)
    readable(fig)
    colors = np.vstack([palette(4), [1, 1, 1]])
    maps = shown["labels"], *shown["predictions"].values()
    for image, row in enumerate((fig.axes[:4], fig.axes[4:])):
        photo, *others = [ax.images[0].get_array() for ax in row]
        np.testing.assert_array_equal(photo, shown["images"][image].permute(1, 2, 0))
        for picture, each in zip(others, maps, strict=True):
            np.testing.assert_array_equal(picture, colors[each[image].clamp(max=4)])
        for ax in row:
            [box] = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
            assert (*box.get_xy(), box.get_width(), box.get_height()) == (7.5, 5.5, 8, 12)
        kind = shown["failures"].kind[image]
        assert row[0].get_title(loc="left") == f"{kind}: boat → car, 96 of 96 pixels"
    assert [ax.get_xlabel() for ax in fig.axes[4:]] == ["image", "label", "FCN", "PSPNet"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["water", "boat", "car"]


def test_panels_refuse_what_does_not_fit() -> None:
    fine = failing()
    fcn = fine["predictions"]["FCN"]
    for wrong in (
        {"failures": fine["failures"].head(0)},
        {"predictions": {}},
        {"labels": fine["labels"][:, 1:]},
        {"predictions": {"FCN": fcn[:, :, 1:]}},
        {"predictions": {"FCN": fcn, "PSPNet": fcn + 2}},
    ):
        with pytest.raises(UsageError, match="expected"):
            panels(**{**fine, **wrong})


def test_the_confusion_figure_shows_shares_in_order() -> None:
    confusion = torch.tensor([[6, 2, 0, 0], [1, 0, 3, 0], [0, 0, 0, 0], [0, 0, 0, 5]])
    ax = confusion_figure(confusion, CLASSES, torch.tensor([2, 0, 3, 1])).axes[0]
    expected = [[0, 0, 0, 0], [0, 0.75, 0, 0.25], [0, 0, 1, 0], [0.75, 0.25, 0, 0]]
    np.testing.assert_allclose(np.reshape(ax.collections[0].get_array(), (4, 4)), expected)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [text.get_text() for text in labels] == ["car", "water", "sky", "boat"]
    with pytest.raises(UsageError, match=r"\[4, 4\], found \[3, 4\]"):
        confusion_figure(confusion[:3], CLASSES)
    with pytest.raises(UsageError, match=r"the classes 0 to 3, each once; found \[2, 0, 3, 2\]"):
        confusion_figure(confusion, CLASSES, [2, 0, 3, 2])


def test_names_of_25_classes_can_be_read() -> None:
    readable(confusion_figure(torch.eye(25), scenes.CLASSES))


def counted(made: Any) -> Cooccurrence:
    return Cooccurrence.between_classes(presence(made.labels, 25), scenes.CLASSES)


def test_every_cell_of_a_heat_map_shows_its_pair(made: Any) -> None:
    found = counted(made)
    fig = heat_map(found)
    fig.draw_without_rendering()
    ax, bar = fig.axes
    rows, columns = ([text.get_text() for text in texts] for texts in (ax.get_yticklabels(), ax.get_xticklabels()))
    assert sorted(rows) == sorted(columns) == sorted(scenes.CLASSES)
    cells, squares = ax.collections
    colors = cells.get_facecolors().reshape(len(rows), len(columns), 4)
    small = {(y - 0.5, x - 0.5) for x, y in squares.get_offsets().tolist()}
    exact, significant = found.pmi(), found.significant()
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        c, k = scenes.CLASSES.index(row), scenes.CLASSES.index(column)
        blank = row == column or exact[c, k].isnan()
        assert ((i, j) in small) == (not blank and not significant[c, k])
        if not blank and significant[c, k]:
            assert (tuple(colors[i, j]) == to_rgba(NEVER)) == (found.counts[c, k] == 0)
            if exact[c, k].isfinite() and exact[c, k] > 0.1:
                assert colors[i, j, 0] > colors[i, j, 2], "vermilion"
    assert bar.get_ylabel() == "pointwise mutual information (bits)"


@pytest.mark.filterwarnings("error")  # of a layout that has no room
def test_a_heat_map_can_be_read(made: Any) -> None:
    fig = heat_map(counted(made))
    assert fig.get_figwidth() <= 7
    readable(fig)


def test_alike_classes_are_neighbours(made: Any) -> None:
    ax = heat_map(counted(made)).axes[0]
    rows, columns = ([text.get_text() for text in texts] for texts in (ax.get_yticklabels(), ax.get_xticklabels()))
    assert rows == columns
    for group in (("boat", "crane", "water"), ("runway", "airplane", "tower"), ("wall", "floor", "bed")):
        places = sorted(rows.index(name) for name in group)
        assert places[-1] - places[0] <= 4  # a bedroom has five classes of its own


def test_little_or_nothing_to_draw() -> None:
    one = Cooccurrence.between_classes(torch.tensor([[True, False]]), ["a", "b"])
    assert [text.get_text() for text in heat_map(one).axes[0].get_xticklabels()] == ["a", "b"]
