"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with the library, so no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from resnotes.datasets.classification import Classification, fingerprinted


def load() -> Classification:
    """1,437 training and 360 test images, uint8 `[N, 1, 8, 8]`: a fixed split, stratified by class."""
    table = _table()
    # The scanner counted 0..16 dark pixels a cell; our images are 0..255 like all others.
    images = torch.from_numpy(np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8))
    labels = torch.from_numpy(table[:, -1].astype(np.int64))
    # What scikit-learn's train_test_split(test_size=0.2, random_state=0, stratify=labels) gives.
    parts = Path(__file__).with_name("digits_split.txt").read_text(encoding="ascii").split("\n\n")
    train, test = (torch.tensor([int(number) for number in part.split()]) for part in parts)
    return fingerprinted(
        images[train],
        labels[train],
        images[test],
        labels[test],
        classes=tuple(str(digit) for digit in range(10)),
        variant="digits",
    )


def _table() -> NDArray[np.float64]:
    """Pixels and label of every image, ``[1797, 65]``.

    scikit-learn's file is read without importing it, which would take every process that trains two seconds.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or []) if package else []:
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([images, labels])
