"""The backdrops: what tells a harbour from a street. All of it lies in the upper half of the picture.

Facades of buildings and skyscrapers share widths, colours and windows, slopes of hills and mountains their texture,
the sheets of a bed are cut from the cloth that also papers walls, and a pillow is made of its sheet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnotes.datasets.scenes.canvas import Canvas, Colour

HORIZON = 21.0  # where the backdrop stands
PLAIN = 27.0  # from here down all open ground is alike

_FACADES: tuple[Colour, ...] = ((176, 150, 128), (150, 160, 172), (186, 178, 160), (158, 118, 104), (128, 134, 144))
_CLOTH: tuple[Colour, ...] = ((196, 178, 160), (160, 178, 196), (190, 160, 170), (168, 188, 164), (206, 198, 176))
_ASPHALT: Colour = (112, 120, 130)

Random = np.random.Generator


def _pick(rng: Random, colours: tuple[Colour, ...], spread: float = 8) -> Colour:
    r, g, b = np.asarray(colours[rng.integers(len(colours))]) + rng.normal(0, spread, 3)
    return (r, g, b)


def _outline(canvas: Canvas, rng: Random, level: float, rise: float, knots: int, *, sharp: bool) -> NDArray[Any]:
    """Heights `[W]` of a ridge that rises by up to `rise` above `level`; peaks where `sharp`, else swells."""
    at = np.linspace(-4, 68, knots) + rng.uniform(-3, 3, knots)
    tops = level - rise * rng.uniform(0.55, 1, knots)
    tops[rng.integers(2) :: 2] = level - rise * rng.uniform(0.0, 0.25)
    x = canvas.x[0]
    if sharp:
        return np.asarray(np.interp(x, at, tops) + rng.uniform(-0.7, 0.7, len(x)))
    # Weights that fade smoothly from knot to knot give round crests.
    weight = np.exp(-(((x[:, None] - at) / (36 / knots)) ** 2)) + 1e-9
    return np.asarray(weight @ tops / weight.sum(axis=1))


def _facade(canvas: Canvas, rng: Random, name: str, left: float, right: float, top: float) -> None:
    """A house front from `top` to the horizon, in a colour and with windows that are the same for every height."""
    wall = _pick(rng, _FACADES)
    canvas.add(name, canvas.box(top, HORIZON + 1, left, right), wall)
    y, x = (canvas.y - HORIZON) % 4, (canvas.x - left) % 3
    windows = canvas.box(top + 1.5, HORIZON - 2, left + 1, right - 1) & (y >= 1) & (y < 3) & (x >= 1) & (x < 2.4)
    canvas.tint(windows, -52)
    canvas.tint(canvas.box(top, HORIZON + 1, right - 1, right), -18)


def _row_of_houses(canvas: Canvas, rng: Random, skyscraper: float) -> None:
    """Fronts side by side across the picture, each a skyscraper with this probability."""
    left = rng.uniform(-8, 0)
    while left < 64:
        right = left + rng.uniform(8, 14)
        tall = rng.random() < skyscraper
        top = rng.uniform(-1, 3) if tall else rng.uniform(9, 13.5)
        _facade(canvas, rng, "skyscraper" if tall else "building", left, right, top)
        if not tall and rng.random() < 0.45:
            # A shade of the front that carries it, and as small as it is dull.
            at = rng.uniform(left + 1, right - 6)
            canvas.add("signboard", canvas.box(HORIZON - 5, HORIZON - 2, at, at + 5), canvas.image + np.float32(30))
        left = right + (rng.uniform(0.5, 5) if rng.random() < 0.5 else 0)


def _streetlights(canvas: Canvas, rng: Random) -> None:
    x = rng.uniform(4, 14)
    while x < 60:
        pole = canvas.box(6, HORIZON + 4, x, x + 1) | canvas.box(5, 6, x, x + 4)
        canvas.add("streetlight", pole, (84, 84, 90))
        canvas.shade(canvas.box(6, 7, x + 3, x + 4), (240, 228, 170))
        x += rng.uniform(18, 30)


def _trees(canvas: Canvas, rng: Random, count: int, *, fir: bool = False) -> None:
    for _ in range(count):
        x, base, height = rng.uniform(2, 62), HORIZON + rng.uniform(1, 3), rng.uniform(8, 12)
        green = _pick(rng, ((66, 110, 58), (82, 120, 60)))
        trunk = canvas.box(base - 4, base, x - 0.6, x + 0.7)
        if fir:
            crown = (np.abs(canvas.x - x) < (canvas.y - base + height) * 0.32) & canvas.box(base - height, base - 2)
        else:
            crown = canvas.ellipse(base - height * 0.6, x, height * 0.85, height * 0.8)
        leaves = canvas.textured(green, rng.normal(0, 10, (64, 64)))
        canvas.add("tree", crown | trunk, leaves)
        canvas.shade(trunk & ~crown, (92, 74, 56))


def _sky(canvas: Canvas, rng: Random) -> None:
    blue = _pick(rng, ((132, 174, 220), (150, 186, 216), (170, 186, 204)))
    canvas.add("sky", canvas.box(0, 64), canvas.gradient(blue, (214, 224, 232), 0, HORIZON))
    for _ in range(rng.integers(1, 4)):
        y, x = rng.uniform(2, 10), rng.uniform(0, 64)
        for shift in (-4.0, 0.0, 4.5):
            canvas.tint(canvas.ellipse(y - abs(shift) * -0.2, x + shift, 3.5, 9) & canvas.box(0, 16), 14)


def _open_ground(canvas: Canvas, name: str, shore: Colour, plain: NDArray[Any]) -> None:
    """Water, road or runway: of a colour of its own at the horizon, of one and the same further down."""
    distance = canvas.gradient(shore, _ASPHALT, HORIZON + 2, PLAIN)
    canvas.add(name, canvas.box(HORIZON, 64), canvas.textured(distance, plain))


def _harbour(canvas: Canvas, rng: Random, plain: NDArray[Any]) -> None:
    _sky(canvas, rng)
    _open_ground(canvas, "water", (38, 104, 158), plain)
    canvas.shade(canvas.box(HORIZON + 1, PLAIN - 1) & (np.sin(canvas.x * 1.1 + canvas.y * 2.4) > 0.93), (150, 190, 214))
    left = float(rng.choice([0.0, 22.0]))
    for at in (left, left + rng.uniform(9, 12)):
        _facade(canvas, rng, "building", at, at + rng.uniform(7, 9), rng.uniform(11, 14))
    quay = canvas.box(HORIZON - 1, HORIZON + 2, left - 4, left + 28)
    canvas.add("building", quay, (120, 112, 104))
    for at in (left + 24, (left + 44) % 64):
        x, orange = at + rng.uniform(-2, 2), _pick(rng, ((206, 112, 44), (190, 64, 50)))
        mast = canvas.box(3, HORIZON + 2, x, x + 1.6) | canvas.box(3, HORIZON + 2, x + 4, x + 5.6)
        jib = canvas.box(5, 7, x - 7, x + 15) | canvas.box(12, 13.5, x, x + 5) | canvas.box(7, 14, x + 13, x + 14)
        canvas.add("crane", mast | jib, orange)


def _street(canvas: Canvas, rng: Random, plain: NDArray[Any], skyscraper: float = 0.0) -> None:
    """A street, with trees; or one of a city, where fronts are skyscrapers with this probability."""
    _sky(canvas, rng)
    _open_ground(canvas, "road", (176, 168, 158), plain)
    _row_of_houses(canvas, rng, skyscraper)
    if not skyscraper:
        _trees(canvas, rng, int(rng.integers(0, 3)))
    canvas.shade(canvas.box(HORIZON + 3.5, HORIZON + 4.5), (206, 202, 194))
    _streetlights(canvas, rng)


def _airfield(canvas: Canvas, rng: Random, plain: NDArray[Any]) -> None:
    _sky(canvas, rng)
    _open_ground(canvas, "runway", _ASPHALT, plain)
    grass = canvas.textured((112, 150, 74), rng.normal(0, 6, (64, 64)))
    canvas.add("grass", canvas.box(HORIZON - 3, HORIZON + 4), grass)
    canvas.shade(canvas.box(HORIZON + 4, HORIZON + 5), (226, 226, 220))
    x = rng.choice([6.0, 50.0]) + rng.uniform(-2, 4)
    canvas.add("tower", canvas.box(6, HORIZON + 1, x, x + 4) | canvas.box(2, 7, x - 2.5, x + 6.5), (206, 200, 190))
    canvas.shade(canvas.box(3.5, 5.5, x - 2.5, x + 6.5), (70, 96, 120))
    for at in np.arange(16.0, 44, 14) + rng.uniform(-3, 3):
        hangar = canvas.ellipse(HORIZON, at + 5, 15, 12) & canvas.box(0, HORIZON)
        canvas.add("building", hangar, (150, 156, 160))
        canvas.shade(canvas.box(HORIZON - 5, HORIZON, at + 2.5, at + 7.5), (96, 102, 108))
    for at in np.arange(3.0, 64, 9):
        canvas.shade(canvas.box(HORIZON + 3, HORIZON + 4, at, at + 1), (250, 206, 90))


def _slopes(canvas: Canvas, rng: Random, name: str, outline: NDArray[Any], shade: float) -> None:
    slope = canvas.textured((112 + shade, 118 + shade, 98 + shade), rng.normal(0, 7, (32, 32)))
    canvas.add(name, canvas.below(outline, HORIZON + 3), slope)


def _soil(canvas: Canvas, rng: Random, name: str) -> None:
    tilt = rng.uniform(-0.5, 0.5)
    furrows = 9 * np.sin(np.arange(64)[:, None] * 1.5 + tilt * np.arange(64)[None, :])
    soil = canvas.textured((146, 112, 80), furrows + rng.normal(0, 7, (64, 64)))
    canvas.add(name, canvas.box(HORIZON + 2, 64), soil)


def _countryside(canvas: Canvas, rng: Random, plain: NDArray[Any]) -> None:
    _sky(canvas, rng)
    for level, shade in ((HORIZON - 4, 14.0), (HORIZON, 0.0)):
        _slopes(canvas, rng, "hill", _outline(canvas, rng, level, 7, int(rng.integers(4, 6)), sharp=False), shade)
    _soil(canvas, rng, "field")
    canvas.add("grass", canvas.box(HORIZON, HORIZON + 4), canvas.textured((110, 148, 70), rng.normal(0, 6, (64, 64))))
    x = rng.uniform(6, 46)
    canvas.add("building", canvas.box(HORIZON - 5, HORIZON + 2, x, x + 11), (170, 70, 58))
    roof = (np.abs(canvas.x - x - 5.5) < (canvas.y - HORIZON + 11) * 1.2) & canvas.box(HORIZON - 11, HORIZON - 5)
    canvas.add("building", roof, (104, 78, 70))
    canvas.shade(canvas.box(HORIZON - 2, HORIZON + 2, x + 4, x + 7), (236, 226, 212))
    _trees(canvas, rng, int(rng.integers(1, 4)))


def _mountains(canvas: Canvas, rng: Random, plain: NDArray[Any]) -> None:
    _sky(canvas, rng)
    for level, rise, shade in ((HORIZON - 5, 17, 14.0), (HORIZON, 12, 0.0)):
        outline = _outline(canvas, rng, level, rise, int(rng.integers(5, 7)), sharp=True)
        _slopes(canvas, rng, "mountain", outline, shade)
        ragged = outline + 3 + rng.uniform(-1, 1, len(outline))
        canvas.shade(canvas.below(outline) & ~canvas.below(ragged) & canvas.box(0, 13), (238, 242, 248))
    _soil(canvas, rng, "earth")
    _trees(canvas, rng, int(rng.integers(0, 3)), fir=True)


def _bedroom(canvas: Canvas, rng: Random, plain: NDArray[Any]) -> None:
    weave = (rng.normal(0, 5, (64, 64)) + 4 * np.sin(np.arange(64) * 1.6)[None, :]).astype(np.float32)
    canvas.add("wall", canvas.box(0, 64), canvas.textured(_pick(rng, _CLOTH), weave))
    skirting = rng.uniform(34, 38)
    canvas.add("floor", canvas.box(skirting, 64), (138, 100, 66))
    canvas.tint(canvas.box(skirting, 64) & ((canvas.y - skirting) % 4 < 1), -20)
    for _ in range(rng.integers(1, 3)):
        y, x = rng.uniform(3, 8), rng.uniform(2, 46)
        canvas.add("painting", canvas.box(y, y + 11, x, x + 14), (88, 62, 40))
        view = canvas.gradient(_pick(rng, ((120, 168, 214), (226, 170, 120))), (84, 120, 74), y + 3, y + 9)
        canvas.shade(canvas.box(y + 1.5, y + 9.5, x + 1.5, x + 12.5), view)
    middle, half, top = rng.uniform(24, 40), rng.uniform(15, 19), rng.uniform(25, 28)
    sheet = canvas.textured(_pick(rng, _CLOTH), weave)
    head = canvas.box(top - 6, top + 4, middle - half - 1, middle + half + 1)
    mattress = (np.abs(canvas.x - middle) < half + (canvas.y - top) * 0.16) & canvas.box(top, 57)
    canvas.add("bed", head | mattress, (96, 66, 44))
    canvas.shade(mattress & canvas.box(0, 54), sheet)
    canvas.tint(mattress & canvas.box(top + 13, top + 14), -26)
    for side in (-0.5, 0.5):
        y, x = top + 5 + rng.uniform(0, 1.5), middle + side * half + rng.uniform(-1, 1)
        pillow = canvas.ellipse(y, x, 9, half * 0.85) & canvas.box(y - 3.5, y + 3.5)
        canvas.add("pillow", pillow, sheet)
        canvas.tint(pillow & ~canvas.ellipse(y - 1, x, 7, half * 0.7), -22)


BACKDROPS: dict[str, Callable[[Canvas, Random, NDArray[Any]], None]] = {
    "harbour": _harbour,
    "street": _street,
    "airfield": _airfield,
    "city": partial(_street, skyscraper=0.55),
    "bedroom": _bedroom,
    "countryside": _countryside,
    "mountains": _mountains,
}
