"""The training loop: schedule, augmentation, precision, checkpoint, resume, history.

An epoch is a function of the state at its start, the seed and its number: every random draw in it (order,
crops, flips, blocks, dropout) comes from generators seeded by these. A run that was killed therefore goes on from
its last checkpoint, written after an epoch, and on CPU ends bit-identical to one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from resnotes import distributed, progress
from resnotes.datasets import Classification, Data
from resnotes.devices import autocast, layout, one_thread, resolve_device, resolve_precision, widest
from resnotes.errors import TrainingDiverged, UsageError
from resnotes.files import write_atomic
from resnotes.models.inputs import evaluating
from resnotes.training import classification, graphs, segmentation
from resnotes.training.checkpoint import Checkpoint, Epoch, Training
from resnotes.training.classification import ClassificationTask
from resnotes.training.recipe import Recipe
from resnotes.training.segmentation import SegmentationTask
from resnotes.training.task import Scores
from resnotes.training.thinning import thinned, whole

SMALL = 2**16  # numbers in a batch of images: with fewer, threads of a CPU wait for each other more than they compute
CHECKPOINT_SECONDS = 5.0  # least training time between checkpoints: a kill costs at most that and one epoch

Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
AnyTask = ClassificationTask | SegmentationTask


def optimizer_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    precision: str,
    objective: Objective = classification.cross_entropy,
    weight: Tensor | float = 1.0,
    memory_format: torch.memory_format = torch.channels_last,
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
        memory_format: that of the network, see `resnotes.devices.layout`.
    """
    with autocast(inputs.device, precision):
        loss, logits = objective(network, inputs.contiguous(memory_format=memory_format), labels)
        loss = loss * weight
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach(), logits.detach()


def task_for(data: Data, recipe: Recipe, *, seed: int, device: torch.device, precision: str) -> AnyTask:
    """Classification or segmentation, as the data has one label an image or one a pixel.

    Raises:
        UsageError: a recipe with fields that task, optimiser or schedule ignore, or that is for one process alone; or
            see the tasks.
    """
    if distributed.size() > 1 and (recipe.blocks != "all" or recipe.recompute):
        raise UsageError(
            f"{distributed.size()} processes cannot train together with blocks={recipe.blocks!r} and"
            f" recompute={recipe.recompute}; allowed: all and 0, or a single process"
        )
    recipe.check_ignored()
    recipe.check_task("classification" if isinstance(data, Classification) else "segmentation")
    if isinstance(data, Classification):
        return ClassificationTask(data, recipe, seed=seed, device=device, precision=precision)
    return SegmentationTask(data, recipe, seed=seed, device=device, precision=precision)


