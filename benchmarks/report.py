"""The report on results of benchmarks: a table in Markdown, how cost grows, and what the paper profile costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import growth
from benchmarks.growth import Curve
from benchmarks.timing import Row
from resnotes import files
from resnotes.errors import ResnotesError

COLUMNS = ("what", "ours", "reference", "ratio", "share of the measured ceiling")
RESULTS, REPORT, PLOT, COST = "results.json", "README.md", "growth.png", "cost.md"

ABOUT = """\
Written by `python -m benchmarks`, which says with `-h` how parts of it are measured anew.

Both sides of a row take turns within one process. What counts is CPU time, each network having one thread: what
a core does, which other programs hardly disturb. (On a GPU it is time on the clock.) *Ours* and *reference* are
medians of the rounds; *ratio* is how many times faster ours is by these, and in brackets the least and the most
of single rounds. What the reference is stands after the semicolon.

The *ceiling* is the rate of large matrix products (2048x2048, on GPUs 8192x8192) or of convolutions (3x3, on
8x8 maps of 64 channels), whichever is the faster, in the same rounds and in the precision of ours. The share
counts additions and multiplications of convolutions and matrix products that ours does, not those that it
avoids. Loading has no ceiling: what takes the time there is files and bytecode."""

GROWTH = """\
Medians of the rounds. The exponent is that of a power law fitted by least squares to
the logarithms, with its 95 % interval. *Of operations* is the exponent that the same fit gives for the
additions and multiplications that were counted in what was timed, and *GFLOP/s* how fast they were done at the
smallest size and at the largest. *Expected* is the exponent that counting passes through units gives for many
units.

{table}

![CPU time against depth and number of lesions, fitted and expected]({plot})

Why measured exponents are not quite the expected ones:

- **Sweeps over single deletions.** The plain loop deletes each of n units and evaluates the n - 1 others: n(n -
  1), over these depths a power a little above 2. Ours evaluates what lesions have in common once, n + n(n -
  1)/2 in all: a power a little below 2, and half of the operations for many units. Its time rises more slowly
  still, since preparing the sweep (copying the network, a trial with two images) takes time that
  grows as n: with 16 images, a fifth of all at 20 layers, and a twentieth at 110.
- **Sweeps over pairs.** The time of the loop is proportional to the number of lesions. That of ours is no power
  of it: a single pair takes preparation and a whole network, for which the loop is faster; the more pairs, the
  more of them begin alike, and in the end each adds only what comes after its second block, a third of the
  network on average. The fitted exponent is that of the range measured.
- **Path gradients.** Ours makes n(n + 1)/2 products with Jacobians of branches, and two passes forward: n² and
  n, together a power below 2. Its time rises more slowly still, since the gradients of all lengths go back
  together, and the few of a shallow network fill the processor less. Interpolation makes n/2 + 1 passes through
  n units, with each image twice.
- **Training.** The two convolutions that shrink the map do half of the operations of the other 2n - 2: a power a
  little above 1. What does not grow, such as stem and head, draws that of the time down. (Against the 2n + 2
  layers, all exponents over depth would be about 5 % larger.)"""


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of Markdown, with the columns of `COLUMNS`."""
    return _markdown(COLUMNS, [_cells(row) for row in rows])


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *body)]


def _cells(row: Row) -> list[str]:
    ratios = [theirs / ours for ours, theirs in zip(row.ours, row.reference, strict=True)]
    spread = f" ({min(ratios):.3g}–{max(ratios):.3g})" if len(ratios) > 1 else ""
    share = "–" if row.share is None else f"{row.share:.0%}".replace("%", " %")
    return [row.what, _rate(row, row.ours), _rate(row, row.reference), f"{row.ratio:.3g}{spread}", share]


def _rate(row: Row, times: Sequence[float]) -> str:
    if not row.per_image:
        return f"{median(times):,.3g} s"
    rate = 1 / median(times)
    return f"{rate:,.0f} images/s" if rate >= 100 else f"{rate:.3g} images/s"


