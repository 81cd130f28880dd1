"""What a study is made on: a network, images, and which they are; of runs, and of networks that others trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor, nn

from resnotes import datasets, models
from resnotes.datasets import Classification
from resnotes.errors import UsageError
from resnotes.runs.folder import Run
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import load_data
from resnotes.training.classification import augment, drawn

REPAIR = 256  # training images, on which BN is repaired


class Sample(NamedTuple):
    """A network in eval mode, and images for it.

    Attributes:
        network: with stem, blocks and head.
        images: normalised, ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        repair: normalised images that it was trained on, on which BN can take its statistics anew; of runs,
            augmented as in training.
        about: what a table says of it: `network`, `seed` and maybe `moment` of its training.
    """

    network: nn.Module
    images: Tensor
    labels: Tensor
    repair: Tensor
    about: Mapping[str, Any]


def of_runs(
    runs: Mapping[str, Iterable[Run]], count: int, size: int | None = None, *, held: bool = True, moments: bool = False
) -> Iterator[Sample]:
    """A sample for each run, or for each batch of one.

    Args:
        runs: by the name of the network; read when their turn comes.
        count: images, see `resnotes.datasets.Classification.sample`.
        size: of a batch; the batches are numbered in place of the seed, so that a network may have one run only. None
            for all images at once.
        held: images that the network was not trained on.
        moments: at each of `Run.moments`.

    Raises:
        UsageError: a run for segmentation, or batches of several runs of a network.
        RunError, DatasetError: see `resnotes.runs.load_data` and `Run.model`.
    """
    for name, several in runs.items():
        for place, run in enumerate(several):
            if place and size is not None:
                raise UsageError(f"batches of {name} would be numbered as those of its other run; expected one run")
            data = load_data(run.spec)
            if not isinstance(data, Classification):
                raise UsageError(
                    f"{run.name} was trained on {run.spec.dataset} for segmentation; expected a classifier"
                )
            sample, repair = data.sample(count, held=held), as_trained(data, run.spec)
            for moment in run.moments if moments else (None,):
                about = {"network": name, "seed": run.spec.seed} | ({"moment": moment} if moments else {})
                yield from _batches(run.model(moment), sample, size, repair, about)


def as_trained(data: Classification, spec: RunSpec) -> Tensor:
    """Images as a run was trained on: `REPAIR` of the training set, normalised ``[N, C, H, W]``, in random crops.

    With statistics of whole images, which have no black edges, BN makes an intact network worse: resnet-56 on CIFAR-10
    from 8.9 to 10.6 % held-out error, in place of 9.2.

    Args:
        data: of the run.
        spec: its recipe says how images are padded and mirrored.
    """
    images, _ = data.sample(REPAIR, held=False, raw=True)
    draws = drawn(len(images), spec.recipe, seed=0, epoch=0)
    return data.normalization(augment(images, draws.dy, draws.dx, draws.flip, spec.recipe.pad))


def of_published(names: Iterable[str], count: int, size: int | None = None, *, held: bool = True) -> Iterator[Sample]:
    """The same of networks that `wooyeolBaek` trained on CIFAR-10, such as ``"resnet-56"``.

    How their crops were padded we do not know; the images for repair are as they are, which costs an intact one
    little (resnet-56: 6.5 % on 1,000 images, repaired 7.2).
    """
    for name in names:
        found, data = models.published(f"wooyeolBaek/{name}"), datasets.load("cifar10")
        assert isinstance(data, Classification)
        sample, (repair, _) = found.sample(data, count, held=held), found.sample(data, REPAIR, held=False)
        yield from _batches(found.network, sample, size, repair, {"network": name, "seed": 0})


def tabulate(study: Callable[[Sample], pd.DataFrame], samples: Iterable[Sample], threads: int = 1) -> pd.DataFrame:
    """The tables that a study makes of samples, one below the other, with what they are about as columns."""
    if threads == 1:
        return pd.concat(study(sample).assign(**sample.about) for sample in samples)
    with ThreadPoolExecutor(threads) as pool:  # PyTorch leaves Python's lock while it computes
        return pd.concat(pool.map(lambda sample: study(sample).assign(**sample.about), samples))


def _batches(
    network: nn.Module, sample: tuple[Tensor, Tensor], size: int | None, repair: Tensor, about: dict[str, Any]
) -> Iterator[Sample]:
    parts = [each.split(size or len(each)) for each in sample]
    for number, (images, labels) in enumerate(zip(*parts, strict=True)):
        yield Sample(network, images, labels, repair, about | ({} if size is None else {"seed": number}))
