"""Remove one thing: predictors written by hand, whose answers are known, and brute force on tiny maps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resnotes.errors import UsageError
from resnotes.failures import COVERS, covered, leaning

CLASSES = ("water", "boat", "crane")
WATER, BOAT, CRANE = range(3)


def harbour(height: int = 12, width: int = 16) -> tuple[Tensor, Tensor]:
    """A boat and a crane on the water, each in a colour of its own, and some pixels that no one named."""
    label = torch.full((height, width), WATER)
    label[1:4, 2:6], label[6:9, 8:12], label[-1, -3:] = BOAT, CRANE, 255
    image = torch.stack([label * 50 + 40] * 3).clamp(max=255).to(torch.uint8)
    return image, label


def own_pixel(images: Tensor) -> Tensor:
    """The class whose colour a pixel has, or comes closest to."""
    return ((images[:, 0].int() - 40 + 25) // 50).clamp(0, 2)


def by_crane(images: Tensor) -> Tensor:
    """The same, but without a crane anywhere in the image a boat is called water."""
    classes = own_pixel(images)
    crane = (images[:, 0] == 40 + 50 * CRANE).flatten(1).any(1)[:, None, None]
    return torch.where(~crane & (classes == BOAT), WATER, classes)


def neighbourhood(images: Tensor) -> Tensor:
    """Something or other of the nine pixels around each."""
    sums = torch.nn.functional.avg_pool2d(images.double().mean(1, keepdim=True) * 9, 3, 1, 1)[:, 0]
    return sums.round().long() // 7 % 3


def shares(predict: Callable[[Tensor], Tensor], images: Any, labels: Any, **options: Any) -> dict[Any, float]:
    found = leaning(predict, images, labels, CLASSES, **options)
    return {tuple(row[:3]): row[3] for row in found.itertuples(index=False)}


def test_who_looks_at_its_own_pixel_leans_on_nothing() -> None:
    found = leaning(own_pixel, *zip(harbour(), harbour(20, 9), strict=True), CLASSES)
    assert list(found) == ["removed", "observed", "cover", "changed", "pixels", "images"]
    pairs = set(itertools.product(CLASSES, CLASSES, COVERS))
    assert set(found[["removed", "observed", "cover"]].itertuples(index=False, name=None)) <= pairs
    assert (found["removed"] != found["observed"]).all()
    assert (found["changed"] == 0).all() and found["images"].max() == 2


def test_the_boat_leans_on_the_crane_and_on_nothing_else() -> None:
    image, label = harbour()
    found = shares(by_crane, [image], [label])
    leaned = {pair for pair, share in found.items() if share > 0}
    assert leaned == {("crane", "boat", "mean"), ("crane", "boat", "patch")}
    assert all(found[pair] == 1 for pair in leaned)


@pytest.mark.parametrize("seed", range(3))
def test_every_pixel_is_counted_as_by_hand(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in ((7, 9), (10, 5))]
    labels = [
        torch.tensor([WATER, BOAT, CRANE, 255])[torch.randint(4, i.shape[1:], generator=generator)] for i in images
    ]
    found = leaning(neighbourhood, images, labels, CLASSES, seed=seed)

    rng, changed, pixels = np.random.default_rng(seed), {}, {}
    for image, label in zip(images, labels, strict=True):
        for removed in range(3):
            variants, touched = covered(image, label == removed, rng)
            before = neighbourhood(image[None])[0]
            for cover, variant in zip(COVERS, variants, strict=True):
                after = neighbourhood(variant[None])[0]
                for y, x in itertools.product(*map(range, label.shape)):
                    if label[y, x] != 255 and not touched[y, x]:
                        key = CLASSES[removed], CLASSES[label[y, x]], cover
                        pixels[key] = pixels.get(key, 0) + 1
                        changed[key] = changed.get(key, 0) + int(before[y, x] != after[y, x])
    rows = {tuple(row[:3]): row[3:5] for row in found.itertuples(index=False)}
    assert rows == {key: (changed[key] / pixels[key], pixels[key]) for key in pixels}
    assert any(changed.values())
    again = leaning(neighbourhood, torch.stack(images[:1]), [labels[0].tolist()], CLASSES, seed=seed)
    assert again.equals(leaning(neighbourhood, images[:1], labels[:1], CLASSES, seed=seed))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(2, 7), st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_what_covers_a_region_is_the_rest_of_the_image(height: int, width: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    region = torch.from_numpy(rng.random((height, width)) < share)
    region[0, 0], region[0, 1] = True, False
    image = torch.from_numpy(rng.integers(256, size=(3, height, width), dtype=np.uint8))
    (mean, patch, sham), touched = covered(image, region, rng)
    colour = torch.round(image[:, ~region].double().mean(1)).to(torch.uint8)
    assert torch.equal(mean[:, region], colour[:, None].expand(3, int(region.sum())))
    assert torch.equal(mean[:, ~region], image[:, ~region]) and torch.equal(patch[:, ~region], image[:, ~region])
    assert torch.equal(sham[:, region], image[:, region])
    assert torch.equal(sham[:, ~touched], image[:, ~touched])
    moves = list(itertools.product(range(height), range(width)))
    overlaps = {move: int((region & region.roll(move, (0, 1))).sum()) for move in moves}
    best = [move for move in moves if overlaps[move] == min(overlaps.values())]
    matching = [
        move
        for move in best
        if torch.equal(touched, region | region.roll(move, (0, 1)))
        and torch.equal(patch[:, region], mean.roll([-by for by in move], (1, 2))[:, region])
    ]
    assert matching, "patch and sham are of one place, where the region overlaps itself least"
    elsewhere = touched & ~region
    assert torch.equal(sham[:, elsewhere], colour[:, None].expand(3, int(elsewhere.sum())))
    assert int(elsewhere.sum()) == int(region.sum()) - min(overlaps.values())


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([harbour()[0]], [], "one map of labels for each image"),
        ([harbour()[0]], [harbour(5, 16)[1]], "images and labels of one size"),
        ([harbour()[0]], [harbour()[1] + 1], "expected labels of 0 to 2, or 255"),
    ],
)
def test_what_does_not_fit_is_refused(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        leaning(own_pixel, images, labels, CLASSES)
