"""How cost grows with depth and with the number of lesions: CPU time of one thread, fitted power laws, plots.

Networks have random weights and small batches. Depth counts units, of which resnet-N has n = (N - 2) / 2: that is
what sweeps and path lengths are over. Beside the time, the operations are counted: where their exponent is that of the
time, it is the network that makes it differ from the expected one; where it is not, it is how fast they are done.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from scipy.stats import linregress, t
from torch import Tensor

from benchmarks.gradients import interpolated, random_network
from benchmarks.lesions import loop
from benchmarks.timing import Settings, Work, operations, turns
from benchmarks.training import our_steps
from resnotes import figures
from resnotes.devices import resolve_precision
from resnotes.errors import UsageError
from resnotes.unravel import Lesion, lesion_predictions, pairs, path_gradients, single_deletions

DEPTHS = (20, 32, 44, 56, 110)
UNITS = "units n, of a network of 2n + 2 layers"
LESIONS = "number of pairs of blocks, of resnet-56"
COLORS = ("#0072B2", "#D55E00")  # ours, the reference


class Fit(NamedTuple):
    """The power law y = factor x^exponent, and the exponent's 95 % interval."""

    exponent: float
    low: float
    high: float
    factor: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Cost of one way to compute something, against a size.

    Attributes:
        panel: what is computed.
        side: by what; ``"this package"`` comes first in each panel.
        axis: what `sizes` counts.
        sizes: ascending.
        seconds: of CPU time, for each size one for each round.
        operations: additions and multiplications, one for each size.
        expected: exponent by counting passes through units; None where that gives no power law.
    """

    panel: str
    side: str
    axis: str
    sizes: list[int]
    seconds: list[list[float]]
    operations: list[float]
    expected: float | None

    @property
    def medians(self) -> list[float]:
        """Of the rounds."""
        return [median(rounds) for rounds in self.seconds]


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Least squares on the logarithms; the interval is Student's.

    Args:
        x: three sizes or more, two of them different; positive.
        y: a cost for each; positive.

    Raises:
        UsageError: other numbers than these.
    """
    if len(x) != len(y) or len(x) < 3 or len(set(x)) < 2 or not all(0 < value < np.inf for value in (*x, *y)):
        raise UsageError(f"expected 3 or more positive sizes, not all the same, and as many costs; found {x} and {y}")
    line = linregress(np.log(x), np.log(y))
    error = float(np.nan_to_num(line.stderr))  # of costs that are all the same, SciPy's is NaN
    half = float(t.ppf(0.975, len(x) - 2)) * error
    slope = float(line.slope)
    return Fit(slope, slope - half, slope + half, float(np.exp(line.intercept)))


def curve(
    panel: str, side: str, axis: str, expected: float | None, works: dict[int, Work], settings: Settings
) -> Curve:
    """Times `works`, by size. All sizes take turns, so that what disturbs disturbs all alike."""
    counted = [operations(work) for work in works.values()]
    times = turns({str(size): work for size, work in works.items()}, settings.rounds)
    return Curve(
        panel=panel,
        side=side,
        axis=axis,
        sizes=list(works),
        seconds=list(times.values()),
        operations=counted,
        expected=expected,
    )


def _batch(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, 32, 32), torch.arange(count) % 10


def _spread(lesions: list[Lesion], count: int) -> list[Lesion]:
    """So many of them, chosen at random."""
    return [lesions[i] for i in torch.randperm(len(lesions))[:count].tolist()]


