"""torchvision's residual blocks, computed shortcut first. Imported when a network is built: torchvision takes seconds.

Where a map has more readers than these two, the order of its gradients decides how their sum is rounded: with
torchvision's order, recorded segmentation networks would train to other last digits.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.models import resnet

from resnotes.models.imagenet import as_block


def _forward(block: Any, x: Tensor) -> Tensor:
    parts = as_block(block)
    shortcut = parts.shortcut(x)  # type: ignore[misc]
    out: Tensor = parts.after(shortcut + parts.residual(x))
    return out


class BasicBlock(resnet.BasicBlock):  # type: ignore[misc]
    """Two 3x3 convolutions (He et al. 2015, Fig. 5 left)."""

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``relu(shortcut(x) + residual(x))``."""
        return _forward(self, x)


class Bottleneck(resnet.Bottleneck):  # type: ignore[misc]
    """1x1, 3x3 and 1x1 convolutions (He et al. 2015, Fig. 5 right)."""

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``relu(shortcut(x) + residual(x))``."""
        return _forward(self, x)
