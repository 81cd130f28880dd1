"""What all benchmarks share: sides that take turns, counted operations, the machine and its ceiling, and rows."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from resnotes import models, provenance

Work = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Settings:
    """How much is measured: tiny sizes, where only errors would show; rounds of turns; networks trained at a time."""

    quick: bool = False
    rounds: int = 3
    at_a_time: int = 2

    @property
    def matrix(self) -> int | None:
        """The `size` of `Peak`."""
        return 256 if self.quick else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """Ours against a reference: seconds that both sides take for the same work, round by round.

    They are CPU time of one core where nothing else is said.

    Attributes:
        what: was computed, and by what reference.
        ours: seconds; of one image where `per_image`, else of all the work.
        reference: likewise.
        per_image: the row shows images a second.
        operations: additions and multiplications that ours does in that time; None where they are not what takes it.
        ceiling: operations a second of `Peak`, in the same rounds and in the precision of ours.
        headline: one of the few that the documentation shows.
        remark: what else was found, such as that both sides agree.
    """

    what: str
    ours: list[float]
    reference: list[float]
    per_image: bool = False
    operations: float | None = None
    ceiling: float | None = None
    headline: bool = False
    remark: str = ""

    @property
    def ratio(self) -> float:
        """How many times faster ours is, by the medians."""
        return statistics.median(self.reference) / statistics.median(self.ours)

    @property
    def share(self) -> float | None:
        """Of the ceiling."""
        if self.operations is None or self.ceiling is None:
            return None
        return self.operations / statistics.median(self.ours) / self.ceiling


def turns(sides: Mapping[str, Work], rounds: int, clock: Clock = time.process_time) -> dict[str, list[float]]:
    """Seconds of each side, round by round; in each round all sides take a turn.

    Whatever else the machine does then disturbs all sides alike, and their ratio means something.

    Args:
        sides: what each does in a turn; warmed up.
        rounds: number of turns of each.
        clock: by default, of what this process computes, in all its threads.
    """
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, work in sides.items():
            times[side].append(seconds(work, clock))
    return times


def seconds(work: Work, clock: Clock = time.process_time) -> float:
    """What `work` takes once, on GPUs too."""
    synchronize()
    start = clock()
    work()
    synchronize()
    return clock() - start


def built(label: str) -> Any:
    """The network of a label such as ``vit-6 size=32``, with random weights."""
    name, options = models.from_label(label)
    return models.build(name, **options)


def synchronize() -> None:
    """Wait for the GPU, if this process uses one: calls return before it is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Peak:
    """The machine's ceiling, as a side of `turns`: large matrix products or convolutions, whichever is faster here.

    Args:
        precision: ``"float32"`` or ``"bfloat16"``.
        device: where.
        size: of the square matrices, and images of the convolutions (3x3, on 8x8 maps of 64 channels); by default such
            that they fill the device.

    Attributes:
        operations: additions and multiplications of a turn; products with a convolution's padding count, too.
    """

    PRODUCTS = 5

    def __init__(self, precision: str, device: torch.device | str = "cpu", size: int | None = None) -> None:
        size = size or (2048 if torch.device(device).type == "cpu" else 8192)
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        factors = torch.randn(2, size, size, device=device, dtype=dtype)
        images = torch.randn(size, 64, 8, 8, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        weights = torch.randn(64, 64, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        works: list[tuple[Work, int]] = [
            (lambda: torch.mm(*factors), 2 * size**3),
            (lambda: F.conv2d(images, weights, padding=1), 2 * images.numel() * 64 * 9),
        ]

        def pace(work: Work, operations: int) -> float:
            work()  # warms up
            return min(seconds(work, time.perf_counter) for _ in range(3)) / operations

        self._work, once = min(works, key=lambda each: pace(*each))
        self._repeats = math.ceil(self.PRODUCTS * 2 * size**3 / once)
        self.operations = self._repeats * once

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(self._repeats):
            self._work()

    def rate(self, times: list[float]) -> float:
        """Operations a second, from seconds of turns."""
        return self.operations / statistics.median(times)


class _NoModules(contextlib.nullcontext[None]):
    """In place of the counter's tracker of modules, which some calls of autograd do not get on with."""

    parents = ("Global",)


def operations(work: Work) -> float:
    """Additions and multiplications that `work` does in convolutions and matrix products; it also warms up."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        work()
    return float(counter.get_total_flops())


def machine() -> dict[str, Any]:
    """What was measured on, with which code, and when."""
    return {
        "machine": provenance.machine(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.date.today().isoformat(),
        "versions": provenance.versions(),
        **provenance.code_version(),
    }
