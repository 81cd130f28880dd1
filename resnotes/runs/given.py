"""A network and images that a reader names, in the form that every measurement takes."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import datasets, models, paths
from resnotes.datasets import Classification, Normalization, folders
from resnotes.datasets.classification import IMAGENET
from resnotes.errors import UsageError, unknown
from resnotes.models.adapters import adapt
from resnotes.models.inputs import check_logits, evaluating
from resnotes.models.passes import in_a_row, visit
from resnotes.models.weights import read_weights, without_prefix
from resnotes.runs import profiles
from resnotes.runs.samples import REPAIR, as_trained
from resnotes.runs.store import RunStore, load_data

_SIDE = 224  # pixels that torchvision's ResNets were trained on
_PLAIN = Normalization(torch.tensor(0.0), torch.tensor(255.0))
_KNOWN = MappingProxyType({"imagenet": IMAGENET, "none": _PLAIN, "channels": None})  # None: of the images at hand
_FORMS = "run:LABEL, published:AUTHOR/NAME, torchvision:NAME, module:function"


@dataclass(frozen=True, eq=False)
class Given:
    """A network of a reader's, in eval mode, and what it is measured on.

    Attributes:
        name: as a card names it.
        model: as its author wrote it.
        network: the same as stem, blocks and head, which measurements take.
        images: normalised, ``[N, C, H, W]``.
        labels: int64 ``[N]``; the network's own answers, where it was not trained for the labels of the data.
        repair: normalised images of the training set, on which BN can take its statistics anew; none where it has none.
        dataset: in words.
        iterations: how long it was trained, 0 for random weights, None where nobody knows.
        scope: of evidence: ``"live"`` of a network trained or drawn here, ``"published"`` of one that we know where to
            get, else ``"recorded"``.
        remarks: what was done to get there.
        own_answers: whether its answers take the place of labels.
    """

    name: str
    model: nn.Module
    network: nn.Module
    images: Tensor
    labels: Tensor
    repair: Tensor
    dataset: str
    iterations: int | None
    scope: str
    remarks: tuple[str, ...]
    own_answers: bool = False


def given(
    network: str,
    data: str,
    *,
    images: int,
    weights: str = "",
    normalization: str = "",
    size: int = 0,
    profile: str = "quick",
) -> Given:
    """The network and the images that a reader names.

    Args:
        network: ``run:LABEL``, trained by the recipe of the first study of the profile that has this label (at the
            first rate of several), or by that of the study of degradation, unless it is in the store;
            ``published:AUTHOR/NAME``; ``torchvision:NAME``; or ``module:function``, a function on Python's path that
            returns a network, and is called with `num_classes` and `in_channels` if it takes them.
        data: a registered data set for classification, or a folder with a folder of images for each class.
        images: how many of the test set, at most.
        weights: a file of PyTorch with the weights of one of torchvision's or of a reader's; empty for none.
        normalization: what the images of one of these were normalised by in its training: ``"imagenet"``, its mean and
            std; ``"none"``, 0 to 1; ``"channels"``, mean and std of those at hand; empty for the first where
            torchvision's has weights, else the last.
        size: pixels that their sides are resized to; 0 for 224 where torchvision's has weights or the network says that
            it takes no other, else as they are.
        profile: of the run.

    Raises:
        UsageError: a network, a function, a data set or weights that are not there, or do not go together.
        DatasetError: files are missing or damaged.
    """
    kind, _, name = network.partition(":")
    if not kind or not name:
        raise UsageError(f"network {network!r} is of no known form; allowed: {_FORMS}")
    if images < 1:
        raise UsageError(f"expected at least 1 image, found {images}")
    if size < 0:
        raise UsageError(f"expected a size in pixels, or 0 for none, found {size}")
    if kind in ("run", "published"):
        for what, value in {"weights": weights, "normalization": normalization, "size": size}.items():
            if value:
                raise UsageError(f"{network} has its own {what}, found {what}={value!r}; leave it out")
        return _run(name, data, images, profile) if kind == "run" else _published(name, data, images)
    if normalization not in ("", *_KNOWN):
        raise unknown("normalization", normalization, _KNOWN)
    return _elsewhere(kind, name, data, images, weights, normalization, size)


def _run(label: str, data: str, images: int, profile: str) -> Given:
    """A network that is trained here."""
    label = models.label(*models.from_label(label))
    studies = profiles.load(profile).studies
    study = next((each for each in studies.values() if label in each.models), studies["degradation"])
    spec = study.spec(label, study.seeds[0], *study.lrs[:1])
    _require(f"run:{label}", data, spec.dataset)
    if datasets.task(data) != "classification":
        raise UsageError(f"run:{label} is for segmentation; expected a classifier")
    model, known = RunStore().get(spec).model(), load_data(spec)
    assert isinstance(known, Classification)
    sample, labels = known.sample(images, held=True)
    found = Given(
        name=label,
        model=model,
        network=model,
        images=sample,
        labels=labels,
        repair=as_trained(known, spec),
        dataset=known.variant,
        iterations=spec.recipe.iterations,
        scope="live",
        remarks=(f"trained for {spec.recipe.iterations:,} iterations on {known.variant}, seed {spec.seed}",),
    )
    return _adapted(found, known.num_classes)


def _published(name: str, data: str, images: int) -> Given:
    """A network that others trained on CIFAR-10."""
    _require(f"published:{name}", data, "cifar10")
    found = models.published(name)
    known = datasets.load("cifar10")
    sample, labels = found.sample(known, images, held=True)
    repair, _ = found.sample(known, REPAIR, held=False)
    network, remarks = found.network, (f"from {found.source}", f"trained on {found.training}")
    told = known.variant, 64_000, "published", remarks
    return _adapted(Given(name, network, network, sample, labels, repair, *told), known.num_classes)


def _elsewhere(kind: str, name: str, data: str, images: int, weights: str, normalization: str, size: int) -> Given:
    """A network of torchvision's, or of a function on Python's path."""
    known = _data(data, images)
    sample, labels = known.sample(images, held=True, raw=True)
    repair, _ = known.sample(REPAIR, held=False, raw=True)
    state: dict[str, Tensor] = {}
    if weights:
        state, _ = read_weights(paths.asked(weights), "", "name another file as weights")
    theirs, remarks = kind == "torchvision", list[str]()
    if theirs:
        heads = [len(value) for key, value in state.items() if key.endswith(("fc.bias", "heads.head.bias"))]
        model = _torchvision(name, heads[0] if heads else known.num_classes)
    else:
        model = _call(kind, name, num_classes=known.num_classes, in_channels=known.in_channels)
    if state:
        try:
            model.load_state_dict(without_prefix(state, model.state_dict()))
        except RuntimeError as error:
            reason = textwrap.shorten(str(error), 300)  # PyTorch lists all keys that are missing
            raise UsageError(f"the weights {weights} do not fit {kind}:{name}: {reason}") from error
    channels = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 0)
    if known.in_channels == 1 < channels:
        sample, repair = (each.expand(-1, channels, -1, -1) for each in (sample, repair))
        remarks.append("grey images, the same in each channel")
    random, as_theirs = theirs and not state, theirs and bool(state)
    side = size or getattr(model, "image_size", _SIDE if as_theirs else None)
    if isinstance(side, int) and tuple(sample.shape[2:]) != (side, side):
        sample, repair = (_resized(each, side) for each in (sample, repair))
        remarks.append(f"images resized to {side}x{side} pixels")
    normalization = normalization or ("imagenet" if as_theirs else "channels")
    normalized = _KNOWN[normalization] or Normalization.by_channel(torch.cat([sample, repair]))
    says = {"imagenet": "as ImageNet is", "none": "to 0 to 1", "channels": "by the channels' mean and std"}
    remarks.append(f"normalised {says[normalization]}; if it was trained otherwise, name it as normalization")
    if random:
        repair = repair[:0]
        remarks.append("random weights, with which BN has not gathered statistics that could be repaired")
    found = Given(
        name=f"{name} (random weights)" if random else name,
        model=model,
        network=model,
        images=normalized(sample),
        labels=labels,
        repair=normalized(repair),
        dataset=known.variant,
        iterations=0 if random else None,
        scope="live" if random else "recorded",
        remarks=tuple(remarks),
    )
    return _adapted(found, 0 if random else known.num_classes)


@torch.no_grad()
def _adapted(found: Given, classes: int) -> Given:
    """The network as stem, blocks and head; its answers in place of the labels, unless it has a logit for each class.

    Args:
        found: with the model as its author wrote it for `network`.
        classes: those of the labels that it was trained for, 0 for none.
    """
    network, images = found.model.eval(), found.images
    if not all(hasattr(network, part) for part in ("stem", "blocks", "head")):
        network = adapt(network, images)
    with evaluating(network, images):
        found_logits = in_a_row(network, images, lambda block, x: visit(block, x).output)[-1]
        logits = check_logits(found_logits, found.name, len(images))
    if logits.isnan().any():
        raise UsageError(f"{found.name} puts out NaN for some of {len(images)} images; look at its weights")
    if logits.shape[1] == classes:
        return replace(found, network=network)
    remark = "not trained for the labels of this data, so that an error is an answer which a lesion changes"
    return replace(
        found,
        network=network,
        labels=logits.argmax(1),
        dataset=f"{found.dataset}, own answers",
        remarks=(*found.remarks, remark),
        own_answers=True,
    )


def _require(network: str, data: str, own: str) -> None:
    """Refuse another data set than the network was trained on."""
    if data != own:
        raise UsageError(f"{network} was trained on {own}; found data={data!r}, allowed: {own}")


def _data(name: str, images: int) -> Classification:
    """A registered data set, or a folder of somebody's."""
    if name in datasets.names():
        known = datasets.load(name)
        if isinstance(known, Classification):
            return known
    elif (folder := paths.asked(name)).is_dir():
        return folders.load(folder, train=REPAIR, test=images)
    allowed = [each for each in datasets.names() if datasets.task(each) == "classification"]
    raise unknown(
        "data", name, [*allowed, f"a folder with a folder of images for each class (none at {paths.asked(name)})"]
    )


def _torchvision(name: str, classes: int) -> nn.Module:
    """One of torchvision's, with random weights, always the same."""
    from torchvision.models import get_model, list_models  # a second of import time

    kinds = [each for each in list_models() if each.startswith(("resnet", "resnext", "wide_resnet", "vit"))]
    if name not in kinds:
        raise unknown("network of torchvision", name, kinds)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model: nn.Module = get_model(name, num_classes=classes)
    return model


def _call(module: str, function: str, **options: int) -> nn.Module:
    """What somebody's function returns."""
    what = f"network={module}:{function}"
    try:
        build: Callable[..., Any] = getattr(importlib.import_module(module), function)
        takes = inspect.signature(build).parameters
        found = build(**{option: value for option, value in options.items() if option in takes})
    except Exception as error:  # of somebody's code, whatever it is
        raise UsageError(
            f"{what} cannot be called ({type(error).__name__}: {error}); expected a function of a module on Python's"
            f" path (PYTHONPATH) that returns a network; other forms: {_FORMS}"
        ) from error
    if not isinstance(found, nn.Module):
        raise UsageError(f"{what} returned a {type(found).__name__}, expected a torch.nn.Module")
    return found


def _resized(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True).round().byte()
