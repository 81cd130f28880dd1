"""A walk through what lesions share, which evaluates each step once.

A lesion is a program, the steps that carry the stem's output to the head. Programs that begin alike share these steps:
together they form a tree. It is walked depth-first, so that only the activations at open forks are kept; the fork's
last branch takes its activation over. With the branch that has most lesions walked last, all single deletions keep two
activations, all pairs three, and any set of n lesions at most log2(n) + 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from resnotes import progress
from resnotes.devices import autocast
from resnotes.unravel.steps import Steps

Step = tuple[int, bool]  # number of a block, and whether it is deleted
Program = tuple[Step, ...]


def shared(programs: Sequence[Program]) -> int:
    """How many steps there are, if those that programs begin alike with are done once."""
    return len({program[: i + 1] for program in programs for i in range(len(program))})


@torch.inference_mode()
def walk(
    steps: Steps,
    programs: Sequence[Program],
    images: Tensor,
    precision: str,
    batch: int,
    read: Callable[[Tensor], Tensor],
) -> Tensor:
    """Evaluate all lesions: what `read` makes of the logits of each, ``[lesions, N, ...]``, on the CPU.

    Args:
        steps: what `prepare` returned.
        programs: of the lesions, one at least, each a step for every block.
        images: normalised, ``[N, C, H, W]``.
        precision: ``"float32"`` (more exactly, that of the weights) or ``"bfloat16"``.
        batch: images that are sent through at a time, at most; parts are of equal size.
        read: takes logits ``[B, classes]`` to what is kept of them, ``[B, ...]``.
    """
    device = steps.input(images[:1]).device
    found: Tensor | None = None

    def follow(numbers: Sequence[int], start: int, x: Tensor, rows: slice) -> None:
        """Lesions `numbers`, sorted by their programs, which are alike in the `start` steps that led to `x`."""
        nonlocal found
        while True:
            first, last = programs[numbers[0]], programs[numbers[-1]]
            while start < len(first) and first[start] == last[start]:  # sorted: then those between are alike, too
                i, deleted = first[start]
                x = steps.delete(i, x) if deleted else steps.keep(i, x)
                start += 1
                bar.update()
            if start == len(first):
                break
            forks = itertools.groupby(numbers, key=lambda number: programs[number][start])
            *others, numbers = sorted((list(group) for _, group in forks), key=len)
            for other in others:
                follow(other, start, x, rows)
            # The last goes on here and not by a call, so that x goes as soon as it was used.
        # In bfloat16 are the layers of blocks and stem. Were the head's logits rounded, too many would be equal.
        with autocast(device, "float32"):
            kept = read(steps.head(x)).cpu()
        if found is None:
            found = kept.new_empty(len(programs), len(images), *kept.shape[1:])
        found[list(numbers), rows] = kept

    parts = math.ceil(len(images) / batch)
    total = shared(programs) * parts
    in_order = sorted(range(len(programs)), key=lambda number: programs[number])
    with autocast(device, precision), progress.bar(total=total, desc="lesions", unit="block") as bar:
        for part in torch.arange(len(images)).split(math.ceil(len(images) / parts)):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            follow(in_order, 0, steps.stem(images[rows]), rows)
    assert found is not None  # there is a lesion, and an image
    return found