def growth_table(curves: Sequence[Curve]) -> list[str]:
    """Lines of Markdown: fitted exponents of time and operations."""
    body = []
    for one in curves:
        rates = [count / time / 1e9 for count, time in zip(one.operations, one.medians, strict=True)]
        body.append(
            [
                f"{one.panel}, {one.side}",
                f"{min(one.sizes)} to {max(one.sizes)}",
                growth.power(growth.fit(one.sizes, one.medians)),
                f"{growth.fit(one.sizes, one.operations).exponent:.2f}",
                f"{rates[0]:.0f} to {rates[-1]:.0f}",
                "–" if one.expected is None else f"{one.expected:g}",
            ]
        )
    return _markdown(("what", "sizes", "exponent of time [95 %]", "of operations", "GFLOP/s", "expected"), body)


def _machines(results: Mapping[str, Any]) -> list[str]:
    """A line for each machine, and what was measured there if they are several."""
    found: dict[str, list[str]] = {}
    for part, result in results.items():
        at = result["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
        commit = "no commit" if at["commit"] is None else f"commit {at['commit'][:9]}"
        text = (
            f"{at['machine']}, {at['memory_gib']:g} GiB; {versions};"
            f" {commit}{' and changes' if at['dirty'] else ''}; {at['date']}"
        )
        found.setdefault(text, []).append(part)
    return [f"- {text}" + (f" ({', '.join(parts)})" if len(found) > 1 else "") for text, parts in found.items()]


def rows_of(results: Mapping[str, Any]) -> list[Row]:
    """Of all parts, in the order in which they stand there."""
    return [Row(**row) for result in results.values() for row in result.get("rows", ())]


def curves_of(results: Mapping[str, Any]) -> list[Curve]:
    """Those of growth, if it was measured."""
    return [Curve(**curve) for curve in results.get("growth", {}).get("curves", ())]


def written(results: Mapping[str, Any], cost: str | None) -> str:
    """The report in Markdown.

    Args:
        results: by part; what `load` gives.
        cost: what the paper profile costs, in Markdown; None leaves the section out.
    """
    rows, curves = rows_of(results), curves_of(results)
    text = ["# Benchmarks", "", ABOUT, "", *_machines(results), ""]
    text += ["## Against references", "", *table(rows), ""] if rows else []
    if remarks := [f"- {row.what}: {row.remark}" for row in rows if row.remark]:
        text += ["What the two sides found:", "", *remarks, ""]
    if curves:
        text += ["## How cost grows", "", GROWTH.format(table="\n".join(growth_table(curves)), plot=PLOT), ""]
    text += ["## What the paper profile costs", "", cost.strip(), ""] if cost else []
    return "\n".join(text)


def load(folder: Path) -> dict[str, Any]:
    """Results in `folder`, by part; none where there is no such file.

    Raises:
        ResnotesError: the file is damaged, or not of this form.
    """
    path = folder / RESULTS
    if not path.exists():
        return {}
    results = files.read_json(path)
    try:
        rows_of(results), curves_of(results), _machines(results)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ResnotesError(
            f"{path} does not hold results of benchmarks ({type(error).__name__}: {error}); delete it to measure anew"
        ) from error
    return dict(results)


def save(folder: Path, results: Mapping[str, Any], cost: str | None = None) -> None:
    """Write results, the report, its plot, and what the paper profile costs, which otherwise is read from `folder`.

    Raises:
        OSError: the folder cannot be written; it is then as it was.
    """
    found: dict[str, str | bytes] = {RESULTS: files.to_json(results)}
    if cost is not None:
        found[COST] = cost
    elif (folder / COST).exists():
        cost = (folder / COST).read_text(encoding="utf-8")
    found[REPORT] = written(results, cost)
    if curves := curves_of(results):
        found[PLOT] = growth.draw(curves)
    files.write_folder(folder, found)


def plain(found: Sequence[Row] | Sequence[Curve]) -> dict[str, Any]:
    """What a part measured, as JSON has it."""
    key = "curves" if found and isinstance(found[0], Curve) else "rows"
    return {key: [dataclasses.asdict(one) for one in found]}
