"""The FCN baseline and PSPNet (Zhao et al. 2017, arXiv 1612.01105): one network, pyramid pooling off or on.

A residual encoder whose last stages spread their filters instead of striding, pyramid pooling, a head, and in
training an auxiliary head on the last stage but one. Without bins, pyramid pooling is the identity, and the network
is the paper's baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.datasets.segmentation import IGNORED as IGNORED
from resnotes.errors import UsageError, unknown
from resnotes.models.encoder import Encoder
from resnotes.models.imagenet import LAYOUTS, OUTPUT_STRIDES, Layout
from resnotes.models.network import check_options, count_parameters, initialize

BINS = (1, 2, 3, 6)
POOLINGS = {"average": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}
SMALL, SMALL_DEPTHS = "small", (1, 1, 1, 1)  # the encoder for small images and 2 cores

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


def _head(in_channels: int, width: int, num_classes: int, dropout: float) -> nn.Sequential:
    """3x3 convolution, BN, ReLU, dropout and a 1x1 classifier: a map to logits for each of its cells."""
    head = nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
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


class SegmentationNetwork(nn.Module):
    """Encoder, pyramid pooling, head, and an auxiliary head for training.

    Normalised images ``[N, in_channels, H, W]`` of any size become logits ``[N, num_classes, H, W]``; in train mode,
    `Outputs`. One seed draws the same encoder and auxiliary head for every pyramid and head.

    Args:
        encoder: images to the last two maps.
        num_classes: number of logits.
        bins: see `PyramidPooling`, as for the next two.
        pooling: average or maximum.
        reduction: whether the pooled grids get fewer channels.
        head_width: channels of the head's 3x3 convolution; None for a quarter of the last map's.
        auxiliary: weight of the auxiliary loss; 0 for no auxiliary head.
        dropout: share of the channels that are dropped before the classifiers, in training.

    Attributes:
        name: the name that `segmentation_network` takes.
        options: the options that it takes, so that the network can be built again.
        auxiliary: the auxiliary head, or None.
        auxiliary_weight: weight of its loss.
    """

    name: str
    options: dict[str, Any]

    def __init__(
        self,
        encoder: Encoder,
        *,
        num_classes: int,
        bins: Sequence[int],
        pooling: str = "average",
        reduction: bool = True,
        head_width: int | None = None,
        auxiliary: float = 0.4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        *_, before, last = encoder.channels
        self.encoder = encoder
        self.auxiliary_weight = auxiliary
        self.auxiliary = _head(before, max(1, before // 4), num_classes, dropout) if auxiliary else None
        self.pyramid = PyramidPooling(last, bins, pooling=pooling, reduction=reduction)
        initialize(self.pyramid)
        self.head = _head(self.pyramid.out_channels, head_width or max(1, last // 4), num_classes, dropout)

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


def new_layers(network: SegmentationNetwork) -> list[nn.Parameter]:
    """The parameters outside the encoder, which the authors' code trains at 10 times the learning rate."""
    return [parameter for name, parameter in network.named_parameters() if not name.startswith("encoder.")]


def matching_head_width(name: str, **options: Any) -> int:
    """The `head_width` with which the FCN has a PSPNet's number of parameters, to a channel: to control for capacity.

    Args:
        name: of the PSPNet, such as ``"pspnet-resnet50"``.
        options: its options.

    Raises:
        UsageError: see `segmentation_network`.
    """
    fcn = {key: value for key, value in options.items() if key not in ("bins", "pooling", "reduction", "head_width")}
    with torch.device("meta"):  # nothing is computed or drawn
        target = count_parameters(segmentation_network(name, **options))
        one, two = (
            count_parameters(segmentation_network(name.replace("pspnet", "fcn"), **fcn, head_width=width))
            for width in (1, 2)
        )
    return 1 + round((target - one) / (two - one))  # the count is linear in the width


