"""The training loop: schedule, augmentation, precision, checkpoint, resume, history.

An epoch is a function of the state at its start, the seed and its number: every random draw in it (order,
crops, flips, blocks, dropout) comes from generators seeded by these. A run that was killed therefore goes on from
its last checkpoint, written after an epoch, and on CPU ends bit-identical to one that was not.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from resnotes import distributed, progress
from resnotes.datasets import Classification, Data
from resnotes.devices import autocast, resolve_device, resolve_precision
from resnotes.errors import RunError, TrainingDiverged, UsageError
from resnotes.files import sealed, unsealed, write_atomic
from resnotes.models.segmentation import SegmentationNetwork
from resnotes.training import classification
from resnotes.training import segmentation as segmentation
from resnotes.training.classification import ClassificationTask
from resnotes.training.recipe import Recipe
from resnotes.training.segmentation import SegmentationTask
from resnotes.training.task import Scores, Task
from resnotes.training.thinning import thinned, whole

_log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 5.0  # least training time between checkpoints: a kill costs at most that and one epoch


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of a history. Errors in percent, losses in nats per image or pixel; all at the end of the epoch.

    `train_loss` and `running_error` are means over the epoch's batches, on augmented images, while the
    weights changed and BN used batch statistics. The other columns are clean: eval mode, no augmentation.
    """

    epoch: int
    iteration: int
    lr: float
    train_loss: float
    running_error: float
    clean_loss: float
    clean_error: float
    test_loss: float
    test_error: float
    seconds: float  # wall time of the epoch, its evaluation included
    clean_iou: float | None = None  # mean intersection over union, in segmentation
    test_iou: float | None = None


@dataclass
class Training:
    """What `train` returns: the history and the conditions it was made under."""

    history: list[Epoch]
    device: str
    precision: str
    threads: int
    resumed: int  # how often it went on from a checkpoint

    def frame(self) -> pd.DataFrame:
        """One row per epoch, the columns of `Epoch`; without those that do not apply to the task."""
        frame = pd.DataFrame([asdict(row) for row in self.history], columns=list(Epoch.__annotations__))
        missing = [column for column in ("clean_iou", "test_iou") if frame[column].isna().all()]
        return frame.drop(columns=missing)


Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


def optimizer_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    precision: str,
    objective: Objective = classification.cross_entropy,
    weight: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """One step of training on normalised images ``[B, C, H, W]``; returns the loss and the logits, detached.

    Args:
        network: in train mode.
        optimizer: of its parameters.
        inputs: the images.
        labels: what `objective` compares with.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast).
        objective: network, images and labels to loss and logits.
        weight: what the loss is multiplied with.
    """
    with autocast(inputs.device, precision):
        loss, logits = objective(network, inputs.contiguous(memory_format=torch.channels_last), labels)
        loss = loss * weight
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach(), logits.detach()


