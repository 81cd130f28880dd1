"""Classification: augmented batches, logits, and errors; one label an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.datasets import Classification, Normalization
from resnotes.devices import autocast
from resnotes.distributed import part
from resnotes.models import in_mode
from resnotes.models.inputs import check_labels, check_logits, check_stored
from resnotes.training.recipe import Recipe
from resnotes.training.recomputation import forward
from resnotes.training.task import Scores, Task


def augment(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, pad: int) -> Tensor:
    """Crop each image from its zero-padded self and mirror some, for a whole batch at once.

    Args:
        images: uint8 ``[N, C, H, W]``.
        dy: int64 ``[N]``, top edge of the crop in the padded image, 0 to ``2 * pad``.
        dx: int64 ``[N]``, left edge of the crop, likewise.
        flip: bool ``[N]``, whether to mirror left and right.
        pad: zeros added on each side.

    Returns:
        uint8 ``[N, C, H, W]``.
    """
    if pad:
        height, width = images.shape[2:]
        windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(len(images), device=images.device), :, dy, dx]
    return torch.where(flip[:, None, None, None], images.flip(3), images)


class Draws(NamedTuple):
    """What is drawn for an epoch, one number an image.

    Attributes:
        order: int64 ``[N]``, the images as they come.
        dy: int64 ``[N]``, top edge of the crop of each that comes, see `augment`.
        dx: int64 ``[N]``, left edge, likewise.
        flip: bool ``[N]``, whether it is mirrored.
    """

    order: Tensor
    dy: Tensor
    dx: Tensor
    flip: Tensor


def drawn(images: int, recipe: Recipe, *, seed: int, epoch: int) -> Draws:
    """The draws of an epoch over so many images.

    On the CPU, for the whole epoch at once: the same on every device, no synchronisation in the loop.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(images, generator=generator)
    dy, dx = torch.randint(2 * recipe.pad + 1, (2, images), generator=generator)
    flip = torch.rand(images, generator=generator) < (0.5 if recipe.flip else 0.0)
    return Draws(order, dy, dx, flip)


def batch(images: Tensor, labels: Tensor, draws: Draws, chosen: slice | Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """The augmented images of a part of an epoch, uint8 ``[B, C, H, W]``, and their labels, int64 ``[B]``.

    Args:
        images: of the training set, uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        draws: of the epoch, on the images' device.
        chosen: which of the images that come, from 0.
        pad: see `augment`.
    """
    order, dy, dx, flip = (each[chosen] for each in draws)
    return augment(images[order], dy, dx, flip, pad), labels[order]


def batches(
    images: Tensor, labels: Tensor, recipe: Recipe, *, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, augmented batches of one epoch: uint8 ``[B, C, H, W]`` and int64 ``[B]``, on the images' device."""
    draws = Draws(*(each.to(images.device) for each in drawn(len(images), recipe, seed=seed, epoch=epoch)))
    for start in range(0, len(images) - recipe.batch_size + 1, recipe.batch_size):
        yield batch(images, labels, draws, slice(start, start + recipe.batch_size), recipe.pad)


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    normalization: Normalization,
    *,
    precision: str = "float32",
    batch: int = 500,
) -> Scores:
    """Mean cross-entropy in nats and error in percent, in eval mode.

    Args:
        network: any classifier.
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        normalization: what the network's inputs were normalised with in training.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast).
        batch: images per forward pass.

    Returns:
        An image whose logits are NaN counts as wrong.

    Raises:
        UsageError: no images, or others than these, or labels that are none of the network's classes.
    """
    check_stored(images)
    device = next(network.parameters()).device
    outputs = []
    with in_mode(network, training=False), autocast(device, precision):
        for some in images.split(batch):
            inputs = normalization(some.to(device)).contiguous(memory_format=torch.channels_last)
            outputs.append(network(inputs).float())
    logits = check_logits(torch.cat(outputs), type(network).__name__, len(images))
    check_labels(labels, images, logits.shape[1])
    labels = labels.to(device, torch.int64)
    wrong = int(((logits.argmax(1) != labels) | logits.isnan().any(1)).sum())
    return Scores(F.cross_entropy(logits, labels).item(), 100 * wrong / len(labels))


def cross_entropy(network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss that classifiers are trained with, and the logits ``[B, num_classes]``.

    Args:
        network: in train mode.
        inputs: normalised images ``[B, C, H, W]``.
        labels: int64 ``[B]``.
    """
    logits = network(inputs)
    return F.cross_entropy(logits, labels), logits


class ClassificationTask(Task[Classification]):
    """One label an image. The data is kept on the device, as a whole: `training` are its images and labels.

    Raises:
        UsageError: see `Task`; or no images, others than uint8, or labels that are none of the classes.
    """

    unit = "image"

    def __post_init__(self) -> None:
        data, device = self.data, self.device
        for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
            check_stored(images)
            check_labels(labels, images, data.num_classes)
        super().__post_init__()
        self.training = data.train_images.to(device), data.train_labels.to(device, torch.int64)
        self._test = data.test_images.to(device), data.test_labels.to(device)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images ``[B, C, H, W]`` and labels ``[B]``."""
        for images, labels in batches(*self.training, self.recipe, seed=self.seed, epoch=epoch):
            yield self.normalization(part(images)), part(labels)

    def objective(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, and the logits; activations recomputed as the recipe says."""
        logits = self.fitting(network, forward(network, inputs, self.recipe.recompute), labels)
        return F.cross_entropy(logits, labels), logits

    def evaluate(self, network: nn.Module, split: Literal["train", "test"], chosen: slice | Tensor) -> Scores:
        """See `evaluate`."""
        images, labels = self.training if split == "train" else self._test
        return evaluate(network, images[chosen], labels[chosen], self.normalization, precision=self.precision)
