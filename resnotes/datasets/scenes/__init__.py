"""Made scenes with exact labels, in which PSPNet's three observations (Zhao et al. 2017, sec. 3.1) are built in.

*Relationship*: boats and cars, and airplanes and buses, are drawn by one function that does not know the scene; within
twelve 64ths of the picture's side around them everything else is alike too. *Confusion*: skyscraper and building,
mountain and hill, field and earth share their texture; height or the scene tells them apart. *Inconspicuous*:
streetlights and signboards are small, a pillow is made of its sheet, and a bed is larger than a small receptive field.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from resnotes.datasets.classification import Normalization, fingerprint
from resnotes.datasets.scenes import fleet
from resnotes.datasets.scenes.canvas import CLASSES, TWINS, Canvas
from resnotes.datasets.scenes.kinds import BACKDROPS, PLAIN
from resnotes.datasets.scenes.noise import Noise, annotated
from resnotes.datasets.segmentation import IGNORED, Sample, Segmentation, Stacked
from resnotes.errors import UsageError, unknown

__all__ = [
    "CLASSES",
    "KINDS",
    "PLAIN",
    "TWINS",
    "Noise",
    "annotated",
    "generate",
    "load",
    "occlude",
    "paste",
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
_SMALL = {"harbour": "boat", "street": "car", "city": "car"}
_LARGE = {"airfield": "airplane", "street": "bus", "city": "bus"}
_SHARE_OF_SMALL = 0.6  # where there are both
_SMALLEST, _LARGEST = 64, 512


@functools.lru_cache(maxsize=4)  # a process that trains many runs would spend more time here than on any of them
def load(
    *, train: int = 600, test: int = 200, seed: int = 0, size: int = 64, noise: Noise | None = None
) -> Segmentation:
    """Training and test scenes: the same options give the same pixels, which a process generates once.

    Args:
        train: number of training scenes.
        test: number of test scenes, of which none is a training scene.
        seed: of everything.
        size: side of a scene in pixels.
        noise: of the labels of both splits; None for exact ones. The images do not depend on it.

    Raises:
        UsageError: a number or size that cannot be generated.
    """
    splits = [generate(count, (seed, part), size, noise) for part, count in enumerate((train, test))]
    return Segmentation(
        name="scenes",
        variant="scenes" + (f"-{size}" if size != 64 else "") + ("-noisy" if noise else ""),
        classes=CLASSES,
        ignore_index=IGNORED,
        train=splits[0],
        test=splits[1],
        val=None,
        normalization=Normalization.by_channel(splits[0].images),
        fingerprint=fingerprint(*(tensor for split in splits for tensor in (split.images, split.labels))),
    )


def generate(
    count: int,
    seed: int | tuple[int, ...] = 0,
    size: int = 64,
    noise: Noise | None = None,
    kinds: Sequence[str] = KINDS,
) -> Stacked:
    """Scenes of random `kinds`; the first ones stay the same whatever the `count`, though not their label noise.

    Args:
        count: how many.
        seed: of everything.
        size: side of a scene in pixels, 64 to 512.
        noise: of the labels, calibrated over these scenes together; None for exact ones.
        kinds: of scenes, out of `KINDS`.

    Raises:
        UsageError: no scenes, an impossible size, an unknown kind, or too much noise.
    """
    entropy = (seed,) if isinstance(seed, int) else seed
    _check(kinds, entropy, size)
    if count < 1 or not kinds:
        raise UsageError(f"{count} scenes of {len(kinds)} kinds are not possible; allowed: 1 and more of each")
    shares = np.array([_SHARES[kind] for kind in kinds])
    drawn = np.random.default_rng((*entropy, 0)).choice(len(kinds), count, p=shares / shares.sum())
    samples = [_render(kinds[kind], (*entropy, 1, i), size) for i, kind in enumerate(drawn)]
    exact = Stacked.of(samples)
    if noise is None:
        return exact
    assert exact.instances is not None
    rng = np.random.default_rng((*entropy, 2))
    noisy = annotated(exact.labels.numpy(), exact.instances.numpy(), exact.objects, noise, rng)
    return dataclasses.replace(exact, labels=torch.from_numpy(noisy))


def same_vehicles(kinds: Sequence[str], seed: int = 0, size: int = 64) -> tuple[Sample, ...]:
    """One scene of each kind, with the very same vehicles at the same places: only their labels differ.

    The pixels of the vehicles are equal, and so is whatever surrounds them on open ground.

    Raises:
        UsageError: an unknown kind, or kinds that have no vehicle in common.
    """
    _check(kinds, (seed,), size)
    for large, names in ((False, _SMALL), (True, _LARGE)):
        if all(kind in names for kind in kinds):
            return tuple(_render(kind, (seed,), size, large=large) for kind in kinds)
    raise UsageError(
        f"{', '.join(kinds)} have no vehicle in common; small ones are in {', '.join(_SMALL)}, large ones in"
        f" {', '.join(_LARGE)}"
    )


def paste(image: Tensor, mask: Tensor, into: Tensor, at: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Puts the pixels of `image` that `mask` selects into a copy of another image.

    Args:
        image: `[C, H, W]`.
        mask: bool `[H, W]`, with at least one pixel.
        into: `[C, H', W']`.
        at: row and column that the top left corner of the mask's bounding box comes to; None to keep its place.

    Returns:
        the new image, and where in it the pasted pixels lie, bool `[H', W']`.

    Raises:
        UsageError: nothing is selected, or it does not fit in.
    """
    rows, columns = torch.nonzero(mask, as_tuple=True)
    if not len(rows):
        raise UsageError("the mask of what is to be pasted selects no pixel; allowed: at least one")
    down, right = (0, 0) if at is None else (at[0] - int(rows.min()), at[1] - int(columns.min()))
    new_rows, new_columns = rows + down, columns + right
    height, width = into.shape[1:]
    if min(new_rows.min(), new_columns.min()) < 0 or new_rows.max() >= height or new_columns.max() >= width:
        raise UsageError(f"what is pasted at {at} does not fit into {height}x{width} pixels; move it")
    pasted = into.clone()
    pasted[:, new_rows, new_columns] = image[:, rows, columns]
    place = torch.zeros(height, width, dtype=torch.bool)
    place[new_rows, new_columns] = True
    return pasted, place


