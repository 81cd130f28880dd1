"""A picture that knows of every pixel which object it shows. Coordinates are pixels, from its upper left corner."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnotes.datasets.segmentation import Object

SIDE = 64  # pixels of a picture

Mask = NDArray[np.bool_]
Pixels = NDArray[np.float32]
Colour = tuple[float, float, float]

CLASSES = (
    *("sky", "building", "skyscraper", "road", "car", "bus", "water", "boat", "crane", "runway", "airplane", "tower"),
    *("grass", "tree", "hill", "mountain", "field", "earth", "streetlight", "signboard"),
    *("wall", "floor", "bed", "pillow", "painting"),
)

# Classes that look alike, with what tells them apart.
TWINS = (
    *(("boat", "car"), ("airplane", "bus"), ("water", "road"), ("road", "runway"), ("water", "runway")),  # the scene
    *(("skyscraper", "building"), ("mountain", "hill")),  # height
    ("field", "earth"),  # the scene
    ("pillow", "bed"),  # an outline
)

_AMBIGUITY = {
    **dict.fromkeys(("car", "bus", "boat", "airplane", "road", "water", "runway"), "relationship"),
    **dict.fromkeys(("building", "skyscraper", "hill", "mountain", "field", "earth"), "confusion"),
    **dict.fromkeys(("streetlight", "signboard", "pillow", "bed"), "inconspicuous"),
}
_THINGS = frozenset(
    ("car", "bus", "boat", "airplane", "crane", "tower", "tree", "streetlight", "signboard", "pillow", "painting")
)


class Canvas:
    """What is drawn last lies in front.

    Attributes:
        image: float32 `[H, W, 3]`, in 0..255 units.
        instances: uint8 `[H, W]`, indices into `objects`.
        objects: in the order they were drawn.
        y: vertical coordinate of the pixels' centres, `[H, 1]`.
        x: horizontal coordinate, `[1, W]`.
    """

    def __init__(self) -> None:
        centres = (np.arange(SIDE) + 0.5).astype(np.float32)
        self.y, self.x = centres[:, None], centres[None, :]
        self.image: Pixels = np.zeros((SIDE, SIDE, 3), np.float32)
        self.instances = np.zeros((SIDE, SIDE), np.uint8)
        self.objects: list[Object] = []

    def add(self, name: str, mask: Mask, colour: Colour | Pixels) -> None:
        """Draws an object of class `name`: where `mask`, in one colour or with the pixels of a picture `[H, W, 3]`."""
        self.instances[mask] = len(self.objects)
        self.objects.append(Object(CLASSES.index(name), _AMBIGUITY.get(name, "none"), name in _THINGS))
        self.shade(mask, colour)

    def shade(self, mask: Mask, colour: Colour | Pixels) -> None:
        """Paints over what is there without changing what it is."""
        self.image[mask] = colour[mask] if isinstance(colour, np.ndarray) else colour

    def tint(self, mask: Mask, change: float) -> None:
        """Makes what is there brighter by `change`, or darker."""
        self.image[mask] += np.float32(change)

    def box(self, top: float, bottom: float, left: float = 0, right: float = 64) -> Mask:
        """An upright rectangle."""
        rows: Mask = (self.y >= top) & (self.y < bottom)
        return rows & (self.x >= left) & (self.x < right)

    def ellipse(self, y: float, x: float, height: float, width: float) -> Mask:
        """An upright ellipse around `(y, x)`."""
        mask: Mask = ((self.y - y) * (2 / height)) ** 2 + ((self.x - x) * (2 / width)) ** 2 < 1
        return mask

    def below(self, outline: NDArray[Any], bottom: float = 64) -> Mask:
        """What lies between an outline, a height for each column `[W]`, and `bottom`."""
        return (self.y >= outline[None, :]) & (self.y < bottom)

    def textured(self, base: Colour | Pixels, grain: NDArray[Any]) -> Pixels:
        """A picture of `base`, brightened by `grain`: 64 x 64 changes, or fewer, each repeated over a block."""
        blocks = np.ones([SIDE // n for n in grain.shape], np.float32)
        picture: Pixels = np.asarray(base, np.float32) + np.kron(grain.astype(np.float32), blocks)[:, :, None]
        return picture

    def gradient(self, above: Colour, under: Colour, top: float, bottom: float) -> Pixels:
        """A picture `[H, W, 3]` that goes from one colour at `top` to another at `bottom`."""
        share = np.clip((self.y - top) / (bottom - top), 0, 1)[:, :, None]
        mixed = np.asarray(above) * (1 - share) + np.asarray(under) * share
        return np.broadcast_to(mixed, self.image.shape).astype(np.float32)
