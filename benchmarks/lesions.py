"""Lesion sweeps: this package's engine against the straightforward loop.

The loop deletes one block after the other and sends all images through what is left: float32, NCHW, one full forward
pass per lesion, in inference mode.

1. All single deletions of resnet-56, with published weights on CIFAR-10 test images where `RESNOTES_DATA` has
   cifar10/ and the weights of akamaster/resnet-56, else with random weights on random images.
2. The same, BN's statistics gathered anew after each lesion: the loop copies the network, and sends training images
   through what is left before it sends the test images.
3. All pairs of blocks of a resnet-110 with random weights on test images of digits, and of torchvision's
   VisionTransformer with 12 layers on random ones.

Where there are many lesions, the loop is timed on evenly spaced ones, and its time for all is extrapolated from these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from benchmarks.timing import Peak, Row, Settings, Work, operations, turns
from resnotes import datasets, models
from resnotes.models import Network
from resnotes.models.published_networks import is_at_hand
from resnotes.unravel import Lesion, adapt, lesion_predictions, pairs, single_deletions

BATCH = 250
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def logits(network: Network, lesion: Lesion, x: Tensor) -> Tensor:
    """Of the network without the lesion's blocks."""
    x = network.stem(x)
    for i, block in enumerate(network.blocks):
        x = block.after(block.shortcut(x)) if i in lesion.deleted else block(x)  # type: ignore[operator]
    found: Tensor = network.head(x)
    return found


def repaired(network: Network, lesion: Lesion, images: Tensor) -> Network:
    """A copy, in eval mode, whose BN has the statistics of `images` with the lesion."""
    network = copy.deepcopy(network).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the average of all batches, here of one
    logits(network, lesion, images)
    return network.eval()


@torch.inference_mode()
def loop(network: Network, lesions: Sequence[Lesion], images: Tensor, repair: Tensor | None = None) -> Tensor:
    """Predictions ``[number of lesions, N]``, one lesion after the other, each from the first layer on."""
    found = []
    for lesion in lesions:
        part = network.eval() if repair is None else repaired(network, lesion, repair)
        found.append(torch.cat([logits(part, lesion, x).argmax(1) for x in images.split(BATCH)]))
    return torch.stack(found)


def compare(
    what: str,
    network: Network,
    lesions: list[Lesion],
    sample: list[int],
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    repair: Tensor | None = None,
) -> list[Row]:
    """Both precisions against the loop, which does the lesions in `sample` alone."""
    chosen = [lesions[i] for i in sample]
    found: dict[str, Tensor] = {}

    def side(name: str, work: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: found.update({name: work()})

    loop(network, chosen[:1], images, repair)  # warms up
    sides: dict[str, Work] = {"loop": side("loop", partial(loop, network, chosen, images, repair))}
    counted, peaks = dict[str, float](), dict[str, Peak]()
    for name, dtype in PRECISIONS.items():
        sides[name] = side(name, partial(lesion_predictions, network, lesions, images, dtype, repair=repair))
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
                headline=name == "float32",
                remark=f"{int((ours != theirs).sum()):,} of {ours.numel():,} predictions differ,"
                f" errors by up to {points:.1f} points",
            )
        )
    return rows


def published(count: int) -> tuple[Network, Tensor, Tensor, Tensor] | None:
    """resnet-56, so many normalised test images of CIFAR-10, their labels, 256 training images; None without data."""
    at_hand = {each.name for each in datasets.status() if each.found}
    if "cifar10" not in at_hand or not is_at_hand("akamaster/resnet-56"):
        return None
    theirs, cifar = models.published("akamaster/resnet-56"), datasets.load("cifar10")
    images, labels = theirs.sample(cifar, count, held=True)
    return theirs.network, images, labels, theirs.sample(cifar, 256, held=False)[0]


def settled(network: Network, images: Tensor) -> Network:
    """The network after BN has seen `images`: with fresh statistics, maps would grow from block to block."""
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def measure(settings: Settings) -> list[Row]:
    """Four sweeps, each in both precisions."""
    count = 8 if settings.quick else 250
    if not settings.quick and (part := published(count)) is not None:
        network, images, labels, repair = part
        of = f"{len(images)} CIFAR-10 images, published weights"
    else:
        images, labels, repair = torch.randn(count, 3, 32, 32), torch.arange(count) % 10, torch.randn(count, 3, 32, 32)
        network = settled(models.build("resnet-8" if settings.quick else "resnet-56"), images)
        of = f"{len(images)} random images of 32x32"
    lesions = single_deletions(range(len(network.blocks)))
    what = f"lesions: {len(lesions)} single deletions of {network.name}, {of}"
    few = list(range(len(lesions)))
    rows = compare(what, network, lesions, few, images, labels, settings)
    what += f", BN repaired on {len(repair)} others"
    rows += compare(what, network, lesions, few[::3], images, labels, settings, repair)

    network = models.build("resnet-14" if settings.quick else "resnet-110", in_channels=1)
    data = datasets.load("digits")
    images = data.normalization(data.test_images)[: 8 if settings.quick else 90]
    what = f"pairs of {network.name}, {len(images)} images of digits (8x8)"
    rows += in_pairs(what, settled(network, images), images, data.test_labels[: len(images)], settings)

    layers = 2 if settings.quick else 12
    theirs = VisionTransformer(32, 4, layers, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=10)
    nn.init.normal_(theirs.heads.head.weight)  # torchvision starts at 0, where every answer is the same
    images = torch.randn(8 if settings.quick else 32, 3, 32, 32)
    what = f"pairs of units of torchvision's ViT with {layers} layers of width 192, {len(images)} images of 32x32"
    return rows + in_pairs(what, adapt(theirs.eval()), images, torch.arange(len(images)) % 10, settings)


def in_pairs(what: str, network: Network, images: Tensor, labels: Tensor, settings: Settings) -> list[Row]:
    """A sweep over all pairs, of which the loop does about twenty."""
    lesions = pairs(range(len(network.blocks)))
    sample = list(range(0, len(lesions), max(1, len(lesions) // 20)))
    return compare(f"lesions: {len(lesions):,} {what}", network, lesions, sample, images, labels, settings)
