"""The lesion explorer: delete and swap blocks of trained networks by hand, and watch what becomes of them.

`resnotes.figures.examination` does the arithmetic, `draw` the figure, `LesionExplorer` puts controls above it, and
`explore` shows it all in a notebook.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from itertools import combinations, islice
from pathlib import Path
from string import Template
from typing import Any

import ipywidgets as widgets
import torch
from IPython.display import HTML
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from resnotes.datasets import Classification
from resnotes.errors import UsageError
from resnotes.figures.controls import Explorer, named, row, show
from resnotes.figures.examination import LesionOutcome, Subject, swapped
from resnotes.figures.style import BLUE, FONT, ORANGE, STYLE, VERMILION, WIDTH
from resnotes.models import Network
from resnotes.progress import attended
from resnotes.unravel import Lesion, length_distribution, lesion_predictions, mean_length, random_deletions

ROWS, COLUMNS = 2, 6  # of thumbnails
# What needs no kernel is computed for networks of at most so many blocks, as n have n(n - 1) / 2 pairs; and images.
SMALL, TRIED = 16, 100

INTACT, NOW, GONE, MOVED, WRONG, RIGHT = "#BDBDBD", BLUE, "#8A8A8A", ORANGE, VERMILION, "#00795A"
HEIGHT = 5.4  # inches


@plt.style.context(STYLE)
def draw(subject: Subject, outcome: LesionOutcome, title: str) -> Figure:
    """The blocks as they stand, the error, predictions that changed, and the gradient by path length.

    Grey is the intact network, and blue is what became of it.

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
    fig.text(0.01, 0.975, f"{title}: {subject.structure(outcome.lesion)}", fontsize=9, va="center")
    _draw_blocks(fig.add_axes((0.01, 0.775, 0.98, 0.145)), subject.network.stages, outcome.lesion)
    _draw_error(fig.add_axes((0.06, 0.34, 0.13, 0.36)), subject.intact.error, outcome.error)
    _draw_spectrum(fig.add_axes((0.06, 0.08, 0.93, 0.17)), subject, outcome)
    _draw_changes(fig, subject, outcome)
    return fig


def _draw_blocks(ax: Axes, stages: Sequence[int], lesion: Lesion) -> None:
    """A box for each position, with the number of the block that stands there; a row for each stage."""
    places = [(column, -row) for row, count in enumerate(stages) for column in range(count)]
    for position, (block, (x, y)) in enumerate(zip(lesion.order or range(len(places)), places, strict=True)):
        fill, text = ("white", GONE) if block in lesion.deleted else (NOW, "white")
        edge = MOVED if block != position else GONE
        ax.add_patch(Rectangle((x, y), 0.84, 0.84, facecolor=fill, edgecolor=edge, linewidth=1.5))
        ax.text(x + 0.42, y + 0.4, str(block), color=text, fontsize=FONT, ha="center", va="center")
    ax.set(xlim=(-0.1, max(20, *stages)), ylim=(0.9 - len(stages), 1))
    ax.axis("off")
    keys = {"block": (NOW, GONE), "deleted": ("white", GONE), "elsewhere than built": ("white", MOVED)}
    handles = [Patch(facecolor=fill, edgecolor=edge, label=text) for text, (fill, edge) in keys.items()]
    ax.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0, handlelength=1)


def _draw_error(ax: Axes, intact: float, now: float) -> None:
    bars = ax.bar(["intact", "now"], [intact, now], color=[INTACT, NOW], width=0.7)
    ax.bar_label(bars, fmt="%.1f", fontsize=FONT, padding=1)
    ax.set(ylim=(0, max(10, 1.15 * intact, 1.15 * now)))
    ax.grid(False, axis="x")
    ax.set_title("error, %", loc="left")


