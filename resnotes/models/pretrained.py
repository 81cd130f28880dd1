"""Weights that others trained on ImageNet, from which the encoder of a segmentation network starts.

They are state dicts under torchvision's names, in the folder ``weights/`` beside the data sets: a file of PyTorch, a
checkpoint of a training, or of safetensors. The address of a run holds the name of the file, and torchvision's names
hold the first digits of the file's checksum: ``resnet50-11ad3fa6.pth``.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from torch import nn

from resnotes.errors import UsageError
from resnotes.models.segmentation import SegmentationNetwork
from resnotes.models.weights import read_weights, without_prefix
from resnotes.paths import weights_root

PUBLISHED = "https://download.pytorch.org/models"  # torchvision's weights, under the names of their files
_HEADS = ("fc.", "linear.", "last_linear.", "classifier.", "aux_classifier.", "head.")  # which an encoder has none of


def load_pretrained(network: nn.Module, file: str) -> str:
    """Load the weights of a classifier into the encoder of `network`.

    Args:
        network: for segmentation.
        file: name of a file in `resnotes.paths.weights_root` with the state dict of a classifier, such as torchvision's
            ``resnet50-11ad3fa6.pth``. How many classes it tells apart does not matter.

    Returns:
        The SHA-256 of the file, 64 hex digits.

    Raises:
        UsageError: a path in place of a name, a network without an encoder, or one that the weights do not fit.
        DatasetError: see `resnotes.models.weights.read_weights`; a file with a checksum in its name must have that.
    """
    if not isinstance(file, str) or not file or "\0" in file or Path(file).name != file:
        raise UsageError(f"pretrained must be the name of a file in {weights_root()}, found {file!r}")
    if not isinstance(network, SegmentationNetwork):
        name = getattr(network, "name", type(network).__name__)
        raise UsageError(f"{name} cannot start from {file}: only encoders of segmentation networks are pretrained")
    named = re.search(r"-(?=\d*[a-f])([0-9a-f]{8,})\.", file)  # eight digits and no letter are a date
    how = (
        f"get {PUBLISHED}/{file}, if it is torchvision's, and put it there, or set RESNOTES_DATA to the folder that has"
        " weights/"
    )
    state, digest = read_weights(weights_root() / file, named[1] if named else "", how)
    state = without_prefix(state, network.encoder.state_dict())
    try:
        network.encoder.load_state_dict({key: value for key, value in state.items() if not key.startswith(_HEADS)})
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)  # PyTorch lists all keys that are missing
        raise UsageError(f"the weights do not fit the encoder of {network.name}: {reason}") from error
    return digest
