"""What a profile costs, in Markdown: on two cores, from steps timed here; on GPUs, an estimate from operations.

Every network of the profile makes training steps and evaluates, on made images of the right size, in one thread: what
counts is this process's CPU time, which other programs hardly disturb. A run is its steps and the images that it is
evaluated on between epochs. The recorded runs, whose times were taken on a clock while another run went on beside
them, tell how far that falls short; hours on two cores are multiplied by it.

No GPU is asked. A step there takes at least its operations (additions and multiplications, as PyTorch counts them)
divided by a share of the card's bfloat16 peak, and at least its calls of PyTorch operators times what the host needs
to launch one; the larger of the two is taken, once with favourable and once with unfavourable numbers. Small networks
on small images are bound by the launches.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import timing
from benchmarks.growth import fit
from resnotes.datasets import Classification, Data, Normalization, Segmentation
from resnotes.datasets.segmentation import Stacked
from resnotes.devices import resolve_precision
from resnotes.runs import profiles
from resnotes.runs.folder import initial_network
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import RunStore
from resnotes.training.loop import optimizer_step, task_for
from resnotes.training.recipe import Recipe
from resnotes.training.thinning import thinned

CORES = 2
GPUS = 8
PEAK = 989e12  # operations a second in bfloat16, dense, of an H100 SXM by its data sheet
FAVOURABLE = (0.4, 5e-6)  # share of the peak that convolutions sustain, seconds to launch an operator
UNFAVOURABLE = (0.1, 20e-6)

TEXT = """\
The {profile} profile; `python -m benchmarks cost` measures it anew, in half an hour. The hours on 2 cores are
from CPU time of steps of every network on one core, measured {date} on {machine}. Those on GPUs are
*estimates*, from before one was at hand.

| study | runs | images, 10^6 | operations, 10^18 | 2 cores, h | one H100, h, estimate | eight, h, estimate |
|---|---|---|---|---|---|---|
{rows}

Runs that an earlier study has are counted there. Operations are multiplications and additions, as PyTorch
counts them. The {recorded} recorded runs took {factor:.2f} times what their steps do alone (median; {least:.2f}
to {most:.2f}, on a machine with other work), so the hours on 2 cores, one run on each, are multiplied by that;
{evaluation:.0f} % of them is evaluation between epochs, which `probe_images` would shorten. The estimates take
the larger of two bounds: operations at an H100's {peak:.0f} TFLOP/s in bfloat16, and calls of operators; they
assume {favourable}, at the other end {unfavourable}. One run at a time on a GPU: networks on CIFAR-10 are bound
by the calls, so that two or three at once would cost less than the table says.

The cost grows

- with depth, of a training step: {growing};
- with seeds, linearly: runs are independent, and one more seed is one more of each. On eight GPUs a study takes
  an eighth of the time as long as it has many more than eight runs of about the same length;
- with data, not at all at a given number of iterations, as the papers have it: an image then is seen less
  often, and evaluation, once an epoch, takes the same time in all. At a given number of epochs, and with the
  pixels of an image, linearly.
"""


class Images(NamedTuple):
    """What decides the cost of a data set."""

    train: int
    test: int
    classes: int
    size: tuple[int, int]


IMAGES = {"cifar10": Images(50_000, 10_000, 10, (32, 32)), "camvid": Images(367, 233, 11, (360, 480))}


class Calls(TorchDispatchMode):
    """Counts the operators that are called."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class Cost(NamedTuple):
    """Of an image in a training step, or of one that is evaluated; `calls` are those of a whole batch."""

    seconds: float
    operations: float
    calls: float
    batch: int

    def gpu(self, share: float, launch: float) -> float:
        """Seconds an image takes at least."""
        return max(self.operations / (share * PEAK), self.calls * launch / self.batch)


def images_of(spec: RunSpec) -> Images:
    images = IMAGES[spec.dataset]
    if held := spec.data.get("holdout", 0) * images.classes:
        images = images._replace(train=images.train - held, test=held)
    return images._replace(train=spec.train_images or images.train, size=tuple(spec.data.get("size", images.size)))


