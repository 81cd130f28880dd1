"""Failures and their kinds, by rule.

A prediction cuts every labelled object into *pieces*: connected pixels with one label and one prediction. A piece with
the wrong class is a *failure*. The rules ask what one class is mistaken for in one object; a component of all wrong
pixels could have several answers, and its majority would depend on what happens to touch. An *object* is a connected
component of the label map, so that data sets without instances are treated alike; neighbours of one class are one
object. Components are 4-connected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects, maximum_filter, minimum_filter
from scipy.special import stdtr
from torch import Tensor

from resnotes.analysis.maps import as_map, as_table, check_classes
from resnotes.analysis.scores import confusion_matrix
from resnotes.errors import UsageError
from resnotes.models.segmentation import IGNORED

Numbers: TypeAlias = NDArray[np.intp]

KINDS = ("relationship", "confusion", "inconspicuous", "boundary", "other")
MISSED = 0.5  # an object is missed if more than this share of it is wrong
PART = 0.25  # an object is split between two classes if each has at least this share of it
BROKEN = 3  # an object is broken up if it comes out in so many pieces or more: two are a split
COLUMNS = (  # of what `mine` returns
    *("rank", "kind", "image", "labelled", "predicted", "pixels", "object_pixels", "share", "wrong"),
    *("top", "left", "bottom", "right", "object", "piece"),
)


def check(
    predictions: Iterable[Any], labels: Iterable[Any], num_classes: int, ignore_index: int
) -> list[tuple[Tensor, Tensor]]:
    """The maps of each image, of predictions and of labels: int64 ``[H, W]``, on the CPU.

    Args:
        predictions: integers ``[N, H, W]``, or N maps ``[H, W]`` of any sizes: tensors, arrays or lists.
        labels: the same, or `ignore_index`.
        num_classes: C.
        ignore_index: label of pixels that do not count.

    Raises:
        UsageError: names what was found where a shape, type or number does not fit.
    """
    ours, truth = [as_map(each, "predictions") for each in predictions], [as_map(each, "labels") for each in labels]
    if len(ours) != len(truth) or not ours:
        raise UsageError(f"expected one map of predictions for each of labels, found {len(ours)} and {len(truth)} maps")
    pairs = list(zip(ours, truth, strict=True))
    for i, (prediction, label) in enumerate(pairs):
        if prediction.shape != label.shape:
            found = f"{list(prediction.shape)} and {list(label.shape)}"
            raise UsageError(f"expected predictions and labels of one shape, found {found} in image {i}")
        check_classes(prediction, "predictions", num_classes)
        check_classes(label, "labels", num_classes, ignore_index)
    return pairs


def components(values: NDArray[Any]) -> Numbers:
    """Numbers ``[H, W]`` of the 4-connected components of equal values, from 0, in the order of their first pixels."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pixel = np.arange(values.size).reshape(values.shape)
    down, across = values[1:] == values[:-1], values[:, 1:] == values[:, :-1]
    start = np.concatenate([pixel[:-1][down], pixel[:, :-1][across]])
    end = np.concatenate([pixel[1:][down], pixel[:, 1:][across]])
    graph = coo_array((np.ones(len(start), np.int8), (start, end)), shape=(values.size, values.size))
    numbers = connected_components(graph, directed=False)[1]
    return pd.factorize(numbers)[0].reshape(values.shape)


def piece_numbers(prediction: NDArray[Any], label: NDArray[Any]) -> Numbers:
    """Numbers ``[H, W]`` of the connected pixels with one label and one prediction; those of column ``piece``."""
    return components(label.astype(np.int64) * (int(prediction.max()) + 1) + prediction)


def image_pieces(prediction: NDArray[Any], label: NDArray[Any], margin: int) -> pd.DataFrame:
    """The pieces of one image, right and wrong ones, and those of ignored pixels.

    Args:
        prediction: integers ``[H, W]``.
        label: the same.
        margin: pixels; a piece is deep if one of its pixels is farther than that from all other objects. The frame
            of the image is no outline.

    Returns:
        A row a piece; classes are numbers, boxes are half-open. A piece is `spread` if it touches a pixel whose label
        is the class predicted in it.
    """
    objects, pieces = components(label), piece_numbers(prediction, label)
    window = 2 * margin + 1
    inside = minimum_filter(objects, window, mode="nearest") == maximum_filter(objects, window, mode="nearest")
    spread = np.zeros(pieces.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):  # neighbours, below and beside
        spread[one] |= label[other] == prediction[one]
        spread[other] |= label[one] == prediction[other]
    first = np.unique(pieces, return_index=True)[1]
    of = objects.flat[first]
    found = filter(None, find_objects(pieces + 1))  # every number is there; the types do not know
    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in found]
    return pd.DataFrame(
        {
            "labelled": label.flat[first],
            "predicted": prediction.flat[first],
            "pixels": np.bincount(pieces.ravel()),
            "object_pixels": np.bincount(objects.ravel())[of],
            "deep": np.bincount(pieces[inside], minlength=len(first)) > 0,
            "spread": np.bincount(pieces[spread], minlength=len(first)) > 0,
            **dict(zip(("top", "left", "bottom", "right"), np.array(boxes).T, strict=True)),
            "object": of,
            "piece": np.arange(len(first)),
        }
    )


