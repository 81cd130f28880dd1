"""The FCN baseline and PSPNet (Zhao et al. 2017, arXiv 1612.01105): one network, pyramid pooling off or on.

A residual encoder whose last stages spread their filters instead of striding, pyramid pooling, a head, and in
training an auxiliary head on the last stage but one. Without bins, pyramid pooling is the identity, and the network
is the paper's baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.datasets.segmentation import IGNORED as IGNORED
from resnotes.errors import UsageError, unknown
from resnotes.models.imagenet import LAYOUTS, OUTPUT_STRIDES, Encoder
from resnotes.models.network import initialize
from resnotes.typed import NOT_NEGATIVE, Count, Rule, check_arguments

BINS = (1, 2, 3, 6)
POOLINGS = {"average": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}
SMALL, SMALL_DEPTHS = "small", (1, 1, 1, 1)  # the encoder for small images and 2 cores

SHARE = Rule("must be at least 0 and below 1", lambda value: 0 <= value < 1)
STAGES = Rule("must be of two stages or more", lambda values: len(values) > 1)

NAMES = tuple(f"{family}-{encoder}" for family in ("fcn", "pspnet") for encoder in (SMALL, *LAYOUTS))


class Outputs(NamedTuple):
    """What a network puts out in train mode.

    Attributes:
        logits: ``[N, num_classes, H, W]``.
        auxiliary: those of the auxiliary head, of the same shape; None without one.
    """

    logits: Tensor
    auxiliary: Tensor | None


class PooledBatchNorm(nn.BatchNorm2d):
    """BN that uses its running statistics where a batch has a single value per channel, even in training.

    One image pooled to one cell has no variance: PyTorch's own BN refuses it. Here such a batch neither moves the
    running statistics. (Synchronised BN, which has the values of all processes, takes this layer's place in
    `nn.SyncBatchNorm.convert_sync_batchnorm`.)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, ``[N, C, h, w]``."""
        if self.training and x.numel() == self.num_features:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class PyramidPooling(nn.Module):
    """The map beside itself pooled to a few grids, upsampled again (Zhao et al. 2017, Fig. 3 (c)).

    Maps ``[N, channels, h, w]`` to ``[N, out_channels, h, w]``, the map itself first. Upsampling aligns the corners,
    as the authors' code does.

    Args:
        channels: C, channels of the map.
        bins: side of each grid; without any, the module is the identity.
        pooling: a key of `POOLINGS`.
        reduction: a 1x1 convolution to C / len(bins) channels on each grid, BN and ReLU ("DR" in Table 1); otherwise
            the grids keep their C channels and have no weights.
    """

    def __init__(self, channels: int, bins: Sequence[int], *, pooling: str = "average", reduction: bool = True) -> None:
        super().__init__()
        self.bins, self.pooling, self.reduction = tuple(bins), pooling, reduction
        self.channels = channels
        self.level_channels = max(1, channels // len(bins)) if reduction and bins else channels
        self.out_channels = channels + len(bins) * self.level_channels
        self.levels = nn.ModuleList(self._level(side) for side in bins)

    def _level(self, side: int) -> nn.Sequential:
        pool = POOLINGS[self.pooling](side)
        if not self.reduction:
            return nn.Sequential(pool)
        convolution = nn.Conv2d(self.channels, self.level_channels, 1, bias=False)
        return nn.Sequential(pool, convolution, PooledBatchNorm(self.level_channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Apply to ``x``, ``[N, channels, h, w]``."""
        size = x.shape[2:]
        pooled = [F.interpolate(level(x), size, mode="bilinear", align_corners=True) for level in self.levels]
        return torch.cat([x, *pooled], 1) if pooled else x


