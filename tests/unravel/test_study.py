"""Whole lesion studies against one lesion after the other."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kit.networks import small
from torch.nn import functional as F

from resnotes.errors import UsageError
from resnotes.unravel import (
    Lesion,
    excess,
    gradients_along,
    length_study,
    lesion_errors,
    lesion_logits,
    lesion_study,
    mean_length,
    over_training,
    pair_study,
    path_gradients,
    relative_lengths,
    select,
    wrong,
)
from resnotes.unravel.enumeration import all_paths

IMAGES, LABELS = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 10
NETWORK = small("resnet-20").eval()
REPAIR = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def the_study(seed: int = 0, repaired: tuple[str, ...] = ("single",)) -> pd.DataFrame:
    return lesion_study(NETWORK, IMAGES, LABELS, draws=2, seed=seed, repair=REPAIR, repaired=repaired)


def test_a_study_says_of_each_lesion_what_it_does_alone() -> None:
    table = the_study(repaired=("single", "random"))
    for bn, repair in (("as trained", None), ("repaired", REPAIR)):
        rows = table[table.bn == bn]
        singles = rows[rows.kind == "single"]
        expected = lesion_errors(NETWORK, [(), *([block] for block in singles.k)], IMAGES, LABELS, repair=repair)
        assert [rows[rows.kind == "intact"].error.item(), *singles.error] == expected.tolist()
        assert singles.k[singles.shrinks].tolist() == [3, 6]  # the first blocks of the second and third stage
    assert (100 * wrong(table).mean(1)).tolist() == pytest.approx(table.error.tolist())


def test_deletions_of_many_are_nested_and_exchanges_are_orders() -> None:
    table = the_study()
    many, orders = (table[table.kind == kind] for kind in ("random", "exchanged"))
    assert many.groupby("draw").k.agg(list).tolist() == [list(range(1, 10))] * 2  # 9 blocks, all of which can go
    assert len(set(many[many.k == 9].wrong)) == 1  # whatever the order, all of them are gone
    assert many.bn.unique().tolist() == ["as trained"]  # only what is asked for is repaired
    assert orders.groupby("k").size().unique().tolist() == [2]
    assert orders.x.between(-1, 1).all()
    assert orders[orders.k == 1].x.max() < 1
    pd.testing.assert_frame_equal(table, the_study())
    assert not table.equals(the_study(seed=1))


def test_rows_are_selected_by_kind_and_by_other_columns() -> None:
    table = pd.concat([the_study().assign(seed=seed) for seed in (0, 1)])
    rows = select(table, "intact", "single", bn="repaired", seed=1, shrinks=True)
    assert (rows.seed == 1).all()
    assert rows.k.tolist() == [3, 6]  # the intact network shrinks nothing
    unchanged = select(table, "intact", seed=0)
    assert (unchanged.kind.tolist(), unchanged.bn.tolist()) == (["intact"], ["as trained"])


def test_runs_are_deletions_of_neighbours() -> None:
    table = lesion_study(NETWORK, IMAGES, LABELS, lengths=(2, 8), repair=REPAIR, repaired=["run"])
    runs = table[table.kind == "run"]
    deleted = [range(int(x), int(x) + k) for x, k in zip(runs.x, runs.k, strict=True)]
    assert deleted[: len(runs) // 2] == [*(range(i, i + 2) for i in range(8)), range(8), range(1, 9)]
    assert runs.shrinks.tolist() == [3 in run or 6 in run for run in deleted]
    expected = [lesion_errors(NETWORK, deleted[:10], IMAGES, LABELS, repair=repair) for repair in (None, REPAIR)]
    assert runs.error.tolist() == torch.cat(list(map(torch.as_tensor, expected))).tolist()


def test_how_much_more_often_an_image_is_wrong_under_some_lesions() -> None:
    def marked(*rows: str) -> pd.DataFrame:
        return pd.DataFrame({"wrong": rows})

    assert excess(marked("xx..", "x.x."), marked("x...")).tolist() == [0, 50, 50, 0]
    table = the_study()
    single, intact = select(table, "single"), select(table, "intact")
    assert excess(single, intact).mean() == pytest.approx(single.error.mean() - intact.error.item())


@pytest.mark.parametrize("study", [lesion_study, pair_study])
@pytest.mark.parametrize("labels", [LABELS[:1], LABELS + 0.5])
def test_labels_that_do_not_fit_are_refused(study: Callable[..., pd.DataFrame], labels: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="expected one label an image"):
        study(NETWORK, IMAGES, labels)
    with pytest.raises(UsageError, match="labels must be 0 to 9, found 1 to 10"):
        pair_study(NETWORK, IMAGES, LABELS + 1)


@pytest.mark.parametrize("repair", [None, REPAIR])
def test_pairs_are_set_against_their_single_deletions(repair: torch.Tensor | None) -> None:
    network = small("preresnet-14").eval()
    table = pair_study(network, IMAGES, LABELS, repair=repair)
    row = table[(table["first"] == 1) & (table.second == 4)].iloc[0]
    lesions = [Lesion(), Lesion(frozenset({1})), Lesion(frozenset({4})), Lesion(frozenset({1, 4}))]
    intact, one, other, both = lesion_logits(network, lesions, IMAGES, repair=repair)
    loss = [F.cross_entropy(each, LABELS).item() for each in (intact, one, other, both)]
    assert row.loss == pytest.approx(loss[3] - loss[0], abs=1e-5)
    assert row.interaction == pytest.approx(loss[3] - loss[1] - loss[2] + loss[0], abs=1e-5)
    assert row.logits == pytest.approx((both - intact).norm().item(), rel=1e-4)
    assert row.logits_left == pytest.approx((both - one - other + intact).norm().item(), rel=1e-3, abs=1e-5)
    added_up = F.cross_entropy(one + other - intact, LABELS).item()
    assert row.loss_left == pytest.approx(loss[3] - added_up, abs=1e-5)
    assert len(table) == 15
    with pytest.raises(UsageError, match="expected 1 to 30 batches of 30 images, found 0"):
        pair_study(network, IMAGES, LABELS, batches=0)
    halves = pair_study(network, IMAGES, LABELS, repair=repair, batches=2)
    assert halves.batch.tolist() == [0] * 15 + [1] * 15 and halves.index.is_unique
    assert pair_study(network, IMAGES, LABELS, batches=30).batch.nunique() == 30
    for batch, part in halves.groupby("batch"):
        images, labels = IMAGES.tensor_split(2)[batch], LABELS.tensor_split(2)[batch]
        expected = pair_study(network, images, labels, repair=repair).drop(columns="batch")
        pd.testing.assert_frame_equal(
            part.drop(columns="batch").reset_index(drop=True), expected, check_exact=False, rtol=1e-3, atol=1e-4
        )


def test_what_paths_of_a_length_carry_alone_and_together() -> None:
    network, paths = small("resnet-14").eval().double(), all_paths(6)
    images = IMAGES[:4].double()
    along, taken = gradients_along(network, images, LABELS[:4], paths).flatten(1), paths.sum(1)
    table = length_study(network, images, LABELS[:4], draws=400)
    for row in table.itertuples():
        of_length = along[taken == row.length]
        assert row.number == len(of_length)
        assert row.norm == pytest.approx(of_length.sum(0).norm().item(), rel=1e-9)
        assert row.single == pytest.approx(of_length.norm(dim=1).square().mean().sqrt().item(), rel=0.1)
        assert row.parallel / row.number == pytest.approx(row.single)
        assert row.independent / row.number**0.5 == pytest.approx(row.single)
    assert table.share.sum() == pytest.approx(1)


def test_mean_lengths_of_single_images_stand_beside_those_of_all() -> None:
    network, images, labels = small("resnet-14").eval(), IMAGES[:5], LABELS[:5]
    table = length_study(network, images, labels)
    alone = [length_study(network, images[[i]], labels[[i]]) for i in range(5)]
    expected = np.quantile([mean_length(each.share) for each in alone], (0.1, 0.5, 0.9))
    np.testing.assert_allclose(table[["low", "median", "high"]].iloc[0], expected, rtol=1e-4)
    assert table.total.iloc[0] == pytest.approx(path_gradients(network, images, labels).sum(0).norm().item(), rel=1e-4)
    assert "single" not in table, "takes draws"


def test_an_image_that_is_fitted_has_no_length() -> None:
    network, images = small("resnet-14").eval().double(), IMAGES[:3].double()
    with torch.no_grad():
        network.head.fc.bias[LABELS[0]] = 1e4  # the loss of the first image, and of its class, is 0 to the last bit
    table = length_study(network, images, torch.stack([LABELS[0], (LABELS[0] + 1) % 10, (LABELS[0] + 2) % 10]))
    assert table[["low", "median", "high"]].notna().all(axis=None)


# Over the training

lengths = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.floats(-1, 2), min_size=n + 1, max_size=n + 1), min_size=2, max_size=4)
)


@given(lengths, st.lists(st.floats(0.1, 10), min_size=4, max_size=4))
def test_lengths_over_a_training_are_weighted_by_the_gradient(shares: list[list[float]], totals: list[float]) -> None:
    rows = [
        {"seed": seed, "moment": moment, "length": length, "share": (1 + seed) * share, "total": totals[moment]}
        for seed in (0, 1)
        for moment, each in enumerate(shares)
        for length, share in enumerate(each)
    ]
    n = len(shares[0]) - 1
    means = [sum(length * share for length, share in enumerate(each)) / (n / 2) for each in shares]
    table = pd.DataFrame(rows)
    np.testing.assert_allclose(relative_lengths(table).loc[0], means, atol=1e-9)
    weights = totals[: len(shares)]
    expected = sum(mean * weight for mean, weight in zip(means, weights, strict=True)) / sum(weights)
    assert over_training(table).tolist() == pytest.approx([expected, 2 * expected], abs=1e-9)