def scores_on_test(network: nn.Module, data: Data, precision: str) -> Scores:
    """How good `network` is on all test images, in eval mode."""
    if isinstance(data, Classification):
        images, labels = data.test_images, data.test_labels
        return classification.evaluate(network, images, labels, data.normalization, precision=precision)
    return segmentation.evaluate(network, data, data.test, precision=precision)


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
        UsageError: see `task_for`; or blocks that cannot be left out, a batch that the processes cannot share
            equally, weights that are NaN, a network that cannot be trained on such a batch, or a classifier
            where each pixel has a label, or the reverse.
    """
    where = resolve_device(device)
    task = task_for(data, recipe, seed=seed, device=where, precision=resolve_precision(recipe.precision, where))
    network.to(where).to(memory_format=layout(network, where))
    optimizer, scales = _optimizer(network, recipe)
    training = Training(str(where), task.precision, 1 if _is_small(task) else torch.get_num_threads())
    checkpoint = Checkpoint(folder / "checkpoint.pt" if folder else None, data.fingerprint)
    checkpoint.restore(network, optimizer, training)
    steps = None
    if distributed.rank():
        folder = checkpoint.path = None
    shared = distributed.parallel(network)

    iteration = training.history[-1].iteration if training.history else 0
    bar = progress.bar(total=recipe.iterations, initial=iteration, desc=label, unit="it")
    with bar, _suited(task):
        while iteration < recipe.iterations:
            epoch, started = len(training.history) + 1, time.monotonic()
            # Dropout: processes that train together are not to drop the same of their parts.
            torch.manual_seed(seed * 1_000_003 + epoch + (distributed.rank() << 48))
            _train_mode(network, frozen_bn=recipe.frozen_bn)
            count = min(task.batches_per_epoch, recipe.iterations - iteration)
            sums = torch.zeros(3, device="cpu" if where.type == "mps" else where, dtype=torch.float64)
            steps = steps or _steps(shared, task, optimizer, scales)
            for found in steps(epoch, range(iteration, iteration + count)):
                sums += found.to(sums.device)
                iteration += 1
                bar.update()
                if folder and iteration in recipe.snapshots:
                    save_weights(whole(network, recipe.blocks), folder / snapshot_name(iteration))
            losses, wrong, labelled = distributed.total(sums).tolist()
            distributed.share_buffers(network)
            clean, test = task.scores(whole(network, recipe.blocks), last=iteration == recipe.iterations)
            row = Epoch(
                epoch=epoch,
                iteration=iteration,
                lr=recipe.lr_at(iteration - 1),
                train_loss=losses / count / distributed.size(),
                running_error=100 * wrong / max(1.0, labelled),
                **clean.columns("clean"),
                **test.columns("test"),
                seconds=time.monotonic() - started,
            )
            training.history.append(row)
            if folder:
                write_atomic(folder / "history.csv", training.frame().to_csv(index=False))
            _check_finite(row, label)
            bar.set_postfix(clean=f"{row.clean_error:.1f} %", test=f"{row.test_error:.1f} %", refresh=False)
            checkpoint.save(network, optimizer, training, every=CHECKPOINT_SECONDS)
    network.load_state_dict(whole(network, recipe.blocks).state_dict())
    network.eval()
    return training


def _steps(
    network: nn.Module, task: AnyTask, optimizer: torch.optim.Optimizer, scales: list[float]
) -> Callable[[int, range], Iterator[Tensor]]:
    """Epoch and iterations to steps of training; each gives its loss, wrong and labelled images or pixels."""
    _check_weights(network)
    lies, wide = layout(network, task.device), widest(task.device)

    def step(part: nn.Module, inputs: Tensor, labels: Tensor, weight: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        with evaluating(part, inputs, "trained"):
            return optimizer_step(part, optimizer, inputs, labels, task.precision, task.objective, weight, lies)

    def epoch(number: int, iterations: range) -> Iterator[Tensor]:
        parts = thinned(network, task.recipe.blocks, seed=task.seed, epoch=number)
        for iteration, (inputs, labels), part in zip(iterations, task.batches(number), parts, strict=False):
            for group, scale in zip(optimizer.param_groups, scales, strict=True):
                group["lr"] = task.recipe.lr_at(iteration) * scale
            labelled = task.labelled(labels)
            loss, logits = step(part, inputs, labels, distributed.weight(labelled))
            yield torch.stack([each.to(wide) for each in (loss, task.wrong(logits, labels), labelled)])

    if isinstance(task, ClassificationTask) and graphs.can_capture(network, task):
        return graphs.Steps(network, task, optimizer, scales, partial(step, network)).epoch
    return epoch


def decayed(network: nn.Module) -> set[str]:
    """Names of the parameters that AdamW lets decay: matrices of linear and attention layers, kernels of convolutions.

    Biases, what norms scale and shift with, class tokens and embeddings do not decay, as is usual for transformers.
    """
    return {
        f"{owner}.{name}".lstrip(".")
        for owner, module in network.named_modules()
        if not isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1 and name.endswith("weight")
    }


def _optimizer(network: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimiser, and what the learning rate of each of its groups is multiplied with."""
    sgd = recipe.optimizer == "sgd"
    decaying = decayed(network)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        scale = 1.0 if name.startswith("encoder.") else recipe.new_lr
        decay = recipe.weight_decay if sgd or name in decaying else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    parameters = [{"params": some, "weight_decay": decay} for (_, decay), some in groups.items()]
    scales = [scale for scale, _ in groups]
    if not sgd:
        return torch.optim.AdamW(parameters, lr=recipe.lr, fused=True), scales
    optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    if recipe.blocks != "all":
        # A block that is left out has no gradient, and SGD leaves it alone: no decay, no momentum in that batch.
        # Fused SGD cannot step if some parameters have a momentum and others, never trained yet, have none.
        for parameter in network.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer, scales


def _train_mode(network: nn.Module, *, frozen_bn: bool) -> None:
    for module in network.train().modules():
        if frozen_bn and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@contextmanager
def _suited(task: AnyTask) -> Iterator[None]:
    """For a while, as many threads as the work is for; the state of random generators is kept."""
    gpus = [task.device] if task.device.type == "cuda" else []
    with one_thread() if _is_small(task) else nullcontext(), torch.random.fork_rng(gpus):
        yield


def _is_small(task: AnyTask) -> bool:
    """Whether a CPU has too little to do in a step to share it among threads."""
    images = task.training[0] if isinstance(task, ClassificationTask) and task.device.type == "cpu" else None
    return images is not None and task.recipe.batch_size * images[0].numel() < SMALL


def _check_weights(network: nn.Module) -> None:
    for name, tensor in network.state_dict().items():
        if tensor.isnan().any():
            raise UsageError(f"{name} of the network holds NaN before a step is made; start from other weights")


def _check_finite(row: Epoch, label: str) -> None:
    for value in (row.train_loss, row.clean_loss):  # what the last step did shows in the clean loss alone
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"{label}: the loss is {value} in epoch {row.epoch} at lr {row.lr:g}; lower the lr or warm up"
            )


def snapshot_name(iteration: int) -> str:
    """The file that holds the weights after so many iterations, in a run's folder."""
    return f"iteration-{iteration:06d}.safetensors"


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors."""
    write_atomic(path, to_safetensors({key: value.contiguous() for key, value in network.state_dict().items()}))
