"""Failures by rule: what is found, what it is called, and how often."""

from __future__ import annotations

import collections
import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from scipy.cluster import hierarchy
from torch import Tensor

from resnotes.analysis.cooccurrence import presence
from resnotes.datasets import scenes
from resnotes.errors import UsageError
from resnotes.failures import KINDS, clustered, confused_pairs, counts, mine, recall_by_size, validate
from resnotes.failures.mining import components

CLASSES = ("water", "boat", "car", "sky")
WATER, BOAT, CAR, SKY = range(4)


def lake(side: int = 24) -> Tensor:
    """A labelled boat of 12 x 8 pixels on the water."""
    label = torch.full((1, side, side), WATER)
    label[0, 6:18, 8:16] = BOAT
    return label


def found(predictions: Tensor, labels: Tensor, **options: Any) -> pd.DataFrame:
    """`mine` in which no rule applies, unless the `options` say otherwise."""
    usual: dict[str, Any] = {
        "contradicting": torch.zeros(len(labels), 4, dtype=torch.bool),
        "confused": torch.zeros(4, 4, dtype=torch.bool),
        "field": 1000,
        "small": 0,
        "stride": 4,
    }
    return mine(predictions, labels, CLASSES, **(usual | options))


def pair(label: int, predicted: int) -> Tensor:
    matrix = torch.zeros(4, 4, dtype=torch.bool)
    matrix[label, predicted] = True
    return matrix


def against(predicted: int) -> Tensor:
    return torch.arange(4)[None] == predicted


def test_a_failure_is_described() -> None:
    labels, predictions = lake(), lake()
    predictions[0, 6:12, 8:16] = CAR
    [failure] = found(predictions, labels).to_dict("records")
    assert failure == {
        **{"rank": 1, "kind": "confusion", "image": 0, "labelled": "boat", "predicted": "car"},
        **{"pixels": 48, "object_pixels": 96, "share": 0.5, "wrong": 0.5},
        **{"top": 6, "left": 8, "bottom": 12, "right": 16, "object": 1, "piece": 1},
    }


def test_each_rule_alone_and_their_precedence() -> None:
    labels = lake()
    predictions = torch.where(labels == BOAT, CAR, labels)
    options: dict[str, Any] = {}
    kinds = [found(predictions, labels, **options).kind.item()]
    # With every rule of higher precedence that applies, the kind changes.
    for more in ({"confused": pair(BOAT, CAR)}, {"small": 1.0}, {"contradicting": against(CAR)}):
        assert found(predictions, labels, **more).kind.item() != "other"
        options |= more
        kinds.append(found(predictions, labels, **options).kind.item())
    assert kinds == ["other", "confusion", "inconspicuous", "relationship"]


def test_pairs_and_contexts_are_read_the_right_way_round() -> None:
    labels = lake().repeat(2, 1, 1)
    predictions = torch.where(labels == BOAT, CAR, labels)
    assert set(found(predictions, labels, confused=pair(CAR, BOAT)).kind) == {"other"}
    first = torch.cat([against(CAR), against(BOAT)])  # in each image, another class contradicts
    assert found(predictions, labels, contradicting=first).kind.tolist() == ["relationship", "other"]


def test_an_outline_that_is_off_is_a_boundary_whatever_the_class() -> None:
    labels = lake()
    rules: dict[str, Any] = {
        "confused": ~torch.eye(4, dtype=torch.bool),
        "contradicting": against(WATER) | against(BOAT),
    }
    for off in (1, 2, 3):
        kinds = set(found(labels.roll(off, 2), labels, **rules).kind)
        assert kinds == ({"boundary"} if off < 3 else {"relationship"})
    assert set(found(labels.roll(1, 2), labels, stride=1, **rules).kind) == {"relationship"}


def test_a_single_pixel_that_is_deep_enough_is_more_than_an_outline() -> None:
    labels, predictions = lake(), lake()
    predictions[0, 6:8, 8:16] = CAR  # along the outline
    assert found(predictions, labels).kind.item() == "boundary"
    predictions[0, 8, 8:11] = CAR  # the last of these is farther than half a cell from it
    assert found(predictions, labels).kind.item() == "other"


def test_the_frame_is_no_outline() -> None:
    labels = torch.full((1, 24, 24), WATER)
    predictions = labels.clone()
    predictions[0, :2] = SKY
    assert found(predictions, labels).kind.item() == "other"


