"""Networks that others trained on CIFAR-10 as He et al. 2015 did, read into the shape of ours.

`published_networks.toml` lists them. Their files are not part of this project: `resnotes data fetch published` gets
them from their authors' repositories at a fixed commit, and they are looked for in ``RESNOTES_DATA/weights``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resnotes.datasets import Availability, Classification, Normalization, cifar10
from resnotes.datasets.classification import IMAGENET, sampled
from resnotes.datasets.download import download, has_checksum
from resnotes.errors import DatasetError, unknown
from resnotes.models.network import Network
from resnotes.models.residual import residual_network
from resnotes.models.weights import read_weights
from resnotes.paths import weights_root

_FOLDER = Path(__file__).parent  # of what is known of them
UPSTREAM = "https://raw.githubusercontent.com"
_HOW = "get it with `resnotes data fetch published`, or set RESNOTES_DATA to the folder that has weights/"


Entry = Mapping[str, str]


@cache
def _entries() -> dict[str, Entry]:
    """The networks of `published_networks.toml` by name, each with what it has in common with its author's others."""
    listed = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {
        f"{author}/{model}": {"model": model, **common, **own}
        for author, common in listed.items()
        for model, own in common.pop("networks").items()
    }


def _address(entry: Entry) -> str:
    return f"{entry['repository']}/{entry['commit']}/{entry['path']}"


def _target(entry: Entry) -> Path:
    return weights_root() / entry.get("file", Path(entry["path"]).name)


def names() -> list[str]:
    """The networks that `published` knows, such as ``wooyeolBaek/plain-56``."""
    return list(_entries())


@dataclass(frozen=True, eq=False)
class Published:
    """A network that others trained.

    Attributes:
        name: as `published` takes it.
        network: in eval mode, float32, on the CPU.
        normalization: turns uint8 images ``[N, 3, 32, 32]`` into what it was trained on.
        source: repository, commit and file.
        training: in words, with what sets this network apart.
        licence: of the weights.
        sha256: of the file, 64 hex digits.
    """

    name: str
    network: Network
    normalization: Normalization
    source: str
    training: str
    licence: str
    sha256: str
    _split: frozenset[str] = field(repr=False)

    def heldout(self, data: Classification) -> tuple[Tensor, Tensor]:
        """Images uint8 ``[M, 3, 32, 32]`` and labels ``[M]`` that the network never trained on.

        Those are the 5,000 training images that its author kept out, in the order of CIFAR-10 here; the test set,
        where it was trained on all others.

        Args:
            data: CIFAR-10 with all training images; where the author kept some out, a holdout makes no difference.

        Raises:
            DatasetError: not all of the images are there, or it is a lossy copy.
        """
        return self._part(data, held=True)

    def trained_on(self, data: Classification) -> tuple[Tensor, Tensor]:
        """Images and labels that the network was trained on; all else as for `heldout`."""
        return self._part(data, held=False)

    def sample(self, data: Classification, count: int, *, held: bool) -> tuple[Tensor, Tensor]:
        """So many of these images, normalised, and their labels: evenly spaced over the classes, in random order.

        Each part of them is a sample as well, see `resnotes.datasets.Classification.sample`.

        Args:
            data: see `heldout`.
            count: images.
            held: of those it never trained on, or else of those it was trained on.
        """
        images, labels = self._part(data, held=held)
        chosen = sampled(len(images), count)
        return self.normalization(images[chosen]), labels[chosen]

    def _part(self, data: Classification, *, held: bool) -> tuple[Tensor, Tensor]:
        images, labels = data.train_images, data.train_labels
        if self._split and "holdout" in data.variant:  # a holdout is of training images, too
            images, labels = torch.cat([images, data.test_images]), torch.cat([labels, data.test_labels])
        complete = len(images) == cifar10.SIZES["train"] and data.variant.partition(",")[0] == "cifar10"
        if complete and not self._split:
            return (data.test_images, data.test_labels) if held else (images, labels)
        hashes = cifar10.hashes(images.numpy()) if complete else []
        kept_out = [each[:16] in self._split for each in hashes]
        if not complete or sum(kept_out) != len(self._split):
            raise DatasetError(
                f"{self.name} was trained on {self.training}: expected lossless CIFAR-10 with all"
                f" {cifar10.SIZES['train']:,} training images{'' if self._split else ', without a holdout'}; found"
                f" {data.variant}, with {len(images):,}"
            )
        chosen = [i for i, out in enumerate(kept_out) if out == held]
        chosen.sort(key=lambda i: (int(labels[i]), hashes[i]))
        return images[chosen], labels[chosen]


