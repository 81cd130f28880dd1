"""Networks that others trained on CIFAR-10 as He et al. 2015 did, read into the shape of ours.

`published_networks.toml` lists them. Their files are not part of this project: `resnotes data fetch published` gets
them from their authors' repositories at a fixed commit, and they are looked for in ``RESNOTES_DATA/weights``.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resnotes.datasets import Availability, Classification, Normalization, cifar10
from resnotes.datasets.download import download, has_checksum
from resnotes.errors import DatasetError, UsageError, unknown
from resnotes.models.network import Network
from resnotes.models.residual import residual_network
from resnotes.paths import published_root, weights_root

UPSTREAM = "https://raw.githubusercontent.com"
_HOW = "get it with `resnotes data fetch published`, or set RESNOTES_DATA to the folder that has weights/"


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One network of `published_networks.toml`, with what it has in common with its author's others."""

    model: str
    repository: str  # on GitHub
    commit: str
    path: str  # of the file in the repository
    sha256: str  # of the file, as many hex digits as are known
    training: str
    licence: str
    file: str = ""  # our name for it, where upstream's says too little
    remark: str = ""
    split: str = ""
    mean: str = ""

    @property
    def address(self) -> str:
        return f"{self.repository}/{self.commit}/{self.path}"

    @property
    def target(self) -> Path:
        return weights_root() / (self.file or Path(self.path).name)

    def at_hand(self) -> list[Path]:
        """Files under our name, and under upstream's, with or without the outermost folder."""
        upstream = [weights_root() / self.path, weights_root() / self.path.partition("/")[2]]
        return [path for path in (self.target, *upstream) if os.path.isfile(path)]  # noqa: PTH113 -- False, too, where it cannot be looked for


@cache
def _entries() -> dict[str, _Entry]:
    listed = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {
        f"{author}/{model}": _Entry(model=model, **{key: common[key] for key in common if key != "networks"}, **own)
        for author, common in listed.items()
        for model, own in common["networks"].items()
    }


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
    files = entry.at_hand()
    if not files:
        raise DatasetError(f"found no weights of {name}; expected {entry.target}, from {entry.address}; {_HOW}")
    intact = (file for file in files if has_checksum(file, entry.sha256))
    state, digest = read_weights(next(intact, files[0]), entry.sha256, _HOW)
    mean, split = _of_author(entry)
    return Published(
        name=name,
        network=from_published(state, entry.model.partition("-")[0]).eval(),
        normalization=mean,
        source=f"{entry.repository} at {entry.commit[:8]}, {entry.path}",
        training=entry.training + (f", {entry.remark}" if entry.remark else ""),
        licence=entry.licence,
        sha256=digest,
        _split=split,
    )


def _of_author(entry: _Entry) -> tuple[Normalization, frozenset[str]]:
    """Normalization, and the hashes of the images that were kept out: none, where all were trained on."""
    if not entry.split:
        return Normalization.published((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), frozenset()
    try:
        mean = torch.from_numpy(np.load(published_root() / entry.mean, allow_pickle=False))
        split = frozenset((published_root() / entry.split).read_text("ascii").split())
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{entry.model} of {entry.repository} needs {entry.mean} and {entry.split}, which come with the repository"
            f" in {published_root()} ({error}); work in a checkout of it"
        ) from error
    return Normalization(mean, torch.tensor(255.0)), split


