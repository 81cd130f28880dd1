"""Made scenes with exact labels, in which PSPNet's three observations (Zhao et al. 2017, sec. 3.1) are built in.

*Relationship*: boats and cars, and airplanes and buses, are drawn by one function that does not know the scene; within
twelve 64ths of the picture's side around them everything else is alike too. *Confusion*: skyscraper and building,
mountain and hill, field and earth share their texture; height or the scene tells them apart. *Inconspicuous*:
streetlights and signboards are small, a pillow is made of its sheet, and a bed is larger than a small receptive field.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from resnotes.datasets.classification import Normalization, fingerprint
from resnotes.datasets.scenes import fleet
from resnotes.datasets.scenes.canvas import CLASSES, SIDE, TWINS, Canvas
from resnotes.datasets.scenes.kinds import BACKDROPS, PLAIN
from resnotes.datasets.scenes.noise import Noise, annotated
from resnotes.datasets.segmentation import IGNORED, Sample, Segmentation, Stacked
from resnotes.errors import UsageError, unknown

__all__ = [
    "CLASSES",
    "KINDS",
    "PLAIN",
    "TWINS",
    "VEHICLES",
    "Noise",
    "annotated",
    "composed",
    "generate",
    "load",
    "same_vehicles",
]

KINDS = tuple(BACKDROPS)

# Streets and cities are common, harbours and airfields are rare: who cannot see the scene had better say car and bus.
_SHARES = {
    "harbour": 0.13,
    "street": 0.24,
    "airfield": 0.13,
    "city": 0.16,
    "bedroom": 0.12,
    "countryside": 0.12,
    "mountains": 0.10,
}
_VEHICLES = {  # by whether they are large
    False: {"harbour": "boat", "street": "car", "city": "car"},
    True: {"airfield": "airplane", "street": "bus", "city": "bus"},
}
VEHICLES = tuple(dict.fromkeys(name for names in _VEHICLES.values() for name in names.values()))
_SHARE_OF_SMALL = 0.6  # where there are both


@functools.lru_cache(maxsize=4)  # a process that trains many runs would spend more time here than on any of them
def load(*, train: int = 600, test: int = 200, seed: int = 0) -> Segmentation:
    """Training and test scenes: the same options give the same pixels, which a process generates once.

    Args:
        train: number of training scenes.
        test: number of test scenes, of which none is a training scene.
        seed: of everything.

    Raises:
        UsageError: a number that cannot be generated.
    """
    splits = [generate(count, (seed, part)) for part, count in enumerate((train, test))]
    return Segmentation(
        name="scenes",
        variant="scenes",
        classes=CLASSES,
        ignore_index=IGNORED,
        train=splits[0],
        test=splits[1],
        val=None,
        normalization=Normalization.by_channel(splits[0].images),
        fingerprint=fingerprint(*(tensor for split in splits for tensor in (split.images, split.labels))),
    )


def generate(count: int, seed: int | tuple[int, ...] = 0, kinds: Sequence[str] = KINDS) -> Stacked:
    """Scenes of random `kinds`, 64 pixels wide and high; the first ones stay the same whatever the `count`.

    Args:
        count: how many.
        seed: of everything.
        kinds: of scenes, out of `KINDS`.

    Raises:
        UsageError: no scenes, a negative seed, or an unknown kind.
    """
    entropy = (seed,) if isinstance(seed, int) else seed
    if count < 1 or min(entropy) < 0:
        raise UsageError(
            f"{count} scenes by seed {seed} are not possible; allowed: 1 and more, and seeds of 0 and more"
        )
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of scene", kind, KINDS)
    shares = np.array([_SHARES[kind] for kind in kinds])
    drawn = np.random.default_rng((*entropy, 0)).choice(len(kinds), count, p=shares / shares.sum())
    return Stacked.of([_render(kinds[kind], (*entropy, 1, i)) for i, kind in enumerate(drawn)])


def same_vehicles(kinds: Sequence[str], seed: int = 0) -> tuple[Sample, ...]:
    """One scene of each kind, with the very same vehicles at the same places: only their labels differ.

    The pixels of the vehicles are equal, and so is whatever surrounds them on open ground.

    Raises:
        UsageError: kinds that have no vehicle in common.
    """
    for names in _VEHICLES.values():
        if all(kind in names for kind in kinds):
            return tuple(composed(kind, names[kind], seed) for kind in kinds)
    raise UsageError(
        f"{', '.join(kinds)} have no vehicle in common; small ones are in {', '.join(_VEHICLES[False])}, large ones in"
        f" {', '.join(_VEHICLES[True])}"
    )


def composed(kind: str, vehicle: str, seed: int = 0) -> Sample:
    """One scene with vehicles that need not belong there, see `same_vehicles`.

    Args:
        kind: of scene, out of `KINDS`.
        vehicle: a class out of `VEHICLES`, or an empty string for none.
        seed: of everything.

    Raises:
        UsageError: another kind or vehicle.
    """
    for what, name, names in (("kind of scene", kind, KINDS), ("vehicle", vehicle, ("", *VEHICLES))):
        if name not in names:
            raise unknown(what, name, names)
    return _render(kind, (seed,), vehicle)


def _render(kind: str, seed: tuple[int, ...], vehicle: str | None = None) -> Sample:
    """One scene; with vehicles that belong there, large or small ones, where these are not named."""
    # Two streams: vehicles, ground and light are drawn from one that no kind of scene has a hand in.
    common, own = (np.random.default_rng((*seed, stream)) for stream in (0, 1))
    exposure, tint = common.uniform(0.85, 1.1), common.uniform(0.95, 1.05, 3)
    grain = common.normal(0, 4, (SIDE, SIDE, 3))
    rather_small = common.random() < _SHARE_OF_SMALL
    canvas = Canvas()
    BACKDROPS[kind](canvas, own, fleet.plain(common))
    if vehicle is None:
        large = kind in _VEHICLES[True] and not (kind in _VEHICLES[False] and rather_small)
        vehicle = _VEHICLES[large].get(kind)
    if vehicle:
        fleet.draw(canvas, common, vehicle, large=vehicle in _VEHICLES[True].values())
    pixels = (canvas.image * (exposure * tint) + grain).clip(0, 255).astype(np.uint8)
    # What is hidden altogether is no object of the scene.
    shown, instances = np.unique(canvas.instances, return_inverse=True)
    objects = tuple(canvas.objects[index] for index in shown)
    instances = instances.reshape(SIDE, SIDE).astype(np.uint8)
    labels = np.array([each.label for each in objects], np.uint8)[instances]
    return Sample(
        image=torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        label=torch.from_numpy(labels),
        scene=kind,
        name="-".join(map(str, (kind, *seed))),
        instances=torch.from_numpy(instances),
        objects=objects,
    )
