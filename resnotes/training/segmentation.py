"""Training for segmentation: augmented batches, the loss of both heads, pixel errors and mean IoU."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, default_collate

from resnotes import distributed
from resnotes.analysis.scores import confusion_matrix, mean_iou, pixel_accuracy
from resnotes.datasets import Normalization, Sample, Segmentation, Split
from resnotes.datasets.segmentation import Stacked
from resnotes.devices import autocast, send
from resnotes.errors import DatasetError, UsageError
from resnotes.models import in_mode
from resnotes.models.segmentation import SegmentationNetwork, new_layers
from resnotes.training.augmentation import augment
from resnotes.training.recipe import Recipe
from resnotes.training.task import Scores, probe

_BATCH = 32  # images per forward pass in evaluation


def _augmented(
    images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """What the recipe says of a batch of images of one size."""
    crop = recipe.crop if recipe.crop != (0, 0) else (images.shape[2], images.shape[3])
    return augment(
        images,
        labels,
        generator,
        crop=crop,
        mirror=recipe.flip,
        scale=recipe.scale,
        rotate=recipe.rotate,
        blur=recipe.blur,
        ignore_index=ignore_index,
    )


class _Decoded(Dataset[tuple[Tensor, Tensor] | DatasetError]):
    """Samples of various sizes, each read and augmented on its own, by a generator of its own.

    One that cannot be read is given as the error: raised here, it would arrive with another process's traceback.
    """

    def __init__(self, split: Split, recipe: Recipe, seed: int, ignore_index: int) -> None:
        self.split, self.recipe, self.seed, self.ignore_index = split, recipe, seed, ignore_index

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | DatasetError:
        try:
            sample = self.split[index]
        except DatasetError as error:
            return error
        generator = torch.Generator().manual_seed(self.seed + index)
        image, label = _augmented(sample.image[None], sample.label[None], self.recipe, generator, self.ignore_index)
        return image[0], label[0]


def _collated(samples: list[tuple[Tensor, Tensor] | DatasetError]) -> Any:
    """A batch, or the first error of its samples."""
    return next((sample for sample in samples if isinstance(sample, DatasetError)), None) or default_collate(samples)


def groups(split: Split, batch: int = _BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels ``[N, C, H, W]``, ``[N, H, W]``, in order: several at once where all are of one size."""
    if isinstance(split, Stacked):
        yield from zip(split.images.split(batch), split.labels.split(batch), strict=True)
        return
    for sample in split:
        yield sample.image[None], sample.label[None]


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    samples: Split | Sequence[Sample],
    normalization: Normalization,
    *,
    num_classes: int,
    ignore_index: int,
    precision: str = "float32",
) -> Scores:
    """Mean cross-entropy, pixel error and mean IoU, each over all labelled pixels together, in eval mode.

    Args:
        network: images to logits for each pixel.
        samples: a split of a data set.
        normalization: what the network's inputs were normalised with in training.
        num_classes: number of classes.
        ignore_index: label of pixels that do not count.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast).

    Raises:
        UsageError: no samples, or not one labelled pixel.
    """
    device = next(network.parameters()).device
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    loss = 0.0
    with in_mode(network, training=False):
        for images, labels in groups(cast(Split, samples)):
            inputs = normalization(images.to(device)).contiguous(memory_format=torch.channels_last)
            target = labels.to(device).long()
            with autocast(device, precision):
                logits = network(inputs).float()
            # Classes last, as the logits lie in memory: otherwise they are copied for each of the two.
            pixels, wanted = logits.permute(0, 2, 3, 1).flatten(0, 2), target.flatten()
            loss += F.cross_entropy(pixels, wanted, ignore_index=ignore_index, reduction="sum").item()
            confusion += confusion_matrix(pixels.argmax(1), wanted, num_classes, ignore_index=ignore_index).cpu()
    if not (pixels := int(confusion.sum())):
        raise UsageError(f"cannot evaluate on {len(samples)} samples without a labelled pixel")
    return Scores(loss / pixels, 100 * (1 - pixel_accuracy(confusion)), 100 * mean_iou(confusion))