def measure(settings: Settings) -> list[Curve]:
    """Lesion sweeps against depth and number, path gradients and training steps against depth."""
    quick = settings.quick
    depths = (8, 14, 20) if quick else DEPTHS
    images, _ = _batch(2 if quick else 16)
    few, few_labels = _batch(1 if quick else 4)
    many, many_labels = _batch(4 if quick else 32)
    precision = resolve_precision("auto", torch.device("cpu"))

    def by_depth(work: Callable[[int], Work]) -> dict[int, Work]:
        return {(depth - 2) // 2: work(depth) for depth in depths}

    residual = {depth: random_network(f"resnet-{depth}", images) for depth in depths}
    before = {depth: random_network(f"preresnet-{depth}", images) for depth in depths}

    def sweep(depth: int, lesions: list[Lesion]) -> Work:
        return lambda: lesion_predictions(residual[depth], lesions, images)

    def plain(depth: int, lesions: list[Lesion]) -> Work:
        return lambda: loop(residual[depth], lesions, images)

    def step(depth: int) -> Work:
        network = random_network(f"resnet-{depth}", images).requires_grad_()
        batches = iter(lambda: (many, many_labels), None)
        steps = our_steps(network, batches, precision)
        return lambda: next(steps)

    def singles(depth: int) -> list[Lesion]:
        return single_deletions(range((depth - 2) // 2))

    chosen = depths[-1] if quick else 56
    every = pairs(range((chosen - 2) // 2))
    numbers = (1, 2, 4) if quick else (1, 3, 10, 30, 100, 300)
    fewer = numbers if quick else numbers[:-1]  # the loop takes long
    drawn = {number: _spread(every, number) for number in numbers}

    ours, reference = "this package", "plain loop"
    deletions, number = "sweep over all single deletions", "sweep over pairs"
    return [
        curve(deletions, ours, UNITS, 2, by_depth(lambda depth: sweep(depth, singles(depth))), settings),
        curve(deletions, reference, UNITS, 2, by_depth(lambda depth: plain(depth, singles(depth))), settings),
        curve(number, ours, LESIONS, None, {m: sweep(chosen, drawn[m]) for m in numbers}, settings),
        curve(number, reference, LESIONS, 1, {m: plain(chosen, drawn[m]) for m in fewer}, settings),
        curve(
            "path gradients",
            ours,
            UNITS,
            2,
            by_depth(lambda depth: lambda: path_gradients(before[depth], few, few_labels)),
            settings,
        ),
        curve(
            "path gradients",
            "interpolation",
            UNITS,
            2,
            by_depth(lambda depth: lambda: interpolated(before[depth], few, few_labels)),
            settings,
        ),
        curve(f"training step, {precision}", ours, UNITS, 1, by_depth(step), settings),
    ]


def _draw_panel(ax: Axes, curves: Sequence[Curve]) -> None:
    for one, color, marker in zip(curves, COLORS, "os", strict=False):
        found = fit(one.sizes, one.medians)
        sizes = np.array(one.sizes, dtype=float)
        ax.plot(sizes, one.medians, marker, color=color)
        ax.plot(sizes, found.factor * sizes**found.exponent, color=color, label=f"{one.side}: {power(found)}")
        if one.expected is not None:  # through the last point, where what does not grow counts least
            expected = one.medians[-1] * (sizes / sizes[-1]) ** one.expected
            ax.plot(sizes, expected, "--", color=color, linewidth=0.8, label=f"expected: {one.expected:g}")
    ticks = max((one.sizes for one in curves), key=len)
    ax.set(xscale="log", yscale="log", title=curves[0].panel, xlabel=curves[0].axis, ylabel="CPU seconds")
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.legend(loc="upper left", fontsize=6)
    ax.set_ylim(top=ax.get_ylim()[1] * 4)  # room for the legend


def power(found: Fit) -> str:
    """The exponent with its interval."""
    return f"{found.exponent:.2f} [{found.low:.2f}, {found.high:.2f}]"


def draw(curves: Sequence[Curve]) -> bytes:
    """A PNG: a panel for each thing computed, with fitted lines and, dashed, the expected slopes."""
    panels = {one.panel: [other for other in curves if other.panel == one.panel] for one in curves}
    with mpl.rc_context():
        figures.use_style()
        fig, axes = plt.subplots(2, 2, figsize=(7, 5.4))
        for ax, members in zip(axes.flat, panels.values(), strict=True):
            _draw_panel(ax, members)
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", dpi=150)
        plt.close(fig)
    return buffer.getvalue()
