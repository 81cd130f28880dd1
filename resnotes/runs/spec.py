"""What a run is asked to compute, and the address that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Annotated, Any

from resnotes import datasets, models, typed
from resnotes.errors import RunError, UsageError
from resnotes.training.recipe import Recipe

# It becomes part of a path.
NAME = typed.Rule("must be a name of letters, digits, - and _", lambda name: bool(re.fullmatch(r"[\w-]+", name)))


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
        source: hash of the source of a network that was registered, see `resnotes.models.source`, so that an edited
            one is another run; filled in. None for networks of this package.

    Raises:
        UsageError: a field of another type, or that does not go with the others.
    """

    model: Annotated[str, NAME]
    dataset: Annotated[str, NAME]
    seed: int
    recipe: Recipe
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | None = None
    train_images: int | None = None
    start: RunSpec | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        typed.check_fields(self, "run")
        if self.source is None:
            object.__setattr__(self, "source", models.source(self.model))
        if self.dataset in datasets.names():  # another is refused where it is loaded
            self.recipe.check_task(datasets.task(self.dataset))
        if self.start:  # deepened it is of the same family; and it must not have learned from this one's test images
            kinds = [
                (spec.model.partition("-")[0], spec.dataset, spec.data, spec.options) for spec in (self, self.start)
            ]
            if kinds[0] != kinds[1]:
                raise UsageError(
                    f"{self.model} cannot start from {self.start.model}: family, data set and options must be the"
                    f" same, found {kinds[0]} and {kinds[1]}"
                )

    @property
    def training_data(self) -> str:
        """What data it is trained on: the same for two runs of the same data."""
        return json.dumps([self.dataset, self.data, self.train_images], sort_keys=True)

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
        return value
    return {
        item.name: _without_defaults(current)
        for item in fields(value)
        if (current := getattr(value, item.name))
        != (item.default if item.default_factory is MISSING else item.default_factory())
    }
