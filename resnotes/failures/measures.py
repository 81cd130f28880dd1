"""What failures amount to: counts with intervals, recall against size, and how well the rules find the true cause."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from resnotes.analysis.cooccurrence import Cooccurrence, presence
from resnotes.datasets.segmentation import Sample
from resnotes.errors import UsageError
from resnotes.failures.mining import KINDS, check, labelled_pieces, mine, piece_numbers
from resnotes.models.segmentation import IGNORED

CAUSES = {
    "relationship": "relationship",
    "confusion": "confusion",
    "inconspicuous": "inconspicuous",
    "none": "other",
}  # the kind that an object's ambiguity should give


class Tables(NamedTuple):
    """What `study` found.

    Attributes:
        failures: a row a failure, by rank, as `mine` has it.
        counts: a row for each image and kind, as `counts` has it.
    """

    failures: pd.DataFrame
    counts: pd.DataFrame


def study(
    predictions: Iterable[Any],
    labels: Iterable[Any],
    classes: Sequence[str],
    training_labels: Iterable[Any],
    field: float = 64,
    *,
    ignore_index: int = IGNORED,
    **rules: Any,
) -> Tables:
    """The failures of any segmentation network, each with its kind, and how many there are in each image.

    Maps are arrays of any framework, tensors or lists: whole numbers ``[N, H, W]``, or N maps ``[H, W]`` of sizes that
    differ from image to image.

    Args:
        predictions: class numbers.
        labels: of the same images, or `ignore_index`.
        classes: names by number.
        training_labels: maps of any images, which tell what occurs together: a predicted class that does not, with
            what else is in an image, contradicts its context. See `Cooccurrence.contradicts`.
        field: side in pixels of the receptive field: larger objects can be broken up because it ends inside them.
        ignore_index: label of pixels that do not count.
        rules: what else `mine` takes: ``confused``, ``small``, ``stride``.

    Raises:
        UsageError: shapes, types or numbers that do not fit.
    """
    if isinstance(classes, int | str):
        raise UsageError(f"expected the names of the classes, by number, found {classes!r}")
    names = tuple(classes)
    maps = check(predictions, labels, len(names), ignore_index)
    ours, truth = zip(*maps, strict=True)
    shown = presence(training_labels, len(names), ignore_index=ignore_index, name="training_labels")
    together = Cooccurrence.between_classes(shown, names)
    contradicting = together.contradicts(presence(truth, len(names), ignore_index=ignore_index))
    failures = mine(ours, truth, names, contradicting, field, ignore_index=ignore_index, **rules)
    return Tables(failures, counts(failures, len(maps)))


def counts(failures: pd.DataFrame, images: int) -> pd.DataFrame:
    """Wrong pixels, and objects with a failure, of each kind in each image.

    Args:
        failures: as `mine` returns them, or some of them.
        images: N, how many there are, with and without failures.

    Returns:
        A row for each image and kind, also where there is nothing: ``image``, ``kind``, ``pixels``, ``objects``. An
        object with failures of two kinds counts for both.

    Raises:
        UsageError: a failure in an image beyond these.
    """
    if len(failures) and not 0 <= failures["image"].min() <= failures["image"].max() < images:
        raise UsageError(f"expected failures in images 0 to {images - 1}, found one in {failures['image'].max()}")
    groups = failures.groupby(["image", "kind"])
    found = pd.DataFrame({"pixels": groups["pixels"].sum(), "objects": groups["object"].nunique()})
    every = pd.MultiIndex.from_product([range(images), KINDS], names=["image", "kind"])
    return found.reindex(every, fill_value=0).astype(int).reset_index()


def recall_by_size(
    predictions: Iterable[Any], labels: Iterable[Any], classes: Sequence[str], *, ignore_index: int = IGNORED
) -> pd.DataFrame:
    """How much of each labelled object is recovered; objects are connected components of the label map.

    Args:
        predictions: integers ``[N, H, W]``, or maps of any sizes; see `resnotes.failures.mining.check`.
        labels: the same, or `ignore_index`.
        classes: the names.
        ignore_index: label of pixels that do not count.

    Returns:
        A row an object: ``image``, ``object`` (its number there), ``labelled``, ``pixels``, and ``recovered``, the
        share of them that is right.

    Raises:
        UsageError: shapes, types or values that do not fit.
    """
    maps = check(predictions, labels, len(classes), ignore_index)
    objects = labelled_pieces(maps, 0, ignore_index).drop_duplicates(["image", "object"])
    objects = objects.assign(labelled=[classes[i] for i in objects["labelled"]], recovered=1 - objects["wrong"])
    found = objects[["image", "object", "labelled", "object_pixels", "recovered"]]
    return found.rename(columns={"object_pixels": "pixels"}).reset_index(drop=True)


def clustered(confusion: Tensor) -> Tensor:
    """An order of the classes in which those that are confused stand together.

    Two classes are the more alike the larger the mean of the two rates at which one is predicted as the other. The
    order is that of the leaves of average linkage, turned such that neighbours are as alike as possible.

    Args:
        confusion: ``[C, C]`` of two classes or more, as `confusion_matrix` has it. Without pixels, all rates are 0.

    Returns:
        int64 ``[C]``, a permutation: ``confusion[order][:, order]`` is the matrix in this order.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    confusion = confusion.cpu()
    rates = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    distances = 1 - (rates + rates.T) / 2
    tree = linkage(squareform(distances.fill_diagonal_(0).numpy()), "average", optimal_ordering=True)
    return torch.from_numpy(leaves_list(tree).astype(np.int64))


