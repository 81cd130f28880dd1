"""Augmentation for segmentation: labels move with their pixels, and what is drawn is what was asked for."""

import pytest
import torch
from torch import Tensor, nn

from resnotes.errors import UsageError
from resnotes.training.augmentation import augment


def encoded(labels: Tensor) -> Tensor:
    """Images whose first channel is 40 times the label plus 20, and the others its row and column."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in labels.shape[1:]), indexing="ij")
    first = 40 * labels + 20
    return torch.stack([first, rows.expand_as(first), columns.expand_as(first)], 1).to(torch.uint8)


def scenes(n: int = 12, height: int = 60, width: int = 80) -> Tensor:
    """Labels ``[n, height, width]``: blocks of 20x20 pixels."""
    return torch.randint(5, (n, height // 20, width // 20)).repeat_interleave(20, 1).repeat_interleave(20, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "options", [{}, {"blur": False}, {"scale": (1, 1)}, {"rotate": 0}, {"mirror": False}, {"rotate": 90}]
)
def test_labels_stay_with_their_pixels(options: dict[str, object]) -> None:
    labels = scenes()
    images, moved = augment(encoded(labels), labels, generator(), crop=(48, 56), **options)
    assert images.shape == (12, 3, 48, 56) and images.dtype == torch.uint8
    assert moved.shape == (12, 48, 56) and moved.dtype == torch.int64
    # Away from borders: all labels within 4 pixels are the same.
    windows = nn.functional.pad(moved.double()[:, None], (4,) * 4, value=-1).unfold(2, 9, 1).unfold(3, 9, 1)[:, 0]
    inner = (windows.amax((3, 4)) == windows.amin((3, 4))) & (moved != 255)
    assert inner.float().mean() > 0.15
    assert ((images[:, 0].long() - (40 * moved + 20)).abs() <= 1)[inner].all()
    assert len(moved[inner].unique()) == 5


@pytest.mark.parametrize("mirror", [False, True])
def test_without_scale_and_rotation_pixels_are_kept(mirror: bool) -> None:
    labels = scenes(height=60, width=40)
    images = encoded(labels)
    options = {"scale": (1, 1), "rotate": 0, "blur": False, "mirror": mirror}
    same, kept = augment(images, labels, generator(), crop=(60, 40), **options)
    flipped = [i for i in range(12) if not torch.equal(same[i], images[i])]
    assert 2 < len(flipped) < 10 if mirror else not flipped
    same[flipped], kept[flipped] = same[flipped].flip(3), kept[flipped].flip(2)
    assert torch.equal(same, images) and torch.equal(kept, labels)

    cropped, kept = augment(images, labels, generator(), crop=32, **options)
    corners = set()
    for image, label, source, where in zip(cropped, kept, images, labels, strict=True):
        if image[2, 0, 0] > image[2, 0, 1]:
            image, label = image.flip(2), label.flip(1)
        top, left = int(image[1, 0, 0]), int(image[2, 0, 0])
        assert torch.equal(image, source[:, top : top + 32, left : left + 32])
        assert torch.equal(label, where[top : top + 32, left : left + 32])
        corners.add((top, left))
    assert len(corners) > 6


def test_outside_is_ignored_and_of_the_mean_colour() -> None:
    labels = scenes(height=40, width=40)
    images = encoded(labels).float() / 255
    options = {"scale": (1, 1), "rotate": 0, "blur": False, "mirror": False}
    larger, moved = augment(images, labels, generator(), crop=(60, 51), ignore_index=77, **options)
    assert larger.dtype == torch.float32
    torch.testing.assert_close(larger[:, :, 10:50, 5:45], images, rtol=0, atol=1e-4)
    assert torch.equal(moved[:, 10:50, 5:45], labels)
    outside = torch.ones(60, 51, dtype=torch.bool)
    outside[10:50, 5:45] = False
    assert (moved[:, outside] == 77).all()
    torch.testing.assert_close(
        larger[:, :, outside], images.mean((2, 3))[:, :, None].expand(-1, -1, int(outside.sum()))
    )


def test_scale_and_rotation_are_those_asked_for() -> None:
    """Rows and columns of the image, read off the result, tell the map between the two."""
    labels = torch.zeros(64, 240, 240, dtype=torch.int64)
    images = encoded(labels).float()
    moved, _ = augment(images, labels, generator(), crop=33, scale=(0.5, 2), rotate=10, mirror=True, blur=False)
    middle = moved[:, 1:, 16, 16]
    right, down = moved[:, 1:, 16, 17] - middle, moved[:, 1:, 17, 16] - middle  # rows and columns per pixel
    assert (right.norm(dim=1) - down.norm(dim=1)).abs().max() < 1e-3, "squares stay squares"
    scales = 1 / down.norm(dim=1)
    assert 0.49 < scales.min() < 0.7 and 1.8 < scales.max() < 2.02
    mirrored = right[:, 1] < 0
    assert 20 < mirrored.sum() < 44
    angles = torch.rad2deg(torch.atan(down[:, 1] / down[:, 0]))
    assert 8 < angles.abs().max() < 10.01 and angles.min() < -4 < 4 < angles.max()
    assert 20 < (angles.abs() < 0.01).sum() < 44, "half of them are not rotated"


def test_half_of_the_images_are_blurred() -> None:
    labels = scenes(height=40, width=40)
    images = torch.rand(12, 3, 40, 40)
    options = {"crop": 40, "scale": (1, 1), "rotate": 0, "mirror": False}
    sharp, blurred = (augment(images, labels, generator(), blur=blur, **options) for blur in (False, True))
    assert torch.equal(sharp[1], blurred[1])
    variances = blurred[0].var((1, 2, 3)) / sharp[0].var((1, 2, 3))
    assert 2 < (variances < 0.2).sum() < 10 and ((variances < 0.2) | (variances == 1)).all()


def test_the_generator_decides() -> None:
    labels = scenes()
    first, again, other = (augment(encoded(labels), labels, generator(seed), crop=32) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    state = torch.get_rng_state()
    augment(encoded(labels), labels, generator(), crop=32)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 40, 41), {}, "do not fit images"),
        ((2, 40, 40), {"scale": (2, 0.5)}, "scale must be two positive factors in order"),
        ((2, 40, 40), {"scale": (0, 1)}, "scale must be"),
    ],
)
def test_what_cannot_be_augmented_is_refused(shape: tuple[int, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        augment(torch.rand(2, 3, 40, 40), torch.zeros(shape, dtype=torch.int64), generator(), crop=32, **options)
