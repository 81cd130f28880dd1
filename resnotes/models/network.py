"""The one shape of every network here: a stem, a list of blocks, a head.

Deleting blocks, reordering them, path gradients, layer responses and identity by construction are written
once, against this shape.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from resnotes.errors import UsageError, unknown

Model = TypeVar("Model", bound=nn.Module)
Statistics = Literal["batch", "running"]  # that BN normalises with


class Block(nn.Module):
    """One unit: ``y = after(shortcut(x) + residual(x))``; without a shortcut, ``y = after(residual(x))``.

    The names are those of He et al. 2016, Eqs. (1)-(2): ``shortcut`` is h, ``residual`` is F, ``after`` is f.

    Args:
        residual: the branch with the weights, ``[N, C_in, H, W] -> [N, C_out, H', W']``; in a transformer, of tokens
            ``[N, T, C]``.
        shortcut: the branch around it, of the same shapes; None in a plain network.
        after: what follows the addition.
    """

    def __init__(self, residual: nn.Module, shortcut: nn.Module | None, after: nn.Module) -> None:
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit to ``x``, ``[N, C_in, H, W]``."""
        residual, shortcut = branches(self, x)
        out: Tensor = self.after(residual if shortcut is None else shortcut + residual)
        return out


class Network(nn.Module):
    """``head(blocks(stem(x)))``.

    Args:
        stem: input, such as images ``[N, in_channels, H, W]`` or tokens ``[N, T]``, to the first block's input.
        blocks: the units, in order, over all stages.
        head: the last unit's output to logits ``[N, num_classes]``.
        stages: number of blocks in each stage (one map size); all are one by default.
        name: the name that `resnotes.models.build` takes, for one of those.
        options: the options that `resnotes.models.build` takes, so that the network can be built again.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Iterable[nn.Module],
        head: nn.Module,
        *,
        stages: tuple[int, ...] | None = None,
        name: str = "network",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.head = head
        self.stages = stages or (len(self.blocks),)
        self.name = name
        self.options = dict(options or {})

    def with_blocks(self, blocks: Iterable[nn.Module]) -> Network:
        """As many other blocks in place of these; stem and head are shared, and what else the network is called."""
        return Network(self.stem, blocks, self.head, stages=self.stages, name=self.name, options=self.options)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of normalised images ``[N, in_channels, H, W]``."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


def check_weights(model: nn.Module) -> None:
    """Refuse a model of which a pass would first make the weights.

    Raises:
        UsageError: there are lazy modules that have no weights yet.
    """
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if nn.parameter.is_lazy(tensor):
            raise UsageError(f"{type(model).__name__} has lazy modules, without weights yet; send an image through it")


def copied(model: Model) -> Model:
    """A deep copy, also of what PyTorch does not copy: results that a module holds on to.

    Weights under the older kind of weight normalisation are such results, and so is a map that a module keeps to be
    looked at.

    Raises:
        UsageError: there are lazy modules that have no weights yet.
    """
    check_weights(model)
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in held if not value.is_leaf})


def branches(block: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What a block's residual branch and its shortcut, if there is one, make of ``x``.

    The branch comes first, as in `Block`: it may write over ``x`` (a ReLU that works in place does), which is then
    what the shortcut reads.
    """
    residual = block.residual(x)
    return residual, None if block.shortcut is None else block.shortcut(x)


def has_forward(module: object) -> bool:
    """Whether a module can be called, or only holds others."""
    forward = getattr(module, "forward", None)
    return forward is not None and getattr(forward, "__func__", forward) is not nn.Module.forward


def agree(found: Tensor, expected: Tensor, units: int = 100) -> bool:
    """Whether two ways to compute the same differ by rounding alone: by so many last digits of the largest number.

    Few are enough where the very same operations follow each other.
    """
    if found.shape != expected.shape:
        return False
    finite = expected[expected.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    room = units * torch.finfo(expected.dtype).eps * largest
    return torch.allclose(found.to(expected.dtype), expected, rtol=0, atol=room, equal_nan=True)


@contextlib.contextmanager
def kept_statistics(*modules: nn.Module) -> Iterator[None]:
    """For a while, BN and others update copies of their buffers; those of before come back afterwards."""
    owners = list({id(owner): owner for module in modules for owner in module.modules() if owner._buffers}.values())
    owners = [owner for owner in owners if not isinstance(owner, torch.jit.ScriptModule)]
    kept = [dict(owner._buffers) for owner in owners]
    for owner, buffers in zip(owners, kept, strict=True):
        owner._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for owner, buffers in zip(owners, kept, strict=True):
            owner._buffers.update(buffers)


@contextlib.contextmanager
def in_mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """In train or eval mode for a while; afterwards every module is in its own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.train(training)
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """In train mode for a while, with BN on the statistics of the batch; modes and running statistics are kept."""
    with in_mode(network, training=True), kept_statistics(network):
        yield


def on_statistics(network: nn.Module, statistics: Statistics) -> contextlib.AbstractContextManager[None]:
    """For a while, in train mode on the statistics of the batch, or in eval mode on BN's running ones.

    Raises:
        UsageError: other statistics.
    """
    if statistics == "batch":
        return batch_statistics(network)
    if statistics == "running":
        return in_mode(network, training=False)
    raise unknown("statistics", statistics, get_args(Statistics))


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@torch.no_grad()
def initialize(network: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / (k² n_out)) ("fan out"), set BN to the identity and the last bias to 0.

    This is the initialisation of He et al. 2015 (ICCV, "Delving deep into rectifiers", Eq. 14), which the
    residual papers use; the final linear layer keeps PyTorch's uniform weights.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
