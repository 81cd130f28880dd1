"""Training for segmentation: augmented batches, the loss of both heads, pixel errors and mean IoU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from resnotes import distributed
from resnotes.analysis.maps import check_classes
from resnotes.analysis.scores import confusion_matrix, mean_iou, pixel_accuracy
from resnotes.datasets import Segmentation, Split
from resnotes.datasets.segmentation import Stacked
from resnotes.devices import autocast
from resnotes.errors import DatasetError, UsageError
from resnotes.models import in_mode
from resnotes.models.inputs import check_stored
from resnotes.models.segmentation import Outputs, SegmentationNetwork
from resnotes.training.augmentation import augment
from resnotes.training.task import Scores, Task

_BATCH = 32  # images per forward pass in evaluation


class _Read(Dataset[tuple[Tensor, Tensor]]):
    """Samples of various sizes, each read and augmented on its own, by a generator of its own."""

    def __init__(self, split: Split, augmented: Callable[..., tuple[Tensor, Tensor]], seed: int) -> None:
        self.split, self.augmented, self.seed = split, augmented, seed

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label, *_ = self.split[index]
        generator = torch.Generator().manual_seed(self.seed + index)
        images, labels = self.augmented(image[None], label[None], generator)
        return images[0], labels[0]


@torch.inference_mode()
def evaluate(network: nn.Module, data: Segmentation, samples: Split, *, precision: str = "float32") -> Scores:
    """Mean cross-entropy, pixel error and mean IoU, each over all labelled pixels together, in eval mode.

    Args:
        network: images to logits for each pixel.
        data: whose normalization the network was trained with; says the classes, and the label that does not count.
        samples: a split of it.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast).

    Raises:
        UsageError: no samples, or not one labelled pixel.
    """
    device = next(network.parameters()).device
    confusion = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64)
    loss = 0.0
    together: Iterable[tuple[Tensor, Tensor]] = ((sample.image[None], sample.label[None]) for sample in samples)
    if isinstance(samples, Stacked):
        together = zip(samples.images.split(_BATCH), samples.labels.split(_BATCH), strict=True)
    with in_mode(network, training=False):
        for images, labels in together:
            inputs = data.normalization(images.to(device)).contiguous(memory_format=torch.channels_last)
            wanted = labels.to(device).long().flatten()
            with autocast(device, precision):
                logits = network(inputs).float()
            # Classes last, as the logits lie in memory: otherwise they are copied for each of the two.
            found = logits.permute(0, 2, 3, 1).flatten(0, 2)
            loss += F.cross_entropy(found, wanted, ignore_index=data.ignore_index, reduction="sum").item()
            confusion += confusion_matrix(
                found.argmax(1), wanted, data.num_classes, ignore_index=data.ignore_index
            ).cpu()
    if not (pixels := int(confusion.sum())):
        raise UsageError(f"cannot evaluate on {len(samples)} samples without a labelled pixel")
    return Scores(loss / pixels, 100 * (1 - pixel_accuracy(confusion)), 100 * mean_iou(confusion))


class SegmentationTask(Task[Segmentation]):
    """One label a pixel. Images of one size are kept on the device, others are read.

    Raises:
        UsageError: see `Task`; no images, others than uint8, labels that are none of the classes, or images of various
            sizes and a recipe without a crop.
    """

    unit = "pixel"

    def __post_init__(self) -> None:
        for samples in (self.data.train, self.data.test):
            if isinstance(samples, Stacked):  # others are checked as they are read
                check_stored(samples.images)
                check_classes(samples.labels, "labels", self.data.num_classes, self.data.ignore_index)
        super().__post_init__()
        train, recipe = self.data.train, self.recipe
        self.ignore_index = self.data.ignore_index
        self._in_memory = isinstance(train, Stacked)
        crop = recipe.crop
        if isinstance(train, Stacked):
            self._images, self._labels = train.images.to(self.device), train.labels.to(self.device)
            crop = crop if any(crop) else (train.labels.shape[1], train.labels.shape[2])
        elif not any(crop):
            raise UsageError(f"the images of {self.data.name} are of various sizes; give the recipe a crop")
        self._augmented = partial(
            augment,
            crop=crop,
            mirror=recipe.flip,
            scale=recipe.scale,
            rotate=recipe.rotate,
            blur=recipe.blur,
            ignore_index=self.ignore_index,
        )

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images ``[B, C, *crop]`` and labels ``[B, *crop]``."""
        # Drawn on the CPU: the same on every device.
        seed, size = self.seed * 1_000_003 + epoch, self.recipe.batch_size
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.data.train), generator=generator)
        chosen = order[: self.batches_per_epoch * size].split(size)
        for images, labels in self._stacked(chosen, generator) if self._in_memory else self._read(chosen, seed):
            yield self.normalization(images), labels.long()

    def _stacked(self, chosen: Iterable[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in chosen:
            indices = batch.to(self.device)
            images, labels = self._augmented(self._images[indices], self._labels[indices], generator)
            yield distributed.part(images), distributed.part(labels)

    def _read(self, chosen: Iterable[Tensor], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            _Read(self.data.train, self._augmented, seed * len(self.data.train)),
            batch_sampler=[distributed.part(batch).tolist() for batch in chosen],
            num_workers=min(8, os.cpu_count() or 1),
        )
        try:
            for images, labels in loader:
                yield images.to(self.device), labels.to(self.device)
        except DatasetError as error:  # whose words come after the traceback of the process that read
            raise DatasetError(str(error).rpartition("DatasetError: ")[2].strip()) from None

    def objective(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy per labelled pixel, of both heads where there are two, and the logits."""
        outputs = network(inputs)
        logits = self.fitting(network, getattr(outputs, "logits", outputs), labels)
        if isinstance(outputs, Outputs):
            # With several processes the network is wrapped; the loss is a method of what is inside.
            inner = cast(SegmentationNetwork, getattr(network, "module", network))
            return inner.loss(outputs, labels, ignore_index=self.ignore_index), logits
        total = F.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction="sum")
        return total / self.labelled(labels).clamp(min=1), logits

    def evaluate(self, network: nn.Module, split: Literal["train", "test"], chosen: slice | Tensor) -> Scores:
        """See `evaluate`."""
        samples: Split = getattr(self.data, split)
        if isinstance(chosen, Tensor):
            samples = samples.subset(chosen.tolist())
        return evaluate(network, self.data, samples, precision=self.precision)
