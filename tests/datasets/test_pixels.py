"""Pixels as they look: references are files of 8 bits, upright and grey, written by Pillow."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.pairs import labels, picture, png, save
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from resnotes.datasets import camvid
from resnotes.datasets.pairs import Pair, read
from resnotes.errors import DatasetError

ORIENTATION = 0x0112
# What a viewer does to the stored image, by the EXIF standard: flips, and counter-clockwise quarters for `numpy.rot90`.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
PICTURE, LABELS = picture(0), labels(1, 11)
GREY = PICTURE[..., 0]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """An image and its label map."""
    pair = Pair(tmp_path / "image.png", tmp_path / "labels.png")
    save(pair.image, PICTURE)
    save(pair.annotation, LABELS)
    return pair


def image_of(pair: Pair) -> np.ndarray:
    """What the image shows, ``[H, W, 3]``."""
    return read(pair, 11, {})[0].transpose(1, 2, 0)


def labels_of(pair: Pair, highest: int = 11, colors: Mapping[Any, int] = camvid.COLORS) -> np.ndarray:
    return read(pair, highest, colors)[1]


def save_turned(path: Path, array: np.ndarray, orientation: int) -> None:
    image = Image.fromarray(np.ascontiguousarray(array))
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    image.save(path, exif=exif)


def grey_png(array: np.ndarray, bits: int, transparent: int | None = None) -> bytes:
    """A grey PNG with so many bits a pixel, of rows without filter."""
    height, width = array.shape
    per_byte = max(1, 8 // bits)
    shifts = np.arange(per_byte)[::-1] * bits
    packed = (array.reshape(height, width // per_byte, per_byte).astype(int) << shifts).sum(2)
    packed = packed.astype(">u2" if bits == 16 else np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    more = {} if transparent is None else {b"tRNS": struct.pack(">H", transparent)}
    return png(width, height, rows, bits=bits, colours=0, more=more)


# Images


@pytest.mark.parametrize("orientation", TURNS)
def test_images_are_turned_upright(pair: Pair, orientation: int) -> None:
    inverse = {6: 8, 8: 6}.get(orientation, orientation)  # every other turn undoes itself
    save_turned(pair.image, TURNS[inverse](PICTURE), orientation)
    np.testing.assert_array_equal(image_of(pair), PICTURE)


def test_jpegs_are_turned_upright(pair: Pair, tmp_path: Path) -> None:
    """Of a JPEG, the half that is bright tells which side is up."""
    array = np.zeros_like(PICTURE)
    array[:6] = 255
    save_turned(tmp_path / "image.jpg", array[::-1, ::-1], 3)
    found = image_of(Pair(tmp_path / "image.jpg", pair.annotation))
    assert found[:4].mean() > 200
    assert found[8:].mean() < 50


def test_a_tag_that_parts_an_image_from_its_labels_is_named(pair: Pair) -> None:
    save_turned(pair.image, PICTURE, 6)
    with pytest.raises(DatasetError, match=r"upright by its EXIF data, is 12x16, its label map .* 16x12; expected one"):
        read(pair, 11, {})


def test_grey_of_sixteen_bits_is_as_bright_as_it_looks(pair: Pair) -> None:
    save(pair.image, (GREY.astype(np.uint16) << 8) + 77)
    np.testing.assert_array_equal(image_of(pair), np.stack([GREY] * 3, 2))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA"])
def test_other_kinds_are_as_pillow_shows_them(pair: Pair, mode: str) -> None:
    image = Image.fromarray(PICTURE).convert(mode)
    image.save(pair.image)
    np.testing.assert_array_equal(image_of(pair), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_refused(pair: Pair, mode: str) -> None:
    image = Image.fromarray(PICTURE).convert(mode)
    if mode == "P":
        image.save(pair.image, transparency=int(np.asarray(image)[0, 0]))
    else:
        image.putalpha(128)
        image.save(pair.image)
    with pytest.raises(DatasetError, match=f"image {pair.image} has transparent pixels"):
        read(pair, 11, {})


@pytest.mark.parametrize("bits", [2, 16])
def test_a_transparent_grey_of_other_than_eight_bits_is_refused(pair: Pair, bits: int) -> None:
    """Pillow stretches the pixels, but not the grey that the file calls transparent."""
    grey = GREY.astype(int) % 2**bits
    pair.image.write_bytes(grey_png(grey, bits, transparent=int(grey[0, 0])))
    with pytest.raises(DatasetError, match=f"image {pair.image} has transparent pixels"):
        read(pair, 11, {})


def test_colours_for_printing_are_refused(pair: Pair) -> None:
    Image.fromarray(PICTURE).convert("CMYK").save(pair.image, "JPEG")
    with pytest.raises(DatasetError, match=f"image {pair.image} has colours of type CMYK"):
        read(pair, 11, {})


def test_a_gamma_other_than_that_of_screens_is_refused(pair: Pair) -> None:
    def save_with(gamma: int) -> None:
        info = PngInfo()
        info.add(b"gAMA", struct.pack(">I", gamma))
        Image.fromarray(PICTURE).save(pair.image, pnginfo=info)

    save_with(45455)
    np.testing.assert_array_equal(image_of(pair), PICTURE)
    save_with(100000)
    with pytest.raises(DatasetError, match=r"brighter or darker than its numbers \(gamma 1\)"):
        read(pair, 11, {})


@pytest.mark.parametrize(("array", "which"), [(PICTURE, "image"), (LABELS, "annotation")])
def test_several_pictures_in_one_are_refused(pair: Pair, array: np.ndarray, which: str) -> None:
    path = getattr(pair, which)
    first, second = Image.fromarray(array), Image.fromarray(array[::-1])
    first.save(path, save_all=True, append_images=[second])
    with pytest.raises(DatasetError, match=f"{path} is animated"):
        read(pair, 11, {})


# Label maps


def save_palette(pair: Pair, indices: np.ndarray, colors: np.ndarray) -> None:
    image = Image.fromarray(indices.astype(np.uint8)).convert("P")
    image.putpalette(colors.astype(np.uint8).flatten().tolist())
    image.putdata(indices.flatten().tolist())
    image.save(pair.annotation)


def greys(values: list[int]) -> np.ndarray:
    return np.stack([values] * 3, 1)


def voc(count: int) -> np.ndarray:
    """Pascal VOC's colours, as its development kit writes them down."""
    colors = np.zeros((count, 3), int)
    for i in range(count):
        number = i
        for shift in range(7, -1, -1):
            for channel in range(3):
                colors[i, channel] |= (number >> channel & 1) << shift
            number >>= 3
    return colors