def upsample(cells: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """``[N, C, h, w]`` to ``[N, C, *size]``: bilinear interpolation between the pixels that cells are centred on.

    On a side of a multiple of `stride` plus 1, such as the paper's 473, this is the authors' own, which aligns the
    corners. On other sides theirs would stretch the map; here the last cell is repeated up to the border.
    """
    height, width = ((n - 1) * stride + 1 for n in cells.shape[2:])
    precise = torch.promote_types(cells.dtype, torch.float32)  # as the loss needs it: cheaper for cells than for pixels
    x = F.interpolate(cells.to(precise), (height, width), mode="bilinear", align_corners=True)
    return F.pad(x, (0, size[1] - width, 0, size[0] - height), mode="replicate")


def _head(in_channels: int, width: int, num_classes: int, dropout: float, dilation: int = 1) -> nn.Sequential:
    """3x3 convolution, BN, ReLU, dropout and a 1x1 classifier: a map to logits for each of its cells."""
    head = nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout2d(dropout),  # of whole channels, as in the authors' PyTorch code
        classifier := nn.Conv2d(width, num_classes, 1),
    )
    initialize(head)
    # "Fan out" would start with logits far from 0 for few classes: as elsewhere, a classifier keeps PyTorch's weights.
    classifier.reset_parameters()
    nn.init.zeros_(cast(Tensor, classifier.bias))
    return head


def _check(name: str, given: Mapping[str, Any]) -> None:
    """Refuse what no network of that name can take."""
    family, _, encoder = name.partition("-")
    absent = [*(["bins", "pooling", "reduction"] if family == "fcn" else []), *(["depths"] if encoder != SMALL else [])]
    if surplus := [option for option in absent if option in given]:
        raise UsageError(f"{name} takes no option {surplus[0]!r}")
    stages = len(given.get("depths", SMALL_DEPTHS))  # of ResNets, four as well
    if "dilations" in given and len(given["dilations"]) != stages + 1:
        found = len(given["dilations"])
        raise UsageError(f"{name}: dilations are one for each of {stages} stages and one for the head, found {found}")
    strides = (4, 8) if encoder == SMALL else OUTPUT_STRIDES
    if given.get("output_stride", 8) not in strides:
        raise unknown("output stride", given["output_stride"], strides)


