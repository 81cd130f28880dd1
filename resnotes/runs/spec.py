"""What a run is asked to compute, and the address that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any

from resnotes import datasets, models, typed
from resnotes.errors import RunError, UsageError
from resnotes.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """All that decides what a run computes.

    Args:
        model: a name for `resnotes.models.build`.
        dataset: a name for `resnotes.datasets.load`.
        seed: of the initial weights, the order of the images and their augmentation.
        recipe: how it is trained.
        options: for `resnotes.models.build`; channels and classes follow from the data set.
        data: options for the loader of the data set, such as the size of its images.
        pretrained: where the encoder of a segmentation network starts: the name of a file with a classifier's
            weights, see `resnotes.models.pretrained`; None for random ones.
        train_images: so many training images, a fixed subset; None for all.
        start: a run whose network, deepened by identity blocks (`resnotes.models.deepen`), is where training
            starts; None for random weights.
    """

    model: str
    dataset: str
    seed: int
    recipe: Recipe
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    train_images: int | None = None
    start: RunSpec | None = None

    def __post_init__(self) -> None:
        typed.check(self, "run")
        for name in ("model", "dataset"):  # which become part of a path
            if not re.fullmatch(r"[\w-]+", found := getattr(self, name)):
                raise UsageError(f"run: {name} must be a name of letters, digits, - and _, found {found!r}")
        for name in ("options", "data"):  # lists, where they come from TOML or JSON
            values = getattr(self, name).items()
            object.__setattr__(self, name, {key: tuple(v) if isinstance(v, list) else v for key, v in values})
        if self.dataset in datasets.names():  # another is refused where it is loaded
            self.recipe.check_task(datasets.task(self.dataset))
        if self.start and self.pretrained:
            raise UsageError(f"{self.model} cannot start both from {self.start.model} and from {self.pretrained}")
        if self.start:
            shallow, deep = (re.fullmatch(r"(plain|resnet)-(\d+)", name) for name in (self.start.model, self.model))
            if not (shallow and deep) or shallow[1] != deep[1] or int(shallow[2]) >= int(deep[2]):
                raise UsageError(
                    f"{self.model} cannot start from {self.start.model}: expected plain-N or resnet-N, and to start"
                    " from, a smaller N of the same family"
                )
        if self.start and self._kind != self.start._kind:
            raise UsageError(
                f"{self.model} cannot start from {self.start.model}: data set and options must be the same, found"
                f" {self._kind} and {self.start._kind}"
            )

    @property
    def _kind(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """What a run has in common with one that it starts from, which must not have seen its test images."""
        return self.dataset, dict(self.data), dict(self.options)

    @property
    def source(self) -> str:
        """What data it is trained on: the same for two runs of the same data."""
        return json.dumps([self.dataset, dict(self.data), self.train_images], sort_keys=True)

    @property
    def label(self) -> str:
        """The network with its options, as a profile's `models` name it."""
        return models.label(self.model, self.options)

    @property
    def name(self) -> str:
        """Readable slug and hash; the name of the run's folder."""
        # Fields at their default are left out, so that a field added later leaves all addresses as they are.
        canonical = json.dumps(_without_defaults(self), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:10]
        origin = f"-from-{self.start.model}" if self.start else ""
        return f"{self.model}{origin}-{self.dataset}-s{self.seed}-{digest}"

    def to_json(self) -> str:
        """Every field, indented; `from_json` reads it back."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> RunSpec:
        """Read what `to_json` wrote.

        Raises:
            RunError: no JSON, or fields that a specification does not have.
        """
        try:
            return cls._from_dict(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunError(f"no run specification: {error}") from error

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> RunSpec:
        start = values.get("start")
        recipe = Recipe(**values["recipe"])
        return cls(**{**values, "recipe": recipe, "start": cls._from_dict(start) if start else None})


def _without_defaults(value: Any) -> Any:
    if not is_dataclass(value):
        return dict(value) if isinstance(value, Mapping) else value
    kept = {}
    for item in fields(value):
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if (current := getattr(value, item.name)) != default:
            kept[item.name] = _without_defaults(current)
    return kept
