"""The one shape of stem, blocks and head for networks that others wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from resnotes.devices import autocast
from resnotes.errors import UsageError
from resnotes.models.imagenet import as_block
from resnotes.models.inputs import beside, check_images, evaluating
from resnotes.models.network import Block, Network, agree, check_weights, in_mode, kept_statistics
from resnotes.models.transformer import PatchEmbedding, Pool

_SIDE = 64  # pixels of the image that is compared, if none is given


class Parts(Protocol):
    """The shape of a block: ``after(shortcut(x) + residual(x))``."""

    residual: Callable[[Tensor], Tensor]
    shortcut: Callable[[Tensor], Tensor] | None
    after: Callable[[Tensor], Tensor]


def blocks_of(model: nn.Module) -> list[Parts]:
    """The blocks of a network.

    Raises:
        UsageError: it has not the shape of stem, blocks and head, or a block not that of `Parts`.
    """
    name = type(model).__name__
    _require(model, name, ("stem", "blocks", "head"))
    blocks: list[Any] = list(model.blocks)  # type: ignore[arg-type]
    for i, block in enumerate(blocks):
        _require(block, f"block {i} of {name}, a {type(block).__name__},", ("residual", "shortcut", "after"))
    return blocks


def _require(part: object, what: str, names: tuple[str, str, str]) -> None:
    if missing := [name for name in names if not hasattr(part, name)]:
        raise UsageError(
            f"expected {names[0]}, {names[1]} and {names[2]}, as all networks here have; found {what} without"
            f" {missing[0]}; resnotes.unravel.adapt gives that shape to those it knows"
        )


def adapt(model: nn.Module, images: Tensor | None = None) -> Network:
    """A network that somebody else wrote, of a kind that is known, as stem, blocks and head.

    What is returned is made of the model's own modules, so it shares weights, BN's statistics and modes. Hooks on
    what is passed over, the stages and the blocks as a whole, are not called.

    Args:
        model: torchvision's ``resnet18`` to ``resnet152``, ResNeXt, Wide ResNet or ``vit_*``, with any head; a
            ``ViTForImageClassification`` or ``GPT2LMHeadModel`` of Hugging Face's transformers, version 5; or a
            `resnotes.models.imagenet.ImageNetResNet`. It is left as it was.
        images: normalised ``[N, C, H, W]``, for GPT-2 tokens int64 ``[N, T]``, of which the first is sent through both;
            by default noise.

    Returns:
        A network that computes what the model computes, each block ``after(shortcut(x) + residual(x))``: the units of
        all four stages, or of each layer of a transformer first attention, then MLP. Of a language model the logits
        are those of the token after the last, ``[N, vocabulary]``.

    Raises:
        UsageError: another model, one with other parts, or one whose logits are not reproduced.
    """
    network = shaped(model)
    _compare(network, model, images)
    return network


def shaped(model: nn.Module) -> Network:
    """`adapt` without the comparison.

    Raises:
        UsageError: another model, or one with other parts.
    """
    name = type(model).__name__
    kinds = [f"{each.__module__.partition('.')[0]}.{each.__name__}" for each in type(model).__mro__]
    kind = next((kind for kind in kinds if kind in _ADAPTERS), None)
    if kind is None:
        raise UsageError(
            f"cannot adapt a {name}; known are {', '.join(_ADAPTERS)}. Others are given as models.Network(stem, blocks,"
            " head), with residual, shortcut and after in each block; without shortcuts there are no paths in it"
        )
    try:
        network = _ADAPTERS[kind](model)
    except (AttributeError, TypeError) as error:
        raise UsageError(f"cannot adapt this {name}: its parts are not those of a {kind} ({error})") from error
    for module in set(network.modules()) - set(model.modules()):
        module.training = model.training
    return network


def _resnet(model: Any) -> Network:
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    return Network(
        nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool),
        [as_block(block) for stage in stages for block in stage],
        nn.Sequential(model.avgpool, nn.Flatten(), model.fc),
        stages=tuple(map(len, stages)),
        name=getattr(model, "name", type(model).__name__),
        options=getattr(model, "options", {}),
    )


class _Attention(nn.Module):
    """An attention layer, without the weights of the tokens that it returns beside its output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        itself = isinstance(self.layer, nn.MultiheadAttention)
        found: Tensor = (self.layer(x, x, x, need_weights=False) if itself else self.layer(x))[0]
        return found


