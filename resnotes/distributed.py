"""One training in several processes, as ``torchrun`` starts them; without it, everything here does nothing.

Each process takes an equal part of every batch. Losses and gradients are those of the whole batch: means over what is
labelled in all of its parts, also where some parts have more labelled pixels than others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from resnotes.devices import resolve_device
from resnotes.errors import UsageError


def size() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return distributed.get_rank() if size() > 1 else 0


@contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """Join the processes that ``torchrun`` started together with this one, if it did; leave them in the end.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``: each process then has a GPU of its own.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or size() > 1:
        yield
        return
    on_gpus = resolve_device(device).type == "cuda"
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # which "auto" and "cuda" then stand for
    distributed.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def part(batch: Tensor) -> Tensor:
    """This process's part of a batch ``[B, ...]``: every `size`-th image from `rank` on; without others, all.

    Raises:
        UsageError: the processes cannot share the batch equally.
    """
    if len(batch) % size():
        raise UsageError(f"{size()} processes cannot share a batch of {len(batch)}; choose a multiple as batch_size")
    return batch[rank() :: size()]


def total(value: Tensor) -> Tensor:
    """The sum of the processes' values."""
    if size() > 1:
        value = value.clone()
        distributed.all_reduce(value)
    return value


def weight(labelled: Tensor) -> Tensor | float:
    """What a mean over this process's part of a batch is multiplied with, given how many are `labelled` in the part.

    Gradients are averaged over the processes: weighted so, that is the mean over the whole batch.
    """
    return 1.0 if size() == 1 else labelled * size() / total(labelled).clamp(min=1)


def agreed(decision: bool) -> bool:
    """What the first process decides."""
    decisions = [decision]
    if size() > 1:
        distributed.broadcast_object_list(decisions)
    return decisions[0]


def share_buffers(network: nn.Module) -> None:
    """Give all processes the first one's BN statistics: on CPUs, each gathers those of its own images."""
    if size() > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


def parallel(network: nn.Module) -> nn.Module:
    """`network`, whose gradients are averaged over the processes; on GPUs with BN over all of their images.

    The modules of `network` are changed in place, so that its state dict goes on to have the same names. PyTorch has no
    BN over several processes on CPUs: there it is over each one's images.
    """
    if size() == 1:
        return network
    device = next(network.parameters()).device
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
