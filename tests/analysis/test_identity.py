"""Fitting an identity with two layers, with and without a shortcut."""

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from resnotes.analysis import identity
from resnotes.analysis.identity import compare_fits, fit, near_identity

MAPS = torch.rand(64, 4, 6, 6, generator=torch.Generator().manual_seed(1))


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


@pytest.mark.parametrize("shortcut", [False, True])
def test_the_first_step_by_hand(shortcut: bool) -> None:
    """Inputs are all alike, so that every batch is the same; the weights are those of the seed in either unit."""
    maps = MAPS[:1].expand(20, -1, -1, -1)
    targets = near_identity(maps, 0.5)
    found = fit(maps, targets, shortcut=shortcut, seed=3, steps=1, lrs=[0.1], batch_size=20)
    torch.manual_seed(3)
    branch = identity._two_layers(4, shortcut=False).residual
    out = (maps + branch(maps) if shortcut else branch(maps)).relu()
    loss = (out - targets).square().mean() / targets.var()
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-4)
    gradient = parameters_to_vector(torch.autograd.grad(loss, list(branch.parameters())))
    weights = parameters_to_vector(branch.parameters())
    assert found.distance.item() == pytest.approx((0.1 * gradient.norm() / weights.norm()).item(), rel=1e-3)


def test_side_by_side_a_rate_does_what_it_does_alone_and_what_torchs_sgd_does() -> None:
    torch.manual_seed(1)
    lrs, steps = [0.05, 1e30, 0.2], 40  # the second one diverges
    found = fit(MAPS, MAPS, shortcut=True, seed=0, steps=steps, lrs=lrs)
    assert found.lr.tolist() == [lr for lr in lrs for _ in range(steps)]
    for lr, rows in found.groupby("lr"):
        alone = fit(MAPS, MAPS, shortcut=True, seed=0, steps=steps, lrs=[lr])
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), alone, rtol=1e-3)
    rows = found[found.lr == 0.05]
    assert rows.loss.iloc[-1] < 0.3 * rows.loss.iloc[0]

    torch.manual_seed(0)
    unit = identity._two_layers(4, shortcut=True)
    optimizer = torch.optim.SGD(unit.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(MAPS), (16,), generator=generator)
        loss = F.mse_loss(unit(MAPS[chosen]), MAPS[chosen]) / MAPS.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert rows.loss.tolist() == pytest.approx(losses, rel=1e-3)


# Comparisons


def test_each_unit_has_its_own_best_learning_rate() -> None:
    lrs, seeds, steps = [0.001, 0.1], [0, 1], 10
    found = compare_fits(MAPS, strengths=[0.0, 0.5], lrs=lrs, seeds=seeds, steps=steps)
    assert len(found) == 2 * 2 * len(lrs) * len(seeds) * steps
    for (strength, unit), group in found.groupby(["strength", "unit"]):
        ends = group[group.step == steps].groupby("lr").loss.mean()
        assert group[group.best].lr.unique().tolist() == [min(lrs, key=lambda lr: ends[lr])]
        targets = near_identity(MAPS, strength)
        alone = fit(MAPS, targets, shortcut=unit == "residual", seed=1, steps=steps, lrs=[0.1])
        assert group[(group.seed == 1) & (group.lr == 0.1)].loss.tolist() == pytest.approx(
            alone.loss.tolist(), rel=1e-3
        )


@pytest.mark.parametrize("lrs", [[1e30, 0.05], [0.05, 1e30]])
def test_a_fit_that_diverges_is_never_the_best(lrs: list[float]) -> None:
    diverged = fit(MAPS, MAPS, shortcut=False, seed=0, steps=10, lrs=[1e30])
    assert not diverged.loss.map(lambda loss: loss < 1e6).all()
    found = compare_fits(MAPS, strengths=[0.0], lrs=lrs, seeds=[0, 1], steps=10)
    assert found[found.best].lr.unique().tolist() == [0.05]
