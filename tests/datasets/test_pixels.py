"""Pixels as they look, in all loaders: references are files of 8 bits, upright and grey, written by Pillow."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.cifar10 import as_folder
from kit.cifar10 import tree as cifar10_tree
from kit.pairs import ade20k_tree, camvid_tree
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from resnotes.datasets import ade20k, camvid, cifar10
from resnotes.errors import DatasetError

ORIENTATION = 0x0112
# What a viewer does to the stored image, by the EXIF standard: flips, and counter-clockwise quarters for `numpy.rot90`.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2) if a.ndim == 3 else a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2) if a.ndim == 3 else np.rot90(a, 2).T,
    8: lambda a: np.rot90(a, 1),
}


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels(highest: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, highest + 1, (12, 16), dtype=np.uint8)


def turned(image: Image.Image, orientation: int) -> dict[str, Image.Exif]:
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    return {"exif": exif}


def sixteen_bits(array: np.ndarray) -> Image.Image:
    return Image.fromarray((array.astype(np.uint16) << 8) + 77)


# The three loaders, each given one image (and its labels) to read


@dataclass(frozen=True)
class Loader:
    """An image and its label map within a data set, and how they are read from it."""

    height: int
    width: int
    image: Path
    annotation: Path
    read: Callable[[], tuple[Tensor, Tensor]]
    highest: int = 0


def of_camvid(root: Path) -> Loader:
    folder = camvid_tree(root / "camvid")

    def read() -> tuple[Tensor, Tensor]:
        sample = camvid.load(root).train[0]
        return sample.image, sample.label

    return Loader(12, 16, folder / "train/train0.png", folder / "trainannot/train0.png", read, 11)


def of_ade20k(root: Path) -> Loader:
    folder = ade20k_tree(root / "ade20k")
    image = folder / "images/validation/ADE_valid_00000000.jpg"

    def read() -> tuple[Tensor, Tensor]:
        sample = ade20k.load(root).test[0]
        return sample.image, sample.label + 1  # as in the file: 0 was unlabelled

    return Loader(12, 16, image, folder / "annotations/validation/ADE_valid_00000000.png", read, 150)


def of_cifar10(root: Path) -> Loader:
    as_folder(cifar10_tree(train=1), root / "cifar10")
    image = root / "cifar10/train/airplane/0000.png"
    return Loader(32, 32, image, Path(), lambda: (cifar10.load(root).train_images[0], torch.empty(0)))


@pytest.fixture(params=[of_camvid, of_ade20k, of_cifar10])
def loader(request: pytest.FixtureRequest, root: Path) -> Loader:
    found: Loader = request.param(root)
    return found


@pytest.fixture(params=[of_camvid, of_ade20k])
def mapped(request: pytest.FixtureRequest, root: Path) -> Loader:
    found: Loader = request.param(root)
    return found


def save(loader: Loader, image: Image.Image, **options: object) -> None:
    """Losslessly, whatever the file is called: Pillow goes by what is in it."""
    image.save(loader.image, "PNG", **options)


# Images


@pytest.mark.parametrize("orientation", TURNS)
def test_images_are_turned_upright(loader: Loader, orientation: int) -> None:
    upright = picture(loader.height, loader.width)
    inverse = {6: 8, 8: 6}.get(orientation, orientation)  # every other turn undoes itself
    stored = Image.fromarray(np.ascontiguousarray(TURNS[inverse](upright)))
    save(loader, stored, **turned(stored, orientation))
    found, _ = loader.read()
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), upright)


def test_jpegs_are_turned_upright(loader: Loader) -> None:
    """Of a JPEG, the half that is bright tells which side is up."""
    array = np.zeros((loader.height, loader.width, 3), np.uint8)
    array[: loader.height // 2] = 255
    stored = Image.fromarray(np.ascontiguousarray(array[::-1, ::-1]))
    stored.save(loader.image, "JPEG", quality=95, **turned(stored, 3))
    found, _ = loader.read()
    assert found[:, : loader.height // 2 - 2].float().mean() > 200
    assert found[:, loader.height // 2 + 2 :].float().mean() < 50


def test_grey_of_sixteen_bits_is_as_bright_as_it_looks(loader: Loader) -> None:
    grey = picture(loader.height, loader.width)[..., 0]
    save(loader, sixteen_bits(grey))
    assert Image.open(loader.image).mode == "I;16"
    found, _ = loader.read()
    np.testing.assert_array_equal(found.numpy(), np.stack([grey] * 3))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_other_kinds_are_as_pillow_shows_them(loader: Loader, mode: str) -> None:
    image = Image.fromarray(picture(loader.height, loader.width)).convert(mode)
    save(loader, image)
    found, _ = loader.read()
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_refused(loader: Loader, mode: str) -> None:
    image = Image.fromarray(picture(loader.height, loader.width)).convert(mode)
    if mode == "P":
        save(loader, image, transparency=int(np.asarray(image)[0, 0]))
    else:
        image.putalpha(128)
        save(loader, image)
    with pytest.raises(DatasetError, match=f"image {loader.image} has transparent pixels"):
        loader.read()


@pytest.mark.parametrize("bits", [2, 4, 16])
def test_a_transparent_grey_of_other_than_eight_bits_is_refused(loader: Loader, bits: int) -> None:
    """Pillow stretches the pixels, but not the grey that the file calls transparent."""
    grey = picture(loader.height, loader.width)[..., 0].astype(int) % 2**bits
    loader.image.write_bytes(grey_png(grey, bits, transparent=int(grey[0, 0])))
    with pytest.raises(DatasetError, match=f"image {loader.image} has transparent pixels"):
        loader.read()


def test_several_pictures_in_one_are_refused(mapped: Loader) -> None:
    first, second = (Image.fromarray(np.rot90(picture(mapped.height, mapped.width), 2 * k)) for k in (0, 1))
    save(mapped, first, save_all=True, append_images=[second])
    with pytest.raises(DatasetError, match=f"image {mapped.image} is animated"):
        mapped.read()
    write(mapped, Image.fromarray(labels(11)), save_all=True, append_images=[Image.fromarray(labels(11)[::-1])])
    with pytest.raises(DatasetError, match=f"label map {mapped.annotation} is animated"):
        mapped.read()


@pytest.mark.parametrize(("gamma", "allowed"), [(45455, True), (100000, False)])
def test_another_gamma_is_refused(loader: Loader, gamma: int, allowed: bool) -> None:
    array = picture(loader.height, loader.width)
    info = PngInfo()
    info.add(b"gAMA", struct.pack(">I", gamma))
    save(loader, Image.fromarray(array), pnginfo=info)
    if allowed:
        np.testing.assert_array_equal(loader.read()[0].permute(1, 2, 0).numpy(), array)
    else:
        with pytest.raises(DatasetError, match=r"brighter or darker than its numbers \(gamma 1\)"):
            loader.read()


def test_opaque_alpha_is_no_matter(loader: Loader) -> None:
    array = picture(loader.height, loader.width)
    save(loader, Image.fromarray(array).convert("RGBA"))
    found, _ = loader.read()
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), array)


def test_colours_for_printing_are_refused(loader: Loader) -> None:
    Image.fromarray(picture(loader.height, loader.width)).convert("CMYK").save(loader.image, "JPEG")
    with pytest.raises(DatasetError, match=f"image {loader.image} has colours of type CMYK"):
        loader.read()


def test_a_tag_that_parts_an_image_from_its_labels_is_named(mapped: Loader) -> None:
    stored = Image.fromarray(picture(mapped.height, mapped.width))
    save(mapped, stored, **turned(stored, 6))
    message = r"is 12x16, turned upright as its EXIF data says, its label map .* 16x12; expected one size"
    with pytest.raises(DatasetError, match=message):
        mapped.read()


def test_no_pixel_is_decoded_of_an_image_of_another_size(mapped: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    save(mapped, Image.fromarray(picture(40, 40)))
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(DatasetError, match="is 40x40, its label map"):
        mapped.read()


# Label maps


def write(loader: Loader, image: Image.Image, **options: object) -> None:
    save(loader, Image.fromarray(picture(loader.height, loader.width)))
    image.save(loader.annotation, "PNG", **options)


def with_palette(indices: np.ndarray, colors: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "L").convert("P")
    image.putpalette(colors.astype(np.uint8).flatten().tolist())
    image.putdata(indices.flatten().tolist())
    return image


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


def test_the_colours_of_voc_begin_as_everyone_knows() -> None:
    assert voc(5).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert voc(256)[255].tolist() == [224, 224, 192]


@pytest.mark.parametrize(
    "palette",
    [np.stack([np.arange(256)] * 3, 1), np.stack([np.minimum(np.arange(256) * 20, 255)] * 3, 1), voc(256)],
    ids=["grey", "brighter grey", "VOC"],
)
def test_palettes_that_only_number_are_read_by_index(mapped: Loader, palette: np.ndarray) -> None:
    wanted = labels(11)
    write(mapped, with_palette(wanted, palette))
    _, found = mapped.read()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("order", [range(12), range(11, -1, -1), [3, 11, 7, 0, 1, 2, 4, 5, 6, 8, 9, 10]])
def test_camvids_colours_are_known_in_any_order(root: Path, order: list[int]) -> None:
    loader, wanted = of_camvid(root), labels(11)
    color_of = {label: color for color, label in camvid.COLORS.items()}
    order = list(order)
    indices = np.argsort(order)[wanted]
    write(loader, with_palette(indices, np.array([color_of[label] for label in order])))
    _, found = loader.read()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("colors", [1, 5, 12])
def test_other_palettes_are_refused(mapped: Loader, colors: int) -> None:
    """Their order is anyone's guess: quantised images have the most frequent colour first."""
    palette = np.random.default_rng(3).integers(1, 256, (256, 3))
    write(mapped, with_palette(labels(11) % colors, palette))
    with pytest.raises(DatasetError, match=r"paints index 0 in \(\d+, \d+, \d+\).*: no order of classes is known"):
        mapped.read()