def _draw_changes(fig: Figure, subject: Subject, outcome: LesionOutcome) -> None:
    """Images whose prediction changed, each below its class; what it was and now is taken for stands under it."""
    changed, all_labels = subject.changed(outcome), (subject.labels, subject.intact.predictions, outcome.predictions)
    shown = f"; the first {ROWS * COLUMNS}" if len(changed) > ROWS * COLUMNS else ""
    title = f"{len(changed)} of {len(subject.labels)} predictions changed{shown}"
    fig.text(0.25, 0.72, title, fontsize=8, va="center")
    grid = fig.add_gridspec(ROWS, COLUMNS, left=0.25, right=0.99, bottom=0.37, top=0.67, hspace=0.75)
    for place, i in enumerate(changed[: ROWS * COLUMNS]):
        ax = fig.add_subplot(grid[place])
        ax.imshow(subject.raw[i].permute(1, 2, 0).numpy(), cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
        truth, before, after = (subject.classes[labels[i]] for labels in all_labels)
        mark, color = ("✓", RIGHT) if after == truth else ("✗", WRONG)
        ax.set_title(truth, fontsize=FONT, pad=2)
        ax.set_xlabel(f"{before}\n→ {after} {mark}", fontsize=FONT, color=color, labelpad=2)
        ax.set(xticks=[], yticks=[])


def _draw_spectrum(ax: Axes, subject: Subject, outcome: LesionOutcome) -> None:
    """How much of the gradient comes by paths of each length, and how many of all paths have that length."""
    blocks, left = len(subject.network.blocks), len(subject.network.blocks) - len(outcome.lesion.deleted)
    if subject.intact.shares is not None:
        mean = mean_length(subject.intact.shares)
        ax.bar(range(blocks + 1), subject.intact.shares, color=INTACT, width=0.9, label=f"intact, mean {mean:.1f}")
    if outcome.shares is None:
        ax.plot([], [], color=NOW, label="now: the gradient is zero or not finite")
    else:
        shares = outcome.shares[: left + 1]  # no path is longer than the blocks that are left
        ax.plot(
            shares, color=NOW, marker="o", markersize=2.2, linewidth=1, label=f"now, mean {mean_length(shares):.1f}"
        )
    if ways := subject.ways(outcome.lesion):
        lengths = range(left - ways, left + 1)  # blocks without a shortcut are on every path
        paths = [float(share) for share in length_distribution(ways)]
        ax.plot(lengths, paths, ":", color="black", linewidth=1, label=f"paths now, mean {left - ways / 2:.1f}")
    ax.set(xlim=(-0.9, blocks + 0.9), xlabel="path length: residual branches on the way")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.axhline(0, color="black", linewidth=0.6)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.3, columnspacing=1, handlelength=1.3)
    ax.set_title(f"shares of gradient and paths ({subject.traced} images)", loc="left")


def _button(text: str, act: Callable[[], None], **options: Any) -> Any:
    button = widgets.Button(description=text, **options)
    button.on_click(lambda _: act())
    return button


class LesionExplorer(Explorer):
    """Controls for lesions to a network, and the figure of what they do. Blocks have ``resnotes-block-<number>``.

    Args:
        name: of the network.
        subject: the network.

    Attributes:
        lesion: as the figure shows it.
        widget: all of it, to be displayed.
    """

    def __init__(self, name: str, subject: Subject) -> None:
        super().__init__()
        self.name, self.subject = name, subject
        self._generator = torch.Generator().manual_seed(0)

        small = widgets.Layout(width="36px", padding="0")
        count = len(subject.network.blocks)
        self.blocks = [_button(str(i), partial(self._toggle, i), layout=small) for i in range(count)]
        for i, button in enumerate(self.blocks):
            button.add_class(f"resnotes-block-{i}")
            button.disabled = i not in subject.deletable
        # Not a slider, as ipywidgets gives that no name that a screen reader would find.
        self.count = widgets.BoundedIntText(description="blocks", max=len(subject.deletable), **named(150))
        self.again = _button("delete at random", self._delete_at_random, tooltip="delete so many blocks")
        self.reset = _button("reset", lambda: self._show(Lesion()), tooltip="restore every block and the order")
        largest = max(subject.groups, key=len)
        ends = {"max": count - 1, **named(150)}
        self.first = widgets.BoundedIntText(description="swap block", value=largest[0], **ends)
        self.second = widgets.BoundedIntText(description="with block", value=largest[-1], **ends)
        self.swap = _button("swap", self._swap, tooltip="let the two blocks change places")
        for part in ("count", "again", "reset", "first", "second", "swap"):
            getattr(self, part).add_class(f"resnotes-explorer-{part}")

        buttons = iter(self.blocks)
        stages = [
            row(widgets.Label(f"stage {stage}"), *islice(buttons, size))
            for stage, size in enumerate(subject.network.stages, start=1)
        ]
        controls, swapping = row(self.count, self.again, self.reset), row(self.first, self.second, self.swap)
        self.widget = widgets.VBox([controls, *stages, swapping, self.status, self.image])
        self._show(subject.example())

    def _toggle(self, block: int) -> None:
        self._show(Lesion(self.lesion.deleted ^ {block}, self.lesion.order))

    def _delete_at_random(self) -> None:
        (drawn,) = random_deletions(self.subject.deletable, self.count.value, 1, self._generator)
        self._show(Lesion(drawn.deleted, self.lesion.order))

    def _swap(self) -> None:
        try:
            lesion = swapped(self.lesion, self.first.value, self.second.value, self.subject.groups)
        except UsageError as error:
            self.say(str(error), role="alert")
        else:
            self._show(lesion)

    def _show(self, lesion: Lesion) -> None:
        """Carry out `lesion`, and let controls, status and figure show it."""
        self.lesion = lesion
        for i, button in enumerate(self.blocks):
            button.button_style = "danger" if i in lesion.deleted else ""
            action = "restore" if i in lesion.deleted else "cannot delete" if button.disabled else "delete"
            button.tooltip = f"{action} block {i}"
        self.count.value = len(lesion.deleted)
        self.update(lambda: examined(self.subject, lesion, self.name))


