"""The batches of the original CIFAR distribution: Python 2 pickles, read without running what they name."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnotes.datasets.archives import damage_reported

_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Inert:
    """Stands in for everything a batch names, and only keeps the state that follows it in the stream.

    The state of a pickled array is `(version, shape, dtype, is_fortran, bytes)`.
    """

    state: Any = None

    def __init__(self, *args: object) -> None:
        """Takes the arguments of whatever it stands in for, and drops them."""

    def __setstate__(self, state: object) -> None:
        self.state = state


class _BatchUnpickler(pickle.Unpickler):
    """Resolves no global at all: the names an array is made of give inert objects, any other is refused."""

    def find_class(self, module: str, name: str) -> type[_Inert]:
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR batch does")
        return _Inert


def read_batch(content: bytes, where: str) -> tuple[Tensor, Tensor]:
    """Images uint8 `[N, 3, 32, 32]` and labels int64 `[N]`, 0..9, of one batch.

    Args:
        content: the pickle; its checksum has been compared with the published one.
        where: names the batch in errors.

    Raises:
        DatasetError: not a batch of CIFAR-10.
    """
    with damage_reported(where, "a batch of CIFAR-10: uint8 rows of 3072 pixels, a label 0..9 for each"):
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        pixels = np.frombuffer(bytearray(batch[b"data"].state[4]), dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = torch.tensor(batch[b"labels"], dtype=torch.int64)
        if labels.shape != (len(pixels),) or not all(0 <= label < 10 for label in labels.tolist()):
            raise ValueError(f"{len(pixels)} images and labels of shape {list(labels.shape)}")
        return torch.from_numpy(pixels), labels
