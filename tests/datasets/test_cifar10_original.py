from __future__ import annotations

import gzip
import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
import torchvision
from kit.cifar10 import (
    Originals,
    as_folder,
    as_tar,
    by_hash,
    load,
    python2_batch,
    tree,
)

from resnotes import datasets
from resnotes.errors import DatasetError


def test_the_made_batches_are_what_numpy_would_unpickle() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    batch = pickle.loads(python2_batch(images, list(range(10))), encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], images)
    assert batch[b"labels"] == list(range(10))


@pytest.mark.parametrize("where", ["cifar10", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_original_batches(root: Path, originals: Originals, where: str, packed: bool) -> None:
    if packed:
        as_tar(originals(), root / where / "cifar-10-python.tar.gz", "w:gz")
    else:
        as_folder(originals(), root / where)
    as_folder(tree("jpg"), root / "cifar10")  # the lossless original goes first
    assert datasets.status(root)[1].variant == "cifar10"
    data = load(root)
    assert (data.variant, data.train_images.shape, data.test_images.shape) == (
        "cifar10, train 50, test 10",
        (50, 3, 32, 32),
        (10, 3, 32, 32),
    )
    assert data.train_labels.tolist() == [label for label in range(10) for _ in range(5)]
    rows = [np.random.default_rng(seed).integers(0, 256, (10, 3072), dtype=np.uint8) for seed in range(5)]
    planes = [rows[seed][-seed % 10].reshape(3, 32, 32).transpose(1, 2, 0) for seed in range(5)]  # those of label 0
    np.testing.assert_array_equal(data.train_images[:5].numpy(), np.stack(by_hash(planes)))
    torch.testing.assert_close(load(root).train_images, data.train_images)


def test_a_batch_with_another_checksum_is_never_unpickled(
    root: Path, originals: Originals, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = originals()
    files["cifar-10-batches-py/data_batch_3"] += b"\0"
    as_folder(files, root / "cifar10")
    read = []
    monkeypatch.setattr("resnotes.datasets.cifar10.read_batch", lambda content, where: read.append(where))
    with pytest.raises(DatasetError, match=r"data_batch_3' has MD5 [0-9a-f]{32}; expected .* get it again"):
        load(root)
    assert not any("data_batch_3" in where for where in read)


class _Runs:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_runs_code_is_refused_even_with_the_right_checksum(
    root: Path, originals: Originals, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    as_folder(originals(data_batch_2=pickle.dumps(_Runs(), protocol)), root / "cifar10")
    with pytest.raises(DatasetError, match=r"data_batch_2' is damaged .*it names \w+\.system"):
        load(root)
    assert not (root / "pwned").exists()


ZEROS = np.zeros((10, 3072), np.uint8)


@pytest.mark.parametrize(
    "batch",
    [
        b"no pickle",
        pickle.dumps({}),
        pickle.dumps({b"data": 3, b"labels": []}),
        python2_batch(ZEROS, list(range(9))),
        python2_batch(ZEROS, list(range(1, 11))),
        python2_batch(ZEROS[:, :3000], list(range(10))),
    ],
    ids=["garbage", "empty", "no array", "a label short", "label 10", "short rows"],
)
def test_something_else_than_a_batch(root: Path, originals: Originals, batch: bytes) -> None:
    as_folder(originals(data_batch_1=batch), root / "cifar10")
    with pytest.raises(DatasetError, match=r"data_batch_1' is damaged .*expected a batch of CIFAR-10"):
        load(root)


def test_missing_batches_are_named(root: Path, originals: Originals) -> None:
    files = originals()
    del files["cifar-10-batches-py/data_batch_4"], files["cifar-10-batches-py/test_batch"]
    as_tar(files, root / "cifar-10-python.tar.gz", "w:gz")
    with pytest.raises(DatasetError, match="lacks data_batch_4, test_batch; expected data_batch_1"):
        load(root)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path, originals: Originals, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an archive that torchvision's checksum matches; its own URL leads nowhere."""
    folder = tmp_path / "published"
    folder.mkdir()
    archive = as_tar(originals(), folder / "cifar-10-python.tar.gz", "w:gz")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", (tmp_path / "nowhere.tar.gz").as_uri())
    return folder


@pytest.fixture
def mirror(published: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(published)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_mirrors_are_tried_in_order_until_one_delivers(
    root: Path, tmp_path: Path, published: Path, mirror: str
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "cifar-10-python.tar.gz").write_bytes(gzip.compress(b"something else"))
    datasets.fetch("cifar10", root, [f"{mirror}/gone/", (tmp_path / "bad").as_uri(), mirror])
    assert [p.name for p in (root / "cifar10").iterdir()] == ["cifar-10-python.tar.gz"]
    assert load(root).train_images.shape == (50, 3, 32, 32)
    # It is there and intact: no mirror is asked again.
    datasets.fetch("cifar10", root, ["http://127.0.0.1:9/"])


def test_a_mirror_may_be_the_url_of_the_file(root: Path, published: Path, mirror: str) -> None:
    datasets.fetch("cifar10", root, [f"{mirror}/cifar-10-python.tar.gz"])
    assert datasets.status(root)[1].found


def test_a_damaged_download_is_replaced(root: Path, published: Path) -> None:
    target = root / "cifar10" / "cifar-10-python.tar.gz"
    target.write_bytes(b"half")
    datasets.fetch("cifar10", root, [published.as_uri()])
    assert target.read_bytes() == (published / target.name).read_bytes()


def test_every_failed_mirror_is_listed_and_nothing_is_left(root: Path, tmp_path: Path, published: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "cifar-10-python.tar.gz").write_bytes(b"half")
    with pytest.raises(DatasetError) as caught:
        datasets.fetch("cifar10", root, ["http://127.0.0.1:9", bad.as_uri(), "no url"])
    message = str(caught.value)
    for expected in (
        "http://127.0.0.1:9/cifar-10-python.tar.gz",
        "refused",
        bad.as_uri(),
        "4 bytes whose MD5",
        "no url",
    ):
        assert expected in message
    assert "nowhere.tar.gz" in message
    assert "RESNOTES_CIFAR10_MIRRORS" in message
    assert list((root / "cifar10").iterdir()) == []


def test_load_downloads_what_is_missing_and_says_so(
    root: Path, mirror: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESNOTES_OFFLINE", "0")
    monkeypatch.setenv("RESNOTES_CIFAR10_MIRRORS", f"http://127.0.0.1:9, {mirror}")
    assert load(root).variant == "cifar10, train 50, test 10"
    assert f"downloading it to {root / 'cifar10'}" in capsys.readouterr().err


def test_offline_a_missing_set_is_an_error(root: Path, published: Path) -> None:
    with pytest.raises(DatasetError, match=r"found no CIFAR-10; expected cifar-10-batches-py/.*RESNOTES_DATA"):
        load(root)
    assert list((root / "cifar10").iterdir()) == []


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path, published: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"cannot write .*file/cifar10.*RESNOTES_DATA"):
        datasets.fetch("cifar10", tmp_path / "file", [published.as_uri()])
