"""The vehicles: small ones, which are boats or cars, and large ones, which are airplanes or buses.

Nothing here knows which: shape, colour, place and number do not depend on the scene.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnotes.datasets.scenes.canvas import Canvas, Colour, Mask

_PAINT: tuple[Colour, ...] = (
    *((206, 58, 50), (236, 236, 232), (44, 88, 160), (240, 190, 60), (60, 140, 110)),
    *((222, 120, 50), (40, 52, 76)),
)
_GLASS: Colour = (60, 84, 106)


def plain(rng: np.random.Generator) -> NDArray[Any]:
    """Changes of brightness `[64, 16]` that water, road and runway share: short horizontal streaks."""
    return rng.normal(0, 4.5, (64, 16))


def draw(canvas: Canvas, rng: np.random.Generator, name: str, *, large: bool) -> None:
    """Draws one to three small vehicles, or one or two large ones, as objects of class `name`."""
    lanes = (rng.uniform(50.5, 51.5), rng.uniform(62, 63.5))
    slots = [(lane, left) for lane in lanes for left in ((0.0,) if large else (0.0, 32.0))]
    count = rng.integers(1, 3 if large else 4)
    for slot in rng.permutation(len(slots))[:count]:
        bottom, left = slots[slot]
        if large:
            length, height = rng.uniform(25, 31), rng.uniform(8.5, 10.5)
            _large(canvas, rng, name, bottom, left + rng.uniform(1, 63 - length), length, height)
        else:
            length, height = rng.uniform(13, 18), rng.uniform(7.5, 9.5)
            _small(canvas, rng, name, bottom, left + rng.uniform(1, 31 - length), length, height)


def _colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    body, stripe = rng.permutation(len(_PAINT))[:2]
    return _PAINT[body], _PAINT[stripe]


def _slanted(canvas: Canvas, top: float, bottom: float, left: float, right: float, slant: float) -> Mask:
    """A trapezoid on its wide side, or on its narrow one where `slant` is negative."""
    inset = slant * (bottom - canvas.y if slant > 0 else top - canvas.y)
    mask: Mask = (canvas.x - left >= inset) & (right - canvas.x > inset) & canvas.box(top, bottom)
    return mask


def _small(
    canvas: Canvas, rng: np.random.Generator, name: str, bottom: float, left: float, length: float, height: float
) -> None:
    """Hull or body, cabin or wheelhouse, and two dark rounds: wheels, or the tyres that fend off a quay."""
    body, stripe = _colours(rng)
    right, waist = left + length, bottom - height * 0.52
    hull = _slanted(canvas, waist, bottom, left, right, -rng.uniform(0.1, 0.6))
    start = left + length * rng.uniform(0.18, 0.34)
    cabin = _slanted(canvas, bottom - height, waist, start, start + length * rng.uniform(0.42, 0.5), 0.45)
    canvas.add(name, hull | cabin, body)
    canvas.shade(hull & canvas.box(bottom - 1.6, bottom), stripe)
    glass = cabin & canvas.box(bottom - height + 1, waist - 0.4)
    canvas.shade(glass & ((canvas.x - start - length * 0.22) ** 2 > 0.5), _GLASS)
    for at in (0.24, 0.76):
        canvas.shade(hull & canvas.ellipse(bottom - 1.4, left + length * at, 3, 3), (34, 34, 38))


def _large(
    canvas: Canvas, rng: np.random.Generator, name: str, bottom: float, left: float, length: float, height: float
) -> None:
    """A long body with a row of windows, a round nose, and a low fin or luggage box at the back."""
    body, stripe = _colours(rng)
    right, top = left + length, bottom - height + 2.5
    forward = bool(rng.integers(2))
    hull = canvas.box(top, bottom, left + 3, right - 3)
    for x in (left + 4.5, right - 4.5):
        hull |= canvas.ellipse((top + bottom) / 2, x, bottom - top, 9)
    width = rng.uniform(3, 6)
    back = left + 3 if forward else right - 3 - width
    lean = (canvas.y - bottom + height) * (0.8 if forward else -0.8)
    fin = canvas.box(bottom - height, top + 1) & (canvas.x >= back + lean) & (canvas.x < back + width + lean)
    canvas.add(name, hull | fin, body)
    canvas.shade(fin & canvas.box(0, top), stripe)
    canvas.shade(hull & canvas.box(bottom - 3, bottom - 1.6), stripe)
    windows = hull & canvas.box(top + 1.5, top + 3.5, left + 4, right - 4) & ((canvas.x - left) % 3 >= 1)
    canvas.shade(windows, _GLASS)
    nose = (right - 3.5, right) if forward else (left, left + 3.5)
    canvas.shade(hull & canvas.box(top + 1.5, top + 3.5, *nose), _GLASS)
    swept = left + length * 0.5 + (canvas.y - bottom + 3) * (-0.9 if forward else 0.9)
    canvas.shade(canvas.box(bottom - 4.5, bottom - 1) & (np.abs(canvas.x - swept) < 2.5), stripe)
    for at in (0.2, 0.74):
        canvas.shade(hull & canvas.ellipse(bottom - 1, left + length * at, 3, 3), (34, 34, 38))
