"""Lesions against a loop that spells out each block; and shared work, few activations, no trace."""

import copy
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.networks import build, plain_loop, warmed_up
from torch import Tensor, nn

from resnotes import models
from resnotes.datasets import Classification
from resnotes.errors import DatasetError, UsageError
from resnotes.models import Block, Network, recalibrate
from resnotes.unravel import (
    Lesion,
    adapt,
    contiguous_deletions,
    deletable,
    exchangeable,
    kendall_tau,
    lesion_errors,
    lesion_logits,
    lesion_predictions,
    lesions,
    pairs,
    random_deletions,
    random_reorderings,
    single_deletions,
)

IMAGES = torch.randn(12, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 10
NETWORKS: list[tuple[str, dict[str, object]]] = [
    ("plain-20", {}),
    ("resnet-14", {}),
    ("resnet-14", {"shortcut": "B"}),
    ("resnet-14", {"shortcut": "C"}),
    ("resnet-14", {"shortcut": "scaling:0.5"}),
    ("resnet-14", {"shortcut": "dropout:0.5"}),
    ("resnet-14", {"shortcut": "exclusive-gating:-1"}),
    ("resnet-14", {"order": "bn-after-addition"}),
    ("resnet-14", {"batch_norm": False}),
    ("preresnet-20", {}),
    ("bottleneck-29", {}),
]


def assert_same(network: Network, given: Sequence[Lesion], images: Tensor = IMAGES) -> None:
    assert torch.equal(lesion_predictions(network, given, images), plain_loop(network, given, images).argmax(2))


# Predictions


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=[models.label(*each) for each in NETWORKS])
def test_predictions_are_those_of_the_loop(name: str, options: dict[str, object]) -> None:
    network = build(name, **options)
    blocks = deletable(network, IMAGES)
    orders = random_reorderings(exchangeable(network, IMAGES), 2, 5, torch.Generator().manual_seed(0))
    both = [Lesion(frozenset({blocks[-1]}), lesion.order) for lesion in orders]
    assert_same(network, [Lesion(), *single_deletions(blocks), *pairs(blocks), Lesion(frozenset(blocks)), *both])


NETWORK = build("resnet-20")
GROUPS = exchangeable(NETWORK, IMAGES)


@st.composite
def any_lesion(draw: st.DrawFn) -> Lesion:
    order = list(range(9))
    for group in GROUPS:
        for position, block in zip(group, draw(st.permutations(group)), strict=True):
            order[position] = block
    return Lesion(draw(st.frozensets(st.integers(0, 8))), draw(st.sampled_from([None, tuple(order)])))


@given(st.lists(any_lesion(), min_size=1, max_size=8))
@settings(max_examples=30)
def test_any_lesions_in_any_sweep(sweep: list[Lesion]) -> None:
    assert_same(NETWORK, sweep)


def test_images_that_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesions, "MAP_BYTES", 5 * 4 * 8 * 8 * 8)  # five images of four channels of 8 x 8 numbers
    assert_same(NETWORK, pairs(range(4)))


def test_errors_are_percent_wrong() -> None:
    predicted = lesion_predictions(NETWORK, [{0}, {1, 2}], IMAGES)
    errors = lesion_errors(NETWORK, [{0}, {1, 2}], IMAGES, LABELS)
    for row, error in zip(predicted.tolist(), errors.tolist(), strict=True):
        wrong = sum(found != label for found, label in zip(row, LABELS.tolist(), strict=True))
        assert error == pytest.approx(100 * wrong / 12)
    assert lesion_errors(NETWORK, [{0}], IMAGES, predicted[0]).tolist() == [0.0]


def test_no_lesions_have_no_errors() -> None:
    assert lesion_errors(NETWORK, [], IMAGES, LABELS).shape == (0,)
    assert lesion_logits(NETWORK, [], IMAGES).shape == (0, 12, 10)


# BN's statistics, repaired