def labelled_pieces(maps: Iterable[tuple[Tensor, Tensor]], margin: int, ignore_index: int) -> pd.DataFrame:
    """`image_pieces` of all images without the ignored ones, and how much of each object went wrong.

    Adds ``image``, ``share``, that of the object which is this piece, and ``wrong``, that which has any wrong class.

    Args:
        maps: as `check` returns them.
        margin: see `image_pieces`.
        ignore_index: label of pixels that do not count.
    """
    pairs = ((prediction.numpy(), label.numpy()) for prediction, label in maps)
    tables = [image_pieces(*pair, margin).assign(image=i) for i, pair in enumerate(pairs)]
    pieces = pd.concat(tables, ignore_index=True)
    pieces = pieces[pieces["labelled"] != ignore_index].reset_index(drop=True)
    pieces["share"] = pieces["pixels"] / pieces["object_pixels"]
    wrong = pieces["pixels"].where(pieces["labelled"] != pieces["predicted"], 0)
    pieces["wrong"] = wrong.groupby([pieces["image"], pieces["object"]]).transform("sum") / pieces["object_pixels"]
    return pieces


def _beside(label: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Length of the outline that each two classes share, in sides of pixels, float64 ``[C, C]``, symmetric."""
    one = torch.cat([label[1:].flatten(), label[:, 1:].flatten()])
    other = torch.cat([label[:-1].flatten(), label[:, :-1].flatten()])
    counted = (one != other) & (one != ignore_index) & (other != ignore_index)
    pairs = torch.bincount(one[counted] * num_classes + other[counted], minlength=num_classes**2)
    matrix = pairs.view(num_classes, num_classes).double()
    return matrix + matrix.T


def confused_pairs(
    predictions: Iterable[Any],
    labels: Iterable[Any],
    num_classes: int,
    *,
    least: float = 0.05,
    level: float = 0.01,
    ignore_index: int = IGNORED,
) -> Tensor:
    """Which class is systematically taken for which: often, and more often than what lies beside it explains.

    What is missed takes the class of its surroundings, which need not resemble it: streetlights are called sky. So
    chance is: the wrong pixels of class i in an image are called j in proportion to the outline that i shares with j
    there, among all its neighbours. A pair passes if the pixels beyond chance are at least `least` of the class's
    pixels, and more than 0 by a one-sided t-test over the images in which i has wrong pixels, Bonferroni-corrected
    for the pairs that have so many. Images, not pixels, are the sample: the pixels of an object go wrong together. A
    pair in a single image never passes.

    Args:
        predictions: integers ``[N, H, W]``, or maps of any sizes; see `check`.
        labels: the same, or `ignore_index`.
        num_classes: C.
        least: share of a class's pixels that are taken for the other beyond chance.
        level: of the test, for all pairs together.
        ignore_index: label of pixels that do not count.

    Returns:
        bool ``[C, C]``, a row for each label, a column for each prediction; False on the diagonal.

    Raises:
        UsageError: see `check`.
    """
    maps = check(predictions, labels, num_classes, ignore_index)
    total, squares = torch.zeros(2, num_classes, num_classes, dtype=torch.float64)
    pixels, images = torch.zeros(2, num_classes, 1, dtype=torch.float64)
    for prediction, label in maps:
        wrong = confusion_matrix(prediction, label, num_classes, ignore_index=ignore_index).double()
        pixels += wrong.sum(1, keepdim=True)
        wrong.fill_diagonal_(0)
        beside = _beside(label, num_classes, ignore_index)
        chance = beside / beside.sum(1, keepdim=True).clamp(min=1)
        beyond = wrong - wrong.sum(1, keepdim=True) * chance
        total += beyond
        squares += beyond.square()
        images += wrong.any(1, keepdim=True)
    often = (total >= least * pixels) & (total > 0)
    mean = total / images
    # Without wrong pixels, or with those of one image, there is no variance: NaN, which passes no test.
    variance = (squares / images - mean.square()).clamp(min=0) / (images - 1)
    t = mean / variance.sqrt()
    p = torch.from_numpy(stdtr((images - 1).numpy(), -t.numpy()))
    confused: Tensor = often & (p < level / max(1, int(often.sum())))
    return confused


def mine(
    predictions: Iterable[Any],
    labels: Iterable[Any],
    classes: Sequence[str],
    contradicting: Tensor,
    field: float,
    *,
    confused: Tensor | None = None,
    small: float = 0.25,
    stride: int = 4,
    ignore_index: int = IGNORED,
) -> pd.DataFrame:
    """All failures in a set of images, each with its kind (Zhao et al. 2017, Sec. 3.1 and Fig. 2), the worst first.

    The first rule that applies names the kind:

    1. ``boundary``: finer than the network's map, whose cells are `stride` pixels wide, can be trusted: no pixel
       farther than half a cell from the object's outline, or fewer pixels than a cell. An outline that is a little
       off says nothing about the class; so this comes first. It does not hold for objects of which more than half is
       wrong: a streetlight is thin, and missed all the same.
    2. ``relationship``: the predicted class contradicts the context. This comes before what follows because boats
       that are called cars are a confused pair, too: that two classes look alike does not explain why the context
       was not heeded. Nor does size: what is missed takes the class of its surroundings, which belongs there.
    3. ``inconspicuous``: the object is small, with fewer pixels than the quantile `small` of the labelled objects (of
       those with a cell's pixels or more: label maps of photographs are full of specks, which would be the quantile),
       and missed: more than half of it is wrong. Or it is larger than the receptive field, with more than ``field²``
       pixels, and broken up: into three pieces or more that are not finer than the map (two are a split). Size comes
       before confusion because it leaves too little to be seen, of whatever class.
    4. ``confusion``: labelled and predicted class are a confused pair, or the object is split between them: each
       has at least a quarter of it, and the failure touches nothing that is labelled as the predicted class, which
       could have spread from there.
    5. ``other``.

    A failure is ranked by its pixels times its share of the object: a boat that is lost ranks before as many pixels
    of the sky.

    Args:
        predictions: classes, integers ``[N, H, W]``, or maps of any sizes; see `check`.
        labels: the same, or `ignore_index`.
        classes: the C names.
        contradicting: bool ``[N, C]``, whether a class contradicts what else is in the image.
        field: side in pixels of the effective receptive field, as `EffectiveField.size` has it; of the network
            without pyramid pooling, if networks are compared. May be infinite.
        confused: bool ``[C, C]``, as `confused_pairs` has it; None for that of these predictions. To compare
            networks, give both the same: a pair that is confused no longer would change the kind of what is left.
        small: quantile of the sizes of objects that fill a cell.
        stride: pixels per cell of the network's last map.
        ignore_index: label of pixels that do not count; to objects beside them they are an outline.

    Returns:
        A row a failure, by rank: ``rank`` from 1, equal for equal failures; ``kind``; ``image``; the class ``labelled``
        and that ``predicted``; ``pixels``; ``object_pixels``; ``share`` of the object that this failure is, and that
        is ``wrong`` in any way; the bounding box ``top``, ``left``, ``bottom``, ``right``, half-open; and the number
        of the ``object`` and of the ``piece`` within the image. Failures of equal rank are in the order of images
        and, in one, of their first pixels.

    Raises:
        UsageError: shapes, types or values that do not fit.
    """
    maps, count = check(predictions, labels, len(classes), ignore_index), len(classes)
    if confused is None:
        ours, truth = zip(*maps, strict=True)
        confused = confused_pairs(ours, truth, count, ignore_index=ignore_index)
    contradicting = as_table(contradicting, "contradicting", len(maps), count)
    confused = as_table(confused, "confused", count, count)
    if not (field > 0 and 0 <= small <= 1 and stride >= 1):
        raise UsageError(f"expected field > 0, 0 <= small <= 1 and stride >= 1, found {field}, {small} and {stride}")
    pieces = labelled_pieces(maps, stride // 2, ignore_index)
    pieces["kind"] = _kinds(pieces, contradicting, confused, field, small, stride)
    failures = pieces[pieces["labelled"] != pieces["predicted"]].copy()
    for name in ("labelled", "predicted"):
        failures[name] = [classes[i] for i in failures[name]]
    damage = failures["pixels"] * failures["share"]
    failures["rank"] = damage.rank(method="min", ascending=False).astype(int)
    return failures.sort_values("rank", kind="stable", ignore_index=True)[list(COLUMNS)]


def _kinds(
    pieces: pd.DataFrame, contradicting: Tensor, confused: Tensor, field: float, small: float, stride: int
) -> pd.Series[str]:
    """The kind of each piece, if it is a failure: that of the first rule of `mine` that applies."""
    objects = [pieces["image"], pieces["object"]]
    coarse = pieces["deep"] & (pieces["pixels"] >= stride**2)
    missed = pieces["wrong"] > MISSED
    # Small and missed, or large and broken up
    sizes = pieces.drop_duplicates(["image", "object"])["object_pixels"]
    seen = sizes[sizes >= stride**2]
    limit = seen.quantile(small) if len(seen) else stride**2
    broken = coarse.groupby(objects).transform("sum") >= BROKEN
    inconspicuous = (pieces["object_pixels"] < limit) & missed | (pieces["object_pixels"] > field**2) & broken
    # A confused pair, or split between two classes
    alike = confused.numpy()[pieces["labelled"], pieces["predicted"]]
    named = pieces["pixels"].groupby([*objects, pieces["predicted"]]).transform("sum") / pieces["object_pixels"]
    split = (1 - pieces["wrong"] >= PART) & (named >= PART) & ~pieces["spread"]
    rules: dict[str, Any] = {
        "boundary": ~coarse & ~missed,
        "relationship": contradicting.numpy()[pieces["image"], pieces["predicted"]],
        "inconspicuous": inconspicuous,
        "confusion": alike | split,
    }
    return pd.Series(np.select(list(rules.values()), list(rules), "other"), index=pieces.index)
