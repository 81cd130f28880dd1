"""PSPNet on images of CamVid's shape: a training step and predictions, against eager float32 in NCHW.

The reference is the same network with the loss written down as it is usually: cross-entropies of whole maps.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import Peak, Row, Settings, Work, operations, turns
from benchmarks.training import sgd
from resnotes import models
from resnotes.analysis.prediction import predict
from resnotes.datasets import Normalization
from resnotes.devices import resolve_precision
from resnotes.models.segmentation import IGNORED
from resnotes.training.loop import optimizer_step

CLASSES = 11


def objective(network: Any, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    outputs = network(inputs)
    return network.loss(outputs, labels), outputs.logits


@torch.no_grad()
def plain_prediction(network: Any, inputs: Tensor) -> Tensor:
    """Labels ``[N, H, W]`` of normalised images."""
    labels: Tensor = network.eval()(inputs).argmax(1)
    return labels


def measure(settings: Settings) -> list[Row]:
    """Images a second, in training and in prediction."""
    height, width = (48, 64) if settings.quick else (120, 160)
    name, options = ("pspnet-small", {"width": 8}) if settings.quick else ("pspnet-resnet18", {"width": 32})
    images = torch.randint(256, (2 if settings.quick else 8, 3, height, width), dtype=torch.uint8)
    labels = torch.randint(CLASSES, (len(images), height, width))
    normalization = Normalization.by_channel(images)
    inputs = normalization(images)
    precision = resolve_precision("auto", torch.device("cpu"))

    reference: Any = models.build(name, num_classes=CLASSES, **options)
    ours: Any = copy.deepcopy(reference).to(memory_format=torch.channels_last)
    our_optimizer, their_optimizer = sgd(ours, fused=True), sgd(reference)

    def our_step() -> None:
        optimizer_step(ours.train(), our_optimizer, inputs, labels, precision, objective)

    def their_step() -> None:
        logits, auxiliary = reference.train()(inputs)
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORED)
        loss = loss + reference.auxiliary_weight * F.cross_entropy(auxiliary, labels, ignore_index=IGNORED)
        their_optimizer.zero_grad()
        loss.backward()
        their_optimizer.step()

    trained, network = copy.deepcopy((ours, reference))  # what is predicted does not depend on the steps
    found: dict[str, Tensor] = {}

    def our_prediction() -> None:
        found["ours"] = predict(trained, images, normalization, precision=precision)

    def their_prediction() -> None:
        found["reference"] = plain_prediction(network, inputs)

    counted = {"training": operations(our_step), "prediction": operations(our_prediction)}
    their_step()
    peak = Peak(precision, size=settings.matrix)
    sides: dict[str, Work] = {
        "training ours": our_step,
        "training reference": their_step,
        "prediction ours": our_prediction,
        "prediction reference": their_prediction,
        "peak": peak,
    }
    times = turns(sides, settings.rounds)
    return [
        Row(
            what=f"{doing} {name} width={options['width']}, {height}x{width}, {precision}; eager float32",
            ours=[one / len(images) for one in times[f"{key} ours"]],
            reference=[one / len(images) for one in times[f"{key} reference"]],
            per_image=True,
            operations=counted[key] / len(images),
            ceiling=peak.rate(times["peak"]),
            remark=remark,
        )
        for key, doing, remark in (
            ("training", f"training, {len(images)} images a step,", ""),
            (
                "prediction",
                f"predictions, {len(images)} images,",
                f"{100 * float((found['ours'] == found['reference']).double().mean()):.1f} % of the pixels agree,"
                " with random weights",
            ),
        )
    ]
