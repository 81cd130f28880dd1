"""Label noise as people make it: outlines off by a little, regions named otherwise, things overlooked.

An annotator who labelled 61 images of ADE20K again after six months disagreed with the first labels on 17.6 % of the
pixels: 5.7 points for the quality of outlines, 6.0 for names, 5.9 for missing objects (Zhou et al., IJCV 2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnotes.datasets.scenes.canvas import CLASSES, TWINS
from resnotes.datasets.segmentation import Object
from resnotes.errors import UsageError

Labels = NDArray[np.uint8]

_ALIKE = {name: tuple(other for pair in TWINS if name in pair for other in pair if other != name) for name in CLASSES}
_KNOTS = 9  # a side, of the grid of random displacements that outlines are bent by
_BISECTIONS = 12


@dataclass(frozen=True)
class Noise:
    """Share of all pixels that each kind of mistake makes wrong; together they make their sum wrong."""

    boundary: float = 0.057
    naming: float = 0.060
    missing: float = 0.059

    def __post_init__(self) -> None:
        for kind, share in vars(self).items():
            if not 0 <= share < 0.5:
                raise UsageError(f"label noise {kind}={share} is not possible; allowed: 0 to 0.5, a share of pixels")


def annotated(
    labels: Labels, instances: Labels, objects: Sequence[Sequence[Object]], noise: Noise, rng: np.random.Generator
) -> Labels:
    """What an annotator with this `noise` makes of the true `labels`.

    Things are overlooked first, small ones rather than large ones; then regions get another name, mostly that of a
    class that looks alike; at last all outlines are bent. Each step is continued until it has added its share.

    Args:
        labels: `[N, H, W]`, the true classes.
        instances: `[N, H, W]`, indices into the `objects` of the image.
        objects: those of each image.
        noise: how much of each kind.
        rng: drawn from.

    Raises:
        UsageError: there is not enough to overlook, or to bend, for such a share.
    """
    noisy = labels.copy()
    regions = [(image, index) for image, found in enumerate(objects) for index in range(len(found))]
    sizes = [np.bincount(each.ravel(), minlength=len(found)) for each, found in zip(instances, objects, strict=True)]

    things = [(image, index) for image, index in regions if objects[image][index].thing]
    urgency = [np.sqrt(sizes[image][index]) * rng.exponential() for image, index in things]
    order = [things[i] for i in np.argsort(urgency)]
    overlooked = _overlook(noisy, instances, order, round(noise.missing * labels.size))

    left = [region for region in regions if region not in overlooked]
    order = [left[i] for i in rng.permutation(len(left))]
    _misname(noisy, instances, objects, order, round(noise.naming * labels.size), rng)
    return _bend(noisy, labels, noise.boundary, rng)


def _overlook(noisy: Labels, instances: Labels, order: Iterable[tuple[int, int]], quota: int) -> set[tuple[int, int]]:
    """Gives the pixels of objects, in this `order`, to what is beside them, until `quota` pixels are wrong."""
    from scipy.ndimage import distance_transform_edt

    overlooked = set()
    missing = quota
    for image, index in order:
        rows, columns = np.nonzero(instances[image] == index)
        if len(rows) > missing:
            continue
        window = (slice(max(rows.min() - 1, 0), rows.max() + 2), slice(max(columns.min() - 1, 0), columns.max() + 2))
        shown, labels = instances[image][window] == index, noisy[image][window]
        nearest = distance_transform_edt(shown, return_distances=False, return_indices=True)
        filled = labels[tuple(nearest)]
        missing -= int(np.count_nonzero(filled != labels))
        labels[...] = filled
        overlooked.add((image, index))
    if missing > quota / 10 + 1:
        raise UsageError(
            f"overlooking every thing in these images makes {quota - missing} pixels wrong, less than {quota}; "
            "ask for less noise of the kind 'missing', or for more images"
        )
    return overlooked


def _misname(
    noisy: Labels,
    instances: Labels,
    objects: Sequence[Sequence[Object]],
    order: Iterable[tuple[int, int]],
    quota: int,
    rng: np.random.Generator,
) -> None:
    """Renames regions, in this `order`, until `quota` pixels are wrong."""
    for image, index in order:
        label = objects[image][index].label
        region = (instances[image] == index) & (noisy[image] == label)
        size = int(np.count_nonzero(region))
        if size > quota:
            continue
        alike = _ALIKE[CLASSES[label]] or tuple(name for name in CLASSES if name != CLASSES[label])
        noisy[image][region] = CLASSES.index(alike[rng.integers(len(alike))])
        quota -= size


def _bend(noisy: Labels, labels: Labels, share: float, rng: np.random.Generator) -> Labels:
    """Shifts outlines by smooth random fields of one strength, such that another `share` of the pixels is wrong."""
    from scipy.ndimage import zoom

    count, height, width = noisy.shape
    if share == 0:
        return noisy
    knots = rng.normal(size=(2 * count, _KNOTS, _KNOTS)).astype(np.float32)
    fields = zoom(knots, (1, height / _KNOTS, width / _KNOTS), order=1, mode="nearest", grid_mode=True)
    down, right = fields[:count], fields[count:]
    wanted = np.mean(noisy != labels) + share
    images, rows, columns = np.ogrid[:count, :height, :width]

    def bent(strength: float) -> NDArray[Any]:
        y = np.clip(np.rint(rows + strength * down), 0, height - 1).astype(np.intp)
        x = np.clip(np.rint(columns + strength * right), 0, width - 1).astype(np.intp)
        return np.asarray(noisy[images, y, x])

    low, high = 0.0, height / 8
    if np.mean(bent(high) != labels) < wanted:
        raise UsageError(
            f"no outlines to bend for {share:.1%} of the pixels; ask for less noise of the kind 'boundary'"
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(bent(middle) != labels) < wanted else (low, middle)
    return bent(high)