def test_a_thin_object_that_is_missed_is_no_boundary() -> None:
    labels = torch.full((1, 24, 24), WATER)
    labels[0, 4:20, 10] = BOAT
    predictions = torch.full_like(labels, WATER)
    assert found(predictions, labels).kind.item() == "other"
    assert found(predictions, labels, small=0.5).kind.item() == "inconspicuous"
    predictions[0, 4:12, 10] = BOAT  # half of it is enough
    assert found(predictions, labels, small=0.5).kind.item() == "boundary"


def squares() -> tuple[Tensor, Tensor]:
    """Four boats of 16, 25, 36 and 49 pixels on the water, and predictions that miss them all."""
    labels = torch.full((1, 40, 40), WATER)
    for i, side in enumerate((4, 5, 6, 7)):
        labels[0, 2 + 9 * i : 2 + 9 * i + side, 5 : 5 + side] = BOAT
    return torch.full_like(labels, WATER), labels


def small_and_missed(predictions: Tensor, labels: Tensor) -> set[int]:
    kinds = found(predictions, labels, small=0.5).set_index("pixels").kind
    return {size for size in (16, 25, 36, 49) if kinds[size] == "inconspicuous"}


def test_small_is_below_a_quantile_of_all_objects() -> None:
    assert small_and_missed(*squares()) == {16, 25}  # of four boats and the water


def test_specks_and_pieces_are_not_the_quantile() -> None:
    """As many single pixels as one likes leave the kind of a missed object what it was; so do pieces of one object."""
    predictions, labels = squares()
    labels[0, 1:39:3, 20:39:3] = BOAT
    assert small_and_missed(predictions, labels) == {16, 25}
    predictions, labels = squares()
    predictions[0, 0, :40:2] = SKY
    assert small_and_missed(predictions, labels) == {16, 25}


def test_where_no_object_fills_a_cell_all_are_small() -> None:
    labels = torch.full((1, 24, 24), 255)
    labels[0, 5:8, 5:8], labels[0, 15:18, 5:10] = BOAT, BOAT  # 9 and 15 pixels
    assert found(torch.full_like(labels, WATER), labels).kind.tolist() == ["inconspicuous", "inconspicuous"]


def test_another_number_may_stand_for_what_is_ignored() -> None:
    _, labels = ponds()
    predictions = torch.where(labels == BOAT, CAR, labels)
    labels[:, :2] = 255
    usual = found(predictions, labels, confused=None)
    assert set(usual.kind) == {"confusion"}
    pd.testing.assert_frame_equal(
        found(predictions, labels.where(labels != 255, 9), confused=None, ignore_index=9), usual
    )


def test_equal_failures_are_in_the_order_of_images() -> None:
    labels = lake().repeat(60, 1, 1)
    predictions = torch.where(labels == BOAT, CAR, labels)
    predictions[::3, 6:12] = labels[::3, 6:12]  # less
    table = found(predictions, labels)
    assert table["rank"].tolist() == [1] * 40 + [41] * 20
    assert table["image"].tolist() == [i for i in range(60) if i % 3] + list(range(0, 60, 3))


def test_large_and_in_three_pieces_is_broken_up() -> None:
    labels = torch.full((1, 40, 40), WATER)
    labels[0, 5:35, 5:35] = BOAT
    three, two = labels.clone(), labels.clone()
    three[0, 15:25, 5:35] = WATER
    two[0, 25:35, 5:35] = WATER
    assert found(three, labels, field=29).kind.item() == "inconspicuous"
    assert found(three, labels, field=30).kind.item() == "other"
    assert found(two, labels, field=29).kind.item() == "other"
    specks = two.clone()
    specks[0, 10:12, 10:12] = CAR  # finer than the map, these are no pieces
    specks[0, 20:22, 20:22] = CAR
    assert "inconspicuous" not in set(found(specks, labels, field=29).kind)


@pytest.mark.parametrize(("rows", "kind"), [(2, "other"), (3, "confusion"), (9, "confusion"), (10, "other")])
def test_split_between_two_classes_of_which_each_has_a_quarter(rows: int, kind: str) -> None:
    labels, predictions = lake(), lake()
    predictions[0, 6 : 6 + rows, 8:16] = CAR
    assert found(predictions, labels, stride=2).kind.item() == kind


def test_a_neighbour_that_spread_splits_nothing() -> None:
    labels, predictions = lake(), lake()
    labels[0, 5, 10] = CAR
    predictions[0, 5, 10] = CAR
    predictions[0, 6:12, 8:16] = CAR
    assert found(predictions, labels).kind.item() == "other"


