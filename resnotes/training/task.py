"""What the training loop asks of a task; `classification` and `segmentation`, beside it, are the two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Scores(NamedTuple):
    """How good a network is on a set of images, in eval mode.

    Attributes:
        loss: mean cross-entropy in nats, per image, or per labelled pixel.
        error: share of the images, or of the labelled pixels, that are given a wrong class, in percent.
        iou: mean intersection over union of the classes, in percent; None where each image has one label.
    """

    loss: float
    error: float
    iou: float | None = None


class Task(Protocol):
    """A data set on a device, and what a network is to do with it.

    Attributes:
        fingerprint: of the data.
        batches_per_epoch: full batches; what is left over is not trained on in that epoch.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def batches_per_epoch(self) -> int: ...

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented and normalised images, and their labels; all on the device.

        With several processes (`resnotes.distributed`), this one's part of each batch.
        """
        ...

    def parameters(self, network: nn.Module) -> list[dict[str, Any]]:
        """The parameters in groups; ``scale`` is what the learning rate of each is multiplied with."""
        ...

    def objective(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch in train mode, a mean over what is labelled, and the logits."""
        ...

    def labelled(self, labels: Tensor) -> Tensor:
        """How many images, or pixels, the mean in the objective is over."""
        ...

    def wrong(self, logits: Tensor, labels: Tensor) -> Tensor:
        """How many of these the logits give a wrong class."""
        ...

    def scores(self, network: nn.Module, *, last: bool) -> tuple[Scores, Scores]:
        """On clean training images and on the test images: on all of them after the last epoch, else on the probes."""
        ...


def probe(total: int, count: int | None) -> slice | Tensor:
    """Which images are evaluated between epochs: all, or a fixed random choice, whatever the seed of the run."""
    if count is None or count >= total:
        return slice(None)
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]