class SegmentationNetwork(nn.Module):
    """Encoder, pyramid pooling, head, and an auxiliary head for training; with freshly drawn weights.

    Normalised images ``[N, in_channels, H, W]`` of any size become logits ``[N, num_classes, H, W]``; in train mode,
    `Outputs`. One seed draws the same encoder and auxiliary head for every pyramid and head.

    Table 1 of the paper: the baseline is ``fcn-resnet50``; B1+MAX ``pspnet-resnet50`` with ``bins=(1,)``,
    ``pooling="max"`` and ``reduction=False``; B1236+AVE+DR ``pspnet-resnet50`` as it is. Table 2: ``fcn-resnet50``
    with ``auxiliary=0``, 0.3, 0.4, 0.6 and 0.9.

    The first block of a dilated stage reads the spacing of the map that it gets, as in torchvision; the authors' code
    spreads it, too.

    Args:
        name: out of `NAMES`: ``fcn`` or ``pspnet``, and the encoder, ``resnet18`` to ``resnet152``, or ``small``.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: channels of the stem; 64 by default, 16 for the small encoder.
        depths: blocks per stage, of two stages or more; for the small encoder alone, by default `SMALL_DEPTHS`.
        output_stride: pixels per cell of the last map; 8 by default, for the small encoder 4 (or 8).
        dilations: for each stage and, last, the head: how many times farther apart the taps of its 3x3 convolutions
            are, which enlarges the field and adds no weight; 1 by default. As elsewhere, the first convolution of a
            stage has the spacing of the stage before. Doubled from stage to stage, the field has no holes (Yu and
            Koltun 2016, arXiv 1511.07122).
        bins: side of each grid of PSPNet's pyramid; by default `BINS`, and () makes it the FCN.
        pooling: PSPNet's pooling, ``"average"`` by default, or ``"max"``.
        reduction: whether PSPNet's grids get fewer channels; True by default.
        head_width: channels of the head's 3x3 convolution; by default a quarter of the last map's.
        auxiliary: weight of the auxiliary loss; 0 for no auxiliary head.
        dropout: share of the channels that are dropped before the classifiers, in training.

    Attributes:
        name: as above.
        options: as above, those that were given, so that the network can be built again.
        auxiliary: the auxiliary head, or None.
        auxiliary_weight: weight of its loss.

    Raises:
        UsageError: an unknown output stride, an option that the network does not have, or a strange value.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: Count = 150,
        in_channels: Count = 3,
        width: Count | None = None,
        depths: Annotated[tuple[Count, ...], STAGES] | None = None,
        output_stride: int | None = None,
        dilations: tuple[Count, ...] | None = None,
        bins: tuple[Count, ...] | None = None,
        pooling: Literal["average", "max"] | None = None,
        reduction: bool | None = None,
        head_width: Count | None = None,
        auxiliary: Annotated[float, NOT_NEGATIVE] = 0.4,
        dropout: Annotated[float, SHARE] = 0.1,
    ) -> None:
        given = {option: value for option, value in locals().items() if option not in ("self", "name", "__class__")}
        check_arguments(SegmentationNetwork.__init__, given, name)
        options = {option: value for option, value in given.items() if value is not None}
        _check(name, options)
        super().__init__()
        self.name, self.options = name, options
        family, _, encoder = name.partition("-")
        small = encoder == SMALL
        self.encoder = Encoder(
            *((False, tuple(depths or SMALL_DEPTHS)) if small else LAYOUTS[encoder]),
            in_channels=in_channels,
            width=width or (16 if small else 64),
            output_stride=output_stride or (4 if small else 8),
            small=small,
            dilations=(dilations or ())[:-1],
        )
        initialize(self.encoder)
        *_, before, last = self.encoder.channels
        self.auxiliary_weight = auxiliary
        self.auxiliary = _head(before, max(1, before // 4), num_classes, dropout) if auxiliary else None
        grids = () if family == "fcn" else BINS if bins is None else bins
        self.pyramid = PyramidPooling(last, grids, pooling=pooling or "average", reduction=reduction is not False)
        initialize(self.pyramid)
        self.head = _head(
            self.pyramid.out_channels, head_width or max(1, last // 4), num_classes, dropout, (dilations or (1,))[-1]
        )

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """Logits ``[N, num_classes, H, W]`` of images ``[N, in_channels, H, W]``; in train mode, `Outputs`."""
        size = (images.shape[2], images.shape[3])
        *_, stride_before, stride = self.encoder.strides
        before, x = self.encoder(images)
        logits = upsample(self.head(self.pyramid(x)), size, stride)
        if not self.training:
            return logits
        return Outputs(
            logits, None if self.auxiliary is None else upsample(self.auxiliary(before), size, stride_before)
        )

    def loss(self, outputs: Outputs, labels: Tensor, *, ignore_index: int = IGNORED) -> Tensor:
        """Mean cross-entropy per labelled pixel, in nats, plus the auxiliary head's by its weight.

        A batch without a labelled pixel has loss 0.

        Args:
            outputs: of this network, in train mode.
            labels: int64 ``[N, H, W]``.
            ignore_index: label of pixels that do not count.
        """
        labelled = (labels != ignore_index).sum().clamp(min=1)

        def mean(logits: Tensor) -> Tensor:
            # Channels last, as the logits lie in memory: otherwise they are copied several times.
            pixels = logits.permute(0, 2, 3, 1).flatten(0, 2)
            return F.cross_entropy(pixels, labels.flatten(), ignore_index=ignore_index, reduction="sum") / labelled

        if outputs.auxiliary is None:
            return mean(outputs.logits)
        return mean(outputs.logits) + self.auxiliary_weight * mean(outputs.auxiliary)
