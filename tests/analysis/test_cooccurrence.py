"""Co-occurrence of classes, and contradictions."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from resnotes.analysis.cooccurrence import Cooccurrence, more_often_than_shifted, presence
from resnotes.datasets import Segmentation, scenes
from resnotes.datasets.scenes import CLASSES
from resnotes.datasets.segmentation import Stacked
from resnotes.errors import UsageError

ABC = ("a", "b", "c")
seeds = st.integers(0, 2**31)


@pytest.fixture(scope="module")
def made() -> Stacked:
    return scenes.generate(200)


@pytest.fixture(scope="module")
def among(made: Stacked) -> Cooccurrence:
    return Cooccurrence.between_classes(presence(made.labels, len(CLASSES)), CLASSES)


def random_presence(seed: int, images: int = 40, classes: int = 5) -> Tensor:
    """Of classes that are common, rare, everywhere and nowhere, some of them dependent."""
    rng = np.random.default_rng(seed)
    shares = rng.choice([0, 0.05, 0.3, 0.6, 0.95, 1], classes)
    common = rng.random((images, 1))
    drawn = np.where(rng.random(classes) < 0.5, common, rng.random((images, classes)))
    return torch.from_numpy(drawn < shares)


def random_cooccurrence(seed: int) -> tuple[Cooccurrence, list[list[bool]]]:
    """With which classes each image has."""
    present = random_presence(seed)
    names = [f"class {i}" for i in range(present.shape[1])]
    return Cooccurrence.between_classes(present, names), present.tolist()


# Presence


@settings(max_examples=40)
@given(seeds, st.sampled_from([11, 255]))
def test_presence_by_counting_pixels(seed: int, ignored: int) -> None:
    rng = np.random.default_rng(seed)
    labels = []
    for _ in range(3):
        drawn = rng.choice([0, 1, 2, 3, ignored], rng.integers(1, 5, 2), p=rng.dirichlet(np.ones(5)))
        labels.append(torch.from_numpy(drawn.astype(np.uint8)))
    found = presence(iter(labels), 4, ignore_index=ignored)
    assert found.dtype == torch.bool and found.shape == (3, 4)
    for image, row in zip(labels, found.tolist(), strict=True):
        assert row == [c in image.flatten().tolist() for c in range(4)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([[[0, 3]]]), "expected labels of 0 to 2, or 255; found 0 to 3"),
        (torch.tensor([[[-1, 2]]]), "found -1 to 2"),
        ([], "at least one map of labels, found none"),
    ],
)
def test_impossible_labels(labels: Sequence[Tensor], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        presence(labels, 3)


# Counts and what follows from them


@settings(max_examples=40)
@given(seeds)
def test_measures_by_counting_images(seed: int) -> None:
    found, present = random_cooccurrence(seed)
    assert found.counts.dtype == found.class_images.dtype == torch.int64
    conditional, pmi = found.conditional(), found.pmi()
    assert conditional.dtype == pmi.dtype == torch.float64
    n = found.images
    assert n == len(present)
    for c, k in itertools.product(range(len(found.classes)), repeat=2):
        classes, contexts = ([row[each] for row in present] for each in (c, k))
        a, b, both = sum(classes), sum(contexts), sum(map(all, zip(classes, contexts, strict=True)))
        assert (int(found.counts[c, k]), int(found.class_images[c])) == (both, a)
        assert float(conditional[c, k]) == pytest.approx(both / b if b else math.nan, nan_ok=True)
        expected = math.nan if a * b == 0 else -math.inf if both == 0 else math.log2(both * n / (a * b))
        assert float(pmi[c, k]) == pytest.approx(expected, nan_ok=True, abs=1e-12)


@settings(max_examples=25)
@given(seeds)
def test_p_values_are_fishers(seed: int) -> None:
    found, _ = random_cooccurrence(seed)
    p = found.p_values()
    for c, k in itertools.permutations(range(len(found.classes)), 2):
        both, a, b = int(found.counts[c, k]), int(found.class_images[c]), int(found.class_images[k])
        table = [[both, a - both], [b - both, found.images - a - b + both]]
        tails = [stats.fisher_exact(table, side).pvalue for side in ("less", "greater")]
        assert float(p[c, k]) == pytest.approx(min(1, 2 * min(tails)))
    np.testing.assert_array_equal(p, p.T)
    assert p.diagonal().isnan().all()


@settings(max_examples=40)
@given(seeds, st.sampled_from([0.01, 0.05, 0.3]))
def test_significance_by_the_procedure_of_benjamini_and_hochberg(seed: int, level: float) -> None:
    found, _ = random_cooccurrence(seed)
    p, pmi = found.p_values().tolist(), found.pmi().tolist()
    pairs = sorted((p[c][k], c, k) for c, k in itertools.combinations(range(len(found.classes)), 2))
    passed = [rank for rank, (value, _, _) in enumerate(pairs, 1) if value <= level * rank / len(pairs) + 1e-15]
    expected = torch.zeros_like(found.counts, dtype=torch.int8)
    for _, c, k in pairs[: max(passed, default=0)]:
        expected[c, k] = 1 if pmi[c][k] > 0 else -1
    assert torch.equal(found.significant(level), expected + expected.T)


def test_pairs_are_listed_once(among: Cooccurrence) -> None:
    frame = among.pairs()
    assert len(frame) == 25 * 24 / 2 and frame["pmi"].is_monotonic_decreasing
    row = frame[(frame["class"] == "car") & (frame["context"] == "streetlight")].squeeze()
    c, k = CLASSES.index("car"), CLASSES.index("streetlight")
    assert (row["images"], row["pmi"], row["p"]) == (among.counts[c, k], among.pmi()[c, k], among.p_values()[c, k])
    assert row["expected"] == among.class_images[c] * among.class_images[k] / 200
    assert row["pmi"] > 0 and row["significant"] == 1


# Contradictions


def test_vehicles_contradict_scenes_that_are_not_theirs(made: Stacked, among: Cooccurrence) -> None:
    contradicts = among.contradicts(presence(made.labels, len(CLASSES)))
    for kind, alien, own in [("street", "boat", "car"), ("harbour", "car", "boat"), ("airfield", "bus", "airplane")]:
        images = [i for i, scene in enumerate(made.scenes) if scene == kind]
        assert contradicts[images, CLASSES.index(alien)].all()
        if kind != "street":  # where there is a bus, a car is alien: the scenes have one or the other
            assert not contradicts[images, CLASSES.index(own)].any()
        assert not contradicts[images, CLASSES.index("sky")].any()
    with_car = [i for i, image in enumerate(made.labels) if (image == CLASSES.index("car")).any()]
    assert not contradicts[with_car, CLASSES.index("car")].any()


def test_rarity_and_significance_are_both_needed() -> None:
    # a and b alternate; c is with a once, and d in no image.
    present = torch.zeros(400, 4, dtype=torch.bool)
    present[:200, 0] = present[200:, 1] = present[0, 2] = True
    found = Cooccurrence.between_classes(present, "abcd")
    assert found.contradictions()[:2].tolist() == [[False, True, False, False], [True, False, False, False]]
    assert found.contradicts(present[1:2]).tolist() == [[False, True, False, False]]  # a alone makes b one
    assert found.conditional()[2, 1] == 0 and not found.contradictions()[2:].any()  # once is not enough to tell
    present[200:260, 0] = True
    less = Cooccurrence.between_classes(present, "abcd")
    assert less.significant()[0, 1] == -1 and not less.contradictions().any()  # 60 of 200 is not rare


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda _: Cooccurrence.between_classes(torch.ones(2, 2).bool(), ABC),
            r"as bool \[N, 3\], not empty; found torch.bool \[2, 2\]",
        ),
        (lambda _: Cooccurrence.between_classes(torch.ones(0, 3).bool(), ABC), r"not empty; found torch.bool \[0, 3\]"),
        (
            lambda among: among.contradicts(torch.ones(2, 7).bool()),
            r"as bool \[N, 25\], not empty; found torch.bool \[2, 7\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    make: Callable[[Cooccurrence], object], message: str, among: Cooccurrence
) -> None:
    with pytest.raises(UsageError, match=message):
        make(among)


# Films


def test_shifted_films_have_what_comes_of_neighbours_alike_and_not_what_goes_together() -> None:
    one, other, *alone = torch.from_numpy(np.random.default_rng(0).random((6, 60)) < 0.5).repeat_interleave(5, 1)
    film = ["one"] * 300
    present = torch.stack([one, one, other, other], 1)
    found = more_often_than_shifted(present, "abcd", film)
    assert found.low > 0 and found.n == 200  # type: ignore[operator]
    together = (Cooccurrence.between_classes(present, "abcd").significant() > 0).triu(1).sum()
    assert together - 1 < found.mean <= together  # shifted, a pair seldom goes together
    assert found == more_often_than_shifted(present, "abcd", film)
    by_chance = more_often_than_shifted(torch.stack(alone, 1), "abcd", film)
    assert by_chance.low <= 0 <= by_chance.high  # type: ignore[operator]


def test_films_that_differ_have_nothing_in_common_by_that() -> None:
    town, country = (torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) < share for share in (0.9, 0.1))
    present, films = torch.cat([town, country]), ["town"] * 200 + ["country"] * 200
    assert more_often_than_shifted(present, "abc", ["one"] * 400).mean > 1
    within = more_often_than_shifted(present, "abc", films)
    assert within.low <= 0 <= within.high  # type: ignore[operator]
    with pytest.raises(UsageError, match="expected a film for each of 400 images, found 1"):
        more_often_than_shifted(present, "abc", ["one"])


# CamVid


def test_roads_contradict_nothing(real_camvid: Segmentation) -> None:
    data = real_camvid
    present = presence(data.train.labels, data.num_classes, ignore_index=data.ignore_index)  # type: ignore[attr-defined]
    found = Cooccurrence.between_classes(present, data.classes)
    assert found.class_images[data.classes.index("road")] == len(data.train) == found.images
    assert found.significant().any() and not found.contradictions().any()
    assert found.pmi().triu(1).abs().max() < 0.5  # bits; in the made scenes it is up to 3
