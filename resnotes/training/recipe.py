"""How a network is trained: the numbers, and nothing that computes."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from resnotes import typed
from resnotes.errors import UsageError
from resnotes.training.thinning import parse as parse_blocks

TASKS = ("classification", "segmentation")
# Fields that one task alone reads; all others are read by both.
ALONE = {
    "pad": "classification",
    "recompute": "classification",
    "blocks": "classification",
    "crop": "segmentation",
    "scale": "segmentation",
    "rotate": "segmentation",
    "blur": "segmentation",
    "new_lr": "segmentation",
}
SCHEDULES = ("steps", "one-cycle", "poly")
PRECISIONS = ("auto", "float32", "bfloat16")


def defaults(recipe: Recipe) -> dict[str, Any]:
    """The fields that have a default, and what it is."""
    return {field.name: field.default for field in fields(recipe) if field.default is not MISSING}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. The defaults are those of He et al. 2015, Sec. 4.2, unless a comment says more.

    A new field needs a default under which training is what it was before: the defaults are not part of a
    run's address (see `resnotes.runs.spec`).
    """

    iterations: int  # of the optimiser, over all epochs; the paper: 64,000
    batch_size: int = 128  # the rest of an epoch that fills no batch is left out, so that shapes never change
    lr: float = 0.1  # the peak, for one-cycle; where poly begins
    momentum: float = 0.9
    weight_decay: float = 1e-4  # on all parameters, BN's included, as in the papers
    schedule: Literal["steps", "one-cycle", "poly"] = "steps"
    milestones: tuple[int, ...] = ()  # iterations at which lr is divided by 10; the paper: 32,000 and 48,000
    warmup_iterations: int = 0  # the papers warm up 400 iterations for 110 layers and more,
    warmup_lr: float = 0.01  # at this lr
    pad: int = 4  # random crop from an image padded by so many zeros on each side; 0 for none
    flip: bool = True  # mirror half of the images
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # bfloat16 autocast where hardware has it
    probe_images: int | None = None  # evaluate on so many of each split between epochs, on all after the last
    snapshots: tuple[int, ...] = ()  # iterations after which the weights are kept
    recompute: int = 0  # blocks per segment, of which the input alone is kept, the rest recomputed; 0 keeps all
    blocks: str = (
        "all"  # in each batch train all, exactly:k or, by chance, stochastic-depth:p; see `resnotes.training.thinning`
    )
    # For segmentation alone, see `ALONE`; what they do is in `resnotes.training.augmentation.augment`.
    crop: tuple[int, int] = (0, 0)  # height and width that are trained on; (0, 0) for those of the images
    scale: tuple[float, float] = (1.0, 1.0)  # images are resized by a factor between these; the paper: 0.5 to 2
    rotate: float = 0.0  # degrees, at most, to either side; the paper: 10
    blur: bool = False  # half of the images, as in the paper
    new_lr: float = 1.0  # times lr for all that is not the encoder; the authors' code: 10, after pretraining
    frozen_bn: bool = False  # BN keeps the statistics that it starts with, as with small batches after pretraining

    def __post_init__(self) -> None:
        for name in ("milestones", "snapshots", "crop", "scale"):
            if isinstance(value := getattr(self, name), list):  # where they come from TOML or JSON
                object.__setattr__(self, name, tuple(value))
        parse_blocks(self.blocks)
        typed.check(self, "recipe")
        # 1 and 1.0 are the same recipe
        for name in ("lr", "momentum", "weight_decay", "warmup_lr", "rotate", "new_lr"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "scale", tuple(map(float, self.scale)))
        for name in (
            "iterations",
            "batch_size",
            "lr",
            "new_lr",
            *(["probe_images"] if self.probe_images is not None else []),
        ):
            if not getattr(self, name) > 0:
                raise UsageError(f"recipe: {name} must be positive, found {getattr(self, name)!r}")
        for name in ("momentum", "weight_decay", "warmup_iterations", "warmup_lr", "pad", "recompute", "rotate"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"recipe: {name} must not be negative, found {getattr(self, name)!r}")
        if not all(iteration > 0 for iteration in self.snapshots):
            raise UsageError(f"recipe: snapshots are taken after iterations, counted from 1; found {self.snapshots!r}")
        whole = [type(side) is int for side in self.crop] == [True, True]
        if not whole or not (min(self.crop) > 0 or self.crop == (0, 0)):
            raise UsageError(f"recipe: crop must be a height and a width in whole pixels, found {self.crop!r}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise UsageError(f"recipe: scale must be two positive factors in order, found {self.scale!r}")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"recipe: unknown schedule {self.schedule!r}; allowed: {', '.join(SCHEDULES)}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"recipe: unknown precision {self.precision!r}; allowed: {', '.join(PRECISIONS)}")

    def check_task(self, task: str) -> None:
        """Refuse a field that a task would ignore, and that would be part of a run's address nevertheless.

        Args:
            task: one of `TASKS`.

        Raises:
            UsageError: names the field and the task.
        """
        for name, default in defaults(self).items():
            if ALONE.get(name, task) != task and (found := getattr(self, name)) != default:
                raise UsageError(f"recipe: {name} is for {ALONE[name]} alone, found {found!r} for {task}; leave it out")

    def check_schedule(self) -> None:
        """Refuse what the schedule would ignore, likewise.

        Raises:
            UsageError: names the field.
        """
        if self.milestones and self.schedule != "steps":
            raise UsageError(f"recipe: milestones are for the schedule steps, found {self.schedule!r}; leave them out")
        if self.warmup_lr != defaults(self)["warmup_lr"] and not self.warmup_iterations:
            raise UsageError(f"recipe: warmup_lr is {self.warmup_lr!r}, but there are no warmup_iterations")

    def lr_at(self, iteration: int) -> float:
        """Learning rate of iteration 0, 1, ..., `iterations` - 1.

        One-cycle rises linearly over the first 30 % of the iterations and falls linearly to zero.
        Poly falls as (1 - iteration / iterations)^0.9 (Zhao et al. 2017, Sec. 5.1).
        """
        if iteration < self.warmup_iterations:
            return self.warmup_lr
        if self.schedule == "steps":
            return self.lr * 0.1 ** sum(iteration >= milestone for milestone in self.milestones)
        if self.schedule == "poly":
            return self.lr * float((1 - iteration / self.iterations) ** 0.9)
        progress = (iteration + 1) / (self.iterations + 1)
        return self.lr * min(progress / 0.3, (1 - progress) / 0.7)