REPAIR = torch.randn(9, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def recalibrated_loop(network: Network, given: Sequence[Lesion], images: Tensor, repair: Tensor) -> Tensor:
    """Logits of a copy each, from which the blocks were cut before its statistics were computed anew."""
    logits = []
    for lesion in given:
        cut = copy.deepcopy(network)
        for i in lesion.deleted:
            cut.blocks[i] = Cut(cut.blocks[i])
        cut = cut.with_blocks([cut.blocks[i] for i in lesion.order or range(len(cut.blocks))])
        with torch.no_grad():
            logits.append(recalibrate(cut, repair)(images))
    return torch.stack(logits)


class Cut(nn.Module):
    """A block without its residual branch."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.shortcut, self.after = block.shortcut, block.after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x if self.shortcut is None else self.shortcut(x))


REPAIRABLE = [each for each in NETWORKS if "shortcut" not in each[1]] + [("vgg-15", {"batch_norm": True})]


@pytest.mark.parametrize(("name", "options"), REPAIRABLE, ids=[models.label(*each) for each in REPAIRABLE])
def test_repaired_networks_are_recalibrated_copies(name: str, options: dict[str, object]) -> None:
    network = build(name, **options)
    before = copy.deepcopy(network.state_dict())
    blocks = deletable(network, IMAGES)
    orders = random_reorderings(exchangeable(network, IMAGES), 2, 2, torch.Generator().manual_seed(0))
    given = [Lesion(), *single_deletions(blocks), *pairs(blocks[-4:]), Lesion(frozenset(blocks)), *orders]
    found = lesion_logits(network, given, IMAGES, repair=REPAIR)
    torch.testing.assert_close(found, recalibrated_loop(network, given, IMAGES, REPAIR), rtol=1e-9, atol=1e-11)
    stale = lesion_logits(network, given, IMAGES)
    assert torch.equal(found, stale) == (not any("running_mean" in key for key in before))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_repaired_torchvision_network() -> None:
    torch.manual_seed(0)
    network = adapt(warmed_up(torchvision.models.resnet18()).eval())
    images, repair = torch.randn(2, 3, 64, 64), torch.randn(8, 3, 64, 64)
    given = single_deletions(deletable(network, images))[::3]
    found = lesion_logits(network, given, images, repair=repair)
    torch.testing.assert_close(found, recalibrated_loop(network, given, images, repair), rtol=1e-3, atol=1e-3)


def test_a_repaired_sweep_is_the_same_in_parts_and_forgets_what_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    given = pairs(range(4))
    whole = lesion_predictions(NETWORK, given, IMAGES, repair=REPAIR)
    assert lesion_errors(NETWORK, given, IMAGES, whole[0], repair=REPAIR)[0] == 0
    spoiled = copy.deepcopy(NETWORK)
    for layer in spoiled.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.fill_(torch.nan)
    monkeypatch.setattr(lesions, "MAP_BYTES", 5 * 4 * 8 * 8 * 8)  # five images of four channels of 8 x 8 numbers
    assert torch.equal(lesion_predictions(spoiled, given, IMAGES, repair=REPAIR), whole)


@pytest.mark.parametrize(
    ("repair", "message"),
    [
        (torch.ones(2, 1, 8, 8, dtype=torch.uint8), "expected normalised images"),
        (REPAIR[:0], "expected at least one image"),
        (
            REPAIR[:, :, :4, :4],
            r"cannot be evaluated on images \[9, 1, 4, 4\]: RuntimeError: Sizes of tensors",
        ),
    ],
)
def test_what_cannot_repair_is_refused(repair: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lesion_errors(NETWORK, [[0]], IMAGES, LABELS, repair=repair)


def test_published_network(real_cifar10: Classification) -> None:
    """float32 as the loop; bfloat16 within half a point."""
    try:
        published = models.published("akamaster/resnet-56")
    except DatasetError as error:
        pytest.skip(str(error))
    images, labels = published.sample(real_cifar10, 200, held=True)
    deleted = single_deletions((25,))
    assert_same(published.network, [Lesion(), *deleted], images[:20])
    whole = lesion_errors(published.network, deleted, images, labels)
    reduced = lesion_errors(published.network, deleted, images, labels, torch.bfloat16)
    assert (whole - reduced).abs().max() <= 0.5


def test_images_are_taken_to_the_precision_of_the_network() -> None:
    logits = lesion_logits(NETWORK, [[0]], IMAGES.float())
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, lesion_logits(NETWORK, [[0]], IMAGES), rtol=1e-5, atol=1e-5)


# No trace


class Failing(nn.Module):
    """A layer that raises at the third call, on whichever copy of it."""

    def __init__(self, layer: nn.Module, calls: Callable[[], int]) -> None:
        super().__init__()
        self.layer, self.calls = layer, calls

    def forward(self, x: Tensor) -> Tensor:
        if self.calls() > 8:
            raise KeyboardInterrupt
        return self.layer(x)


@pytest.mark.parametrize("training", [True, False])
def test_an_interrupted_sweep_leaves_the_network_as_it_was(training: bool) -> None:
    network = build("resnet-14")
    calls = itertools.count()
    network.blocks[3].residual = Failing(network.blocks[3].residual, lambda: next(calls))  # which copies share
    network.train(training)
    modules, before = dict(network.named_modules()), copy.deepcopy(network.state_dict())
    with pytest.raises(KeyboardInterrupt):
        lesion_errors(network, single_deletions(range(6)), IMAGES, LABELS)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert dict(network.named_modules()) == modules
    assert all(module.training == training for module in network.modules())
    assert all(parameter.requires_grad and not parameter.is_inference() for parameter in network.parameters())


# What can be deleted and exchanged


def test_which_blocks_can_go() -> None:
    assert deletable(build("resnet-14"), IMAGES) == (0, 1, 2, 3, 4, 5)
    assert deletable(build("plain-14"), IMAGES) == (0, 1, 3, 5)


def test_which_blocks_can_change_places() -> None:
    assert exchangeable(build("resnet-20"), IMAGES) == [(0, 1, 2), (3,), (4, 5), (6,), (7, 8)]
    assert exchangeable(build("preresnet-20"), IMAGES) == [(0,), (1, 2), (3,), (4, 5), (6,), (7, 8)]


@pytest.mark.parametrize(
    ("lesion", "message"),
    [
        *(([i], rf"lesion 1 deletes block {i}; blocks that can go.*: 0, 1, 3, 5") for i in (6, -1, 0.5, True, 2)),
        (3, r"lesion 1: expected a Lesion or numbers of blocks to delete, found 3"),
        (Lesion(order=(0, 1)), r"lesion 1: the order \(0, 1\) is no permutation of the blocks 0 to 5"),
        (Lesion(order=(0, 1, 2, 4, 3, 5)), r"lesion 1 puts block 4 at position 3, .* can stand there: 3"),
    ],
)
def test_impossible_lesions_are_refused(lesion: Lesion, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lesion_errors(build("plain-14"), [[0], lesion], IMAGES, LABELS)


def test_another_dtype_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown dtype torch.int8; allowed: torch.float32, torch.bfloat16"):
        lesion_predictions(NETWORK, [[0]], IMAGES, torch.int8)


# Protocols


def test_single_deletions_and_pairs() -> None:
    assert [set(lesion.deleted) for lesion in single_deletions((0, 2))] == [{0}, {2}]
    assert single_deletions(NETWORK) == single_deletions(range(9))
    assert [set(lesion.deleted) for lesion in pairs((0, 2, 5))] == [{0, 2}, {0, 5}, {2, 5}]


def test_runs_of_consecutive_blocks() -> None:
    runs = [set(lesion.deleted) for lesion in contiguous_deletions((0, 1, 2, 4, 5), 2)]
    assert runs == [{0, 1}, {1, 2}, {4, 5}]
    assert contiguous_deletions(range(9), 1) == single_deletions(range(9))
    assert contiguous_deletions(range(3), 4) == []


def test_random_deletions_take_every_block_equally_often() -> None:
    drawn = random_deletions([1, 2, 3, 5, 7, 11], 2, 3000, torch.Generator().manual_seed(0))
    assert all(len(lesion.deleted) == 2 for lesion in drawn)
    counts = [sum(i in lesion.deleted for lesion in drawn) for i in (1, 2, 3, 5, 7, 11)]
    assert sum(counts) == 6000
    assert all(900 < count < 1100 for count in counts)  # 1000 expected, standard deviation 26
    assert drawn == random_deletions([1, 2, 3, 5, 7, 11], 2, 3000, torch.Generator().manual_seed(0))


@given(st.integers(0, 30), st.integers(0, 99))
def test_random_reorderings_keep_shapes(swaps: int, seed: int) -> None:
    drawn = random_reorderings(GROUPS, swaps, 5, torch.Generator().manual_seed(seed))
    for lesion in drawn:
        assert lesion.order is not None
        assert all(sorted(lesion.order[position] for position in group) == list(group) for group in GROUPS)
        moved = sum(i != block for i, block in enumerate(lesion.order))
        assert moved <= 2 * swaps
        assert swaps != 1 or moved == 2
    assert drawn == random_reorderings(GROUPS, swaps, 5, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda g: random_deletions(range(3), 4, 1, g), "cannot delete 4 of 3 blocks; allowed: 0 to 3"),
        (lambda g: contiguous_deletions(range(3), 0), "expected runs of 1 block or more, found 0"),
        (lambda g: random_reorderings([(0,), (1,)], 1, 1, g), "no two blocks have equal shape"),
        (lambda g: random_reorderings([(0, 1)], -1, 1, g), "expected 0 swaps or more, found -1"),
        (lambda g: random_reorderings([(0, 2)], 1, 1, g), "expected groups that hold every block once"),
        (lambda g: kendall_tau((0, 0, 1)), r"expected a permutation of 0 to 2, found \(0, 0, 1\)"),
    ],
)
def test_impossible_draws_are_refused(draw: Callable[[torch.Generator], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw(torch.Generator())


@given(st.integers(1, 12).flatmap(lambda n: st.permutations(range(n))))
def test_kendall_tau_counts_pairs_out_of_order(order: list[int]) -> None:
    all_pairs = list(itertools.combinations(order, 2))
    discordant = sum(first > second for first, second in all_pairs)
    assert kendall_tau(order) == pytest.approx(1 - 2 * discordant / max(1, len(all_pairs)))