def validate(
    failures: pd.DataFrame, predictions: Tensor, samples: Sequence[Sample]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How well the kinds agree with what made the objects ambiguous, in images that were made (see `scenes`).

    The true cause of a failure is the ambiguity of the object that most of its pixels belong to; an object without
    one should give ``other``. A failure of kind ``boundary`` has no cause that the scenes know of: it is in the second
    table, and in none of the numbers of the first.

    Args:
        failures: as `mine` returns them.
        predictions: those that they were mined from.
        samples: with instances and objects; their labels are those that the failures were mined from.

    Returns:
        By kind: ``precision``, the share of what has this kind whose true cause it is; ``recall``, the share of what
        has this cause that was found; NaN where there is none; ``found`` and ``true``, how many pixels have this
        kind, and how many have this cause. And how many of each true cause (rows) were given which kind (columns).

    Raises:
        UsageError: samples that know no objects, or another number of them than of predictions.
    """
    if len(samples) != len(predictions):
        raise UsageError(f"expected a sample for each of {len(predictions)} predictions, found {len(samples)}")
    true = pd.Series(index=failures.index, dtype=object)
    for i, (prediction, sample) in enumerate(zip(predictions, samples, strict=True)):
        here = failures.loc[failures["image"] == i, "piece"]
        true.update(pd.Series(_causes(prediction, sample, here), index=here.index, dtype=object))
    kinds = list(CAUSES.values())
    names: Any = {"rownames": ["true"], "colnames": ["found"]}
    table = pd.crosstab(true, failures["kind"], failures["pixels"], aggfunc="sum", **names)
    table = table.reindex(index=kinds, columns=list(KINDS)).fillna(0).astype(int)

    square = table.loc[kinds, kinds]
    hits, found, causes = np.diag(square), square.sum(), square.sum(axis=1)
    scores = pd.DataFrame({"precision": hits / found, "recall": hits / causes, "found": found, "true": causes})
    return scores.rename_axis("kind"), table


def _causes(prediction: Tensor, sample: Sample, pieces: pd.Series[int]) -> list[str]:
    """The kind that each of these pieces of an image should have."""
    if sample.instances is None or not sample.objects:
        raise UsageError(f"sample {sample.name!r} knows no objects; expected one of scenes that were made")
    numbers = piece_numbers(prediction.cpu().numpy(), sample.label.numpy())
    count = len(sample.objects)
    overlap = np.bincount((numbers * count + sample.instances.numpy()).ravel(), minlength=(numbers.max() + 1) * count)
    largest = overlap.reshape(-1, count).argmax(1)
    return [CAUSES[sample.objects[largest[piece]].ambiguity] for piece in pieces]