def made(spec: RunSpec, count: int) -> Data:
    """So many images of the data set's size, of nothing: their content does not change the time."""
    images = images_of(spec)
    pixels = torch.randint(256, (count, 3, *images.size), dtype=torch.uint8)
    classes = tuple(map(str, range(images.classes)))
    if spec.dataset == "cifar10":
        labels = torch.arange(count) % images.classes
        return Classification(pixels, labels, pixels, labels, classes, "made", "made")
    labels = torch.randint(images.classes, (count, *images.size), dtype=torch.uint8)
    split = Stacked(pixels, labels, tuple(map(str, range(count))))
    return Segmentation(
        spec.dataset, "made", classes, 255, split, split, None, Normalization.by_channel(pixels), "made"
    )


def steps(spec: RunSpec, count: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A training step on `count` images, and an evaluation of twice as many; as `training.loop.train` does."""
    recipe = dataclasses.replace(spec.recipe, batch_size=count, probe_images=None)
    precision = resolve_precision(recipe.precision, torch.device("cpu"))
    task = task_for(made(spec, count), recipe, seed=0, device=torch.device("cpu"), precision=precision)
    network = initial_network(spec, {"channels": 3, "classes": images_of(spec).classes})
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=recipe.momentum, fused=recipe.blocks == "all")
    parts = thinned(network, recipe.blocks, seed=0, epoch=1)
    epochs = itertools.count(1)

    def step() -> None:
        [(inputs, labels)] = task.batches(next(epochs))
        loss, logits = optimizer_step(next(parts), optimizer, inputs, labels, precision, task.objective)
        loss.item(), task.wrong(logits, labels).item()

    # A copy, as the objective may have wrapped what it trains; what is evaluated has all blocks.
    evaluated = copy.deepcopy(network)
    return step, lambda: task.scores(evaluated, last=True)


@functools.cache
def _measured(key: str, seconds: float) -> tuple[Cost, Cost]:
    spec = RunSpec.from_json(key)
    batch = spec.recipe.batch_size
    timed = 2 if spec.dataset == "camvid" else batch  # large images take long
    costs = []
    for work, images, together in zip(steps(spec, timed), (timed, 2 * timed), (batch, 500), strict=True):
        calls = Calls()  # type: ignore[no-untyped-call]

        def noted(work: Callable[[], Any] = work, calls: Calls = calls) -> None:
            with calls:
                work()

        counted = timing.operations(noted)  # the first time takes longer, too
        time_of_one = statistics.median(cpu_seconds(work, seconds)) / images
        # An evaluation is of the images in two parts; batches of any size make as many calls.
        once = calls.count / (images / timed)
        costs.append(Cost(time_of_one, counted / images, once, together))
    print(f"{spec.label}: {costs[0].seconds:.3g} s an image, {costs[1].seconds:.3g} s evaluated", file=sys.stderr)
    return costs[0], costs[1]


def measured(spec: RunSpec, seconds: float) -> tuple[Cost, Cost]:
    """Of training and of evaluation; networks that differ in seeds and schedules alone are timed once."""
    schedule = Recipe(iterations=1)
    same = {field: getattr(schedule, field) for field in ("iterations", "lr", "schedule", "milestones", "snapshots")}
    recipe = dataclasses.replace(spec.recipe, **same, warmup_iterations=0, probe_images=None)
    alike = dataclasses.replace(spec, seed=0, recipe=recipe, train_images=None, start=None, pretrained=None)
    return _measured(alike.to_json(), seconds)


def cpu_seconds(work: Callable[[], Any], enough: float) -> Iterator[float]:
    """CPU time of one call after another, until they take `enough` seconds together."""
    total = 0.0
    while total < enough:
        total += (elapsed := timing.seconds(work))
        yield elapsed


def counts(spec: RunSpec) -> tuple[int, int]:
    """Images that a run is trained on, and that it is evaluated on."""
    images, recipe = images_of(spec), spec.recipe
    epochs = math.ceil(recipe.iterations / (images.train // recipe.batch_size))
    probe = recipe.probe_images or max(images.train, images.test)
    between = min(probe, images.train) + min(probe, images.test)
    return recipe.iterations * recipe.batch_size, (epochs - 1) * between + images.train + images.test


def total(spec: RunSpec, seconds: float, of: Callable[[Cost], float]) -> float:
    """Of a whole run: training and evaluation."""
    return sum(number * of(cost) for number, cost in zip(counts(spec), measured(spec, seconds), strict=True))


def makespan(times: Iterable[float], machines: int) -> float:
    """When the last of `machines` is done, if each takes the longest run that is left."""
    ends = [0.0] * machines
    for one in sorted(times, reverse=True):
        ends[ends.index(min(ends))] += one
    return max(ends)


def hours(values: Iterable[float]) -> str:
    """One value, or a range, given in seconds."""
    texts = [f"{value / 3600:,.0f}" if value >= 36_000 else f"{value / 3600:.2g}" for value in values]
    return "–".join(dict.fromkeys(texts))


def shortfall(seconds: float) -> list[float]:
    """Recorded clock time of runs, divided by what is computed for them here."""
    ratios = []
    for run in RunStore().finished(recorded=True):
        if run.spec.dataset in IMAGES and run.facts["device"] == "cpu" and run.facts["threads"] == 1:
            ratios.append(run.facts["seconds"] / total(run.spec, seconds, lambda cost: cost.seconds))
    return ratios


def exponent(family: str, depths: list[int], specs: dict[str, RunSpec], seconds: float) -> str:
    """With which power of its depth the step of a family of networks grows."""
    present = [depth for depth in depths if f"{family}-{depth}" in specs]
    times = [measured(specs[f"{family}-{depth}"], seconds)[0].seconds for depth in present]
    listed = ", ".join(f"{depth}: {1e3 * one:.2f}" for depth, one in zip(present, times, strict=True))
    return f"{family}: depth^{fit(present, times).exponent:.2f} (ms of one core for an image, by depth: {listed})"


def report(profile: str = "paper", enough: float = 2.0) -> str:
    """The table of a profile's studies, and what it rests on.

    Args:
        profile: whose studies all read CIFAR-10 or CamVid.
        enough: seconds of CPU time for the steps of each network.
    """
    conditions = timing.machine()
    ratios = shortfall(enough)
    factor = statistics.median(ratios)
    seen: dict[str, RunSpec] = {}
    gpu = [functools.partial(Cost.gpu, share=share, launch=launch) for share, launch in (FAVOURABLE, UNFAVOURABLE)]

    def row(name: str, specs: list[RunSpec]) -> str:
        cpu = [factor * total(spec, enough, lambda cost: cost.seconds) for spec in specs]
        cards = [[total(spec, enough, bound) for spec in specs] for bound in gpu]
        cells = [
            name,
            str(len(specs)),
            f"{sum(counts(spec)[0] for spec in specs) / 1e6:,.1f}",
            f"{sum(total(spec, enough, lambda cost: cost.operations) for spec in specs) / 1e18:,.3g}",
            hours([makespan(cpu, CORES)]),
            hours(map(sum, cards)),
            hours(makespan(times, GPUS) for times in cards),
        ]
        return f"| {' | '.join(cells)} |"

    lines = []
    for name, study in profiles.load(profile).studies.items():
        new = {spec.name: spec for spec in study.all_specs() if spec.name not in seen}
        seen |= new
        if new:
            lines.append(row(name, list(new.values())))
    lines.append(row("all", list(seen.values())))

    evaluation = sum(counts(spec)[1] * measured(spec, enough)[1].seconds for spec in seen.values())
    everything = sum(total(spec, enough, lambda cost: cost.seconds) for spec in seen.values())
    plain = {spec.label: spec for spec in seen.values() if spec.recipe.blocks == "all"}
    depths = [20, 32, 44, 56, 110]
    growing = [exponent(family, depths, plain, enough) for family in ("plain", "resnet") if f"{family}-56" in plain]
    return TEXT.format(
        profile=profile,
        date=conditions["date"],
        machine=conditions["machine"],
        rows="\n".join(lines),
        recorded=len(ratios),
        factor=factor,
        least=min(ratios),
        most=max(ratios),
        evaluation=100 * evaluation / everything,
        peak=PEAK / 1e12,
        favourable=f"{100 * FAVOURABLE[0]:.0f} % of that and {FAVOURABLE[1] * 1e6:.0f} µs a call",
        unfavourable=f"{100 * UNFAVOURABLE[0]:.0f} % and {UNFAVOURABLE[1] * 1e6:.0f} µs",
        growing="; ".join(growing),
    )