def occlude(image: Tensor, keep: Tensor, colour: Tensor | None = None) -> Tensor:
    """A copy of `image` in which everything that `keep` does not select has one colour.

    Args:
        image: `[C, H, W]`.
        keep: bool `[H, W]`.
        colour: `[C]`; None for the mean of the image.
    """
    fill = image.float().mean(dim=(1, 2)) if colour is None else colour
    return torch.where(keep, image, fill.to(image.dtype)[:, None, None])


def _render(kind: str, seed: tuple[int, ...], size: int, *, large: bool | None = None) -> Sample:
    """One scene; with large vehicles, with small ones, or, where `large` is None and both exist, with either."""
    # Two streams: vehicles, ground and light are drawn from one that no kind of scene has a hand in.
    common, own = (np.random.default_rng((*seed, stream)) for stream in (0, 1))
    exposure, tint, grain = (
        common.uniform(0.85, 1.1),
        common.uniform(0.95, 1.05, 3),
        common.normal(0, 4, (size, size, 3)),
    )
    rather_small = common.random() < _SHARE_OF_SMALL
    canvas = Canvas(size)
    BACKDROPS[kind](canvas, own, fleet.plain(common))
    if kind in _SMALL or kind in _LARGE:
        if large is None:
            large = kind not in _SMALL or (kind in _LARGE and not rather_small)
        fleet.draw(canvas, common, (_LARGE if large else _SMALL)[kind], large=large)
    pixels = (canvas.image * (exposure * tint) + grain).clip(0, 255).astype(np.uint8)
    # What is hidden altogether is no object of the scene.
    shown, instances = np.unique(canvas.instances, return_inverse=True)
    objects = tuple(canvas.objects[index] for index in shown)
    instances = instances.reshape(size, size).astype(np.uint8)
    labels = np.array([each.label for each in objects], np.uint8)[instances]
    return Sample(
        image=torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        label=torch.from_numpy(labels),
        scene=kind,
        name="-".join(map(str, (kind, *seed))),
        instances=torch.from_numpy(instances),
        objects=objects,
    )


def _check(kinds: Sequence[str], seed: tuple[int, ...], size: int) -> None:
    if not _SMALLEST <= size <= _LARGEST or min(seed) < 0:
        raise UsageError(
            f"scenes of {size} pixels by seed {seed} are not possible; allowed: {_SMALLEST} to {_LARGEST} pixels, and"
            " seeds of 0 and more"
        )
    for kind in kinds:
        if kind not in BACKDROPS:
            raise unknown("kind of scene", kind, KINDS)