def published(name: str) -> Published:
    """A network that others trained on CIFAR-10, by author and network.

    Args:
        name: ``"wooyeolBaek/plain-N"`` or ``"wooyeolBaek/resnet-N"`` with N = 20, 32, 44 or 56, which come with the
            5,000 images that they never trained on, or ``"akamaster/resnet-N"``, with N = 110 too.

    Raises:
        UsageError: no network has this name.
        DatasetError: its file is missing, cut, or not the one that was published.
    """
    if name not in _entries():
        raise unknown("published network", name, _entries())
    entry = _entries()[name]
    state, digest = read_weights(_target(entry), entry["sha256"], _HOW)
    normalization, split = IMAGENET, frozenset[str]()
    if "split" in entry:
        mean = torch.from_numpy(np.load(_FOLDER / entry["mean"]))
        normalization = Normalization(mean, torch.tensor(255.0))
        split = frozenset(digest.tobytes().hex() for digest in np.load(_FOLDER / entry["split"]))
    return Published(
        name=name,
        network=_network(entry["model"], state),
        normalization=normalization,
        source=f"{entry['repository']} at {entry['commit'][:8]}, {entry['path']}",
        training=entry["training"],
        licence=entry["licence"],
        sha256=digest,
        _split=split,
    )


def _network(model: str, state: Mapping[str, Tensor]) -> Network:
    """The network, in eval mode, with the weights of a state dict: its names differ from ours, its order does not.

    Biases of convolutions, which ours do not have, are taken from the running means of the BN that follows: the
    network is the same.
    """
    family, _, depth = model.partition("-")
    with torch.random.fork_rng([]):  # weights are drawn, and overwritten
        network = residual_network(family, int(depth)).eval()
    bias: Tensor | float = 0.0
    values = list[Tensor]()
    for key, value in state.items():
        if key.endswith("bias") and values[-1].ndim == 4:
            bias = value
        elif key.endswith("running_mean"):
            values.append(value - bias)
        elif not key.endswith("num_batches_tracked"):  # which not all have, and nothing here reads
            values.append(value)
    keys = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(keys, values, strict=True)))
    return network


def is_at_hand(name: str) -> bool:
    """Whether there is a file for a published network; it is not read."""
    return _target(_entries()[name]).is_file()


def status() -> Availability:
    """Which published networks are at hand, in files with the published checksums."""
    missing = [name for name, entry in _entries().items() if not has_checksum(_target(entry), entry["sha256"])]
    count = len(_entries()) - len(missing)
    where = f"{count} of {len(_entries())} networks in {weights_root()}"
    if missing:
        where += f"; missing or damaged: {', '.join(missing)}; {_HOW}"
    return Availability("published", count > 0, where)


def fetch() -> None:
    """Downloads the files of all published networks that are not there to ``RESNOTES_DATA/weights``.

    Raises:
        DatasetError: the folder cannot be written, or GitHub did not give some files intact; all others are there.
    """
    failures = []
    for entry in _entries().values():
        try:
            download(f"{UPSTREAM}/{_address(entry)}", _target(entry), entry["sha256"])
        except DatasetError as error:
            failures.append(str(error))
    if failures:
        raise DatasetError(f"{len(failures)} of {len(_entries())} networks are missing: {'; '.join(failures)}")
