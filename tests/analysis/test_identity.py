"""Fitting an identity with two layers, with and without a shortcut."""

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from resnotes.analysis import identity
from resnotes.analysis.identity import compare_fits, fit, near_identity
from resnotes.models import Block

MAPS = torch.rand(64, 4, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Block, dict[str, Tensor]]]:
    """Every unit that is made, and the weights it began with."""
    made: list[tuple[Block, dict[str, Tensor]]] = []
    original = identity._two_layers

    def noting(channels: int, *, shortcut: bool) -> Block:
        unit = original(channels, shortcut=shortcut)
        made.append((unit, {key: value.clone() for key, value in unit.state_dict().items()}))
        return unit

    monkeypatch.setattr(identity, "_two_layers", noting)
    return made


# Targets


@given(st.floats(0, 3), st.integers(0, 100))
def test_targets_are_the_input_and_a_perturbation_of_known_strength(strength: float, seed: int) -> None:
    maps = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    targets = near_identity(maps, strength)
    perturbation = targets - maps
    assert targets.shape == maps.shape
    assert (perturbation >= 0).all()
    assert perturbation.std().item() == pytest.approx(strength * maps.std().item(), rel=1e-3, abs=1e-6)


# Fits


def test_both_units_start_from_the_same_weights(units: list[tuple[Block, dict[str, Tensor]]]) -> None:
    for shortcut in (False, True):
        fit(MAPS, MAPS, shortcut=shortcut, seed=3, steps=1, lr=0.1)
    (plain, first), (residual, second) = units
    assert (plain.shortcut is None, residual.shortcut is None) == (True, False)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in residual.parameters())
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    fit(MAPS, MAPS, shortcut=False, seed=4, steps=1, lr=0.1)
    assert not torch.equal(units[2][1]["residual.0.weight"], first["residual.0.weight"])


@pytest.mark.parametrize("shortcut", [False, True])
def test_the_first_step_by_hand(units: list[tuple[Block, dict[str, Tensor]]], shortcut: bool) -> None:
    """Inputs are all alike, so that every batch is the same whichever maps it draws."""
    maps = MAPS[:1].expand(20, -1, -1, -1)
    targets = near_identity(maps, 0.5)
    found = fit(maps, targets, shortcut=shortcut, seed=0, steps=1, lr=0.1, batch_size=20)
    [(unit, start)] = units

    weights = [start[f"residual.{i}.weight"].requires_grad_() for i in (0, 1, 3, 4)]
    biases = [start[f"residual.{i}.bias"].requires_grad_() for i in (1, 4)]
    y = F.conv2d(maps, weights[0], padding=1)
    y = F.batch_norm(y, None, None, weights[1], biases[0], training=True).relu()
    y = F.batch_norm(F.conv2d(y, weights[2], padding=1), None, None, weights[3], biases[1], training=True)
    out = (maps + y if shortcut else y).relu()
    loss = (out - targets).square().mean() / targets.var()
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-4)

    parameters = [weights[0], weights[1], biases[0], weights[2], weights[3], biases[1]]
    gradients = torch.autograd.grad(loss, parameters)
    for parameter, begun, gradient in zip(unit.parameters(), parameters, gradients, strict=True):
        torch.testing.assert_close(parameter, begun - 0.1 * gradient, rtol=1e-3, atol=1e-5)
    norms = [torch.cat([one.flatten() for one in many]).norm().item() for many in (gradients, parameters)]
    assert found.distance.item() == pytest.approx(0.1 * norms[0] / norms[1], rel=1e-3)


def test_fits_are_repeatable_and_go_down() -> None:
    torch.manual_seed(1)
    once = fit(MAPS, MAPS, shortcut=True, seed=0, steps=40, lr=0.05)
    again = fit(MAPS, MAPS, shortcut=True, seed=0, steps=40, lr=0.05)
    pd.testing.assert_frame_equal(once, again)
    assert once.step.tolist() == list(range(1, 41))
    assert once.loss.iloc[-1] < 0.3 * once.loss.iloc[0]
    assert (once.distance > 0).all()


# Comparisons


def test_each_unit_is_judged_at_its_own_best_learning_rate() -> None:
    lrs, seeds, steps = [0.001, 0.03, 0.3], [0, 1], 20
    found = compare_fits(MAPS, strengths=[0.0, 0.5], lrs=lrs, seeds=seeds, steps=steps)
    assert len(found) == 2 * 2 * len(seeds) * steps
    for (strength, unit), group in found.groupby(["strength", "unit"]):
        targets = near_identity(MAPS, strength)
        ends = {
            lr: sum(
                fit(MAPS, targets, shortcut=unit == "residual", seed=seed, steps=steps, lr=lr).loss[-2:].mean()
                for seed in seeds
            )
            for lr in lrs
        }
        assert group.lr.unique().tolist() == [min(ends, key=ends.get)]
        assert group.seed.unique().tolist() == seeds


@pytest.mark.parametrize("lrs", [[1e30, 0.05], [0.05, 1e30]])
def test_a_fit_that_diverges_is_never_the_best(lrs: list[float]) -> None:
    diverged = fit(MAPS, MAPS, shortcut=False, seed=0, steps=10, lr=1e30)
    assert not diverged.loss.map(lambda loss: loss < 1e6).all()
    found = compare_fits(MAPS, strengths=[0.0], lrs=lrs, seeds=[0, 1], steps=10)
    assert found.lr.unique().tolist() == [0.05]