class SegmentationTask:
    """One label a pixel; see `resnotes.training.task.Task`. Images of one size are kept on the device, others are read.

    Args:
        data: training and test images, uint8.
        recipe: augmentation, batches and probes.
        seed: of order and augmentation.
        device: where the network is trained.
        precision: of evaluation.

    Raises:
        UsageError: fewer training images than one batch, or images of various sizes and a recipe without a crop.
    """

    def __init__(self, data: Segmentation, recipe: Recipe, *, seed: int, device: torch.device, precision: str) -> None:
        if len(data.train) < recipe.batch_size:
            raise UsageError(
                f"{len(data.train)} training images do not fill a batch of {recipe.batch_size};"
                " choose a smaller batch_size"
            )
        if not isinstance(data.train, Stacked) and recipe.crop == (0, 0):
            raise UsageError(f"the images of {data.name} are of various sizes; give the recipe a crop")
        self._data, self._recipe, self._seed, self._precision = data, recipe, seed, precision
        self._device, self._normalization = device, data.normalization.to(device)
        self.fingerprint = data.fingerprint
        self.batches_per_epoch = len(data.train) // recipe.batch_size
        if isinstance(data.train, Stacked):
            self._images, self._labels = data.train.images.to(device), data.train.labels.to(device)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images ``[B, C, *crop]`` and labels ``[B, *crop]``."""
        # Drawn on the CPU: the same on every device.
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        size = self._recipe.batch_size
        order = torch.randperm(len(self._data.train), generator=generator)
        chosen = order[: self.batches_per_epoch * size].split(size)
        for images, labels in self._stacked(chosen, generator) if self._in_memory else self._read(chosen, epoch):
            yield self._normalization(images), labels.long()

    @property
    def _in_memory(self) -> bool:
        return isinstance(self._data.train, Stacked)

    def _stacked(self, chosen: Iterable[Tensor], generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in chosen:
            indices = send(batch, self._device)
            images, labels = _augmented(
                self._images[indices], self._labels[indices], self._recipe, generator, self._data.ignore_index
            )
            yield distributed.part(images), distributed.part(labels)

    def _read(self, chosen: Iterable[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        seed = (self._seed * 1_000_003 + epoch) * len(self._data.train)
        loader = DataLoader(
            _Decoded(self._data.train, self._recipe, seed, self._data.ignore_index),
            batch_sampler=[distributed.part(batch).tolist() for batch in chosen],
            num_workers=min(8, os.cpu_count() or 1),
            collate_fn=_collated,
        )
        for batch in loader:
            if isinstance(batch, DatasetError):
                raise batch
            images, labels = batch
            yield send(images, self._device), send(labels, self._device)

    def parameters(self, network: nn.Module) -> list[dict[str, Any]]:
        """The encoder's, and all others, at the recipe's `new_lr`."""
        new = new_layers(cast(SegmentationNetwork, network))
        encoder = [parameter for name, parameter in network.named_parameters() if name.startswith("encoder.")]
        return [{"params": encoder, "scale": 1.0}, {"params": new, "scale": self._recipe.new_lr}]

    def objective(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy per labelled pixel, of both heads, and the logits."""
        outputs = network(inputs)
        # With several processes the network is wrapped; the loss is a method of what is inside.
        inner = cast(SegmentationNetwork, getattr(network, "module", network))
        return inner.loss(outputs, labels, ignore_index=self._data.ignore_index), outputs.logits

    def labelled(self, labels: Tensor) -> Tensor:
        """Pixels that are not ignored."""
        return (labels != self._data.ignore_index).sum()

    def wrong(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Labelled pixels whose highest logit is not their label's."""
        answers = logits.permute(0, 2, 3, 1).argmax(3)  # along what lies side by side in memory
        return ((answers != labels) & (labels != self._data.ignore_index)).sum()

    def scores(self, network: nn.Module, *, last: bool) -> tuple[Scores, Scores]:
        """On clean training images and on test images."""
        data, count = self._data, None if last else self._recipe.probe_images
        train, test = (
            evaluate(
                network,
                split if isinstance(chosen := probe(len(split), count), slice) else split.subset(chosen.tolist()),
                data.normalization,
                num_classes=data.num_classes,
                ignore_index=data.ignore_index,
                precision=self._precision,
            )
            for split in (data.train, data.test)
        )
        return train, test
