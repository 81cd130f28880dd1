"""Runs side by side: who asked for them, what came out, and what tells those apart whose names are nearly the same."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from resnotes.errors import ResnotesError
from resnotes.runs import profiles
from resnotes.runs.folder import Run
from resnotes.runs.spec import RunSpec


def lines(runs: Sequence[Run]) -> list[str]:
    """A line for each run: `summary`, the studies that ask for it, and how it differs from its like."""
    readable = []
    for run in runs:
        with contextlib.suppress(ResnotesError):  # `summary` says it
            readable.append(run.spec)
    differs, asked, width = differences(readable), studies(), max((len(run.name) for run in runs), default=0)
    notes = [[",".join(asked.get(run.name, ["of no profile"])), differs.get(run.name, "")] for run in runs]
    return ["  ".join([summary(run, width), *note]).rstrip() for run, note in zip(runs, notes, strict=True)]


def summary(run: Run, width: int = 0) -> str:
    """A run's name, filled up to `width`, for how long it was trained on what, and its errors; or why it has none."""
    try:
        row, held, iterations = run.final, run.held, run.spec.recipe.iterations
    except ResnotesError as error:
        return f"{run.name:<{width}}  {error}"
    iou = f"  mean IoU {row.test_iou:6.2f} %" if "test_iou" in row else ""
    errors = f"training {row.clean_error:6.2f} %  {held} {row.test_error:6.2f} %"
    return f"{run.name:<{width}}  {iterations:>7,} iterations  {run.variant:<20}  {errors}{iou}"


def studies() -> dict[str, list[str]]:
    """The studies that ask for a run, such as `desk/lesions`, by its name; of the profiles that can be read."""
    asked: dict[str, list[str]] = defaultdict(list)
    for profile in profiles.names():
        with contextlib.suppress(ResnotesError):
            for name, study in profiles.load(profile).studies.items():
                for spec in study.all_specs():
                    asked[spec.name].append(f"{profile}/{name}")
    return asked


def differences(specs: Iterable[RunSpec]) -> dict[str, str]:
    """By name, a run's options, and where it differs from those of the same network, data and seed: `lr=0.01`."""
    alike: dict[str, list[RunSpec]] = defaultdict(list)
    for spec in specs:
        alike[spec.name.rpartition("-")[0]].append(spec)  # all but the hash
    found = {}
    for group in alike.values():
        asked = [_asked(spec) for spec in group]
        differing = [name for each in asked for name in each if len({str(other.get(name)) for other in asked}) > 1]
        for spec, each in zip(group, asked, strict=True):
            told = dict.fromkeys([*spec.options, *differing])
            found[spec.name] = " ".join(f"{name}={each[name]}".replace(" ", "") for name in told if name in each)
    return found


def _asked(spec: RunSpec) -> dict[str, Any]:
    """What was asked for, by the names that profiles use; the iterations stand in `summary`."""
    recipe = asdict(spec.recipe)
    del recipe["iterations"]
    asked = {name: getattr(spec, name) for name in ("train_images", "pretrained", "source")}
    return {**recipe, **asked, "start": spec.start and spec.start.name, **spec.data, **spec.options}
