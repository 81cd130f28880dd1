"""Every figure of a test has the style of the suite, and is closed at its end."""

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from resnotes import figures


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with mpl.rc_context({"backend": "agg"}):
        figures.use_style()
        yield
    plt.close("all")
