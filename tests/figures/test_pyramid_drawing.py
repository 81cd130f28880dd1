"""The drawing of pyramid pooling."""

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text

from resnotes import figures
from resnotes.errors import UsageError
from resnotes.figures.pspnet import pyramid_pooling
from resnotes.models.segmentation import SegmentationNetwork


@pytest.mark.parametrize("options", [{}, {"bins": (1,)}, {"bins": (1, 2, 3, 4, 6, 8), "reduction": False}])
def test_the_drawing_names_the_levels_and_fits(options: dict[str, object]) -> None:
    with mpl.rc_context({"backend": "agg"}), torch.device("meta"):
        figures.use_style()
        network = SegmentationNetwork("pspnet-resnet152", **options)  # type: ignore[arg-type]
        fig = pyramid_pooling(network)
        fig.draw_without_rendering()
        boxes = [text.get_window_extent() for text in fig.findobj(Text) if text.get_text()]
        assert all(fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 for box in boxes)
        assert all(fig.bbox.y0 <= box.y0 and box.y1 <= fig.bbox.y1 for box in boxes)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        pyramid, written = network.pyramid, [text.get_text() for text in fig.axes[0].texts]
        levels = [f"{side}×{side}" for side in pyramid.bins]
        assert [text for text in written if text in {f"{side}×{side}" for side in range(1, 9)}] == levels
        assert f"upsampled,\n{pyramid.level_channels} channels" in written
        assert "2048\nchannels" in written and f"{pyramid.out_channels}\nchannels" in written
        assert written.count("1×1 conv") == 1 + pyramid.reduction * len(pyramid.bins)
    plt.close("all")


def test_a_network_without_pyramid_is_not_drawn() -> None:
    with pytest.raises(UsageError, match="expected a pyramid of 1 to 6 levels to draw, found 0 in fcn-small"):
        pyramid_pooling(SegmentationNetwork("fcn-small", num_classes=5, width=4))
