"""Some blocks in each batch: which they are, what the others compute, and what training makes of it."""

import copy
import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from kit.networks import randomise_bn
from kit.runs import assert_same
from safetensors.torch import load_file
from scipy.stats import binomtest, chisquare
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import datasets, models
from resnotes.datasets import Classification
from resnotes.errors import UsageError
from resnotes.models import Network
from resnotes.training.classification import batches, evaluate
from resnotes.training.loop import Training, train
from resnotes.training.recipe import Recipe
from resnotes.training.thinning import draws, survival, thin, whole

IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
# Two epochs of four batches, and one of three.
SHORT = Recipe(iterations=11, batch_size=50, precision="float32")
CHOICES = ["exactly:2", "stochastic-depth:0.3"]
each_choice = pytest.mark.parametrize("blocks", CHOICES)


@pytest.fixture(scope="module")
def data() -> Classification:
    """200 training and 60 test images of digits."""
    digits = datasets.load("digits").train_subset(200)
    return dataclasses.replace(digits, test_images=digits.test_images[:60], test_labels=digits.test_labels[:60])


def build(name: str = "preresnet-14", **options: object) -> Network:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = models.build(name, in_channels=1, width=4, **options)
        randomise_bn(network)
    return network


def fit(data: Classification, recipe: Recipe = SHORT, **where: Path) -> tuple[Network, Training]:
    network = build()
    return network, train(network, data, recipe, seed=0, device="cpu", **where)


def drawn(blocks: str, count: int, batches: int, *, seed: int = 0, epoch: int = 1) -> Tensor:
    """Bool ``[batches, count]``."""
    return torch.stack(list(itertools.islice(draws(blocks, count, seed=seed, epoch=epoch), batches)))


# Which blocks


def test_every_choice_of_blocks_is_as_likely_as_any_other() -> None:
    seen = Counter(tuple(row.nonzero().flatten().tolist()) for row in drawn("exactly:3", 6, 4000))
    assert set(seen) == set(itertools.combinations(range(6), 3))
    assert chisquare(list(seen.values())).pvalue > 0.001


def test_survival_decays_linearly() -> None:
    """Huang et al. 2016, Eq. 4 and Sec. 3: from nearly 1 to a half, 40 of 54 blocks on average."""
    chances = survival("stochastic-depth:0.5", 54)
    torch.testing.assert_close(chances, torch.linspace(1 - 0.5 / 54, 0.5, 54, dtype=torch.float64))
    assert chances.sum().item() == pytest.approx((3 * 54 - 1) / 4)
    assert survival("stochastic-depth:0.2", 4).tolist() == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert survival("exactly:23", 54).tolist() == pytest.approx([23 / 54] * 54)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_blocks_survive_as_often_as_they_should_and_each_on_its_own(p: float) -> None:
    kept = drawn(f"stochastic-depth:{p}", 5, 4000)
    chances = [1 - (1 - p) * block / 5 for block in range(1, 6)]
    for i, j in itertools.combinations_with_replacement(range(5), 2):
        both = chances[i] * (chances[j] if i != j else 1)
        assert binomtest(int((kept[:, i] & kept[:, j]).sum()), 4000, both).pvalue > 0.001


@each_choice
def test_a_draw_follows_from_seed_epoch_and_batch_alone(blocks: str) -> None:
    first = drawn(blocks, 27, 20, seed=3, epoch=5)
    before = torch.get_rng_state()
    torch.rand(7)
    assert drawn(blocks, 27, 8, seed=3, epoch=5).equal(first[:8])
    for other in ({"seed": 3, "epoch": 6}, {"seed": 4, "epoch": 5}):
        assert not drawn(blocks, 27, 20, **other).equal(first)
    assert not torch.get_rng_state().equal(before)
    after = torch.get_rng_state()
    drawn(blocks, 27, 20)
    assert torch.get_rng_state().equal(after)


# What they compute


VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("resnet-14", {}),
    ("resnet-14", {"shortcut": "C"}),
    ("resnet-14", {"order": "bn-after-addition"}),
    ("resnet-14", {"order": "relu-before-addition"}),
    ("resnet-14", {"batch_norm": False}),
    ("preresnet-14", {}),
    ("preresnet-14", {"shortcut": "scaling:0.9,0.5"}),
    ("preresnet-14", {"shortcut": "shortcut-gating:-1"}),
    ("bottleneck-20", {}),
]
each_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=[models.label(*v) for v in VARIANTS])


@each_variant
def test_a_thinned_network_is_the_network_with_branches_of_zero(name: str, options: dict[str, object]) -> None:
    network = build(name, **options).eval()
    kept = [True, False, False, True, False, True]
    x = network.stem(IMAGES)
    for block, alive in zip(network.blocks, kept, strict=True):
        x = block.after(block.shortcut(x) + block.residual(x) * alive)
    torch.testing.assert_close(thin(network, kept)(IMAGES), network.head(x))
    assert thin(network, [True] * 6)(IMAGES).equal(network(IMAGES))


