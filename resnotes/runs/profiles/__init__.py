"""What each study trains at each scale: `load("quick").study("degradation").specs()`.

A profile is a TOML file beside this module with a table for each study:

    [degradation]
    dataset = "digits"                     # a name for resnotes.datasets.load
    models = ["plain-56", "resnet-56 shortcut=B"]  # names for resnotes.models.build, options after them
    seeds = [0, 1, 2]
    data = { size = [120, 160] }           # optional: for the loader of the data set
    pretrained = "resnet50-11ad3fa6.pth"   # optional: weights that encoders start from, see resnotes.models.pretrained
    train_images = 1000                    # optional: a fixed subset
    lrs = [0.1, 0.01]                      # optional: every model at every rate, in place of the recipe's lr
    deepen = { "plain-20" = "plain-56" }   # optional: train on from the first, deepened to the second
    [degradation.recipe]                   # the fields of resnotes.training.recipe.Recipe
    [degradation.recipes."resnet-110"]     # optional: what is different for one model
    [degradation.settings]                 # optional: numbers that the study's notebook reads
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from resnotes import typed
from resnotes.errors import UsageError, unknown
from resnotes.models import from_label
from resnotes.runs.spec import RunSpec
from resnotes.training.recipe import Recipe

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The profiles there are, smallest first."""
    order = ["quick", "desk", "paper"]
    found = [path.stem for path in FOLDER.glob("*.toml")]
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


@dataclass(frozen=True, kw_only=True)
class Study:
    """One study of a profile; the fields are those of its table."""

    dataset: str
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    recipe: Mapping[str, Any]
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    train_images: int | None = None
    lrs: tuple[float, ...] = ()
    deepen: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        typed.check_fields(self, "study")
        for name in ("models", "seeds", "lrs"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UsageError(f"study: {name} must differ, found {list(values)}")
        known = {*self.models, *self.deepen, *self.deepen.values()}
        if strange := [model for model in self.recipes if model not in known]:
            raise UsageError(f"recipes for {strange[0]!r}, which is none of the models; allowed: {', '.join(known)}")
        if self.lrs and (self.deepen or any("lr" in recipe for recipe in (self.recipe, *self.recipes.values()))):
            raise UsageError("lrs are every model's learning rates; leave out deepen, and lr in the recipes")

    def spec(self, model: str, seed: int, lr: float | None = None) -> RunSpec:
        """The run of `model`, a name with or without options, with `seed`, not deepened from another.

        Args:
            model: the name.
            seed: the seed.
            lr: in place of the recipe's learning rate.
        """
        name, options = from_label(model)
        rate = {} if lr is None else {"lr": lr}
        recipe = Recipe(**{**self.recipe, **self.recipes.get(model, {}), **rate})
        recipe.check_ignored()
        alike = {name: getattr(self, name) for name in ("dataset", "data", "pretrained", "train_images")}
        return RunSpec(model=name, seed=seed, recipe=recipe, options=options, **alike)

    def deepened(self, shallow: str, deep: str, seed: int) -> RunSpec:
        """The run of `deep` that starts from the trained `shallow` network, deepened by identity blocks."""
        return replace(self.spec(deep, seed), start=self.spec(shallow, seed))

    def specs(
        self,
        models: Iterable[str] | None = None,
        seeds: Iterable[int] | None = None,
        lrs: Iterable[float] | None = None,
    ) -> list[RunSpec]:
        """Every run but the deepened ones, seed by seed and rate by rate; arguments narrow or widen what is there."""
        models = list(self.models if models is None else models)
        rates: list[float | None] = list(self.lrs if lrs is None else lrs) or [None]
        seeds = self.seeds if seeds is None else seeds
        return [self.spec(model, seed, lr) for seed in seeds for lr in rates for model in models]

    def all_specs(self) -> list[RunSpec]:
        """Every run of the study: those of `specs`, then those from deepened networks."""
        deepened = [self.deepened(*pair, seed) for seed in self.seeds for pair in self.deepen.items()]
        return [*self.specs(), *deepened]


@dataclass(frozen=True)
class Profile:
    """Studies at one scale."""

    name: str
    studies: Mapping[str, Study]

    def study(self, name: str) -> Study:
        """The study called `name`; for another a `UsageError` lists those there are."""
        if name not in self.studies:
            raise unknown(f"study of profile {self.name}", name, self.studies)
        return self.studies[name]


def load(name: str) -> Profile:
    """Read a profile.

    Raises:
        UsageError: no such profile, or a file with unknown or missing fields.
    """
    if name not in names():
        raise unknown("profile", name, names())
    path = FOLDER / f"{name}.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        studies = {study: Study(**table) for study, table in tables.items()}
        for study in studies.values():
            study.all_specs()  # a recipe that cannot be is reported when the file is read, not hours later
    except (TypeError, ValueError, RecursionError) as error:  # TOML errors are ValueErrors
        raise UsageError(f"{path}: {error}") from error
    return Profile(name, studies)
