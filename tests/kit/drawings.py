"""What every drawing is held to."""

import itertools

from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Text


def fits(fig):
    """Every text is large enough, in the figure, in its box if it has one, and on no other text; shapes too."""
    fig.canvas.draw()
    texts = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text()]
    extents = {text: text.get_window_extent() for text in texts}
    for text, extent in extents.items():
        assert fig.bbox.x0 <= extent.x0 and extent.x1 <= fig.bbox.x1, text
        assert fig.bbox.y0 <= extent.y0 and extent.y1 <= fig.bbox.y1, text
        assert text.get_fontsize() >= 6.5, text
    for one, other in itertools.combinations(texts, 2):
        assert not extents[one].overlaps(extents[other]), (one, other)
    panels = [ax.get_window_extent() for ax in fig.axes]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(panels, 2))
    for ax, panel in zip(fig.axes, panels, strict=True):
        for patch in ax.patches:
            box = patch.get_window_extent()
            assert panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
        solid = [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch | Rectangle)]
        boxes = [patch.get_window_extent() for patch in solid]
        for patch, box in zip(solid, boxes, strict=True):
            inside = [t for t in ax.texts if box.contains(*ax.transData.transform(t.get_position()))]
            assert len(inside) == isinstance(patch, FancyBboxPatch)
            assert all(box.x0 < extents[text].x0 and extents[text].x1 < box.x1 for text in inside)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