@dataclass
class _Checkpoint:
    """State after an epoch, in a sealed file that loads without unpickling code.

    PyTorch compares no checksum when it loads: a flipped bit would be a weight like any other.
    """

    path: Path | None
    fingerprint: str  # of the data: a run does not go on with other data than it began with
    resumed: int = 0
    history: list[Epoch] = field(default_factory=list)

    def save(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.path is None:
            return
        state = {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": [asdict(row) for row in self.history],
            "resumed": self.resumed,
            "fingerprint": self.fingerprint,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.path, sealed(buffer.getvalue()))

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.path is None or not self.path.exists():
            return
        if (content := unsealed(self.path.read_bytes())) is None:
            _log.warning("%s is damaged; the run is trained from its start", self.path)
            return
        try:
            device = next(network.parameters()).device
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            fingerprint = state["fingerprint"]
            if fingerprint == self.fingerprint:
                network.load_state_dict(state["network"])
                optimizer.load_state_dict(state["optimizer"])
                self.history = [Epoch(**row) for row in state["history"]]
                self.resumed = state["resumed"] + 1
        except Exception as error:  # whole, but not by us, or by another version: anything can be wrong with it
            # PyTorch's own words would advise to load it without the protection against foreign code.
            raise RunError(
                f"{self.path} is no checkpoint ({type(error).__name__}); delete it to train the run from its start"
            ) from error
        if fingerprint != self.fingerprint:
            raise RunError(
                f"{self.path} belongs to data with fingerprint {fingerprint}, but that at hand has"
                f" {self.fingerprint}; delete it to train the run on this data"
            )


def task_for(data: Data, recipe: Recipe, *, seed: int, device: torch.device, precision: str) -> Task:
    """Classification or segmentation, as the data has one label an image or one a pixel.

    Raises:
        UsageError: a recipe with fields that the task or the schedule ignores; or see the tasks.
    """
    recipe.check_schedule()
    recipe.check_task("classification" if isinstance(data, Classification) else "segmentation")
    kind = ClassificationTask if isinstance(data, Classification) else SegmentationTask
    return kind(data, recipe, seed=seed, device=device, precision=precision)  # type: ignore[arg-type]


def scores_on_test(network: nn.Module, data: Data, precision: str) -> Scores:
    """How good `network` is on all test images, in eval mode."""
    if isinstance(data, Classification):
        images, labels = data.test_images, data.test_labels
        return classification.evaluate(network, images, labels, data.normalization, precision=precision)
    return segmentation.evaluate(
        network,
        data.test,
        data.normalization,
        num_classes=data.num_classes,
        ignore_index=data.ignore_index,
        precision=precision,
    )


def train(
    network: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "auto",
    folder: Path | None = None,
    label: str = "training",
) -> Training:
    """Train `network` in place; its final weights are those after the last iteration.

    Processes that `resnotes.distributed` joined train it together, and end with the same weights; the first of them
    writes to the folder.

    Args:
        network: a classifier of the data's images, or of their pixels.
        data: training and test images, uint8.
        recipe: schedule, augmentation and precision.
        seed: seeds order, augmentation, blocks and dropout (initial weights are the caller's).
        device: ``"auto"``, or as PyTorch names it.
        folder: where ``checkpoint.pt``, ``history.csv`` and snapshots ``iteration-NNNNNN.safetensors`` are kept;
            training goes on from a checkpoint found there, unless it is damaged. None keeps nothing.
        label: shown before the progress bar.

    Raises:
        TrainingDiverged: the loss is NaN or infinite; the history up to there is in the folder.
        RunError: the checkpoint is foreign, or was made on other data.
        UsageError: fewer training images than one batch, blocks that cannot be left out, a batch that the
            processes cannot share equally, a recipe for one process alone, or a classifier where each pixel has a
            label, or the reverse.
    """
    if isinstance(network, SegmentationNetwork) == isinstance(data, Classification):
        kind = "image" if isinstance(data, Classification) else "pixel"
        name = getattr(network, "name", type(network).__name__)
        raise UsageError(f"{name} cannot learn {data.variant}, which has one label for each {kind}")
    if distributed.size() > 1 and (recipe.blocks != "all" or recipe.recompute):
        raise UsageError(
            f"{distributed.size()} processes cannot train together with blocks={recipe.blocks!r} and"
            f" recompute={recipe.recompute}; allowed: all and 0, or a single process"
        )
    where = resolve_device(device)
    precision = resolve_precision(recipe.precision, where)
    task = task_for(data, recipe, seed=seed, device=where, precision=precision)
    network.to(where).to(memory_format=torch.channels_last)
    groups = task.parameters(network)
    scales = [group.pop("scale") for group in groups]
    optimizer = torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
    if recipe.blocks != "all":
        # A block that is left out has no gradient, and SGD leaves it alone: no decay, no momentum in that batch.
        # Fused SGD cannot step if some parameters have a momentum and others, never trained yet, have none.
        for parameter in network.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    checkpoint = _Checkpoint(folder / "checkpoint.pt" if folder else None, data.fingerprint)
    checkpoint.restore(network, optimizer)
    if distributed.rank():
        folder = checkpoint.path = None
    history = checkpoint.history
    training = Training(history, str(where), precision, torch.get_num_threads(), checkpoint.resumed)
    shared = distributed.parallel(network)

    iteration = history[-1].iteration if history else 0
    bar = progress.bar(total=recipe.iterations, initial=iteration, desc=label, unit="it")
    with bar, torch.random.fork_rng([where] if where.type == "cuda" else []):
        saved = time.monotonic()
        while iteration < recipe.iterations:
            epoch = len(history) + 1
            started = time.monotonic()
            # Dropout: processes that train together are not to drop the same of their parts.
            torch.manual_seed(seed * 1_000_003 + epoch + (distributed.rank() << 48))
            network.train()
            if recipe.frozen_bn:
                _freeze_bn(network)
            losses, wrong, labelled = torch.zeros(3, device=where, dtype=torch.float64)
            steps = min(task.batches_per_epoch, recipe.iterations - iteration)
            drawn = thinned(shared, recipe.blocks, seed=seed, epoch=epoch)
            for (inputs, labels), part in zip(itertools.islice(task.batches(epoch), steps), drawn, strict=False):
                for group, scale in zip(optimizer.param_groups, scales, strict=True):
                    group["lr"] = recipe.lr_at(iteration) * scale
                count = task.labelled(labels)
                everywhere = distributed.total(count)
                # Gradients are averaged over the processes: weighted so, that is the mean over the whole batch.
                weight = 1.0 if distributed.size() == 1 else count * distributed.size() / everywhere.clamp(min=1)
                loss, logits = optimizer_step(part, optimizer, inputs, labels, precision, task.objective, weight)
                losses += loss
                wrong += task.wrong(logits, labels)
                labelled += count
                iteration += 1
                bar.update()
                if folder and iteration in recipe.snapshots:
                    save_weights(whole(network, recipe.blocks), folder / snapshot_name(iteration))
            losses, wrong, labelled = distributed.total(torch.stack([losses, wrong, labelled]))
            distributed.share_buffers(network)
            evaluated = whole(network, recipe.blocks)
            clean, test = task.scores(evaluated, last=iteration == recipe.iterations)
            row = Epoch(
                epoch=epoch,
                iteration=iteration,
                lr=recipe.lr_at(iteration - 1),
                train_loss=losses.item() / steps / distributed.size(),
                running_error=100 * wrong.item() / max(1.0, labelled.item()),
                clean_loss=clean.loss,
                clean_error=clean.error,
                test_loss=test.loss,
                test_error=test.error,
                seconds=time.monotonic() - started,
                clean_iou=clean.iou,
                test_iou=test.iou,
            )
            history.append(row)
            if folder:
                write_atomic(folder / "history.csv", training.frame().to_csv(index=False).encode())
            for value in (row.train_loss, row.clean_loss):  # what the last step did shows in the clean loss alone
                if not math.isfinite(value):
                    raise TrainingDiverged(
                        f"{label}: the loss is {value} in epoch {epoch} at lr {row.lr:g}; lower the lr or warm up"
                    )
            bar.set_postfix(clean=f"{row.clean_error:.1f} %", test=f"{row.test_error:.1f} %", refresh=False)
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                checkpoint.save(network, optimizer)
                saved = time.monotonic()
    if recipe.blocks != "all":
        network.load_state_dict(whole(network, recipe.blocks).state_dict())
    network.eval()
    return training


def _freeze_bn(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def snapshot_name(iteration: int) -> str:
    """The file that holds the weights after so many iterations, in a run's folder."""
    return f"iteration-{iteration:06d}.safetensors"


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors."""
    write_atomic(path, to_safetensors({key: value.contiguous() for key, value in network.state_dict().items()}))
