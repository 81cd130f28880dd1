"""Lesion sweeps: this package's engine against the straightforward loop.

The loop deletes one block after the other and sends all images through what is left: float32, NCHW, one full forward
pass per lesion, in inference mode.

1. All single deletions of resnet-56, with published weights on CIFAR-10 test images where `RESNOTES_DATA` has
   cifar10/ and the weights of akamaster/resnet-56, else with random weights on random images.
2. All pairs of blocks of a resnet-110 with random weights on test images of digits. The loop is timed on evenly
   spaced pairs, and its time for all is extrapolated from these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import Peak, Row, Settings, Work, operations, turns
from resnotes import datasets, models
from resnotes.models import Network
from resnotes.models.published_networks import is_at_hand
from resnotes.unravel import Lesion, lesion_predictions, pairs, single_deletions

BATCH = 250
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@torch.inference_mode()
def loop(network: Network, lesions: Sequence[Lesion], images: Tensor) -> Tensor:
    """Predictions ``[number of lesions, N]``, one lesion after the other, each from the first layer on."""
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


def compare(
    what: str,
    network: Network,
    lesions: list[Lesion],
    sample: list[int],
    images: Tensor,
    labels: Tensor,
    settings: Settings,
) -> list[Row]:
    """Both precisions against the loop, which does the lesions in `sample` alone."""
    chosen = [lesions[i] for i in sample]
    found: dict[str, Tensor] = {}

    def side(name: str, work: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: found.update({name: work()})

    loop(network, chosen[:1], images)  # warms up
    sides: dict[str, Work] = {"loop": side("loop", partial(loop, network, chosen, images))}
    counted, peaks = dict[str, float](), dict[str, Peak]()
    for name, dtype in PRECISIONS.items():
        sides[name] = side(name, partial(lesion_predictions, network, lesions, images, dtype))
        counted[name] = operations(sides[name])
        sides[f"peak {name}"] = peaks[name] = Peak(name, size=settings.matrix)
    times = turns(sides, settings.rounds)

    extrapolated = f" (timed on {len(sample)} of them)" if len(sample) < len(lesions) else ""
    rows = []
    for name, peak in peaks.items():
        ours, theirs = found[name][sample], found["loop"]
        errors = [(predicted != labels).double().mean(1) for predicted in (ours, theirs)]
        points = 100 * float((errors[0] - errors[1]).abs().max())
        rows.append(
            Row(
                what=f"{what}, {name}; a plain loop{extrapolated}",
                ours=times[name],
                reference=[one * len(lesions) / len(sample) for one in times["loop"]],
                operations=counted[name],
                ceiling=peak.rate(times[f"peak {name}"]),
                remark=f"{int((ours != theirs).sum()):,} of {ours.numel():,} predictions differ,"
                f" errors by up to {points:.1f} points",
            )
        )
    return rows


def published(count: int) -> tuple[Network, Tensor, Tensor] | None:
    """resnet-56, `count` normalised test images of CIFAR-10 and their labels; None where they are missing."""
    at_hand = {each.name for each in datasets.status() if each.found}
    if "cifar10" not in at_hand or not is_at_hand("akamaster/resnet-56"):
        return None
    theirs = models.published("akamaster/resnet-56")
    images, labels = datasets.load("cifar10").test_sample(count)
    return theirs.network, theirs.normalization(images), labels


def settled(network: Network, images: Tensor) -> Network:
    """The network after BN has seen `images`: with fresh statistics, maps would grow from block to block."""
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def measure(settings: Settings) -> list[Row]:
    """Two sweeps, each in both precisions."""
    count = 8 if settings.quick else 250
    if not settings.quick and (part := published(count)) is not None:
        network, images, labels = part
        of = f"{len(images)} CIFAR-10 images, published weights"
    else:
        images, labels = torch.randn(count, 3, 32, 32), torch.arange(count) % 10
        network = settled(models.build("resnet-8" if settings.quick else "resnet-56"), images)
        of = f"{len(images)} random images of 32x32"
    lesions = single_deletions(range(len(network.blocks)))
    what = f"lesions: {len(lesions)} single deletions of {network.name}, {of}"
    rows = compare(what, network, lesions, list(range(len(lesions))), images, labels, settings)

    network = models.build("resnet-14" if settings.quick else "resnet-110", in_channels=1)
    data = datasets.load("digits")
    images = data.normalization(data.test_images)[: 8 if settings.quick else 90]
    lesions = pairs(range(len(network.blocks)))
    sample = list(range(0, len(lesions), max(1, len(lesions) // 20)))
    what = f"lesions: {len(lesions):,} pairs of {network.name}, {len(images)} images of digits (8x8)"
    network, labels = settled(network, images), data.test_labels[: len(images)]
    return rows + compare(what, network, lesions, sample, images, labels, settings)
