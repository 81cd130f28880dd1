"""Activation checkpointing: very deep networks in little memory (Chen et al. 2016, arXiv 1604.06174).

Only the inputs of segments of blocks are kept in the forward pass; the backward pass computes what lies
between once more. On the CPU, outputs, gradients and BN statistics are bit-identical to those without.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnotes.errors import UsageError
from resnotes.models.network import kept_statistics


def forward(network: nn.Module, inputs: Tensor, recompute: int = 0) -> Tensor:
    """Logits of `network`, in memory for the activations of `recompute` blocks instead of all.

    Args:
        network: any classifier; with `recompute`, one with a stem, blocks and a head.
        inputs: normalised images ``[N, C, H, W]``.
        recompute: blocks per segment; about the square root of their number needs the least memory. 0 keeps
            every activation.

    Raises:
        UsageError: `recompute` for a network without blocks.
    """
    if not recompute:
        logits: Tensor = network(inputs)
        return logits
    if not all(hasattr(network, part) for part in ("stem", "blocks", "head")):
        raise UsageError(f"recompute needs a network with stem, blocks and head, found {type(network).__name__}")
    blocks = list(network.blocks)  # type: ignore[arg-type]
    x = network.stem(inputs)  # type: ignore[operator]
    for start in range(0, len(blocks), recompute):
        segment = nn.Sequential(*blocks[start : start + recompute])
        x = checkpoint(segment, x, use_reentrant=False, context_fn=functools.partial(_contexts, segment))
    out: Tensor = network.head(x)  # type: ignore[operator]
    return out


def _contexts(segment: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first pass and the second, in which BN must not count the same batch again."""
    return nullcontext(), kept_statistics(segment)
