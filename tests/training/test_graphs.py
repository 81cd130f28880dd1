"""A step as a function of tensors that stay where they are."""

import dataclasses

import pytest
import torch
from kit.runs import assert_same

from resnotes import datasets, models
from resnotes.training import graphs
from resnotes.training.loop import train
from resnotes.training.recipe import Recipe

DIGITS = datasets.load("digits")
RECIPE = Recipe(iterations=25, pad=1, milestones=(12,), warmup_iterations=3)  # into a third epoch
# With rates that float32 has: a tensor holds others only nearly, and AdamW does not round them before it divides.
ADAMW = Recipe(iterations=25, pad=1, optimizer="adamw", lr=2**-9, warmup_iterations=3, warmup_lr=2**-12)


def network(name: str = "resnet-8") -> models.Network:
    torch.manual_seed(0)
    return models.build(name, in_channels=1)


@pytest.mark.parametrize(("name", "recipe"), [("resnet-8", RECIPE), ("plain-8", RECIPE), ("resnet-8", ADAMW)])
def test_steps_on_fixed_tensors_are_the_loop_bit_by_bit(
    name: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, where nothing is captured; recipes with warm-up, a milestone, crops, flips and a short last epoch."""
    usual, fixed = network(name), network(name)
    expected = train(usual, DIGITS, recipe, seed=3, device="cpu")
    monkeypatch.setattr(graphs, "can_capture", lambda *_: True)
    assert_same((fixed, train(fixed, DIGITS, recipe, seed=3, device="cpu")), (usual, expected))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("recipe", [RECIPE, ADAMW], ids=["sgd", "adamw"])
def test_a_captured_step_is_the_step(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, whose kernels are deterministic for these networks, bit by bit."""
    recipe = dataclasses.replace(recipe, precision="bfloat16")
    captured, usual = network(), network()
    found = train(captured, DIGITS, recipe, seed=3, device="cuda")
    monkeypatch.setattr(graphs, "can_capture", lambda *_: False)
    assert_same((captured, found), (usual, train(usual, DIGITS, recipe, seed=3, device="cuda")))
