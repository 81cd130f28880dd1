"""What the training loop asks of a task; `classification` and `segmentation`, beside it, are the two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from resnotes.datasets import Classification, Segmentation
from resnotes.errors import UsageError
from resnotes.training.recipe import Recipe

_Data = TypeVar("_Data", Classification, Segmentation)


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

    def columns(self, prefix: str) -> dict[str, Any]:
        """Those of a history: ``{prefix}_loss`` and so on."""
        return {f"{prefix}_{name}": value for name, value in self._asdict().items()}


@dataclass
class Task(ABC, Generic[_Data]):
    """A data set on a device, and what a network is to do with it.

    Attributes:
        data: training and test images, uint8.
        recipe: augmentation, batches and probes.
        seed: of order and augmentation.
        device: where the network is trained.
        precision: of evaluation.
        unit: what has one label each.
        ignore_index: the label of what does not count.

    Raises:
        UsageError: fewer training images than one batch.
    """

    data: _Data
    recipe: Recipe
    _: KW_ONLY
    seed: int
    device: torch.device
    precision: str
    unit: ClassVar[str]
    ignore_index: int = -100  # as PyTorch has it

    def __post_init__(self) -> None:
        self.normalization = self.data.normalization.to(self.device)
        if not self.batches_per_epoch:
            raise UsageError(
                f"{self.data.sizes[0]} training images do not fill a batch of {self.recipe.batch_size};"
                " choose a smaller batch_size"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Full batches; what is left over is not trained on in that epoch."""
        return self.data.sizes[0] // self.recipe.batch_size

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented and normalised images, and their labels; all on the device.

        With several processes (`resnotes.distributed`), this one's part of each batch.
        """

    @abstractmethod
    def objective(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch in train mode, a mean over what is labelled, and the logits.

        Raises:
            UsageError: the network does not give logits for each `unit`.
        """

    @abstractmethod
    def evaluate(self, network: nn.Module, split: Literal["train", "test"], chosen: slice | Tensor) -> Scores:
        """On the chosen images of a split, without augmentation."""

    def scores(self, network: nn.Module, *, last: bool) -> tuple[Scores, Scores]:
        """On clean training images and on the test images: on all of them after the last epoch, else on the probes.

        Which images these are does not depend on the seed of the run.
        """

        def chosen(images: int) -> slice | Tensor:
            count = self.recipe.probe_images
            if last or count is None or count >= images:
                return slice(None)
            return torch.randperm(images, generator=torch.Generator().manual_seed(0))[:count]

        train, test = map(chosen, self.data.sizes)
        return self.evaluate(network, "train", train), self.evaluate(network, "test", test)

    def fitting(self, network: nn.Module, logits: object, labels: Tensor) -> Tensor:
        """The logits, if they are one more dimension than labels: that of the classes."""
        if isinstance(logits, Tensor) and logits.ndim == labels.ndim + 1:
            return logits
        name = getattr(network, "name", type(network).__name__)
        raise UsageError(f"{name} cannot learn {self.data.variant}, which has one label for each {self.unit}")

    def labelled(self, labels: Tensor) -> Tensor:
        """How many images, or pixels, the mean in the objective is over."""
        return (labels != self.ignore_index).sum()

    def wrong(self, logits: Tensor, labels: Tensor) -> Tensor:
        """How many of these the logits give a wrong class."""
        answers = logits.movedim(1, -1).argmax(-1)  # along what lies side by side in memory, in maps
        return ((answers != labels) & (labels != self.ignore_index)).sum()
