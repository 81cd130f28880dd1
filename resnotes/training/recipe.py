"""How a network is trained: the numbers, and nothing that computes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from resnotes import typed
from resnotes.errors import UsageError
from resnotes.training.thinning import parse as parse_blocks
from resnotes.typed import NOT_NEGATIVE, POSITIVE, Rule

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
CROP = Rule(
    "must be a height and a width in whole pixels",
    lambda crop: len(crop) == 2 and (min(crop) > 0 or crop == (0, 0)),
)
SCALE = Rule(
    "must be two positive factors in order",
    lambda scale: len(scale) == 2 and 0 < scale[0] <= scale[1],
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. The defaults are those of He et al. 2015, Sec. 4.2, unless a comment says more.

    A new field needs a default under which training is what it was before: the defaults are not part of a
    run's address (see `resnotes.runs.spec`).
    """

    iterations: Annotated[int, POSITIVE]  # of the optimiser, over all epochs; the paper: 64,000
    # The rest of an epoch that fills no batch is left out, so that shapes never change.
    batch_size: Annotated[int, POSITIVE] = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"  # adamw: betas 0.9 and 0.999; it takes an lr of about 0.001
    lr: Annotated[float, POSITIVE] = 0.1  # the peak, for one-cycle and cosine; where poly begins
    momentum: Annotated[float, NOT_NEGATIVE] = 0.9  # of sgd alone
    # sgd: on all parameters, BN's included, as in the papers; adamw: see `resnotes.training.loop.decayed`.
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-4
    schedule: Literal["steps", "one-cycle", "poly", "cosine"] = "steps"
    milestones: tuple[int, ...] = ()  # iterations at which lr is divided by 10; the paper: 32,000 and 48,000
    # The papers warm up 400 for 110 layers and more, at warmup_lr. For cosine, lr rises in them, as for transformers.
    warmup_iterations: Annotated[int, NOT_NEGATIVE] = 0
    warmup_lr: Annotated[float, NOT_NEGATIVE] = 0.01
    pad: Annotated[int, NOT_NEGATIVE] = 4  # random crop from an image padded by so many zeros on each side
    flip: bool = True  # mirror half of the images
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # bfloat16 autocast where hardware has it
    probe_images: Annotated[int, POSITIVE] | None = (
        None  # evaluate on so many of each split, on all after the last epoch
    )
    snapshots: tuple[Annotated[int, POSITIVE], ...] = ()  # iterations, from 1, after which the weights are kept
    # Blocks per segment, of which the input alone is kept, the rest recomputed; 0 keeps all.
    recompute: Annotated[int, NOT_NEGATIVE] = 0
    # In each batch train all, exactly:k or, by chance, stochastic-depth:p; see `resnotes.training.thinning`.
    blocks: str = "all"
    # For segmentation alone, see `ALONE`; what they do is in `resnotes.training.augmentation.augment`.
    crop: Annotated[tuple[int, int], CROP] = (0, 0)  # what is trained on; (0, 0) for the size of the images
    scale: Annotated[tuple[float, float], SCALE] = (1.0, 1.0)  # images are resized by it; the paper: 0.5 to 2
    rotate: Annotated[float, NOT_NEGATIVE] = 0.0  # degrees, at most, to either side; the paper: 10
    blur: bool = False  # half of the images, as in the paper
    # Times lr for all that is not the encoder; the authors' code: 10, after pretraining.
    new_lr: Annotated[float, POSITIVE] = 1.0
    frozen_bn: bool = False  # BN keeps the statistics that it starts with, as with small batches after pretraining

    def __post_init__(self) -> None:
        typed.check_fields(self, "recipe")
        parse_blocks(self.blocks)

    def check_task(self, task: str) -> None:
        """Refuse a field that a task would ignore, and that would be part of a run's address nevertheless.

        Args:
            task: one of `TASKS`.

        Raises:
            UsageError: names the field and the task.
        """
        for name, alone in ALONE.items():
            if task != alone and (found := getattr(self, name)) != getattr(Recipe, name):
                raise UsageError(f"recipe: {name} is for {alone} alone, found {found!r} for {task}; leave it out")

    def check_ignored(self) -> None:
        """Refuse what the optimiser or the schedule would ignore, likewise.

        Raises:
            UsageError: names the field.
        """
        if self.momentum != Recipe.momentum and self.optimizer != "sgd":
            raise UsageError(f"recipe: momentum is for sgd alone, found {self.momentum!r} for adamw; leave it out")
        if self.milestones and self.schedule != "steps":
            raise UsageError(f"recipe: milestones are for the schedule steps, found {self.schedule!r}; leave them out")
        if self.warmup_lr != Recipe.warmup_lr and not self.warmup_iterations:
            raise UsageError(f"recipe: warmup_lr is {self.warmup_lr!r}, but there are no warmup_iterations")
        if self.warmup_lr != Recipe.warmup_lr and self.schedule == "cosine":
            raise UsageError(
                f"recipe: warmup_lr is {self.warmup_lr!r}, but cosine warms up from 0 to lr; leave warmup_lr out"
            )

    def lr_at(self, iteration: int) -> float:
        """Learning rate of iteration 0, 1, ..., `iterations` - 1.

        One-cycle rises linearly over the first 30 % of the iterations and falls linearly to zero.
        Poly falls as (1 - iteration / iterations)^0.9 (Zhao et al. 2017, Sec. 5.1).
        Cosine rises linearly over the warm-up, which in the other schedules has a rate of its own, and then falls
        to zero as half a period of a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983, Eq. 5).
        """
        warmup = self.warmup_iterations
        if iteration < warmup:
            return self.lr * (iteration + 1) / (warmup + 1) if self.schedule == "cosine" else self.warmup_lr
        if self.schedule == "steps":
            return self.lr * 0.1 ** sum(iteration >= milestone for milestone in self.milestones)
        if self.schedule == "poly":
            return self.lr * float((1 - iteration / self.iterations) ** 0.9)
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * (iteration - warmup) / (self.iterations - warmup))) / 2
        progress = (iteration + 1) / (self.iterations + 1)
        return self.lr * min(progress / 0.3, (1 - progress) / 0.7)