@pytest.mark.parametrize("colors", [{}, camvid.COLORS], ids=["ADE20K", "CamVid"])
@pytest.mark.parametrize(
    "palette", [greys([*range(256)]), greys([min(20 * i, 255) for i in range(256)]), voc(256)], ids=["1", "20", "VOC"]
)
def test_palettes_that_only_number_are_read_by_index(
    pair: Pair, palette: np.ndarray, colors: Mapping[Any, int]
) -> None:
    assert voc(5).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    save_palette(pair, LABELS, palette)
    np.testing.assert_array_equal(labels_of(pair, colors=colors), LABELS)


@pytest.mark.parametrize("order", [range(12), range(11, -1, -1), [3, 11, 7, 0, 1, 2, 4, 5, 6, 8, 9, 10]])
def test_camvids_colours_are_known_in_any_order(pair: Pair, order: list[int]) -> None:
    color_of = {label: color for color, label in camvid.COLORS.items()}
    save_palette(pair, np.argsort(list(order))[LABELS], np.array([color_of[label] for label in order]))
    np.testing.assert_array_equal(labels_of(pair), LABELS)


@pytest.mark.parametrize("highest", [11, 150])
@pytest.mark.parametrize(
    "palette",
    [
        *(np.random.default_rng(3).integers(1, 256, (256, 3)), greys([0, 200, 100]), greys([9, 200, 100])),
        *(greys([5, 11, 0]), greys([0, 5, 10])),  # as of a grey map that was quantised: the labels are the greys
    ],
    ids=["colours", "no ramp", "no black", "labels", "ramp of labels"],
)
def test_palettes_in_an_order_that_is_anyones_guess_are_refused(pair: Pair, palette: np.ndarray, highest: int) -> None:
    save_palette(pair, LABELS // 4, palette)
    with pytest.raises(DatasetError, match=r"palette of \d+ colours, .* is unknown; expected grey .*save them as grey"):
        labels_of(pair, highest)


@pytest.mark.parametrize("other", [(128, 0, 0), (128, 128, 128), (128, 128, 0)], ids=["building", "sky", "tree"])
def test_two_colours_of_camvid_that_may_be_numbers_are_refused(pair: Pair, other: tuple[int, int, int]) -> None:
    """As Pillow quantises a map that was painted in black and another colour: is black the number 0, or unlabelled?"""
    painted = np.zeros((12, 16, 3), np.uint8)
    painted[9:] = other
    Image.fromarray(painted).quantize(256, method=Image.Quantize.FASTOCTREE).save(pair.annotation)
    try:
        found = labels_of(pair)
    except DatasetError as error:
        assert "can be read in several ways" in str(error)
    else:  # where nothing but the colours explains it
        np.testing.assert_array_equal(found, np.where(painted.any(2), camvid.COLORS[other], camvid.UNLABELLED))


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_not_stretched(pair: Pair, bits: int) -> None:
    wanted = LABELS.clip(0, 2**bits - 1)
    pair.annotation.write_bytes(grey_png(wanted, bits))  # Pillow writes 8 bits whatever it is asked for
    np.testing.assert_array_equal(labels_of(pair), wanted)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_label_maps_are_turned_upright(pair: Pair, orientation: int) -> None:
    save_turned(pair.annotation, TURNS[orientation](LABELS), orientation)
    np.testing.assert_array_equal(labels_of(pair), LABELS)
