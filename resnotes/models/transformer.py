"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929), in the one shape of every network here.

A layer is two blocks, attention and then MLP, both with an identity as shortcut. LayerNorm stands inside the branch or
after the addition (Xiong et al. 2020, arXiv 2002.04745): Pre-LN ``x + F(norm(x))``, a pre-activation unit, with one
more norm before the classifier, or Post-LN ``norm(x + F(x))``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.errors import UsageError
from resnotes.models.network import Block, Network
from resnotes.typed import Count, check_arguments

Norm = Literal["pre", "post"]
EPS = 1e-6  # of LayerNorm, as in the authors' code and torchvision's


class PatchEmbedding(nn.Module):
    """Images ``[N, C, size, size]`` to tokens ``[N, T, width]``: patches, a class token before them, and positions.

    Args:
        patches: takes images to maps of one cell a patch, ``[N, width, h, w]``.
        class_token: ``[1, 1, width]``; None for none.
        positions: ``[1, T, width]``, added to the tokens.
        size: of the images, in pixels.
    """

    def __init__(
        self, patches: nn.Module, class_token: nn.Parameter | None, positions: nn.Parameter, size: int
    ) -> None:
        super().__init__()
        self.patches = patches
        self.class_token = class_token
        self.positions = positions
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """See the class.

        Raises:
            UsageError: images of another size, for which there are no positions.
        """
        if images.shape[-2:] != (self.size, self.size):
            raise UsageError(
                f"expected images of {self.size}x{self.size} pixels, found {list(images.shape)}; a transformer is built"
                " for one size (option size)"
            )
        tokens: Tensor = self.patches(images).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens + self.positions


@contextmanager
def precise(x: Tensor) -> Iterator[Tensor]:
    """In float32 what is bfloat16 on a CPU, where PyTorch's attention takes three times longer in bfloat16."""
    if x.dtype is torch.bfloat16 and x.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):  # or it would be cast back
            yield x.float()
    else:
        yield x


class Attention(nn.Module):
    """Multi-head self-attention: tokens ``[N, T, width]`` to tokens (Vaswani et al. 2017, Sec. 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)  # queries, keys and values of all heads, one below the other
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Each head weighs the tokens by itself, with an equal part of the width."""
        stacked = self.qkv(x)
        with precise(stacked) as exact:
            query, key, value = exact.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            found = F.scaled_dot_product_attention(query, key, value)  # [N, heads, T, width / heads]
        out: Tensor = self.out(found.transpose(1, 2).flatten(2).to(stacked.dtype))
        return out


class Pool(nn.Module):
    """Tokens ``[N, T, width]`` to vectors ``[N, width]``: the token at a position, or with None the mean of all."""

    def __init__(self, position: int | None) -> None:
        super().__init__()
        self.position = position

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.mean(1) if self.position is None else x[:, self.position]


def _block(norm: Norm, width: int, layers: OrderedDict[str, nn.Module]) -> Block:
    """``x + layers(norm(x))``, or ``norm(x + layers(x))``."""
    normalise = nn.LayerNorm(width, EPS)
    if norm == "post":
        return Block(nn.Sequential(layers), nn.Identity(), normalise)
    return Block(nn.Sequential(OrderedDict(norm=normalise, **layers)), nn.Identity(), nn.Identity())


def vision_transformer(
    layers: Count,
    *,
    num_classes: Count = 10,
    in_channels: Count = 3,
    size: Count = 8,
    patch: Count = 2,
    width: Count = 64,
    heads: Count = 4,
    mlp_ratio: Count = 4,
    norm: Norm = "pre",
    class_token: bool = True,
) -> Network:
    """Build ``vit-L``: L layers of attention and MLP, 2L blocks; attention is the blocks 0, 2, ..., MLP 1, 3, ...

    The defaults are for digits of 8x8 pixels: 16 patches are enough for attention to have a choice, and a step of
    training costs little. For CIFAR-10, ``size=32 patch=4`` gives 64, as is usual there.

    Args:
        layers: L.
        num_classes: length of the logits.
        in_channels: channels of the images.
        size: of the images, in pixels; there is a learned position for each of their patches.
        patch: pixels along the side of a patch; divides `size`.
        width: of the tokens.
        heads: of the attention; divides `width`.
        mlp_ratio: the MLP's hidden layer is so many times as wide as the tokens; GELU follows it.
        norm: ``"pre"`` or ``"post"``, where LayerNorm stands.
        class_token: the classifier reads a token of its own that starts with no patch; False: the mean of all tokens.

    Raises:
        UsageError: a count below 1, a patch or heads that do not divide, or an unknown norm.
    """
    options = dict(locals())
    name = f"vit-{layers}"
    check_arguments(vision_transformer, options, name)
    del options["layers"]
    for whole, part in (("size", "patch"), ("width", "heads")):
        if options[whole] % options[part]:
            found = f"{part}={options[part]}, {whole}={options[whole]}"
            raise UsageError(f"{name}: {part} must divide {whole}, found {found}")

    blocks = []
    for _ in range(layers):
        blocks.append(_block(norm, width, OrderedDict(attention=Attention(width, heads))))
        hidden = mlp_ratio * width
        mlp = OrderedDict[str, nn.Module](fc1=nn.Linear(width, hidden), gelu=nn.GELU(), fc2=nn.Linear(hidden, width))
        blocks.append(_block(norm, width, mlp))
    stem = PatchEmbedding(
        nn.Conv2d(in_channels, width, patch, stride=patch),
        nn.Parameter(torch.empty(1, 1, width)) if class_token else None,
        nn.Parameter(torch.empty(1, (size // patch) ** 2 + class_token, width)),
        size,
    )
    head = OrderedDict[str, nn.Module](norm=nn.LayerNorm(width, EPS)) if norm == "pre" else OrderedDict()
    head.update(pool=Pool(0 if class_token else None), fc=nn.Linear(width, num_classes))
    network = Network(stem, blocks, nn.Sequential(head), name=name, options=options)
    _initialize(network)
    return network


@torch.no_grad()
def _initialize(network: nn.Module) -> None:
    """Draw the weights as the authors do, and all biases as 0.

    Linear layers uniformly (Glorot and Bengio 2010, "Xavier"), queries, keys and values as one layer; patches from
    N(0, 1 / inputs); positions and the class token from N(0, 0.02²). The classifier is drawn, too: as zeros, which it
    is in the authors' code, it would let no gradient through to the blocks at first.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
        elif isinstance(module, PatchEmbedding):
            for embedding in module.parameters(recurse=False):
                nn.init.normal_(embedding, std=0.02)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
