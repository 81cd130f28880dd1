"""Lesion sweeps: this package's engine against the straightforward loop.

    python benchmarks/lesions.py [--rounds 3] [--images 1000] [--sample 20]

The loop deletes one block after the other and sends all images through what is left: float32, NCHW, one full forward
pass per lesion, in inference mode. Both sides take their turns within one process, so that the ratio of the medians
means something on a noisy machine.

1. All 27 single deletions of resnet-56 with published weights on CIFAR-10 test images; `RESNOTES_DATA` must name a
   folder with cifar10/ and weights/resnet56-*.th. The loop's batches are as large as those of our side.
2. All 1,431 pairs of blocks of a resnet-110 with random weights on the 360 test images of digits. The loop is timed
   on `--sample` evenly spaced pairs, and its time for all is extrapolated from these.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from resnotes import datasets, models
from resnotes.datasets import Normalization
from resnotes.errors import DatasetError
from resnotes.models import Network
from resnotes.unravel import Lesion, lesion_predictions, pairs, single_deletions

BATCH = 250
AIMS = {"float32": 2.6, "bfloat16": 5.0}


@torch.inference_mode()
def loop(network: Network, lesions: Sequence[Lesion], images: Tensor) -> Tensor:
    """Predictions, one lesion after the other, each from the first layer on."""
    network.eval()
    found = []
    for lesion in lesions:
        predicted = []
        for x in images.split(BATCH):
            x = network.stem(x)
            for i, block in enumerate(network.blocks):
                x = block.after(block.shortcut(x)) if i in lesion.deleted else block(x)  # type: ignore[operator]
            predicted.append(network.head(x).argmax(1))
        found.append(torch.cat(predicted))
    return torch.stack(found)


def seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def compare(network: Network, lesions: list[Lesion], sample: list[int], images: Tensor, labels: Tensor, rounds: int):
    """Times both sides `rounds` times; the loop does the lesions in `sample` alone."""
    chosen = [lesions[i] for i in sample]
    sides: dict[str, Callable[[], Tensor]] = {
        "loop": lambda: loop(network, chosen, images),
        "float32": lambda: lesion_predictions(network, lesions, images),
        "bfloat16": lambda: lesion_predictions(network, lesions, images, torch.bfloat16),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    found: dict[str, Tensor] = {}
    loop(network, chosen[:1], images)  # warms up
    for _ in range(rounds):
        for side, work in sides.items():
            elapsed, found[side] = seconds(work)
            times[side].append(elapsed)
    reference = statistics.median(times["loop"]) * len(lesions) / len(sample)
    print(f"  loop      {reference:7.2f} s" + ("" if len(chosen) == len(lesions) else f", from {len(chosen)} lesions"))
    for side, aim in AIMS.items():
        elapsed = statistics.median(times[side])
        ours, theirs = found[side][sample], found["loop"]
        points = 100 * ((ours != labels).double().mean(1) - (theirs != labels).double().mean(1)).abs().max()
        print(
            f"  {side:<9} {elapsed:7.2f} s, ratio {reference / elapsed:.2f} (aim {aim}),"
            f" {int((ours != theirs).sum())} of {ours.numel()} predictions differ, errors by up to {points:.2f} points"
        )


def published(count: int) -> tuple[Network, Tensor, Tensor] | None:
    """resnet-56, `count` normalised test images and their labels; None where they are missing."""
    files = sorted(Path(os.environ.get("RESNOTES_DATA", "."), "weights").glob("resnet56-*.th"))
    if not files:
        print("resnet-56: left out, RESNOTES_DATA names no folder with weights/resnet56-*.th")
        return None
    try:
        data = datasets.load("cifar10")
    except DatasetError as error:
        print(f"resnet-56: left out, {error}")
        return None
    normalization = Normalization.per_channel((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    state = torch.load(files[0], map_location="cpu", weights_only=True)["state_dict"]
    images, labels = data.test_sample(count)
    return models.from_published(state), normalization(images), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns per side")
    parser.add_argument("--images", type=int, default=1000, help="CIFAR-10 test images")
    parser.add_argument("--sample", type=int, default=20, help="pairs on which the loop is timed")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, load of the last minute {os.getloadavg()[0]:.1f}", flush=True)

    if (part := published(arguments.images)) is not None:
        network, images, labels = part
        lesions = single_deletions(range(len(network.blocks)))
        print(f"resnet-56, {len(lesions)} single deletions, {len(images)} CIFAR-10 images", flush=True)
        compare(network, lesions, list(range(len(lesions))), images, labels, arguments.rounds)

    torch.manual_seed(0)
    network = models.build("resnet-110", in_channels=1)
    data = datasets.load("digits")
    lesions = pairs(range(len(network.blocks)))
    sample = list(range(0, len(lesions), max(1, len(lesions) // arguments.sample)))
    print(f"resnet-110, {len(lesions)} pairs, {len(data.test_labels)} digits images", flush=True)
    images = data.normalization(data.test_images)
    with torch.no_grad():
        network.train()(images)  # gives BN the statistics of digits, else the maps would grow from block to block
    compare(network, lesions, sample, images, data.test_labels, arguments.rounds)


if __name__ == "__main__":
    main()