def test_what_is_ignored_neither_fails_nor_counts() -> None:
    labels = lake()
    predictions = torch.where(labels == BOAT, CAR, labels)
    labels[0, 6:12] = 255
    [failure] = found(predictions, labels).to_dict("records")
    assert (failure["pixels"], failure["object_pixels"], failure["wrong"]) == (48, 48, 1)
    assert found(predictions, torch.full_like(labels, 255)).empty


def test_rank_is_by_pixels_times_their_share() -> None:
    labels = torch.full((3, 24, 24), WATER)
    labels[:2, 4:8, 4:12] = BOAT
    predictions = labels.clone()
    predictions[:2, 4:8, 4:12] = CAR  # 32 of 32 pixels, twice
    predictions[2, 4:20, 4:10] = CAR  # 96 of 576
    table = found(predictions, labels)
    assert table["rank"].to_list() == [1, 1, 3]
    assert table["image"].to_list() == [0, 1, 2]


def maps(count: int, side: int = 8) -> st.SearchStrategy[Tensor]:
    """Random classes in blocks of 2 x 2 and single pixels, so that pieces of every size occur."""

    def build(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.randint(4, (count, side // 4, side // 4), generator=generator)
        blocks = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
        fine = torch.randint(4, (count, side, side), generator=generator)
        return torch.where(torch.rand(count, side, side, generator=generator) < 0.1, fine, blocks)

    return st.integers(0, 2**32).map(build)


RULES: dict[str, Any] = {"confused": pair(BOAT, CAR) | pair(SKY, WATER), "field": 5, "small": 0.4, "stride": 2}
CONTRADICTING = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]).bool()


@settings(max_examples=25, derandomize=True)
@given(maps(3, 12), maps(3, 12), st.permutations(range(3)))
def test_failures_are_the_wrong_pixels_whatever_order_or_side(
    predictions: Tensor, labels: Tensor, order: list[int]
) -> None:
    table = found(predictions, labels, contradicting=CONTRADICTING, **RULES)
    wrong = predictions != labels
    assert table.groupby("image").pixels.sum().reindex(range(3), fill_value=0).tolist() == wrong.sum((1, 2)).tolist()
    expected = 0  # components of each pair of classes, one by one
    for image in range(3):
        for label in range(4):
            for predicted in set(range(4)) - {label}:
                expected += ndimage.label((labels[image] == label) & (predictions[image] == predicted))[1]
    assert len(table) == expected

    described = ["rank", "kind", "image", "labelled", "predicted", "pixels", "object_pixels", "top", "bottom"]
    usual = sorted(table[described].itertuples(index=False))
    permuted = found(predictions[order], labels[order], contradicting=CONTRADICTING[order], **RULES)
    permuted["image"] = [order[i] for i in permuted["image"]]
    assert sorted(permuted[described].itertuples(index=False)) == usual
    mirrored = found(predictions.flip(2), labels.flip(2), contradicting=CONTRADICTING, **RULES)
    assert sorted(mirrored[described].itertuples(index=False)) == usual


@settings(max_examples=25, derandomize=True)
@given(maps(1, 12))
def test_components_are_those_of_scipy_in_the_order_of_their_pixels(values: Tensor) -> None:
    numbers = components(values[0].numpy())
    assert list(dict.fromkeys(numbers.ravel())) == list(range(numbers.max() + 1))
    total = 0
    for value in range(4):
        parts, count = ndimage.label(values[0].numpy() == value)
        total += count
        for part in range(1, count + 1):
            [number] = np.unique(numbers[parts == part])
            assert (numbers == number).sum() == (parts == part).sum()
    assert total == numbers.max() + 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"contradicting": torch.zeros(4, 2, dtype=torch.bool)},
        {"contradicting": torch.zeros(2, 4)},
        {"confused": torch.zeros(3, 4, dtype=torch.bool)},
        {"field": 0},
        {"small": 1.5},
        {"stride": 0},
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    maps = torch.zeros(2, 2, 5, 6).long()
    assert found(*maps, contradicting=np.zeros((2, 4), bool), confused=[[False] * 4] * 4).empty
    with pytest.raises(UsageError, match="expected"):
        found(*maps, **wrong)


def ponds(count: int = 10) -> tuple[Tensor, Tensor]:
    labels = lake().repeat(count, 1, 1)
    return labels.clone(), labels


def test_a_pair_is_confused_if_nothing_beside_it_explains_it() -> None:
    predictions, labels = ponds()
    boats = labels == BOAT
    assert torch.equal(confused_pairs(torch.where(boats, CAR, labels), labels, 4), pair(BOAT, CAR))
    assert not confused_pairs(torch.where(boats, WATER, labels), labels, 4).any()  # what a missed boat lies in
    assert not confused_pairs(labels, labels, 4).any()
    assert not confused_pairs(torch.where(boats, CAR, labels)[:1], labels[:1], 4).any()  # one image is no system
    predictions[:, 6, 8:12] = CAR  # 4 of 96
    assert not confused_pairs(predictions, labels, 4).any()
    assert torch.equal(confused_pairs(predictions, labels, 4, least=0.04), pair(BOAT, CAR))


