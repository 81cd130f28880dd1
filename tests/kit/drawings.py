"""What every drawing is held to."""

import itertools

from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text


def fits(fig):
    """Everything is in the figure; every text is large enough, on no other text, and in its box if it has one."""
    fig.canvas.draw()
    texts = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text()]
    patches = [patch for ax in fig.axes for patch in ax.patches]
    extents = {artist: artist.get_window_extent() for artist in [*texts, *patches]}
    for artist, extent in extents.items():
        assert fig.bbox.x0 <= extent.x0 and extent.x1 <= fig.bbox.x1, artist
        assert fig.bbox.y0 <= extent.y0 and extent.y1 <= fig.bbox.y1, artist
    assert min(text.get_fontsize() for text in texts) >= 6.5
    for one, other in itertools.combinations(texts, 2):
        assert not extents[one].overlaps(extents[other]), (one, other)
    boxes = [patch for patch in patches if isinstance(patch, FancyBboxPatch)]
    for box in boxes:
        (text,) = [text for text in texts if extents[text].overlaps(extents[box])]
        assert extents[box].x0 < extents[text].x0 and extents[text].x1 < extents[box].x1, text
