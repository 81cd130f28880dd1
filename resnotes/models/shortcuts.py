"""Shortcut connections: what goes around the residual branch (He et al. 2015, Sec. 3.3; He et al. 2016, Fig. 2).

A shortcut is named by one string, with its numbers after a colon:

    A                    identity; where the shape changes, every stride-th pixel and channels of zeros
    B                    identity; where the shape changes, a 1x1 convolution and BN
    C                    a 1x1 convolution and BN everywhere                    (He et al. 2016, Fig. 2e)
    scaling:λ            λ x + F(x)                                             (Eq. 6)
    scaling:λ,μ          λ x + μ F(x)                                           (Fig. 2b)
    exclusive-gating:b   (1 - g(x)) x + g(x) F(x), g(x) = σ(W x + b)            (Fig. 2c)
    shortcut-gating:b    (1 - g(x)) x + F(x)                                    (Fig. 2d)
    dropout:p            dropout(x) + F(x)                                      (Fig. 2f)

From scaling on, x stands for option A's identity where the shape changes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.errors import UsageError
from resnotes.models.network import Block

# How many numbers follow the name, at least and at most, and between what limits they lie.
KINDS: dict[str, tuple[int, int, float, float]] = {
    "A": (0, 0, 0, 0),
    "B": (0, 0, 0, 0),
    "C": (0, 0, 0, 0),
    "scaling": (1, 2, -math.inf, math.inf),
    "exclusive-gating": (1, 1, -math.inf, math.inf),
    "shortcut-gating": (1, 1, -math.inf, math.inf),
    "dropout": (1, 1, 0, 1),
}
FORMS = "A, B, C, scaling:λ, scaling:λ,μ, exclusive-gating:b, shortcut-gating:b, dropout:p (0 <= p < 1)"


def parse(shortcut: str) -> tuple[str, tuple[float, ...]]:
    """Name and numbers of a shortcut: ``"scaling:0.5,1"`` gives ``("scaling", (0.5, 1.0))``.

    Raises:
        UsageError: an unknown name, or numbers that it does not take.
    """
    kind, colon, text = str(shortcut).partition(":")
    try:
        values = tuple(float(part) for part in text.split(",")) if colon else ()
        least, most, low, high = KINDS[kind]
        taken = least <= len(values) <= most and all(math.isfinite(v) and low <= v < high for v in values)
    except (KeyError, ValueError):
        taken = False
    if not taken or " " in text:  # a label is taken apart at its spaces
        raise UsageError(f"unknown shortcut {shortcut!r}; allowed: {FORMS}")
    return kind, values


class ZeroPadShortcut(nn.Module):
    """Option A: take every `stride`-th pixel and add channels of zeros, half before and half after.

    Parameter-free, so that plain and residual networks have equal parameter counts (He et al. 2015, Sec. 3.3).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        missing = out_channels - in_channels
        self.before, self.after = missing // 2, missing - missing // 2

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]``."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class Scale(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """``factor * x``, any shape."""
        return self.factor * x

    def extra_repr(self) -> str:
        """The factor."""
        return f"{self.factor:g}"


class SkipInit(nn.Module):
    """Multiplication by a learned scalar, at the end of a residual branch (De & Smith 2020, Sec. 3).

    Args:
        alpha: what the scalar starts from; at 0 the branch contributes nothing at first.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def forward(self, x: Tensor) -> Tensor:
        """``alpha * x``, any shape."""
        return self.alpha * x


class Gate(nn.Module):
    """g(x) = σ(W x + b), a 1x1 convolution, one gate for each element of the unit's output.

    Args:
        in_channels: channels of x.
        out_channels: channels of the unit's output.
        stride: of the unit.
        bias: what b starts from (b_g in He et al. 2016, Table 1): at -6 the gates begin nearly closed.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, bias: float) -> None:
        super().__init__()
        self.initial_bias = bias
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride)

    @torch.no_grad()
    def reset_bias(self) -> None:
        """Set every bias to its initial value."""
        assert self.conv.bias is not None
        nn.init.constant_(self.conv.bias, self.initial_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W]`` to gates between 0 and 1, ``[N, out, ceil(H / stride), ceil(W / stride)]``."""
        gates: Tensor = self.conv(x).sigmoid()
        return gates


class GatedResidual(nn.Module):
    """``g(x) * branch(x)``."""

    def __init__(self, branch: nn.Module, gate: Gate) -> None:
        super().__init__()
        self.branch = branch
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Of the branch's shape."""
        out: Tensor = self.gate(x) * self.branch(x)
        return out


class GatedShortcut(nn.Module):
    """``(1 - g(x)) * branch(x)``.

    Args:
        branch: the shortcut to be gated.
        gate: g.
        shared: whether g belongs to the residual branch, too. It is a submodule there and only there: in two
            places, its weights would appear twice in the state dict.
    """

    def __init__(self, branch: nn.Module, gate: Gate, *, shared: bool) -> None:
        super().__init__()
        self.branch = branch
        if shared:
            self.__dict__["gate"] = gate
        else:
            self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Of the branch's shape."""
        out: Tensor = (1 - self.gate(x)) * self.branch(x)
        return out


class ExclusiveGatingBlock(Block):
    """A block of exclusive gating, ``after((1 - g(x)) * shortcut + g(x) * residual)``, that computes g once."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit to ``x``, ``[N, C, H, W]``."""
        residual, shortcut = cast(GatedResidual, self.residual), cast(GatedShortcut, self.shortcut)
        gates = residual.gate(x)
        out: Tensor = self.after((1 - gates) * shortcut.branch(x) + gates * residual.branch(x))
        return out


def _projection(in_channels: int, out_channels: int, stride: int, batch_norm: bool) -> nn.Module:
    layers = OrderedDict[str, nn.Module](conv=nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
    if batch_norm:
        layers["bn"] = nn.BatchNorm2d(out_channels)
    return nn.Sequential(layers)


def build_shortcut(
    shortcut: str, residual: nn.Sequential, in_channels: int, out_channels: int, stride: int, *, batch_norm: bool = True
) -> tuple[nn.Module, nn.Module]:
    """The shortcut of a unit, and its residual branch as that shortcut changes it (scales or gates it).

    Args:
        shortcut: see the head of this module.
        residual: the branch F, ``[N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]``.
        in_channels: channels of the unit's input.
        out_channels: channels of the unit's output.
        stride: of the unit.
        batch_norm: whether projections are followed by BN.

    Raises:
        UsageError: see `parse`.
    """
    kind, values = parse(shortcut)
    same = in_channels == out_channels and stride == 1
    if kind == "C" or (kind == "B" and not same):
        return _projection(in_channels, out_channels, stride, batch_norm), residual

    skip = nn.Identity() if same else ZeroPadShortcut(in_channels, out_channels, stride)
    if kind == "scaling":
        if values[1:] not in ((), (1.0,)):
            residual.append(Scale(values[1]))
        return _then(skip, Scale(values[0])), residual
    if kind == "dropout":
        return _then(skip, nn.Dropout(values[0])), residual
    if kind.endswith("gating"):
        gate = Gate(in_channels, out_channels, stride, values[0])
        exclusive = kind == "exclusive-gating"
        gated = GatedShortcut(skip, gate, shared=exclusive)
        return gated, GatedResidual(residual, gate) if exclusive else residual
    return skip, residual


def _then(first: nn.Module, second: nn.Module) -> nn.Module:
    return second if isinstance(first, nn.Identity) else nn.Sequential(first, second)