def test_a_grey_palette_in_another_order_is_refused(mapped: Loader) -> None:
    """As of a grey label map that was quantised: the brightness is the label, the index is not; or is it?"""
    wanted = labels(11) // 4  # 0, 1, 2
    for greys in ([0, 5, 10], [0, 200, 100], [9, 200, 100]):
        write(mapped, with_palette(wanted, np.stack([greys] * 3, 1)))
        with pytest.raises(DatasetError, match="has a palette that paints index 0 in"):
            mapped.read()


def test_greys_of_a_palette_that_can_only_be_labels(mapped: Loader) -> None:
    """What Pillow makes of a grey label map: the most frequent comes first."""
    wanted = np.full((12, 16), 5, np.uint8)
    wanted[0], wanted[1, :3] = 11, 0
    indices = np.array([2, 0, 1])[np.searchsorted([0, 5, 11], wanted)]
    image = with_palette(indices, np.array([[5] * 3, [11] * 3, [0] * 3]))
    write(mapped, image)
    _, found = mapped.read()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("other", [(128, 0, 0), (128, 128, 128), (128, 128, 0)], ids=["building", "sky", "tree"])
def test_two_colours_of_camvid_that_may_be_numbers_are_refused(root: Path, other: tuple[int, int, int]) -> None:
    """As Pillow quantises a map that was painted in black and another colour: is black the number 0, or unlabelled?"""
    loader = of_camvid(root)
    painted = np.zeros((12, 16, 3), np.uint8)
    painted[9:] = other
    image = Image.fromarray(painted).quantize(256, method=Image.Quantize.FASTOCTREE)
    write(loader, image)
    shown = np.asarray(Image.open(loader.annotation))
    assert set(np.unique(shown)) == {0, 1}
    try:
        _, found = loader.read()
    except DatasetError as error:
        assert "it can be read in several ways" in str(error)
    else:  # where nothing but the colours explains it
        np.testing.assert_array_equal(found, np.where(painted.any(2), camvid.COLORS[other], camvid.UNLABELLED))


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_not_stretched(mapped: Loader, bits: int) -> None:
    wanted = labels(2**bits - 1)
    if mapped.highest == 11:
        wanted = wanted.clip(0, 11)
    write(mapped, Image.fromarray(wanted))
    mapped.annotation.write_bytes(grey_png(wanted, bits))  # Pillow writes 8 bits whatever it is asked for
    _, found = mapped.read()
    np.testing.assert_array_equal(found, wanted)


def grey_png(array: np.ndarray, bits: int, transparent: int | None = None) -> bytes:
    """A grey PNG with so many bits a pixel, by the standard: header, rows without filter, end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = array.shape
    per_byte = max(1, 8 // bits)
    shifts = np.arange(per_byte)[::-1] * bits
    packed = (array.reshape(height, width // per_byte, per_byte).astype(int) << shifts).sum(2)
    packed = packed.astype(">u2" if bits == 16 else np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if transparent is not None:
        parts.insert(1, (b"tRNS", struct.pack(">H", transparent)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_label_maps_are_turned_upright(mapped: Loader, orientation: int) -> None:
    wanted = labels(11)
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](wanted)))
    write(mapped, stored, **turned(stored, orientation))
    _, found = mapped.read()
    np.testing.assert_array_equal(found, wanted)
