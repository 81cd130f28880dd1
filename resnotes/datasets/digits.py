"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the library, so no download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from resnotes.datasets.availability import Availability
from resnotes.datasets.classification import Classification, fingerprinted


def load(root: Path) -> Classification:
    """1,437 training and 360 test images, uint8 `[N, 1, 8, 8]`: a fixed split, stratified by class.

    Args:
        root: not read; the images lie in scikit-learn itself.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # The scanner counted 0..16 dark pixels a cell; our images are 0..255 like all others.
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None])
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    return fingerprinted(
        images[train],
        labels[train],
        images[test],
        labels[test],
        classes=tuple(str(digit) for digit in range(10)),
        variant="digits",
    )


def status(root: Path) -> Availability:
    """Always at hand."""
    return Availability("digits", True, "digits", "shipped with scikit-learn", "nothing to do")


def fetch(root: Path, mirrors: Sequence[str]) -> None:
    """Nothing to fetch."""
