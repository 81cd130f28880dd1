"""The training loop: schedule, augmentation, precision, checkpoint, resume, history.

An epoch is a function of the state at its start, the seed and its number: every random draw in it (order,
crops, flips, blocks, dropout) comes from generators seeded by these. A run that was killed therefore goes on from
its last checkpoint, written after an epoch, and on CPU ends bit-identical to one that was not.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from resnotes.datasets import Classification, Normalization
from resnotes.errors import RunError, TrainingDiverged, UsageError
from resnotes.files import write_atomic
from resnotes.recipes import Recipe
from resnotes.recomputation import forward
from resnotes.thinning import thinned, whole

CHECKPOINT_SECONDS = 5.0  # training time between checkpoints, at least: all that a kill can cost, to an epoch


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One row of a history. Errors in percent, losses in nats per image; all at the end of the epoch.

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


@dataclass
class Training:
    """What `train` returns: the history and the conditions it was made under."""

    history: list[Epoch]
    device: str
    precision: str
    threads: int
    resumed: int  # how often it went on from a checkpoint

    def frame(self) -> pd.DataFrame:
        """One row per epoch, the columns of `Epoch`."""
        return pd.DataFrame([asdict(row) for row in self.history], columns=list(Epoch.__annotations__))


def resolve_device(device: str = "auto") -> torch.device:
    """``"auto"`` is the GPU if there is one, else the CPU.

    Raises:
        UsageError: neither the CPU nor a GPU that is there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("meta")
    if found.type == "cpu" or (found.type == "cuda" and (found.index or 0) < torch.cuda.device_count()):
        return found
    raise UsageError(
        f"unknown device {device!r}; expected auto, cpu, cuda or cuda:N, on a machine with"
        f" {torch.cuda.device_count()} GPUs"
    )


def resolve_precision(precision: str, device: torch.device) -> str:
    """``"auto"`` is bfloat16 where the hardware multiplies in it, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Emulated bfloat16 would work on any processor, more slowly than float32.
        found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        supported = any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if supported else "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for ``"bfloat16"``, nothing for ``"float32"``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


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


def _probe(total: int, count: int | None) -> slice | Tensor:
    """Which images are evaluated between epochs: all, or a fixed random choice, whatever the seed of the run."""
    if count is None or count >= total:
        return slice(None)
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]


@torch.inference_mode()
def predict(
    network: nn.Module,
    images: Tensor,
    normalization: Normalization,
    *,
    precision: str = "float32",
    batch: int = 500,
) -> Tensor:
    """Logits ``[N, num_classes]``, float32, of uint8 images ``[N, C, H, W]``, in eval mode."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    logits = []
    with autocast(device, precision):
        for part in images.split(batch):
            inputs = normalization(part.to(device)).contiguous(memory_format=torch.channels_last)
            logits.append(network(inputs).float())
    network.train(was_training)
    return torch.cat(logits)


def evaluate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    normalization: Normalization,
    *,
    precision: str = "float32",
    batch: int = 500,
) -> tuple[float, float]:
    """Mean cross-entropy in nats and error in percent, in eval mode.

    Args:
        network: any classifier.
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        normalization: what the network's inputs were normalised with in training.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast).
        batch: images per forward pass.
    """
    if not len(images):
        raise UsageError("cannot evaluate on an empty set of images")
    logits = predict(network, images, normalization, precision=precision, batch=batch)
    labels = labels.to(logits.device)
    loss = F.cross_entropy(logits, labels).item()
    wrong = int((logits.argmax(1) != labels).sum())
    return loss, 100 * wrong / len(labels)


def optimizer_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    precision: str,
    recompute: int = 0,
) -> tuple[Tensor, Tensor]:
    """One step of training on normalised images ``[B, C, H, W]``; returns the loss and the logits, detached.

    Activations are recomputed over so many blocks at once, see `resnotes.recomputation.forward`.
    """
    with autocast(inputs.device, precision):
        logits = forward(network, inputs.contiguous(memory_format=torch.channels_last), recompute)
        loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach(), logits.detach()


@dataclass
class _Checkpoint:
    """State after an epoch, in a file that loads without unpickling code."""

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
        write_atomic(self.path, buffer.getvalue())

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.path is None or not self.path.exists():
            return
        device = next(network.parameters()).device
        try:
            state = torch.load(self.path, map_location=device, weights_only=True)
            fingerprint = state["fingerprint"]
        except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            # PyTorch's own words would advise to load it without the protection against foreign code.
            raise RunError(
                f"{self.path} is damaged ({type(error).__name__}); delete it to train the run from its start"
            ) from error
        if fingerprint != self.fingerprint:
            raise RunError(
                f"{self.path} belongs to data with fingerprint {fingerprint}, but that at hand has"
                f" {self.fingerprint}; delete it to train the run on this data"
            )
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        self.history = [Epoch(**row) for row in state["history"]]
        self.resumed = state["resumed"] + 1


