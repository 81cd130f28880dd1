"""Classification: augmented batches, logits, and errors; one label an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.datasets import Classification, Normalization
from resnotes.devices import autocast
from resnotes.distributed import part
from resnotes.errors import UsageError
from resnotes.models import in_mode
from resnotes.training.recipe import Recipe
from resnotes.training.recomputation import forward
from resnotes.training.task import Scores, probe


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


def batches(
    images: Tensor, labels: Tensor, recipe: Recipe, *, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled, augmented batches of one epoch: uint8 ``[B, C, H, W]`` and int64 ``[B]``, on the images' device."""
    device = images.device
    # Drawn on the CPU, for the whole epoch at once: the same on every device, no synchronisation in the loop.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    total = len(images)
    order = torch.randperm(total, generator=generator).to(device)
    dy, dx = torch.randint(2 * recipe.pad + 1, (2, total), generator=generator).to(device)
    flip = (torch.rand(total, generator=generator) < (0.5 if recipe.flip else 0.0)).to(device)
    for start in range(0, total - recipe.batch_size + 1, recipe.batch_size):
        batch = slice(start, start + recipe.batch_size)
        chosen = order[batch]
        yield augment(images[chosen], dy[batch], dx[batch], flip[batch], recipe.pad), labels[chosen]


@torch.inference_mode()
def _logits(network: nn.Module, images: Tensor, normalization: Normalization, precision: str, batch: int) -> Tensor:
    """Of uint8 images ``[N, C, H, W]`` in eval mode, float32 ``[N, num_classes]``."""
    device = next(network.parameters()).device
    logits = []
    with in_mode(network, training=False), autocast(device, precision):
        for part in images.split(batch):
            inputs = normalization(part.to(device)).contiguous(memory_format=torch.channels_last)
            logits.append(network(inputs).float())
    return torch.cat(logits)


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

    Raises:
        UsageError: no images.
    """
    if not len(images):
        raise UsageError("cannot evaluate on an empty set of images")
    logits = _logits(network, images, normalization, precision, batch)
    labels = labels.to(logits.device)
    loss = F.cross_entropy(logits, labels).item()
    wrong = int((logits.argmax(1) != labels).sum())
    return Scores(loss, 100 * wrong / len(labels))


def cross_entropy(network: nn.Module, inputs: Tensor, labels: Tensor, recompute: int = 0) -> tuple[Tensor, Tensor]:
    """The loss that classifiers are trained with, and the logits ``[B, num_classes]``.

    Args:
        network: in train mode.
        inputs: normalised images ``[B, C, H, W]``.
        labels: int64 ``[B]``.
        recompute: see `resnotes.training.recomputation.forward`.
    """
    logits = forward(network, inputs, recompute)
    return F.cross_entropy(logits, labels), logits


class ClassificationTask:
    """One label an image; see `resnotes.training.task.Task`.

    Args:
        data: training and test images, uint8.
        recipe: augmentation, batches and probes.
        seed: of order and augmentation.
        device: where the data goes, as a whole.
        precision: of evaluation.

    Raises:
        UsageError: fewer training images than one batch.
    """

    def __init__(
        self, data: Classification, recipe: Recipe, *, seed: int, device: torch.device, precision: str
    ) -> None:
        if len(data.train_images) < recipe.batch_size:
            raise UsageError(
                f"{len(data.train_images)} training images do not fill a batch of {recipe.batch_size};"
                " choose a smaller batch_size"
            )
        self._recipe, self._seed, self._precision = recipe, seed, precision
        self._normalization = data.normalization.to(device)
        self._splits = [
            (images.to(device), labels.to(device))
            for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
        ]
        self.fingerprint = data.fingerprint
        self.batches_per_epoch = len(data.train_images) // recipe.batch_size

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images ``[B, C, H, W]`` and labels ``[B]``."""
        for images, labels in batches(*self._splits[0], self._recipe, seed=self._seed, epoch=epoch):
            yield self._normalization(part(images)), part(labels)

    def parameters(self, network: nn.Module) -> list[dict[str, Any]]:
        """All in one group."""
        return [{"params": list(network.parameters()), "scale": 1.0}]

    def objective(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, and the logits; activations recomputed as the recipe says."""
        return cross_entropy(network, inputs, labels, self._recipe.recompute)

    def labelled(self, labels: Tensor) -> Tensor:
        """Every image is."""
        # Filled on the device: `torch.tensor` would be copied from the host, and waited for.
        return torch.full((), len(labels), device=labels.device)

    def wrong(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Images whose highest logit is not their label's."""
        return (logits.argmax(1) != labels).sum()

    def scores(self, network: nn.Module, *, last: bool) -> tuple[Scores, Scores]:
        """On clean training images and on test images."""
        train, test = (
            evaluate(network, images[chosen], labels[chosen], self._normalization, precision=self._precision)
            for images, labels in self._splits
            for chosen in [slice(None) if last else probe(len(images), self._recipe.probe_images)]
        )
        return train, test
