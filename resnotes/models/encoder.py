"""Residual encoders for dense prediction: the last stages may spread their filters instead of striding.

Every convolution and pooling is padded alike on all sides. Cell i of a map is therefore centred on pixel i * stride of
the image, whatever the image's size.
"""

from __future__ import annotations

from torch import Tensor

from resnotes.models.imagenet import Trunk


class Encoder(Trunk):
    """Images ``[N, in_channels, H, W]`` to the last two stages' maps; for its arguments, see `Trunk`."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of the last stage but one and of the last, ``[N, channels[i], h, w]``."""
        before = x = self.stem(images)
        for stage in self.layers:
            before, x = x, stage(x)
        return before, x
