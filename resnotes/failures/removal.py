"""Remove one thing and see who leaned on it, after Shetty et al. 2018 (arXiv 1812.06707).

All objects of a class are covered, and the predictions of the *other* pixels are compared with what they were. Two
fills, since either brings something of its own into the image, and a sham, which covers as much elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from resnotes.analysis.maps import as_map, check_classes
from resnotes.errors import UsageError
from resnotes.models.segmentation import IGNORED

COVERS = ("mean", "patch", "sham")


def covered(image: Tensor, region: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The image with a region covered: ``mean`` colour, a ``patch`` of the same image, and the ``sham``.

    The region is moved to where it overlaps itself least, over the frame and in on the other side; one of the best
    places is drawn. What lies there is the patch, and what the sham covers, with the mean colour. Where the region
    still overlaps itself, which one of more than half of the image must, the patch is of the mean colour, and the sham
    covers less.

    Args:
        image: uint8 ``[C, H, W]``.
        region: bool ``[H, W]``, some of the image, and not all.
        rng: draws the place.

    Returns:
        uint8 ``[3, C, H, W]``, by `COVERS`, the mean colour being that outside of the region; and bool ``[H, W]``, what
        any of the three touched.
    """
    spectrum = torch.fft.rfft2(region.double())
    overlap = torch.fft.irfft2(spectrum.abs().square(), s=region.shape).round()  # by how far it is moved down and right
    places = (overlap == overlap.min()).nonzero()
    down, right = places[rng.integers(len(places))].tolist()
    elsewhere = region.roll((down, right), (0, 1)) & ~region
    colour = image[:, ~region].double().mean(1).round().to(image.dtype)[:, None, None]
    flat = torch.where(region, colour, image)
    patch = torch.where(region, flat.roll((-down, -right), (1, 2)), image)
    return torch.stack([flat, patch, torch.where(elsewhere, colour, image)]), region | elsewhere


def leaning(
    predict: Callable[[Tensor], Any],
    images: Iterable[Any],
    labels: Iterable[Any],
    classes: Sequence[str],
    *,
    ignore_index: int = IGNORED,
    seed: int = 0,
) -> pd.DataFrame:
    """Which class leans on which: how many of its pixels are called something else once the other one is covered.

    Every class that an image shows is removed from it in turn, all of its objects together. Pixels that any of the
    covers touched do not count, so that these three are compared on the same pixels.

    Args:
        predict: uint8 images ``[B, C, H, W]`` to classes, integers ``[B, H, W]``, such as `analysis.prediction.predict`
            of a network. It is given the image, and then as `covered` has it.
        images: uint8 ``[C, H, W]``, of any sizes: tensors or arrays.
        labels: integers ``[H, W]`` of the same images: tensors, arrays or lists.
        classes: the names.
        ignore_index: label of pixels that do not count, and that are never removed.
        seed: of the places of patch and sham.

    Returns:
        A row for each class ``removed``, other class ``observed`` and ``cover`` (see `COVERS`), if there are such
        pixels: ``changed``, the share of them whose predicted class is another than before; ``pixels`` and ``images``,
        how many there are.

    Raises:
        UsageError: shapes, types or numbers that do not fit.
    """
    rng, count = np.random.default_rng(seed), len(classes)
    rows = []
    for image, label in zip_longest(images, labels):
        if image is None or label is None:
            raise UsageError("expected one map of labels for each image, found more of the one than of the other")
        image, truth = torch.as_tensor(image).cpu(), as_map(label, "labels")
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise UsageError(f"expected images uint8 [C, H, W], found {image.dtype} {list(image.shape)}")
        check_classes(truth, "labels", count, ignore_index)
        if image.shape[1:] != truth.shape:
            raise UsageError(f"expected images and labels of one size, found {image.shape[1:]} and {truth.shape}")
        known = truth != ignore_index
        for removed in truth[known].unique().tolist():
            if not (known & (truth != removed)).any():
                continue  # nothing is left to observe
            covers, touched = covered(image, truth == removed, rng)
            # In one batch: another one could be rounded otherwise.
            answers = torch.as_tensor(predict(torch.cat([image[None], covers]))).cpu()
            if answers.shape != (1 + len(covers), *truth.shape) or answers.is_floating_point():
                raise UsageError(
                    f"expected predict to give classes, integers {[1 + len(covers), *truth.shape]}, found"
                    f" {answers.dtype} {list(answers.shape)}; of logits, take argmax(1)"
                )
            before, *after = answers
            counted = known & ~touched
            pixels = torch.bincount(truth[counted], minlength=count)
            for cover, prediction in zip(COVERS, after, strict=True):
                changed = torch.bincount(truth[counted & (prediction != before)], minlength=count)
                rows += [(removed, each, cover, int(changed[each]), int(pixels[each])) for each in range(count)]
    table = pd.DataFrame(rows, columns=["removed", "observed", "cover", "changed", "pixels"])
    grouped = table[table["pixels"] > 0].groupby(["removed", "observed", "cover"])  # "mean", "patch", "sham"
    found = grouped.sum().assign(images=grouped.size()).reset_index()
    names = {column: found[column].map(dict(enumerate(classes))) for column in ("removed", "observed")}
    return found.assign(**names, changed=found["changed"] / found["pixels"])