def read_weights(path: Path, sha256: str, how: str) -> tuple[dict[str, Tensor], str]:
    """The state dict in a file of PyTorch, on the CPU, and the file's SHA-256; no code in it is run.

    Args:
        path: the file; the state dict may lie in it under ``"state_dict"``.
        sha256: how its checksum must begin, in hex digits; empty for any.
        how: what to do where it is not, for the error.

    Raises:
        DatasetError: it cannot be read, has another checksum, or holds no state dict.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read the weights {path} ({error.strerror}); {how}") from error
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(sha256):
        raise DatasetError(
            f"{path} is damaged, or another file: its {len(content):,} bytes have the SHA-256 {digest}, expected"
            f" {sha256}{'' if len(sha256) == 64 else '...'}; remove it, and {how}"
        )
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        state = dict(loaded.get("state_dict", loaded))
        if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
            raise TypeError("something other than tensors by name")
    except Exception as error:  # a damaged file raises nearly anything
        # PyTorch's own words would advise to load it without the protection against foreign code.
        raise DatasetError(f"{path} holds no state dict, or is damaged ({type(error).__name__}); {how}") from error
    return state, digest


# A layer of a block in the state dict of either upstream: its stage, counted from 1 or from 2, its block and its place
_LAYER = re.compile(
    r"(?:layer(?P<from1>\d)|conv(?P<from2>\d)_x\.conv\d_x)\.(?P<block>\d+)\.(?:f\.)?(?P<layer>(?:conv|bn)[12]|[0134])\.(?P<rest>.+)"
)
_LAYERS = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}


def from_published(state: Mapping[str, Tensor], family: str = "resnet") -> Network:
    """The ``resnet-N`` or ``plain-N`` whose weights a state dict holds.

    Biases of convolutions, which ours do not have, are taken from the running means of the BN that follows: the
    network is the same.

    Args:
        state: named as by akamaster/pytorch_resnet_cifar10 (``[module.]conv1.weight``, ``layer1.0.conv1.weight``,
            ``linear.weight``) or by wooyeolBaek/deep-residual-learning (``conv2_x.conv2_x.0.f.0.weight``).
        family: ``"resnet"`` or ``"plain"``; a state dict does not tell, as shortcuts have no weights.

    Raises:
        UsageError: keys or shapes that are not those of such a network.
    """
    n = sum(bool(re.search(r"(layer1|conv2_x)\.\d+\.(conv1|f\.0)\.weight$", key)) for key in state)
    if not n:
        raise UsageError(f"no residual network: expected keys like layer1.0.conv1.weight, found {list(state)[:3]}")
    with torch.random.fork_rng([]):  # weights are drawn, and overwritten
        network = residual_network(family, 6 * n + 2)
    renamed = {_ours(key, n): value for key, value in state.items()}
    for bias in [key for key in renamed if re.search(r"conv\d?\.bias$", key)]:
        mean = re.sub(r"conv(\d?)\.bias$", r"bn\1.running_mean", bias)
        if mean in renamed and renamed[mean].shape == renamed[bias].shape:
            renamed[mean] = renamed[mean] - renamed.pop(bias)
    try:
        network.load_state_dict(renamed)
    except RuntimeError as error:
        raise UsageError(f"the weights do not fit {family}-{6 * n + 2}: {error}") from error
    return network


def _ours(key: str, n: int) -> str:
    """A key of either upstream as our networks of n blocks a stage have it; another as it is."""
    key = key.removeprefix("module.")
    if match := _LAYER.fullmatch(key):
        stage = int(match["from1"] or match["from2"]) - (1 if match["from1"] else 2)
        layer = _LAYERS.get(match["layer"], match["layer"])
        return f"blocks.{stage * n + int(match['block'])}.residual.{layer}.{match['rest']}"
    key = re.sub(r"^(?:conv1\.)?(conv|bn)1\.(\w+)$", r"stem.\1.\2", key)
    return re.sub(r"^(?:linear|fc|fc\.fc)\.(\w+)$", r"head.fc.\1", key)


def is_at_hand(name: str) -> bool:
    """Whether there is a file for a published network; it is not read."""
    return bool(_entries()[name].at_hand())


def status() -> Availability:
    """Which published networks are at hand; their files are not read."""
    missing = [name for name in _entries() if not is_at_hand(name)]
    count = len(_entries()) - len(missing)
    where = f"{count} of {len(_entries())} networks in {weights_root()}"
    if missing:
        where += f"; missing: {', '.join(missing)}; {_HOW}"
    return Availability("published", count > 0, where)


def fetch() -> None:
    """Downloads the files of all published networks that are not there to ``RESNOTES_DATA/weights``.

    Raises:
        DatasetError: the folder cannot be written, or GitHub did not give some file intact; all others are there.
    """
    failures = {}
    for name, entry in _entries().items():
        if any(has_checksum(path, entry.sha256) for path in entry.at_hand()):
            continue
        try:
            download(f"{UPSTREAM}/{entry.address}", entry.target, entry.sha256)
        except DatasetError as error:
            failures[name] = str(error)
    if failures:
        first, *others = failures
        more = f"; nor could {', '.join(others)}" if others else ""
        raise DatasetError(f"{failures[first]}{more}")