def examined(subject: Subject, lesion: Lesion, name: str) -> tuple[Figure, str]:
    """A network after a lesion: the figure, and the same in a line."""
    outcome = subject.examine(lesion)
    return draw(subject, outcome, name), f"{name}: {subject.summary(outcome)}"


def choice(subjects: Mapping[str, Subject]) -> Any:
    """A widget: a `LesionExplorer` for each of these, of which one is seen."""
    network = widgets.Dropdown(options=list(subjects), description="network", **named(250))
    network.add_class("resnotes-explorer-network")
    explorers = [LesionExplorer(name, subject).widget for name, subject in subjects.items()]
    stack = widgets.Stack(explorers, selected_index=0)
    widgets.link((network, "index"), (stack, "selected_index"))
    return widgets.VBox([network, stack]).add_class("resnotes-explorer")


def tried(name: str, subject: Subject) -> str:
    """HTML: single deletions, pairs and swaps, all computed here, with controls that need a browser and no kernel.

    A script makes the controls, so that nothing dead is left where scripts do not run.
    """
    deletions = [*((block,) for block in subject.deletable), *combinations(subject.deletable, 2)]
    swaps = [pair for group in subject.groups for pair in combinations(group, 2)]
    lesions = [Lesion(), *(Lesion(frozenset(each)) for each in deletions)]
    lesions += [swapped(Lesion(), *pair, subject.groups) for pair in swaps]
    predictions = lesion_predictions(subject.network, lesions, subject.images[:TRIED])
    errors = 100 * (predictions != subject.labels[:TRIED]).double().mean(1)
    changes = (predictions != predictions[0]).sum(1)
    intact, *found = zip(errors.tolist(), changes.tolist(), strict=True)
    keys = [" ".join(map(str, each)) for each in (*deletions, *swaps)]
    told = list(zip(keys, found, strict=True))
    content = {
        "name": name,
        "stages": subject.network.stages,
        "images": len(predictions[0]),
        "intact": intact[0],
        "found": {"delete": dict(told[: len(deletions)]), "swap": dict(told[len(deletions) :])},
    }
    template = Template(Path(__file__).with_name("templates").joinpath("lesions.html").read_text(encoding="utf-8"))
    return template.safe_substitute(lesions=escape(json.dumps(content)), network=escape(name))


def explore(networks: Mapping[str, Network], data: Classification) -> None:
    """Show a `LesionExplorer`; where nobody can use it, what can be `tried` without it, with small networks.

    Above is the figure of the first network without three of its blocks, for pages that cannot show controls. All but
    the `LesionExplorer` is in the notebook either way, so that it stays the same.

    Args:
        networks: trained networks by name, at least one.
        data: on whose training images they were trained.

    Raises:
        UsageError: no networks; or see `Subject`.
    """
    if not networks:
        raise UsageError("expected at least one network to explore, found none")
    first, seen = next(iter(networks)), attended()
    small = [name for name, network in networks.items() if len(getattr(network, "blocks", ())) <= SMALL]
    subjects = {name: Subject(network, data) for name, network in networks.items() if seen or name in (first, *small)}
    picture = examined(subjects[first], subjects[first].example(), first)
    tries = [HTML("".join(tried(name, subjects[name]) for name in small))] if small else []
    show(*picture, *tries, *([choice(subjects)] if seen else []))