def train(
    network: nn.Module,
    data: Classification,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "auto",
    folder: Path | None = None,
    label: str = "training",
) -> Training:
    """Train `network` in place; its final weights are those after the last iteration.

    Args:
        network: a classifier of the data's images.
        data: training and test images, uint8.
        recipe: schedule, augmentation and precision.
        seed: seeds order, crops, flips, blocks and dropout (initial weights are the caller's).
        device: ``"auto"``, or as PyTorch names it.
        folder: where ``checkpoint.pt``, ``history.csv`` and snapshots ``epoch-NNNN.safetensors`` are kept;
            training goes on from a checkpoint found there. None keeps nothing.
        label: shown before the progress bar.

    Raises:
        TrainingDiverged: the loss is NaN or infinite; the history up to there is in the folder.
        RunError: the checkpoint is damaged, or was made on other data.
        UsageError: fewer training images than one batch, or blocks that cannot be left out.
    """
    if len(data.train_images) < recipe.batch_size:
        raise UsageError(
            f"{len(data.train_images)} training images do not fill a batch of {recipe.batch_size};"
            " choose a smaller batch_size"
        )
    where = resolve_device(device)
    precision = resolve_precision(recipe.precision, where)
    normalization = data.normalization
    train_images, train_labels = data.train_images.to(where), data.train_labels.to(where)
    probes = [
        (images.to(where), labels.to(where), _probe(len(images), recipe.probe_images))
        for images, labels in ((train_images, train_labels), (data.test_images, data.test_labels))
    ]
    network.to(where).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
    if recipe.blocks != "all":
        # A block that is left out has no gradient, and SGD leaves it alone: no decay, no momentum in that batch.
        # Fused SGD cannot step if some parameters have a momentum and others, never trained yet, have none.
        for parameter in network.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    checkpoint = _Checkpoint(folder / "checkpoint.pt" if folder else None, data.fingerprint)
    checkpoint.restore(network, optimizer)
    history = checkpoint.history
    training = Training(history, str(where), precision, torch.get_num_threads(), checkpoint.resumed)

    per_epoch = len(data.train_images) // recipe.batch_size
    iteration = history[-1].iteration if history else 0
    bar = tqdm(total=recipe.iterations, initial=iteration, desc=label, unit="it", disable=None, leave=False)
    with bar, torch.random.fork_rng([where] if where.type == "cuda" else []):
        saved = time.monotonic()
        while iteration < recipe.iterations:
            epoch = len(history) + 1
            started = time.monotonic()
            torch.manual_seed(seed * 1_000_003 + epoch)  # dropout
            network.train()
            losses = torch.zeros((), device=where)
            wrong = torch.zeros((), device=where)
            steps = min(per_epoch, recipe.iterations - iteration)
            epoch_batches = batches(train_images, train_labels, recipe, seed=seed, epoch=epoch)
            drawn = thinned(network, recipe.blocks, seed=seed, epoch=epoch)
            for (images, labels), part in zip(itertools.islice(epoch_batches, steps), drawn, strict=False):
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr_at(iteration)
                inputs = normalization(images)
                loss, logits = optimizer_step(part, optimizer, inputs, labels, precision, recipe.recompute)
                losses += loss
                wrong += (logits.argmax(1) != labels).sum()
                iteration += 1
                bar.update()
            last = iteration == recipe.iterations
            evaluated = whole(network, recipe.blocks)
            clean, test = (
                evaluate(
                    evaluated,
                    images if last else images[probe],
                    labels if last else labels[probe],
                    normalization,
                    precision=precision,
                )
                for images, labels, probe in probes
            )
            row = Epoch(
                epoch=epoch,
                iteration=iteration,
                lr=recipe.lr_at(iteration - 1),
                train_loss=losses.item() / steps,
                running_error=100 * wrong.item() / (steps * recipe.batch_size),
                clean_loss=clean[0],
                clean_error=clean[1],
                test_loss=test[0],
                test_error=test[1],
                seconds=time.monotonic() - started,
            )
            history.append(row)
            if folder:
                write_atomic(folder / "history.csv", training.frame().to_csv(index=False).encode())
            for value in (row.train_loss, row.clean_loss):  # what the last step did shows in the clean loss alone
                if not math.isfinite(value):
                    raise TrainingDiverged(
                        f"{label}: the loss is {value} in epoch {epoch} at lr {row.lr:g}; lower the lr or warm up"
                    )
            bar.set_postfix(clean=f"{row.clean_error:.1f} %", test=f"{row.test_error:.1f} %")
            if folder and epoch in recipe.snapshots:
                save_weights(evaluated, folder / f"epoch-{epoch:04d}.safetensors")
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                checkpoint.save(network, optimizer)
                saved = time.monotonic()
    if recipe.blocks != "all":
        network.load_state_dict(whole(network, recipe.blocks).state_dict())
    network.eval()
    return training


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors."""
    write_atomic(path, to_safetensors({key: value.contiguous() for key, value in network.state_dict().items()}))