def confusing(seed: int) -> tuple[Tensor, Tensor]:
    """Ten random images in which each class is now and then taken for each other one, some far more often."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (10, 6, 6), generator=generator).repeat_interleave(3, 1).repeat_interleave(3, 2)
    rates = torch.rand(5, 5, generator=generator) ** 4
    rates = rates.fill_diagonal_(1) / rates.sum(1, keepdim=True)
    taken = torch.multinomial(rates[labels.flatten()], 1, generator=generator).view_as(labels)
    wrong_images = (torch.rand(10, 5, generator=generator) < 0.7).gather(1, labels.flatten(1)).view_as(labels)
    labels = torch.where(torch.rand(labels.shape, generator=generator) < 0.1, 255, labels)
    predictions = torch.where(wrong_images, taken, labels.clamp(max=4))
    return predictions, torch.where(labels == 4, 255, labels)  # a class that is predicted, and labelled nowhere


def confusions_by_hand(predictions: Tensor, labels: Tensor, least: float) -> dict[tuple[int, int], float]:
    """Which class is often taken for which, and SciPy's p that it is by chance; pixel by pixel."""
    beyond: dict[tuple[int, int], list[float]] = {}
    pixels = collections.Counter(labels.flatten().tolist())
    for prediction, label in zip(predictions.tolist(), labels.tolist(), strict=True):
        wrong, outline = collections.Counter[tuple[int, int]](), collections.Counter[tuple[int, int]]()
        for y, x in itertools.product(range(len(label)), range(len(label[0]))):
            i = label[y][x]
            if prediction[y][x] != i:
                wrong[i, prediction[y][x]] += 1
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < len(label) and 0 <= u < len(label[0]) and label[v][u] not in (i, 255):
                    outline[i, label[v][u]] += 1
        for i in range(5):
            all_wrong, all_outline = (sum(count[i, j] for j in range(5)) for count in (wrong, outline))
            for j in set(range(5)) - {i} if all_wrong else ():
                chance = outline[i, j] / all_outline if all_outline else 0.0
                beyond.setdefault((i, j), []).append(wrong[i, j] - all_wrong * chance)
    often = {pair: found for pair, found in beyond.items() if sum(found) > 0 and sum(found) >= least * pixels[pair[0]]}
    return {
        pair: float(stats.ttest_1samp(found, 0, alternative="greater").pvalue) if len(found) > 1 else math.nan
        for pair, found in often.items()
    }


@pytest.mark.parametrize("seed", range(12))
def test_confused_pairs_are_those_of_scipys_test_and_counting_by_hand(seed: int) -> None:
    predictions, labels = confusing(seed)
    for least in (0.0, 0.02, 0.1):
        often = confusions_by_hand(predictions, labels, least)
        assert often
        for limit in [p for p in often.values() if 0 < p < 0.5]:
            for level in (limit * len(often) * (1 - 1e-9), limit * len(often) * (1 + 1e-9)):
                confused = confused_pairs(predictions, labels, 5, least=least, level=level)
                expected = {pair for pair, p in often.items() if p < level / len(often)}
                assert {(i, j) for i, j in confused.nonzero().tolist()} == expected


def test_by_default_pairs_are_those_of_the_predictions() -> None:
    _, labels = ponds()
    predictions = torch.where(labels == BOAT, CAR, labels)
    assert set(found(predictions, labels, confused=None).kind) == {"confusion"}
    assert set(found(predictions[:1], labels[:1], confused=None).kind) == {"other"}


@settings(max_examples=15, derandomize=True)
@given(maps(3, 12), maps(3, 12))
def test_counts_and_recall_against_brute_force(predictions: Tensor, labels: Tensor) -> None:
    table = found(predictions, labels, contradicting=CONTRADICTING, **RULES)
    counted = counts(table, 5)
    assert len(counted) == 5 * len(KINDS)
    for row in counted.itertuples():
        some = [each for each in table.itertuples() if (each.image, each.kind) == (row.image, row.kind)]
        assert row.pixels == sum(each.pixels for each in some)
        assert row.objects == len({each.object for each in some})

    objects = []
    for image, label in itertools.product(range(3), range(4)):
        parts, count = ndimage.label(labels[image] == label)
        for part in range(1, count + 1):
            right = (predictions[image].numpy() == label)[parts == part]
            objects.append((image, CLASSES[label], right.size, pytest.approx(right.mean())))
    recalled = recall_by_size(predictions, labels, CLASSES)
    assert list(recalled) == ["image", "object", "labelled", "pixels", "recovered"]
    unmatched = list(recalled.drop(columns="object").itertuples(index=False, name=None))
    for each in objects:
        unmatched.remove(each)
    assert not unmatched


