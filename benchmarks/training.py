"""Training throughput on CIFAR-size images: this package's step against the usual public recipe.

    python benchmarks/training.py [--rounds 3] [--steps 24]

The reference is what most public CIFAR code does: float32, NCHW, images read one by one from a Dataset through
torchvision's transforms (PIL, crop, flip, to tensor, normalise) by a DataLoader with two workers. Both sides train
the same network on the same images, in turns within one process, so that the ratio of the medians means
something on a noisy machine. Last comes the share of the processor's measured bfloat16 matrix-product peak that our
step reaches.

A third side trains as many networks at a time as there are threads, with one thread each, as `RunStore.get_all` does
with the runs of a study: convolutions this small do not fill two threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from resnotes import models
from resnotes.classification import batches
from resnotes.datasets import Normalization
from resnotes.devices import resolve_device, resolve_precision
from resnotes.recipes import Recipe
from resnotes.training import optimizer_step

BATCH = 128


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


def reference_steps(network: nn.Module, images: Tensor, labels: Tensor) -> Iterator[None]:
    """The public recipe, one optimiser step a turn."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(Images(images, labels), BATCH, shuffle=True, num_workers=2, drop_last=True)
    network.train()
    while True:
        for inputs, targets in loader:
            loss = F.cross_entropy(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def our_steps(network: nn.Module, images: Tensor, labels: Tensor, precision: str) -> Iterator[None]:
    """What `resnotes.training.train` does, one optimiser step a turn."""
    recipe = Recipe(iterations=1)
    normalization = Normalization.per_pixel(images)
    network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=1e-4)
    epoch = 0
    while True:
        epoch += 1
        for inputs, targets in batches(images, labels, recipe, seed=0, epoch=epoch):
            optimizer_step(network, optimizer, normalization(inputs), targets, precision)
            yield


def matmul_peak(precision: str) -> float:
    """Best rate of a large matrix product, in operations per second."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    return 2 * 2048**3 / min(seconds(lambda: a @ b) for _ in range(10))


def step_operations(network: nn.Module) -> int:
    """Multiplications and additions of a forward and backward pass on one batch."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(BATCH, 3, 32, 32)).sum().backward()
    return counter.get_total_flops()


def advance(steps: Iterator[None], count: int) -> None:
    for _ in range(count):
        next(steps)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns per side")
    parser.add_argument("--steps", type=int, default=24, help="optimiser steps per turn")
    arguments = parser.parse_args()

    device = resolve_device("cpu")
    precision = resolve_precision("auto", device)
    if precision == "float32":
        print("this processor has no bfloat16 multiplication: our side runs in float32")
    peak = matmul_peak(precision)
    print(f"{torch.get_num_threads()} threads, {precision}; matrix-product peak {peak / 1e9:.0f} GFLOP/s")

    # Throughput does not depend on what is in the images, so any will do.
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (50_000,), generator=generator)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for name, target in (("resnet-20", 2.3), ("resnet-56", 2.0)):
            reference = reference_steps(models.build(name), images, labels)
            ours, *others = (our_steps(models.build(name), images, labels, precision) for _ in range(1 + threads))

            def side_by_side(steps: int, networks: list[Iterator[None]] = others) -> None:
                list(pool.map(advance, networks, [steps] * len(networks)))

            sides: dict[str, tuple[int, Callable[[int], None]]] = {  # networks trained at once, and a turn
                "reference": (1, lambda steps, side=reference: advance(side, steps)),
                "ours": (1, lambda steps, side=ours: advance(side, steps)),
                f"ours, {threads} runs at a time": (threads, side_by_side),
            }
            times: dict[str, list[float]] = {side: [] for side in sides}
            for round_ in range(arguments.rounds + 1):
                for side, (_, turn) in sides.items():
                    elapsed = seconds(lambda turn=turn: turn(arguments.steps))
                    if round_:  # the first turn warms up
                        times[side].append(elapsed / arguments.steps)
            operations = step_operations(models.build(name))
            print(f"{name} (aim {target})")
            rates = {side: sides[side][0] * BATCH / statistics.median(values) for side, values in times.items()}
            for side, rate in rates.items():
                share = operations * rate / BATCH / peak
                ratio = rate / rates["reference"]
                print(f"  {side:<24} {rate:5.0f} images/s, ratio {ratio:.2f}, {100 * share:3.0f} % of the peak")


if __name__ == "__main__":
    main()
