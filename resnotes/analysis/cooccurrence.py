"""Which classes images show together, and predictions that break with it (Zhao et al. 2017, Sec. 3.1).

"There exist co-occurrent visual patterns. For example, an airplane is likely to be in runway or fly in sky while not
over a road." Counted in the images of a training set, with tests of what is no chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from resnotes.analysis.intervals import Interval, percentiles
from resnotes.analysis.maps import as_map, as_table, check_classes
from resnotes.errors import UsageError
from resnotes.models.segmentation import IGNORED

RARE, LEVEL = 0.01, 0.05  # of a contradiction: P(class | context) below, and rate of false discoveries


def presence(labels: Iterable[Any], num_classes: int, *, ignore_index: int = IGNORED, name: str = "labels") -> Tensor:
    """Which classes each image shows.

    Args:
        labels: integers ``[N, H, W]``, or maps ``[H, W]`` of any sizes, such as the labels of a split one by one;
            tensors, arrays or lists.
        num_classes: number of classes, C.
        ignore_index: label of pixels that do not count.
        name: what messages call the labels.

    Returns:
        bool ``[N, C]``; nothing in an image without labelled pixels.

    Raises:
        UsageError: no image, or labels outside the range.
    """
    shown = []
    for each in (as_map(each, name) for each in labels):
        check_classes(each, name, num_classes, ignore_index)
        shown.append(torch.bincount(each[each != ignore_index], minlength=num_classes) > 0)
    if not shown:
        raise UsageError(f"expected at least one map of {name}, found none")
    return torch.stack(shown)


@dataclass(frozen=True, eq=False)
class Cooccurrence:
    """In how many images two classes occur: each alone, and both. One is the class, the other its context.

    Attributes:
        classes: names, C of them, in label order.
        counts: int64 ``[C, C]``, images with both.
        class_images: int64 ``[C]``, images with the class.
        images: all of them.
    """

    classes: tuple[str, ...]
    counts: Tensor
    class_images: Tensor
    images: int

    @classmethod
    def between_classes(cls, present: Tensor, classes: Sequence[str]) -> Self:
        """Of classes with classes.

        Args:
            present: bool ``[N, C]``, see `presence`.
            classes: names.

        Raises:
            UsageError: no image, or another number of classes.
        """
        present = as_table(present, "presence of classes in images", None, len(classes))
        counts = (present.double().T @ present.double()).long()  # exact, and faster than with integers
        return cls(tuple(classes), counts, present.sum(0), len(present))

    def expected(self) -> Tensor:
        """Images with both if the two were independent, float64 ``[C, C]``."""
        return self.class_images.double()[:, None] * self.class_images / self.images

    def conditional(self) -> Tensor:
        """P(class | context), float64 ``[C, C]``; NaN for a context that never occurs."""
        return self.counts.double() / self.class_images

    def pmi(self) -> Tensor:
        """Pointwise mutual information ``log2 P(class, context) / (P(class) P(context))`` in bits, float64 ``[C, C]``.

        0 where the two are independent, -inf where they are never together though both occur, NaN where one does not.
        """
        return torch.log2(self.counts / self.expected())

    def p_values(self) -> Tensor:
        """Fisher's exact test of independence, float64 ``[C, C]``; NaN for a class with itself.

        Two-sided: twice the smaller of the two tails, each with the count itself, and at most 1. Images that are not
        independent draws, such as frames of one video, make it too small.
        """
        from scipy.stats import hypergeom

        counts, margins = self.counts.numpy(), self._margins()
        tails = hypergeom.cdf(counts, *margins), hypergeom.sf(counts - 1, *margins)
        p = torch.from_numpy(np.minimum(2 * np.minimum(*tails), 1))
        return p.fill_diagonal_(torch.nan)

    def significant(self, level: float = LEVEL) -> Tensor:
        """Pairs that are together more often (1) or less often (-1) than if independent, int8 ``[C, C]``; 0 otherwise.

        By `p_values`, with the false discovery rate over all pairs held at `level` (Benjamini and Hochberg 1995).
        """
        from scipy.stats import false_discovery_control

        p = self.p_values().numpy()
        # Pairs of classes are there twice, which changes no adjusted value: ranks and their number double.
        tested = ~np.isnan(p)
        found = np.zeros(p.shape, dtype=np.int8)
        found[tested] = false_discovery_control(p[tested]) <= level
        return torch.from_numpy(found) * (self.counts - self.expected()).sign().to(torch.int8)

    def pairs(self) -> pd.DataFrame:
        """What is known of each pair, highest PMI first; two classes are there once.

        Returns:
            `class`, `context`, `images` with both, `expected` number of them, `pmi` in bits, `p` by `p_values`, and
            `significant`; see there.
        """
        rows, columns = np.triu_indices(len(self.classes), 1)
        values = {"images": self.counts, "expected": self.expected(), "pmi": self.pmi()}
        values |= {"p": self.p_values(), "significant": self.significant()}
        names = {"class": np.array(self.classes)[rows], "context": np.array(self.classes)[columns]}
        frame = pd.DataFrame(names | {name: value.numpy()[rows, columns] for name, value in values.items()})
        return frame.sort_values("pmi", ascending=False, kind="stable", ignore_index=True)

    def contradictions(self) -> Tensor:
        """Classes that do not belong into a context, bool ``[C, C]``.

        P(class | context) is below `RARE`, and below what independence gives, by `significant`. Rarity alone
        would have a rare class contradict whatever it was not seen with; significance alone, a common class where it is
        merely less common. A class never seen contradicts nothing and is contradicted by nothing, and none contradicts
        itself.
        """
        return (self.conditional() < RARE) & (self.significant() < 0)

    def contradicts(self, present: Tensor) -> Tensor:
        """Which classes, shown or not, contradict at least one context of an image, bool ``[N, C]``.

        Args:
            present: bool ``[N, C]``, the classes that each image shows.

        Raises:
            UsageError: another number of classes.
        """
        present = as_table(present, "presence of contexts in images", None, len(self.classes))
        return present.double() @ self.contradictions().double().T > 0

    def _margins(self) -> tuple[Any, ...]:
        """Number of images, and how many have the one and the other, as `scipy.stats.hypergeom` takes them."""
        rows, columns = self.class_images.numpy()[:, None], self.class_images.numpy()
        # The distribution does not change if both change places, but rounding might: smaller first.
        return self.images, np.minimum(rows, columns), np.maximum(rows, columns)


def more_often_than_shifted(
    present: Tensor, classes: Sequence[str], films: Sequence[str], *, draws: int = 200, seed: int = 0
) -> Interval:
    """Pairs of classes that are together more often than by chance, beyond those of images shifted against each other.

    Frames of one film resemble their neighbours, so that classes seem to go together more often than independent images
    would have them; so they do where one film is in the country and another in town. Shifting each class within each
    film, by as many images as is drawn, keeps both, and undoes what they have in common beyond.

    Args:
        present: bool ``[N, C]``, see `presence`; images of a film in their order.
        classes: names.
        films: which film each image is of.
        draws: sets of shifts.
        seed: of the shifts.

    Returns:
        By how many pairs the images have more than shifted ones on average; the bounds are those against the 97.5th and
        2.5th percentile of the draws, which `n` counts.

    Raises:
        UsageError: see `Cooccurrence.between_classes`; or not a film for each image.
    """
    present = as_table(present, "presence of classes in images", None, len(classes))
    if len(films) != len(present):
        raise UsageError(f"expected a film for each of {len(present)} images, found {len(films)}")
    generator = np.random.default_rng(seed)
    rows_of = [np.flatnonzero(np.asarray(films) == film) for film in dict.fromkeys(films)]

    def count(columns: Tensor) -> int:
        return int((Cooccurrence.between_classes(columns, classes).significant() > 0).sum()) // 2

    def shifted() -> Tensor:
        columns = present.clone()
        for rows in rows_of:
            for number, by in enumerate(generator.integers(len(rows), size=len(classes)).tolist()):
                columns[rows, number] = present[rows, number].roll(by)
        return columns

    beyond = count(present) - np.array([count(shifted()) for _ in range(draws)])
    return percentiles(float(beyond.mean()), beyond, draws)
