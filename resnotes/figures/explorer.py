"""The lesion explorer: delete and swap blocks of trained networks by hand, and watch what becomes of them.

`resnotes.figures.examination` does the arithmetic, `draw` the figure, `Explorer` puts controls above it, and `explore`
shows it all at the end of a notebook.

Controls are of use only where somebody is there to move them, and a saved view of them is an error message wherever
their kernel is gone. `explore` therefore makes them only where `resnotes.progress.attended`; papermill, nbconvert and
nbval get the figure alone.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from resnotes.datasets import Classification
from resnotes.errors import UsageError
from resnotes.figures.style import style_for
from resnotes.progress import attended
from resnotes.models import Network
from resnotes.figures.examination import IMAGES, TRACED, Outcome, Subject, swapped
from resnotes.unravel.lengths import length_distribution, mean_length
from resnotes.unravel.lesions import Lesion, random_deletions

ROWS, COLUMNS = 2, 6  # of thumbnails

VIEW = "application/vnd.jupyter.widget-view+json"
INTACT, GONE, MOVED, WRONG, RIGHT = "#BDBDBD", "#8A8A8A", "#E69F00", "#D55E00", "#00795A"
WIDTH, HEIGHT, DPI = 10.0, 3.8, 160


def draw(subject: Subject, outcome: Outcome, title: str) -> Figure:
    """The blocks as they stand, the error, predictions that changed, and the gradient by path length.

    Grey is the intact network, and the network's own colour is what became of it.

    Args:
        subject: the network.
        outcome: of a lesion to it.
        title: name of the network.

    Returns:
        A figure that pyplot does not know: no notebook shows it of its own accord.
    """
    # Places are fixed, so that nothing jumps from one update to the next; a layout engine would take longer, too.
    fig = Figure(figsize=(WIDTH, HEIGHT))
    fig.set_layout_engine("none")
    color = style_for(subject.network.name)["color"]
    _draw_blocks(fig.add_axes((0.01, 0.775, 0.98, 0.14)), subject, outcome.lesion, color)
    name = fig.text(0.01, 0.955, title, fontsize=10, fontweight="bold", va="center")
    beside = subject.structure(outcome.lesion)
    fig.axes[0].annotate(beside, (1, 0.5), xycoords=name, xytext=(8, 0), textcoords="offset points", va="center")
    _draw_error(fig.add_axes((0.04, 0.115, 0.11, 0.53)), subject, outcome, color)
    _draw_changes(fig.add_axes((0.20, 0.015, 0.44, 0.63)), subject, outcome)
    _draw_spectrum(fig.add_axes((0.69, 0.115, 0.295, 0.53)), subject, outcome, color)
    return fig


def _draw_blocks(ax: Axes, subject: Subject, lesion: Lesion, color: str) -> None:
    """A box for each position, with the number of the block that stands there; gaps between stages."""
    stages = subject.network.stages
    gaps = [stage for stage, count in enumerate(stages) for _ in range(count)]
    size = min(6.5, 6.5 * 60 / len(gaps))
    dark = np.dot(to_rgb(color), (0.299, 0.587, 0.114)) < 0.55
    for position, (block, gap) in enumerate(zip(lesion.order or range(len(gaps)), gaps, strict=True)):
        deleted, moved = block in lesion.deleted, block != position
        edge, fill, text = (GONE, "white", GONE) if deleted else (color, color, "white" if dark else "black")
        x = position + 0.6 * gap
        ax.add_patch(Rectangle((x + 0.06, 0.1), 0.88, 0.8, facecolor=fill, edgecolor=edge, linewidth=0.7))
        if deleted:
            ax.plot([x + 0.06, x + 0.94], [0.1, 0.9], color=GONE, linewidth=0.6)
        if moved:
            ax.add_patch(Rectangle((x + 0.06, -0.16), 0.88, 0.16, color=MOVED, linewidth=0))
        label = ax.text(x + 0.5, 0.48, str(block), color=text, fontsize=size, ha="center", va="center")
        if deleted:
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    ax.set(xlim=(0, max(30, len(gaps) + 0.6 * (len(stages) - 1))), ylim=(-0.2, 1))
    ax.axis("off")
    handles = [
        Patch(facecolor=color, label="block"),
        Patch(facecolor="white", edgecolor=GONE, linewidth=0.7, label="deleted"),
        Patch(facecolor=MOVED, label="elsewhere than built"),
    ]
    ax.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0, handlelength=1)


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=8)


def _draw_error(ax: Axes, subject: Subject, outcome: Outcome, color: str) -> None:
    errors = [subject.intact.error, outcome.error]
    bars = ax.bar(["intact", "now"], errors, color=[INTACT, color], width=0.7)
    ax.bar_label(bars, [f"{error:.1f}" for error in errors], fontsize=7, padding=1)
    ax.set(ylim=(0, max(10, 1.15 * max(errors))), xlim=(-0.6, 1.6))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.tick_params(axis="x", length=0)
    ax.grid(False, axis="x")
    _title(ax, "error, %")


def _draw_changes(ax: Axes, subject: Subject, outcome: Outcome) -> None:
    """Images whose prediction changed, each below its class; what it was and now is taken for stands under it."""
    box = ax.get_position()
    width, height = box.width * WIDTH, box.height * HEIGHT  # the axes' units are inches
    changed = subject.changed(outcome)
    before, after, truth = subject.intact.predictions, outcome.predictions, subject.labels
    long = max(map(len, subject.classes)) > 3
    side = 0.62
    for place, i in enumerate(changed[: ROWS * COLUMNS]):
        row, column = divmod(place, COLUMNS)
        x, y = (column + 0.5) * width / COLUMNS, height - row * height / ROWS - 0.16
        raw = subject.raw[i].permute(1, 2, 0).numpy()
        extent = (x - side / 2, x + side / 2, y - side, y)
        ax.imshow(raw, cmap="gray_r", vmin=0, vmax=255, extent=extent, interpolation="nearest")
        ax.add_patch(Rectangle((x - side / 2, y - side), side, side, fill=False, edgecolor=INTACT, linewidth=0.5))
        ax.text(x, y + 0.03, subject.classes[truth[i]], fontsize=7, ha="center", va="bottom")
        right = bool(after[i] == truth[i])
        was, now = subject.classes[before[i]], subject.classes[after[i]]
        ax.text(
            x,
            y - side - 0.04,
            f"{was}{chr(10) if long else ' '}→ {now} {'✓' if right else '✗'}",
            fontsize=6.5 if long else 7.5,
            color=RIGHT if right else WRONG,
            ha="center",
            va="top",
        )
    if not changed:
        ax.text(width / 2, height / 2, "every prediction as before", color=GONE, ha="center", va="center")
    ax.set(xlim=(0, width), ylim=(0, height), aspect="auto")
    ax.axis("off")
    shown = f"; the first {ROWS * COLUMNS}" if len(changed) > ROWS * COLUMNS else ""
    _title(ax, f"{len(changed)} of {len(truth)} predictions changed{shown}")


def _draw_spectrum(ax: Axes, subject: Subject, outcome: Outcome, color: str) -> None:
    blocks, left = len(subject.network.blocks), len(subject.network.blocks) - len(outcome.lesion.deleted)
    if subject.intact.shares is not None:
        mean = mean_length(subject.intact.shares)
        ax.bar(range(blocks + 1), subject.intact.shares, color=INTACT, width=0.9, label=f"intact, mean {mean:.1f}")
    if outcome.shares is not None:
        shares = outcome.shares[: left + 1]  # no path is longer than the blocks that are left
        mean = mean_length(shares)
        ax.plot(
            range(left + 1), shares, color=color, marker="o", markersize=2.2, linewidth=1, label=f"now, mean {mean:.1f}"
        )
    else:
        ax.plot([], [], color=color, label="now: the gradient is zero or not finite")
    if ways := subject.ways(outcome.lesion):
        paths = [float(share) for share in length_distribution(ways)]
        mean = left - ways / 2  # blocks without a shortcut are on every path
        ax.plot(
            range(left - ways, left + 1),
            paths,
            color="black",
            linestyle=":",
            linewidth=1,
            label=f"paths now, mean {mean:.1f}",
        )
    ax.set(xlim=(-0.9, blocks + 0.9))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.axhline(0, color="black", linewidth=0.6)
    ax.set_ylim(top=1.35 * ax.get_ylim()[1])  # room for the legend, where nothing is drawn
    ax.legend(loc="upper right")
    ax.set_xlabel("path length: residual branches on the way", labelpad=2)
    _title(ax, f"share of the gradient ({len(subject.traced)} images), and of all paths")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


class Explorer:
    """Controls for lesions, and the figure of what they do.

    Every part has a CSS class of its own, ``resnotes-explorer-<part>`` or ``resnotes-block-<number>``.

    Args:
        networks: trained networks by name, at least one.
        data: see `Subject`.
        images: see `Subject`.
        traced: see `Subject`.

    Attributes:
        lesion: as the controls have it.
        outcome: of that lesion.
        widget: all of it, to be displayed.

    Raises:
        UsageError: see `Subject`.
    """

    def __init__(
        self, networks: Mapping[str, Network], data: Classification, *, images: int = IMAGES, traced: int = TRACED
    ) -> None:
        self._subjects = {
            name: Subject(network, data, images=images, traced=traced) for name, network in networks.items()
        }
        self._generator = torch.Generator().manual_seed(0)
        self._quiet = False

        wide = {"description_width": "initial"}
        number = {"style": wide, "layout": widgets.Layout(width="150px")}
        self.network = widgets.Dropdown(options=list(networks), description="network", style=wide)
        self.count = widgets.IntSlider(
            description="deleted blocks",
            tooltip="moved, so many blocks are drawn at random",
            continuous_update=False,
            style=wide,
            layout=widgets.Layout(width="340px"),
        )
        self.again = widgets.Button(description="draw again", tooltip="delete as many blocks, drawn at random")
        self.first = widgets.BoundedIntText(description="swap block", **number)
        self.second = widgets.BoundedIntText(description="with block", **number)
        self.swap = widgets.Button(description="swap", tooltip="let the two blocks change places")
        self.reset = widgets.Button(description="reset", tooltip="restore every block, in the original order")
        self.status = widgets.HTML()
        self.image = widgets.Image(format="png", layout=widgets.Layout(width="100%", max_width=f"{WIDTH * 100:.0f}px"))
        self.blocks: list[Any] = []
        self._stages = widgets.VBox()
        self.widget = widgets.VBox(
            [
                widgets.HBox([self.network, self.count, self.again, self.reset], layout=_wrapping()),
                self._stages,
                widgets.HBox([self.first, self.second, self.swap], layout=_wrapping()),
                self.status,
                self.image,
            ]
        )
        self.widget.add_class("resnotes-explorer")
        for part in ("network", "count", "again", "first", "second", "swap", "reset", "status", "image"):
            getattr(self, part).add_class(f"resnotes-explorer-{part}")

        self.network.observe(self._on_network, "value")
        self.count.observe(self._on_draw, "value")
        self.again.on_click(self._on_draw)
        self.swap.on_click(self._on_swap)
        self.reset.on_click(lambda _: self._show(Lesion()))
        self._on_network()

    @property
    def subject(self) -> Subject:
        """The network that is chosen."""
        return self._subjects[self.network.value]

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Controls are set to what they must show; nobody moved them."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _on_network(self, _: object = None) -> None:
        """Controls that fit the network."""
        subject = self.subject
        for widget in (*self.blocks, *self._stages.children):
            widget.close()
        self.blocks = [_button(i, i in subject.deletable) for i in range(len(subject.network.blocks))]
        rest = iter(self.blocks)
        self._stages.children = [
            widgets.HBox(
                [
                    widgets.Label(f"stage {stage}", layout=widgets.Layout(width="52px")),
                    widgets.HBox(list(itertools.islice(rest, count)), layout=_wrapping()),
                ]
            )
            for stage, count in enumerate(subject.network.stages, start=1)
        ]
        for button in self.blocks:
            button.observe(self._on_toggle, "value")
        largest = max(subject.groups, key=len)
        with self._quietly():
            self.count.max = len(subject.deletable)
            for control, block in ((self.first, largest[0]), (self.second, largest[-1])):
                control.max = len(self.blocks) - 1
                control.value = block
        self._show(subject.example())

    def _on_toggle(self, _: object) -> None:
        if not self._quiet:
            deleted = frozenset(i for i, button in enumerate(self.blocks) if button.value)
            self._show(Lesion(deleted, self.lesion.order))

    def _on_draw(self, _: object) -> None:
        if not self._quiet:
            (drawn,) = random_deletions(self.subject.deletable, self.count.value, 1, self._generator)
            self._show(Lesion(drawn.deleted, self.lesion.order))

    def _on_swap(self, _: object) -> None:
        try:
            lesion = swapped(self.lesion, self.first.value, self.second.value, self.subject.groups)
        except UsageError as error:
            self._say(str(error), role="alert")
        else:
            self._show(lesion)

    def _show(self, lesion: Lesion) -> None:
        """Carry out `lesion`, and let controls, status and figure show it."""
        self.lesion = lesion
        with self._quietly():
            for i, button in enumerate(self.blocks):
                button.value = i in lesion.deleted
                button.button_style = "danger" if button.value else ""
                if not button.disabled:
                    button.tooltip = f"restore block {i}" if button.value else f"delete block {i}"
            self.count.value = len(lesion.deleted)
        self.outcome = self.subject.examine(lesion)
        self.image.value = _png(draw(self.subject, self.outcome, self.network.value))
        self._say(self.subject.summary(self.outcome))

    def _say(self, text: str, role: str = "status") -> None:
        """Roles are for screen readers, which read out what changes."""
        color = f' style="color: {WRONG}"' if role == "alert" else ""
        self.status.value = f'<span role="{role}"{color}>{html.escape(text)}</span>'


def _wrapping() -> Any:
    return widgets.Layout(flex_flow="row wrap")


def _button(i: int, can_go: bool) -> Any:
    """To delete block `i`."""
    why_not = "cannot be deleted: without it, the maps have another shape than what follows expects"
    button = widgets.ToggleButton(
        description=str(i),
        disabled=not can_go,
        tooltip="" if can_go else f"block {i} {why_not}",
        layout=widgets.Layout(width="36px", height="26px", padding="0", margin="1px"),
    )
    button.add_class(f"resnotes-block-{i}")
    return button


def explore(
    networks: Mapping[str, Network], data: Classification, *, images: int = IMAGES, traced: int = TRACED
) -> None:
    """Show an `Explorer`; where nobody can use it, the figure of the first network without three of its blocks.

    The explorer carries its first figure with it, for pages that cannot show controls.

    Args:
        networks: trained networks by name, at least one.
        data: see `Subject`.
        images: see `Subject`.
        traced: see `Subject`.

    Raises:
        UsageError: no networks; or see `Subject`.
    """
    if not networks:
        raise UsageError("expected at least one network to explore, found none")
    if attended():
        explorer = Explorer(networks, data, images=images, traced=traced)
        name, subject, outcome, png = explorer.network.value, explorer.subject, explorer.outcome, explorer.image.value
        controls = {VIEW: {"version_major": 2, "version_minor": 0, "model_id": explorer.widget.model_id}}
    else:
        name, network = next(iter(networks.items()))
        subject = Subject(network, data, images=images, traced=traced)
        outcome = subject.examine(subject.example())
        png, controls = _png(draw(subject, outcome, name)), {}
    bundle = {
        **controls,
        "image/png": base64.b64encode(png).decode(),
        "text/plain": f"{name}: {subject.summary(outcome)}",
    }
    display(bundle, metadata={"image/png": {"width": int(WIDTH * 100)}}, raw=True)
