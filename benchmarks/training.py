"""Training throughput on CIFAR-size images: this package's step against the usual public recipe, and against eager.

The public recipe is what most public CIFAR code does: float32, NCHW, images read one by one from a Dataset through
torchvision's transforms (PIL, crop, flip, to tensor, normalise) by a DataLoader. The eager reference does the same
step, float32 and NCHW, on batches that are at hand in memory, and says what the arithmetic alone gains.

On a CPU each network has one thread, as `RunStore.get_all` trains the runs of a study, and its CPU time counts; the
DataLoader works in that thread, so that its work counts as well. One side trains as many networks at a time as there
are threads, which compete for caches and memory: its images a second are those of each core.

Where there is a GPU, it is what trains, and the clock is that of the wall. There the eager reference alone is of use,
as the public recipe would wait for its images, and float32 is PyTorch's default (convolutions in TF32).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter, process_time

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.gradients import VIT
from benchmarks.timing import Peak, Row, Settings, Work, built, operations, turns
from resnotes.datasets import Normalization
from resnotes.devices import resolve_device, resolve_precision
from resnotes.training.classification import batches
from resnotes.training.loop import optimizer_step
from resnotes.training.recipe import Recipe

RECIPE = Recipe(iterations=1)

HEADLINES = (("resnet-56", "ours", "public"), (f"vit-6 {VIT}", "ours", "eager"))


class Images(Dataset[tuple[Tensor, int]]):
    """Images one by one, as PIL, through transforms: the public recipe's data set."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def sgd(network: nn.Module, **options: bool) -> torch.optim.SGD:
    return torch.optim.SGD(
        network.parameters(), lr=RECIPE.lr, momentum=RECIPE.momentum, weight_decay=RECIPE.weight_decay, **options
    )


def public_batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Those of a DataLoader, epoch after epoch."""
    loader = DataLoader(Images(images, labels), RECIPE.batch_size, shuffle=True, drop_last=True)
    while True:
        yield from loader


def our_batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Those of `resnotes.training.loop.train`, epoch after epoch, on the device of the images."""
    normalization = Normalization.per_pixel(images)
    epoch = 0
    while True:
        epoch += 1
        for inputs, targets in batches(images, labels, RECIPE, seed=0, epoch=epoch):
            yield normalization(inputs), targets


def eager_steps(network: nn.Module, drawn: Iterator[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Float32 and NCHW, one optimiser step a turn."""
    optimizer = sgd(network.train())
    for inputs, targets in drawn:
        loss = F.cross_entropy(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def our_steps(network: nn.Module, drawn: Iterator[tuple[Tensor, Tensor]], precision: str) -> Iterator[None]:
    """What `resnotes.training.loop.train` does, one optimiser step a turn."""
    optimizer = sgd(network.to(memory_format=torch.channels_last).train(), fused=True)
    for inputs, targets in drawn:
        optimizer_step(network, optimizer, inputs, targets, precision)
        yield


def advance(steps: Iterator[None], count: int) -> None:
    for _ in range(count):
        next(steps)


def measure(settings: Settings) -> list[Row]:
    """Images a second of resnet-20, resnet-56 and vit-6."""
    device = resolve_device("auto")
    count = 256 if settings.quick else 50_000
    # Throughput does not depend on what is in the images, so any will do.
    images, labels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (count,))
    names = ("resnet-8", f"vit-2 {VIT}") if settings.quick else ("resnet-20", "resnet-56", f"vit-6 {VIT}")
    return [row for name in names for row in compare(name, images, labels, device, settings)]


def compare(name: str, images: Tensor, labels: Tensor, device: torch.device, settings: Settings) -> list[Row]:
    """Rows of one network."""
    precision = resolve_precision("auto", device)
    steps, warm_up = (1, 1) if settings.quick else (8, 3)
    there = images.to(device), labels.to(device)
    at_a_time, clock = (settings.at_a_time, process_time) if device.type == "cpu" else (0, perf_counter)

    def network() -> nn.Module:
        network: nn.Module = built(name).to(device)
        return network

    ours, *others = (our_steps(network(), our_batches(*there), precision) for _ in range(1 + at_a_time))
    sides: dict[str, Callable[[int], object]] = {
        "ours": partial(advance, ours),
        "eager": partial(advance, eager_steps(network(), our_batches(*there))),
    }
    peak = Peak(precision, device, settings.matrix)
    with ThreadPoolExecutor(max(1, at_a_time), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        if device.type == "cpu":
            sides["public"] = partial(advance, eager_steps(network(), public_batches(images, labels)))
            sides["side by side"] = lambda count: list(pool.map(advance, others, [count] * at_a_time))
        for turn in sides.values():
            turn(warm_up)
        timed: dict[str, Work] = {side: partial(turn, steps) for side, turn in sides.items()}
        times = turns({**timed, "peak": peak}, settings.rounds, clock)

    batch = torch.zeros(1, 3, 32, 32, device=device)
    counted = operations(lambda: network().eval()(batch).sum().backward())
    each = steps * RECIPE.batch_size

    def row(what: str, side: str, reference: str, networks: int = 1) -> Row:
        return Row(
            what=f"training {name}, {precision}{' on the GPU' if device.type == 'cuda' else ''}{what}",
            ours=[one / each / networks for one in times[side]],
            reference=[one / each for one in times[reference]],
            per_image=True,
            operations=counted,
            ceiling=peak.rate(times["peak"]),
            headline=(name, side, reference) in HEADLINES,
        )

    rows = [row("; the same step, eager float32", "ours", "eager")]
    if device.type == "cpu":
        rows.append(row("; the public recipe", "ours", "public"))
        together = f", {at_a_time} at a time, each; the public recipe, one at a time"
        rows.append(row(together, "side by side", "public", at_a_time))
    return rows