class _Embedding(nn.Module):
    """Tokens int64 ``[N, T]`` to vectors ``[N, T, width]``, as GPT-2 has them: of the words and of the positions."""

    def __init__(self, words: nn.Module, positions: nn.Module) -> None:
        super().__init__()
        self.words, self.positions = words, positions

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.words(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return found


def _pre_ln(model: Any, stem: nn.Module, branches: list[list[nn.Module]], *head: nn.Module) -> Network:
    """A transformer of residual branches, each of layers in a row."""
    blocks = [Block(nn.Sequential(*layers), nn.Identity(), nn.Identity()) for layers in branches]
    return Network(stem, blocks, nn.Sequential(*head), name=type(model).__name__)


def _torchvision_vit(model: Any) -> Network:
    encoder = model.encoder
    stem = PatchEmbedding(model.conv_proj, model.class_token, encoder.pos_embedding, model.image_size)
    branches = []
    for layer in encoder.layers:
        branches += [[layer.ln_1, _Attention(layer.self_attention), layer.dropout], [layer.ln_2, layer.mlp]]
    return _pre_ln(model, nn.Sequential(stem, encoder.dropout), branches, encoder.ln, Pool(0), model.heads)


def _transformers_vit(model: Any) -> Network:
    body = model.vit
    branches = []
    for layer in body.layers:
        branches.append([layer.layernorm_before, _Attention(layer.attention), layer.dropout])
        branches.append([layer.layernorm_after, layer.mlp, layer.dropout])
    return _pre_ln(model, body.embeddings, branches, body.layernorm, Pool(0), model.classifier)


def _transformers_gpt2(model: Any) -> Network:
    if model.config._attn_implementation == "eager":  # is told by the model as a whole what comes later
        raise UsageError("cannot adapt a GPT-2 of eager attention; load it with attn_implementation='sdpa'")
    body = model.transformer
    branches = []
    for layer in body.h:
        branches += [[layer.ln_1, _Attention(layer.attn)], [layer.ln_2, layer.mlp]]
    stem = nn.Sequential(_Embedding(body.wte, body.wpe), body.drop)
    return _pre_ln(model, stem, branches, body.ln_f, Pool(-1), model.lm_head)


# By package and class. None of these packages need be there.
_ADAPTERS: dict[str, Callable[[Any], Network]] = {
    "torchvision.ResNet": _resnet,
    "resnotes.ImageNetResNet": _resnet,
    "torchvision.VisionTransformer": _torchvision_vit,
    "transformers.ViTForImageClassification": _transformers_vit,
    "transformers.GPT2LMHeadModel": _transformers_gpt2,
}


def _example(model: Any) -> Tensor:
    """One input of the kind that a model takes: noise, or eight words."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "vocab_size"):
        return torch.arange(8)[None] % int(config.vocab_size)
    side: int = getattr(model, "image_size", getattr(config, "image_size", _SIDE))
    channels: int = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)
    return torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))


def _logits(found: Any) -> Any:
    """The tensor in what a model of transformers returns; of a language model, which has some a token, the last."""
    found = getattr(found, "logits", found)
    return found[:, -1] if isinstance(found, Tensor) and found.ndim == 3 else found


@torch.no_grad()
def _compare(network: Network, model: nn.Module, images: Tensor | None) -> None:
    """Refuse a network that does not do what the model does, on one image and in eval mode."""
    name = type(model).__name__
    check_weights(model)
    images = _example(model) if images is None else images
    check_images(images)
    image = beside(images[:1], next(model.parameters()))
    with (
        evaluating(model, image),
        in_mode(model, training=False),
        in_mode(network, training=False),
        kept_statistics(model),
        autocast(image.device, "float32"),
    ):
        expected, found = _logits(model(image.clone())), network(image.clone())
    if not isinstance(expected, Tensor) or not agree(found, expected, units=8):
        raise UsageError(
            f"cannot adapt this {name}: stem, blocks and head in a row put out something else than it does;"
            " it has a forward of its own, or hooks"
        )
