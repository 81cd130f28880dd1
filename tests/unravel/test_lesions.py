"""Lesions against a loop that spells out each block, and what sweeps promise: shared work, bounded memory, no trace."""

import itertools
import math
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.networks import plain_loop, randomise_bn, small
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnotes import datasets, models
from resnotes.datasets import Classification
from resnotes.errors import DatasetError, UsageError
from resnotes.models import Block, Network
from resnotes.unravel import (
    Lesion,
    deletable,
    exchangeable,
    kendall_tau,
    lesion_errors,
    lesion_logits,
    lesion_predictions,
    pairs,
    random_deletions,
    random_reorderings,
    single_deletions,
    steps,
    tree,
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
    ("resnet-14", {"shortcut": "shortcut-gating:-1"}),
    ("resnet-14", {"order": "bn-after-addition"}),
    ("resnet-14", {"order": "relu-before-addition"}),
    ("resnet-20", {"order": "relu-only-pre-activation"}),
    ("resnet-14", {"batch_norm": False}),
    ("preresnet-20", {}),
    ("preresnet-20", {"shortcut": "C"}),
    ("bottleneck-29", {}),
    ("prebottleneck-29", {}),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(name: str, **options: object) -> Network:
    """Narrow, in float64, with BN of its own in every layer."""
    network = small(name, in_channels=1, **options)
    randomise_bn(network)
    return network.eval()


def assert_same(network: Network, lesions: Sequence[Lesion], images: Tensor = IMAGES) -> None:
    assert torch.equal(lesion_predictions(network, lesions, images), plain_loop(network, lesions, images).argmax(2))


# Predictions


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=[models.label(*each) for each in NETWORKS])
def test_predictions_are_those_of_the_loop(name: str, options: dict[str, object]) -> None:
    network = build(name, **options)
    blocks = deletable(network, IMAGES)
    generator = torch.Generator().manual_seed(0)
    orders = random_reorderings(exchangeable(network, IMAGES), 2, 5, generator)
    both = [Lesion(frozenset({blocks[-1]}), lesion.order) for lesion in orders]
    everything = Lesion(frozenset(blocks))
    lesions = [Lesion(), *single_deletions(blocks), *pairs(blocks), everything, *orders, *both]
    assert_same(network, lesions)


NETWORK = build("resnet-20")
GROUPS = exchangeable(NETWORK, IMAGES)


@st.composite
def lesions(draw: st.DrawFn) -> Lesion:
    deleted = draw(st.frozensets(st.integers(0, 8)))
    order = list(range(9))
    for group in GROUPS:
        for position, block in zip(group, draw(st.permutations(group)), strict=True):
            order[position] = block
    return Lesion(deleted, draw(st.sampled_from([None, tuple(order)])))


@given(st.lists(lesions(), min_size=1, max_size=8))
@settings(max_examples=50)
def test_any_lesions_in_any_sweep(sweep: list[Lesion]) -> None:
    assert_same(NETWORK, sweep)


@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=5), min_size=1, max_size=12))
def test_a_plan_holds_every_program_and_shares_what_begins_alike(drawn: list[list[tuple[int, bool]]]) -> None:
    programs = [tuple(program) for program in drawn]
    found: dict[int, tuple[tuple[int, bool], ...]] = {}

    def collect(branch: tree.Branch, before: tuple[tuple[int, bool], ...]) -> None:
        found.update(dict.fromkeys(branch.lesions, before + branch.steps))
        for each in branch.branches:
            collect(each, before + branch.steps)

    plan = tree.plan(programs)
    collect(plan, ())
    assert [found[i] for i in range(len(programs))] == programs
    prefixes = {program[:length] for program in programs for length in range(1, len(program) + 1)}
    assert plan.count() == len(prefixes)
    assert plan.alive <= math.log2(len(programs)) + 1

    def most(branch: tree.Branch, kept: int) -> int:
        """Activations at any time of a walk, of which `kept` wait at forks before: the last takes its fork's over."""
        *others, last = branch.branches or [None]
        there = [most(each, kept + 1) for each in others if each]
        return max([kept + 1, *there, *([most(last, kept)] if last else [])])

    assert plan.alive == most(plan, 0)