def _check(name: str, given: Mapping[str, Any]) -> None:
    """Refuse what no network of that name can take.

    Raises:
        UsageError: names the option and what was found.
    """
    family, _, encoder = name.partition("-")
    for option in ("bins", "pooling", "reduction"):
        if family == "fcn" and option in given:
            raise UsageError(f"{name} has no pyramid pooling, so it takes no option {option!r}")
    if encoder != SMALL and "depths" in given:
        raise UsageError(f"{name} has the depths of {encoder}, so it takes no option 'depths'")
    counts = {
        option: given[option] for option in ("num_classes", "in_channels", "width", "head_width") if option in given
    }
    for option, least in (("bins", 0), ("depths", 2)):
        values = given.get(option, SMALL_DEPTHS)
        if not isinstance(values, list | tuple) or len(values) < least:
            raise UsageError(f"{name}: {option} must be a list of {least} or more numbers, found {values!r}")
        counts |= {f"{option}[{i}]": value for i, value in enumerate(values)}
    check_options(name, counts, reduction=given.get("reduction", True))
    strides = (4, 8) if encoder == SMALL else OUTPUT_STRIDES
    for option, allowed in (("pooling", list(POOLINGS)), ("output_stride", strides)):
        if option in given and given[option] not in allowed:
            raise unknown(option.replace("_", " "), given[option], allowed)
    for option, below in (("auxiliary", math.inf), ("dropout", 1)):
        value: Any = given.get(option)
        if type(value) not in (int, float) or not 0 <= value < below:
            limit = "" if below == math.inf else f" and below {below}"
            raise UsageError(f"{name}: {option} must be a number of at least 0{limit}, found {value!r}")


def segmentation_network(
    name: str,
    *,
    num_classes: int = 150,
    in_channels: int = 3,
    width: int | None = None,
    depths: Sequence[int] | None = None,
    output_stride: int | None = None,
    bins: Sequence[int] | None = None,
    pooling: str | None = None,
    reduction: bool | None = None,
    head_width: int | None = None,
    auxiliary: float = 0.4,
    dropout: float = 0.1,
) -> SegmentationNetwork:
    """Build a network of `NAMES`, with freshly drawn weights.

    Table 1 of the paper: the baseline is ``fcn-resnet50``; B1+MAX ``pspnet-resnet50`` with ``bins=(1,)``,
    ``pooling="max"`` and ``reduction=False``; B1236+AVE+DR ``pspnet-resnet50`` as it is. Table 2: ``fcn-resnet50``
    with ``auxiliary=0``, 0.3, 0.4, 0.6 and 0.9.

    The first block of a dilated stage reads the spacing of the map that it gets, as in torchvision; the authors' code
    spreads it, too.

    Args:
        name: ``fcn`` or ``pspnet``, and the encoder: ``resnet18`` to ``resnet152``, or ``small``.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: channels of the stem; 64 by default, 16 for the small encoder.
        depths: blocks per stage, of two stages or more; for the small encoder alone, by default `SMALL_DEPTHS`.
        output_stride: pixels per cell of the last map; 8 by default, for the small encoder 4 (or 8).
        bins: side of each grid of PSPNet's pyramid; by default `BINS`, and () makes it the FCN.
        pooling: PSPNet's pooling, ``"average"`` by default, or ``"max"``.
        reduction: whether PSPNet's grids get fewer channels; True by default.
        head_width: see `SegmentationNetwork`, as for the rest.
        auxiliary: weight of the auxiliary loss.
        dropout: before the classifiers.

    Returns:
        The network, in training mode.

    Raises:
        UsageError: an unknown name or output stride, an option that the network does not have, or a strange value.
    """
    options = {option: value for option, value in locals().items() if option != "name" and value is not None}
    if name not in NAMES:
        raise unknown("network", name, NAMES)
    _check(name, options)
    family, _, encoder_name = name.partition("-")
    small = encoder_name == SMALL
    encoder = Encoder(
        Layout("BasicBlock", tuple(depths or SMALL_DEPTHS)) if small else LAYOUTS[encoder_name],
        in_channels=in_channels,
        width=width or (16 if small else 64),
        output_stride=output_stride or (4 if small else 8),
        small=small,
    )
    initialize(encoder)
    network = SegmentationNetwork(
        encoder,
        num_classes=num_classes,
        bins=() if family == "fcn" else BINS if bins is None else bins,
        pooling=pooling or "average",
        reduction=reduction is not False,
        head_width=head_width,
        auxiliary=auxiliary,
        dropout=dropout,
    )
    network.name, network.options = name, options
    return network