def test_a_failure_beyond_the_images_is_not_left_out() -> None:
    table = found(torch.where(lake() == BOAT, CAR, lake()), lake())
    with pytest.raises(UsageError, match="images 0 to 1, found one in 2"):
        counts(table.assign(image=2), 2)


def test_recall_leaves_out_what_is_ignored() -> None:
    labels = lake()
    labels[0, :3] = 255
    table = recall_by_size(lake(), labels, CLASSES)
    assert table[["labelled", "pixels", "recovered"]].values.tolist() == [["water", 408, 1.0], ["boat", 96, 1.0]]


@settings(max_examples=30, derandomize=True)
@given(st.integers(0, 2**32), st.integers(2, 8))
def test_the_order_is_that_of_average_linkage_over_rates(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    confusion = rng.integers(0, 50, (count, count)) * (rng.random((count, count)) < 0.5)
    confusion[rng.integers(count)] = 0  # a class without pixels
    confusion[rng.integers(count)] = np.arange(count) == rng.integers(count)  # and one with a single pixel
    distances = []
    for i, j in itertools.combinations(range(count), 2):
        rates = [confusion[a][b] / max(1, confusion[a].sum()) for a, b in ((i, j), (j, i))]
        distances.append(1 - sum(rates) / 2)
    tree = hierarchy.optimal_leaf_ordering(hierarchy.average(distances), distances)
    assert clustered(torch.from_numpy(confusion)).tolist() == hierarchy.leaves_list(tree).tolist()


@pytest.fixture(scope="module")
def made() -> tuple[Any, Tensor, pd.DataFrame]:
    """Scenes in which boats are called cars, and streetlights and signboards are missed; what was mined from them."""
    split = scenes.generate(40, seed=3)
    number = {name: scenes.CLASSES.index(name) for name in scenes.CLASSES}
    predictions = split.labels.long()
    for name, instead in (("boat", "car"), ("streetlight", "sky"), ("signboard", "building"), ("hill", "mountain")):
        predictions[split.labels == number[name]] = number[instead]
    present = presence(split.labels, 25)
    together = present.double().T @ present.double()  # never, or hardly ever, beside another class of the image
    rarely = together < 0.01 * together.diag()[:, None]
    contradicting = (present.double() @ rarely.double()) > 0
    return split, predictions, mine(predictions, split.labels, scenes.CLASSES, contradicting, 40)


def test_validation_against_the_known_causes(made: tuple[Any, Tensor, pd.DataFrame]) -> None:
    split, predictions, table = made
    ambiguity = {each.label: each.ambiguity for sample in split for each in sample.objects}
    true = table.labelled.map(lambda name: ambiguity[scenes.CLASSES.index(name)])
    scores, causes = validate(table, predictions, split)
    assert causes.to_numpy().sum() == (predictions != split.labels).sum()
    for cause, kind in itertools.product(scores.index, KINDS):
        assert causes.loc[cause, kind] == table.pixels[(true == cause) & (table.kind == kind)].sum()
    judged = table.kind != "boundary"
    for kind in ("relationship", "inconspicuous"):
        of_kind, of_cause = (table.pixels[some].sum() for some in (table.kind == kind, judged & (true == kind)))
        hits = causes.loc[kind, kind]
        assert scores.loc[kind].to_dict() == {
            **{"precision": hits / of_kind, "recall": hits / of_cause},
            **{"found": of_kind, "true": of_cause},
        }
    # A boat is not called a car by chance, nor does a hill contradict its context less than a boat does.
    assert scores.loc["relationship", "recall"] == 1
    assert causes.loc["confusion", "relationship"] == table.pixels[table.labelled == "hill"].sum() > 0
    assert np.isnan(scores.loc["other", "recall"])


def test_validation_needs_objects(made: tuple[Any, Tensor, pd.DataFrame]) -> None:
    split, predictions, table = made
    with pytest.raises(UsageError, match="knows no objects"):
        validate(table, predictions, [sample._replace(instances=None) for sample in split])
    with pytest.raises(UsageError, match="found 39"):
        validate(table, predictions, split[:39])