@each_variant
@each_choice
def test_evaluated_branches_are_those_expected_in_training(name: str, options: dict[str, object], blocks: str) -> None:
    """Huang et al. 2016, Eq. 5, by the plain forward pass of a copy."""
    network = build(name, **options).double().eval()
    before = copy.deepcopy(network.state_dict())
    images = IMAGES.double()
    x = network.stem(images)
    for block, chance in zip(network.blocks, survival(blocks, 6).tolist(), strict=True):
        kept, skipped = block.shortcut(x) + block.residual(x), block.shortcut(x)
        x = block.after(chance * kept + (1 - chance) * skipped)
    torch.testing.assert_close(whole(network, blocks)(images), network.head(x))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert whole(network, "all") is network


# Training


@each_choice
def test_training_is_torchs_sgd_on_the_thinned_networks(data: Classification, blocks: str) -> None:
    """Without fused arithmetic, and block by block in plain sums; then the factors of evaluation."""
    recipe = dataclasses.replace(SHORT, iterations=7, blocks=blocks, weight_decay=0.01)
    trained, record = fit(data, recipe)

    reference = build().train()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, fused=False)
    losses: list[float] = []
    for epoch, steps in ((1, 4), (2, 3)):
        inputs = batches(data.train_images, data.train_labels, recipe, seed=0, epoch=epoch)
        rows = drawn(blocks, 6, steps, epoch=epoch)
        for (images, labels), kept in zip(itertools.islice(inputs, steps), rows, strict=True):
            x = reference.stem(data.normalization(images))
            for block, alive in zip(reference.blocks, kept, strict=True):
                x = block.after(block.shortcut(x) + block.residual(x) if alive else block.shortcut(x))
            loss = F.cross_entropy(reference.head(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    expected = whole(reference, blocks)
    torch.testing.assert_close(trained.state_dict(), expected.state_dict(), rtol=5e-3, atol=1e-4)
    found = [row.train_loss for row in record.history]
    assert found == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 3], rel=1e-3)


def test_factors_enter_once(data: Classification, tmp_path: Path) -> None:
    """Into what is evaluated, kept and returned; also where training was killed after its last epoch."""
    recipe = dataclasses.replace(SHORT, blocks="exactly:2", snapshots=(SHORT.iterations,))
    once, again = fit(data, recipe, folder=tmp_path), fit(data, recipe, folder=tmp_path)
    assert again[1].resumed == 1
    assert_same(again, once)
    kept = load_file(tmp_path / "iteration-000011.safetensors")
    torch.testing.assert_close(kept, dict(once[0].state_dict()), rtol=0, atol=0)
    found = evaluate(once[0], data.test_images, data.test_labels, data.normalization)
    assert (once[1].history[-1].test_loss, once[1].history[-1].test_error) == found[:2]


@each_choice
@pytest.mark.parametrize("shortcut", ["A", "dropout:0.5"])
def test_recomputed_blocks_are_the_same_blocks(data: Classification, blocks: str, shortcut: str) -> None:
    recipe = dataclasses.replace(SHORT, blocks=blocks)
    runs = []
    for recompute in (0, 2):
        network = build(shortcut=shortcut)
        chosen = dataclasses.replace(recipe, recompute=recompute)
        runs.append((network, train(network, data, chosen, seed=0, device="cpu")))
    assert_same(*runs)


# Refusals


@pytest.mark.parametrize(
    "blocks",
    [
        *("some", "all:1", "exactly", "exactly:0", "exactly:2.5"),
        *("stochastic-depth:0", "stochastic-depth:1.01", "stochastic-depth:nan"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(blocks: str) -> None:
    message = r"unknown blocks .*; allowed: all, exactly:k \(whole k >= 1\), stochastic-depth:p \(0 < p <= 1\)"
    with pytest.raises(UsageError, match=message):
        Recipe(iterations=1, blocks=blocks)


def test_more_blocks_than_there_are_are_refused(data: Classification) -> None:
    with pytest.raises(UsageError, match=r"blocks='exactly:7', but the network has 6; allowed: exactly:1 to exactly:6"):
        fit(data, dataclasses.replace(SHORT, blocks="exactly:7"))


@pytest.mark.parametrize(
    "network",
    [
        build("plain-14"),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        build("resnet-14", shortcut="exclusive-gating:-1"),
        build("resnet18"),
    ],
    ids=["no shortcut", "no blocks", "exclusive gates", "branches that are no sequence"],
)
def test_blocks_that_cannot_be_left_out_are_refused(data: Classification, network: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"blocks=.* is not made of blocks with a shortcut .*allowed: all"):
        train(network, data, dataclasses.replace(SHORT, blocks="exactly:2"), seed=0, device="cpu")
    with pytest.raises(UsageError, match="is not made of blocks with a shortcut"):
        whole(network, "exactly:2")