def test_errors_are_percent_wrong() -> None:
    network = build("resnet-14")
    predicted = lesion_predictions(network, [{0}, {1, 2}], IMAGES)
    errors = lesion_errors(network, [{0}, {1, 2}], IMAGES, LABELS)
    for row, error in zip(predicted.tolist(), errors.tolist(), strict=True):
        wrong = sum(found != label for found, label in zip(row, LABELS.tolist(), strict=True))
        assert error == pytest.approx(100 * wrong / 12)
    perfect = lesion_errors(network, [{0}], IMAGES, predicted[0])
    assert perfect.tolist() == [0.0]


def test_no_lesions_have_no_errors() -> None:
    assert lesion_errors(NETWORK, [], IMAGES, LABELS).shape == (0,)
    assert lesion_predictions(NETWORK, [], IMAGES).shape == (0, 12)
    assert lesion_logits(NETWORK, [], IMAGES).shape == (0, 12, 10)


def test_a_trained_network_in_float32() -> None:
    data = datasets.load("digits")
    network = models.build("resnet-20", in_channels=1, width=8)
    inputs, labels = data.normalization(data.train_images), data.train_labels
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for step in range(60):
        batch = slice(step % 11 * 128, step % 11 * 128 + 128)
        optimizer.zero_grad()
        F.cross_entropy(network(inputs[batch]), labels[batch]).backward()
        optimizer.step()
    images = data.normalization(data.test_images)
    assert lesion_errors(network, [[]], images, data.test_labels).item() < 30
    network.eval()
    assert_same(network, [*single_deletions(range(9)), *pairs((0, 3, 8))], images)


def test_published_network(real_cifar10: Classification) -> None:
    """float32 as the loop; bfloat16 within half a point."""
    try:
        published = models.published("akamaster/resnet-56")
    except DatasetError as error:
        pytest.skip(str(error))
    network = published.network
    sample, labels = real_cifar10.test_sample(1000)
    images = published.normalization(sample)
    assert len(labels.unique()) == 10
    lesions = [Lesion(), *single_deletions((5, 18, 25))]
    assert_same(network, lesions, images[:80])
    whole = lesion_errors(network, lesions[::2], images, labels)
    assert whole[0] < 10 or real_cifar10.variant.startswith("cifar10-jpeg")
    reduced = lesion_errors(network, lesions[::2], images, labels, torch.bfloat16)
    assert (whole - reduced).abs().max() <= 0.5


def test_images_are_taken_to_the_precision_of_the_network() -> None:
    network = build("resnet-14")
    logits = lesion_logits(network, [[0]], IMAGES.float())
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, lesion_logits(network, [[0]], IMAGES), rtol=1e-5, atol=1e-5)


class Negative(nn.Module):
    """A stem whose maps are not rectified."""

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1)


@pytest.mark.parametrize("stem", [Negative(), nn.Sequential(Negative(), nn.ReLU())], ids=["as it is", "rectified"])
@pytest.mark.parametrize("afters", [(nn.ReLU, nn.ReLU), (nn.Identity, nn.ReLU), (nn.ReLU, nn.Identity)])
def test_what_is_left_of_a_block_may_still_rectify(stem: nn.Module, afters: Sequence[type[nn.Module]]) -> None:
    """A deleted block with ReLU after its addition is no identity where what comes before it is negative."""
    blocks = [Block(nn.Conv2d(3, 3, 3, padding=1), nn.Identity(), after()) for after in afters]
    head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    network = Network(stem, blocks, head, stages=(2,), name="test", options={}).double()
    lesions = [Lesion(), Lesion(frozenset({0})), Lesion(frozenset({1})), Lesion(frozenset({0, 1}))]
    torch.testing.assert_close(lesion_logits(network, lesions, IMAGES), plain_loop(network, lesions, IMAGES))


# The copy that is swept


