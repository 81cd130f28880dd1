"""The tree of what lesions share, and a walk through it that evaluates each step once.

A lesion is compiled to a program, the steps that carry the stem's output to the head. Programs that begin alike
share these steps: together they form a tree. It is walked depth-first, so that only the activations at open forks
are kept; the fork's last branch takes its activation over. With the branch that needs most walked last, all single
deletions keep two activations, all pairs three, and any set of n lesions at most log2(n) + 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resnotes import progress
from resnotes.devices import autocast
from resnotes.errors import UsageError
from resnotes.unravel.steps import Steps

Step = tuple[int, bool]  # number of a block, and whether it is deleted
Program = tuple[Step, ...]

# Maps of a batch, at most: larger batches are no faster on a CPU.
_MAP_BYTES = 32 << 20


@dataclass(frozen=True)
class Branch:
    """Steps without a fork, and the branches that go on from there.

    Attributes:
        steps: from the fork before.
        lesions: numbers of the lesions whose program is at its end.
        branches: the one that needs most is the last.
        alive: activations that must be kept at a time, the one at work included.
    """

    steps: Program
    lesions: tuple[int, ...]
    branches: tuple[Branch, ...]
    alive: int

    def count(self) -> int:
        """Steps, over all branches: each is evaluated once."""
        return len(self.steps) + sum(branch.count() for branch in self.branches)


def plan(programs: Sequence[Program]) -> Branch:
    """The tree of `programs`; lesion i has program i."""
    return _plan(sorted((program, i) for i, program in enumerate(programs)), 0)


def _plan(programs: Sequence[tuple[Program, int]], start: int) -> Branch:
    """The tree of sorted programs that are equal before `start`."""
    (first, _), (last, _) = programs[0], programs[-1]
    end = start  # sorted, they have in common what the first and the last have
    while end < len(first) and first[end] == last[end]:
        end += 1
    ended = tuple(i for program, i in programs if len(program) == end)
    forks = itertools.groupby(programs[len(ended) :], key=lambda each: each[0][end])
    branches = sorted((_plan(list(group), end) for _, group in forks), key=lambda branch: branch.alive)
    alive = max([1, *(branch.alive + 1 for branch in branches[:-1]), *(branch.alive for branch in branches[-1:])])
    return Branch(first[start:end], ended, tuple(branches), alive)


def _bytes_per_image(steps: Steps, image: Tensor, alive: int) -> tuple[int, int]:
    """What a walk takes per image, at most, and the largest map between blocks; measured on one.

    Counted are the activations kept, and one step's result with all its layers' outputs: an upper bound.
    """
    maps, work, outputs = list[int](), list[int](), list[int]()

    def note(_: nn.Module, __: tuple[Tensor, ...], output: object) -> None:
        outputs.extend(leaf.nbytes for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    layers = [module for module in steps.module.modules() if not list(module.children())]
    layers = [layer for layer in layers if not isinstance(layer, torch.jit.ScriptModule)]  # which take no hooks
    handles = [layer.register_forward_hook(note) for layer in layers]
    x = steps.input(image)
    dtype = x.dtype
    for step in (steps.stem, *steps.keep, steps.head):
        outputs.clear()
        x = step(x).to(dtype)
        maps.append(x.nbytes)
        work.append(sum(outputs) + x.nbytes)
    for handle in handles:
        handle.remove()
    return alive * max(maps) + max(work), max(maps)


@torch.inference_mode()
def walk(
    steps: Steps,
    tree: Branch,
    lesions: int,
    images: Tensor,
    precision: str,
    memory: int,
    read: Callable[[Tensor], Tensor],
) -> Tensor:
    """Evaluate all lesions: what `read` makes of the logits of each, ``[lesions, N, ...]``, on the CPU.

    Args:
        steps: what `prepare` returned.
        tree: what `plan` returned.
        lesions: their number.
        images: normalised, ``[N, C, H, W]``.
        precision: ``"float32"`` (more exactly, that of the weights) or ``"bfloat16"``.
        memory: bound in bytes on the activations.
        read: takes logits ``[B, classes]`` to what is kept of them, ``[B, ...]``.

    Raises:
        UsageError: `memory` does not suffice for one image.
    """
    first = steps.input(images[:1])
    device, weights = first.device, first.dtype
    found: Tensor | None = None
    # In bfloat16 are the layers of blocks and stem. Were what runs past the blocks rounded after each, the errors would
    # add up; and with the head's logits rounded, too many would be equal.
    whole = autocast(device, "float32")
    with autocast(device, precision):
        per_image, largest = _bytes_per_image(steps, images[:1], tree.alive)
        if memory < per_image:
            raise UsageError(f"a memory of {memory:,} bytes is too little: one image takes {per_image:,}")
        parts = math.ceil(len(images) / max(1, min(memory // per_image, _MAP_BYTES // largest)))
        batch = math.ceil(len(images) / parts)

        def follow(branch: Branch, x: Tensor, rows: slice) -> None:
            nonlocal found
            while True:
                for i, deleted in branch.steps:
                    x = (steps.delete if deleted else steps.keep)[i](x)
                    bar.update()
                if branch.lesions:
                    with whole:
                        kept = read(steps.head(x)).cpu()
                    if found is None:
                        found = kept.new_empty(lesions, len(images), *kept.shape[1:])
                    found[list(branch.lesions), rows] = kept
                if not branch.branches:
                    return
                *others, last = branch.branches
                for other in others:
                    follow(other, x, rows)
                branch = last  # here and not by a call, so that x goes as soon as it was used

        total = tree.count() * math.ceil(len(images) / batch)
        with progress.bar(total=total, desc="lesions", unit="block") as bar:
            for start in range(0, len(images), batch):
                rows = slice(start, start + batch)
                follow(tree, steps.stem(steps.input(images[rows])).to(weights), rows)
    assert found is not None  # there is a lesion, and an image
    return found
