"""The record every classification data set is read into, and its normalization."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnotes.errors import UsageError


@dataclass(frozen=True, eq=False)
class Normalization:
    """Shift and scale that turn uint8 images into network inputs.

    Attributes:
        mean: what is subtracted, float32, in 0..255 units: `[C, H, W]` (per pixel) or `[C, 1, 1]`.
        std: what is divided by afterwards, float32, in 0..255 units: a scalar, or `[C, 1, 1]`.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def per_pixel(cls, images: Tensor) -> Normalization:
        """Mean per pixel (He et al. 2015, sec. 4.2) and overall std of the rest, of uint8 `[N, C, H, W]`.

        Raises:
            UsageError: all images are the same.
        """
        mean, square = _moments(images)
        return cls(torch.from_numpy(mean).float(), _std(np.mean(square - mean**2)))

    @classmethod
    def by_channel(cls, images: Tensor) -> Normalization:
        """One mean and one std a channel, of uint8 `[N, C, H, W]`.

        Raises:
            UsageError: a channel has one value everywhere.
        """
        mean, square = (moment.mean(axis=(1, 2), keepdims=True) for moment in _moments(images))
        return cls(torch.from_numpy(mean).float(), _std(square - mean**2))

    @classmethod
    def published(cls, mean: Sequence[float], std: Sequence[float]) -> Normalization:
        """Constants published beside pretrained weights: one mean and one std a channel, in 0..1 units."""
        return cls(*(torch.tensor(values, dtype=torch.float32).mul(255)[:, None, None] for values in (mean, std)))

    def to(self, device: torch.device) -> Normalization:
        """The same, for images on `device`, and without a copy from the host for each batch."""
        return Normalization(self.mean.to(device), self.std.to(device))

    def __call__(self, images: Tensor) -> Tensor:
        """`(images - mean) / std` as float32 `[N, C, H, W]`, on the device of the uint8 `images`."""
        return (images - self.mean.to(images.device)).div_(self.std.to(images.device))


IMAGENET = Normalization.published((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # that of its 1.28 million images


def spaced(total: int, count: int) -> Tensor:
    """Which of `total` things to take for `count` that are evenly spaced, int64; all, where there are no more."""
    count = min(count, total)
    return torch.arange(count) * total // max(1, count)


def sampled(total: int, count: int) -> Tensor:
    """The same in a random order, always the same one, so that each part of them is a sample as well."""
    chosen = spaced(total, count)
    return chosen[np.random.default_rng(0).permutation(len(chosen))]


def _moments(images: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean, and mean square, of every pixel of uint8 `[N, C, H, W]`."""
    # NumPy's sums run in one thread, which a busy machine cannot slow down a hundredfold as it does torch's.
    array = images.numpy()
    squares = np.einsum("nchw,nchw->chw", array, array, dtype=np.uint64, casting="safe")
    return array.mean(axis=0), squares / len(array)


def _std(variance: NDArray[np.float64] | np.floating[Any]) -> Tensor:
    """The root, float32; divided by 0, images would be NaN."""
    if not np.all(variance):
        raise UsageError("the training images have no variance to normalise them by; expected some in every channel")
    return torch.as_tensor(np.sqrt(variance)).float()


@dataclass(frozen=True, eq=False)
class Classification:
    """Images and labels of a training and a test set, in memory or mapped from disk.

    Attributes:
        train_images: uint8 `[N, C, H, W]`, values 0..255.
        train_labels: int64 `[N]`, indices into `classes`.
        test_images: uint8 `[M, C, H, W]`.
        test_labels: int64 `[M]`.
        classes: names, in label order.
        variant: which edition of the data this is; results are comparable only within one.
        fingerprint: 16 hex digits of the SHA-256 over images and labels.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    variant: str
    fingerprint: str

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.train_images.shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @cached_property
    def normalization(self) -> Normalization:
        """Per-pixel normalization by the statistics of the training images; computed once."""
        return Normalization.per_pixel(self.train_images)

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of training and of test images."""
        return len(self.train_images), len(self.test_images)

    def train_subset(self, n: int) -> Classification:
        """The same data with only `n` training images: stratified by class, the same ones on every call.

        Subsets are nested: a larger one holds every image of a smaller one. Variant and fingerprint stay
        those of the full set.

        Raises:
            UsageError: `n` is below the number of classes or above the number of training images.
        """
        available = len(self.train_images)
        if not self.num_classes <= n <= available:
            raise UsageError(
                f"a training subset of {n} images is not possible; "
                f"allowed: {self.num_classes} (one a class) to {available} (all)"
            )
        shuffled = np.random.default_rng(0).permutation(available)
        labels = self.train_labels.numpy()[shuffled]
        # An image's place within its class, as a fraction of the class: taking the lowest ones first
        # gives every class one image before any gets two, and keeps the proportions from there on.
        place = np.empty(available)
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            place[members] = np.arange(len(members)) / len(members)
        chosen = torch.from_numpy(np.sort(shuffled[np.argsort(place, kind="stable")[:n]]))
        return dataclasses.replace(self, train_images=self.train_images[chosen], train_labels=self.train_labels[chosen])

    def sample(self, count: int, *, held: bool, raw: bool = False) -> tuple[Tensor, Tensor]:
        """So many images, normalised, and their labels, evenly spaced over the set; all of them, if there are no more.

        They come in a random order, the same on every call, so that each part of them is a sample as well, and a batch
        has all classes: CIFAR-10 and folders are in the order of their classes.

        Args:
            count: images.
            held: of the test set, or else of the training set.
            raw: uint8 as they are, not normalised.

        Raises:
            UsageError: `count` is below 1.
        """
        if count < 1:
            raise UsageError(f"a sample of {count} images is not possible; expected at least 1")
        images, labels = (self.test_images, self.test_labels) if held else (self.train_images, self.train_labels)
        chosen = sampled(len(images), count)
        return images[chosen] if raw else self.normalization(images[chosen]), labels[chosen]


def fingerprint(*tensors: Tensor) -> str:
    """16 hex digits of the SHA-256 over the types, shapes and contents of `tensors`."""
    digest = hashlib.sha256()
    for tensor in tensors:
        array = np.ascontiguousarray(tensor.numpy())
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


def fingerprinted(
    train_images: Tensor,
    train_labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    classes: tuple[str, ...],
    variant: str,
) -> Classification:
    """A `Classification` that carries the fingerprint of its own images and labels, tensors or what becomes one."""
    parts = [torch.as_tensor(part) for part in (train_images, train_labels, test_images, test_labels)]
    return Classification(parts[0], parts[1], parts[2], parts[3], classes, variant, fingerprint(*parts))