class Live(TorchDispatchMode):
    """Bytes of storage that operations made and that are still referred to, and the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        inputs = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and (storage := each.untyped_storage())._cdata not in inputs | self.known:
                self.known.add(storage._cdata)
                self.now += (size := storage.nbytes())
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, storage._cdata, size)
        return out

    def gone(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size


@pytest.mark.parametrize("name", ["resnet-14", "plain-14", "preresnet-14", "resnet18"])
def test_the_copy_has_bn_folded_and_works_in_place(name: str) -> None:
    network = models.build(name, in_channels=3 if name == "resnet18" else 1, num_classes=10).eval()
    randomise_bn(network)
    copied = steps.rewritten(network).module
    kinds = [type(layer) for module in copied.modules() for layer in [*module.children()] if not list(layer.children())]
    norms = kinds.count(nn.BatchNorm2d)
    # With pre-activation, the BN that opens a branch follows no convolution; neither does that of the head.
    assert norms == (6 if name == "preresnet-14" else 0)
    rectifiers = [layer for block in copied.blocks for layer in block.residual if isinstance(layer, nn.ReLU)]
    assert all(layer.inplace for layer in rectifiers)
    weights = [module.weight for module in copied.modules() if isinstance(module, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert not any(layer.inplace for layer in network.modules() if isinstance(layer, nn.ReLU)), "it is a copy"


# Work, memory


def test_deleted_identities_cost_nothing() -> None:
    for name in ("resnet-14", "preresnet-14"):
        assert steps.rewritten(build(name)).passing == (True, True, False, True, False, True)
    for options in ({"order": "bn-after-addition"}, {"shortcut": "C"}):
        assert steps.rewritten(build("resnet-14", **options)).passing == (False,) * 6


@pytest.mark.parametrize(("memory", "precision"), [(2 << 20, "float32"), (8 << 20, "float32"), (2 << 20, "bfloat16")])
@pytest.mark.parametrize("name", ["resnet-20", "preresnet-20", "bottleneck-29"])
def test_memory_is_bounded(name: str, memory: int, precision: str) -> None:
    network = build(name).float()
    images = torch.randn(600, 1, 8, 8)
    lesions = pairs(range(9))
    swept = steps.prepare(network, images)
    passing = swept.passing
    programs = [tuple((i, i in x.deleted) for i in range(9) if not (i in x.deleted and passing[i])) for x in lesions]
    with Live() as live:
        found = tree.walk(
            swept, tree.plan(programs), len(lesions), images, precision, memory, lambda logits: logits.argmax(1)
        )
    predicted = found.nbytes
    assert memory / 8 < live.peak - predicted < memory
    if precision == "float32":
        assert torch.equal(found, lesion_predictions(network, lesions, images))


def test_too_little_memory_is_refused() -> None:
    for use in (
        lambda memory: lesion_predictions(NETWORK, [[0]], IMAGES, memory=memory),
        lambda memory: lesion_errors(NETWORK, [[0]], IMAGES, LABELS, memory=memory),
    ):
        with pytest.raises(UsageError, match=r"a memory of 1,000 bytes is too little: one image takes \d+,\d+"):
            use(1000)


# No trace


class Interrupted(nn.Module):
    """Raises at the third call, on whichever copy: calls are counted in a list that copies share."""

    def __init__(self, layer: nn.Module, error: BaseException) -> None:
        super().__init__()
        self.layer, self.error, self.calls = layer, error, Shared()

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x)
        if len(self.calls) > 5:
            raise self.error
        return self.layer(x)


class Shared(list[Tensor]):
    def __deepcopy__(self, memo: object) -> "Shared":
        return self


@pytest.mark.filterwarnings("ignore:Network is swept as it is")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory"), None], ids=repr)
def test_a_sweep_leaves_the_network_as_it_was(error: BaseException | None, training: bool) -> None:
    network = build("resnet-14")
    if error is not None:
        network.blocks[3].residual = Interrupted(network.blocks[3].residual, error)
    network.train(training)
    modules = list(network.named_modules())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    if error is None:
        lesion_errors(network, single_deletions(range(6)), IMAGES, LABELS)
    else:
        with pytest.raises(type(error)):
            lesion_errors(network, single_deletions(range(6)), IMAGES, LABELS)
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)
    assert [name for name, _ in modules] == [name for name, _ in network.named_modules()]
    assert all(a is b for (_, a), (_, b) in zip(modules, network.named_modules(), strict=True))
    assert all(module.training == training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    assert not any(module.inplace for module in network.modules() if isinstance(module, nn.ReLU))
    assert all(parameter.requires_grad and not parameter.is_inference() for parameter in network.parameters())


# What can be deleted and exchanged


def test_which_blocks_can_go() -> None:
    assert deletable(build("resnet-14"), IMAGES) == (0, 1, 2, 3, 4, 5)
    assert deletable(build("plain-14"), IMAGES) == (0, 1, 3, 5)
    assert deletable(build("bottleneck-20"), IMAGES) == (0, 1, 2, 3, 4, 5)


def test_which_blocks_can_change_places() -> None:
    assert exchangeable(build("resnet-20"), IMAGES) == [(0, 1, 2), (3,), (4, 5), (6,), (7, 8)]
    assert exchangeable(build("preresnet-20"), IMAGES) == [(0,), (1, 2), (3,), (4, 5), (6,), (7, 8)]


# Bad input


@pytest.mark.parametrize(
    ("lesion", "message"),
    [
        *(([i], rf"lesion 1 deletes block {i}; blocks that can go.*: 0, 1, 3, 5") for i in (6, -1, 0.5, True, 2)),
        (3, r"lesion 1: expected a Lesion or numbers of blocks to delete, found 3"),
        (Lesion(order=(0, 1)), r"lesion 1: the order \(0, 1\) is no permutation of the blocks 0 to 5"),
        (Lesion(order=(0, 1, 2, 3, 4, 4)), r"the order .* is no permutation of the blocks 0 to 5"),
        (Lesion(order=(0, 1, 2, 4, 3, 5)), r"lesion 1 puts block 4 at position 3, .* can stand there: 3"),
    ],
)
def test_impossible_lesions_are_refused(lesion: Lesion, message: str) -> None:
    network = build("plain-14")
    with pytest.raises(ValueError, match=message):
        lesion_errors(network, [[0], lesion], IMAGES, LABELS)


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown dtype torch.int8; allowed: torch.float32, torch.bfloat16"):
        lesion_predictions(NETWORK, [[0]], IMAGES, torch.int8)


# Protocols


def test_single_deletions_and_pairs() -> None:
    assert [set(lesion.deleted) for lesion in single_deletions((0, 2))] == [{0}, {2}]
    assert single_deletions(build("resnet-14")) == single_deletions(range(6))
    assert len(pairs(range(54))) == len(set(pairs(range(54)))) == 1431
    assert all(len(lesion.deleted) == 2 for lesion in pairs(range(54)))


@given(st.integers(0, 8), st.integers(0, 99))
def test_random_deletions(k: int, seed: int) -> None:
    blocks = [1, 2, 3, 5, 7, 8, 11, 12]
    drawn = random_deletions(blocks, k, 5, torch.Generator().manual_seed(seed))
    assert all(len(lesion.deleted) == k and lesion.deleted <= set(blocks) for lesion in drawn)
    assert drawn == random_deletions(blocks, k, 5, torch.Generator().manual_seed(seed))


def test_every_block_is_drawn_equally_often() -> None:
    drawn = random_deletions(range(6), 2, 3000, torch.Generator().manual_seed(0))
    counts = [sum(i in lesion.deleted for lesion in drawn) for i in range(6)]
    assert all(900 < count < 1100 for count in counts)  # 1000 expected, standard deviation 26


@given(st.integers(0, 30), st.integers(0, 99))
def test_random_reorderings_keep_shapes(swaps: int, seed: int) -> None:
    drawn = random_reorderings(GROUPS, swaps, 5, torch.Generator().manual_seed(seed))
    for lesion in drawn:
        assert lesion.order is not None
        for group in GROUPS:
            assert sorted(lesion.order[position] for position in group) == list(group)
        moved = sum(i != block for i, block in enumerate(lesion.order))
        assert moved <= 2 * swaps
        assert swaps != 1 or moved == 2
    assert drawn == random_reorderings(GROUPS, swaps, 5, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda g: random_deletions(range(3), 4, 1, g), "cannot delete 4 of 3 blocks; allowed: 0 to 3"),
        (lambda g: random_deletions(range(3), -1, 1, g), "cannot delete -1 of 3 blocks; allowed: 0 to 3"),
        (lambda g: random_reorderings([(0,), (1,)], 1, 1, g), "no two blocks have equal shape"),
        (lambda g: random_reorderings([(0, 1)], -1, 1, g), "expected 0 swaps or more, found -1"),
        (lambda g: random_reorderings([(0, 2)], 1, 1, g), "expected groups that hold every block once"),
        (lambda g: kendall_tau((0, 0, 1)), r"expected a permutation of 0 to 2, found \(0, 0, 1\)"),
    ],
)
def test_impossible_draws_are_refused(draw: Callable[[torch.Generator], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(torch.Generator())


@given(st.integers(1, 12).flatmap(lambda n: st.permutations(range(n))))
def test_kendall_tau_counts_pairs_out_of_order(order: list[int]) -> None:
    all_pairs = list(itertools.combinations(order, 2))
    discordant = sum(first > second for first, second in all_pairs)
    assert kendall_tau(order) == pytest.approx(1 - 2 * discordant / max(1, len(all_pairs)))
