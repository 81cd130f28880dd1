"""Responses and gradients against hooks, autograd and closed forms."""

import pytest
import torch
from kit.networks import randomise_bn
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import models
from resnotes.analysis.propagation import gradient_norms, gradient_step_gain, layer_responses
from resnotes.errors import UsageError
from resnotes.models import Network

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(32) % 10


@pytest.fixture(params=[("plain-8", {}), ("resnet-8", {}), ("resnet-8", {"shortcut": "B"})], ids=str)
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    name, options = request.param
    built = models.build(name, in_channels=1, width=4, **options)
    randomise_bn(built)
    return built


def layers(network: Network) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The 3x3 convolutions and their BN, spelt out."""
    found = [(network.stem.conv, network.stem.bn)]
    for block in network.blocks:
        found += [(block.residual.conv1, block.residual.bn1), (block.residual.conv2, block.residual.bn2)]
    return found


@torch.no_grad()
def test_responses_are_those_of_a_forward_pass_by_hand(network: Network) -> None:
    found = layer_responses(network, IMAGES)
    network.eval()
    expected = [network.stem.bn(network.stem.conv(IMAGES))]
    x = expected[0].relu()
    for block in network.blocks:
        first = block.residual.bn1(block.residual.conv1(x))
        second = block.residual.bn2(block.residual.conv2(first.relu()))
        expected += [first, second]
        x = block(x)
    assert found["std"].tolist() == pytest.approx([float(response.std()) for response in expected], rel=1e-5)
    assert found.layer.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_responses_are_gamma_where_the_batch_has_bns_statistics(network: Network) -> None:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.zeros_(norm.bias)  # else the channels' means differ too
        norm.momentum = 1.0
    images = torch.randn(256, 1, 8, 8)
    network.train()(images)
    found = layer_responses(network, images)
    gammas = [norm.weight.square().mean().sqrt().item() for _, norm in layers(network)]
    assert found.gamma.tolist() == pytest.approx(gammas)
    # BN divides by the variance over n values in training, and keeps that over n - 1; here n is 1024 and more.
    assert found["std"].tolist() == pytest.approx(gammas, rel=0.005)


def test_gradient_norms_are_autograds(network: Network) -> None:
    found = gradient_norms(network.eval(), IMAGES, LABELS)
    weights = [convolution.weight for convolution, _ in layers(network)]
    gradients = torch.autograd.grad(F.cross_entropy(network.train()(IMAGES), LABELS), weights)
    norms = [gradient.square().sum().sqrt().item() for gradient in gradients]
    assert min(norms) > 0
    assert found.gradient.tolist() == pytest.approx(norms, rel=1e-4)
    relative = [norm / weight.square().sum().sqrt().item() for norm, weight in zip(norms, weights, strict=True)]
    assert found.relative.tolist() == pytest.approx(relative, rel=1e-4)
    assert found.layer.tolist() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("preresnet-8", {}),
        ("resnet-8", {"order": "pre-activation"}),
        ("resnet-8", {"order": "relu-before-addition"}),  # with as many BN as convolutions
    ],
)
def test_another_order_of_layers_is_refused(name: str, options: dict[str, str]) -> None:
    network = models.build(name, in_channels=1, width=4, **options)
    for measure in (lambda: layer_responses(network, IMAGES), lambda: gradient_norms(network, IMAGES, LABELS)):
        with pytest.raises(UsageError, match=f"{name}: expected each convolution to be followed by its BN"):
            measure()


# Step gain


class Table(nn.Module):
    """Logits that are parameters, one row for each input: cross-entropy is convex in them."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, rows: Tensor) -> Tensor:
        return self.logits[rows]


def test_step_gain_is_the_best_of_steps_down_the_gradient() -> None:
    logits, rows, labels = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([0, 0, 0]), torch.tensor([0, 0, 1])
    fractions = (0.01, 0.1, 0.5, 100.0)
    # By hand: the gradient of the mean cross-entropy is softmax minus the labels' frequencies.
    gradient = logits.softmax(1) - torch.tensor([[2 / 3, 1 / 3, 0]])
    steps = [logits - fraction * logits.norm() * gradient / gradient.norm() for fraction in (0, *fractions)]
    losses = [-step.log_softmax(1)[0, labels].mean().item() for step in steps]
    assert min(losses) < losses[0] < losses[-1]
    gain = gradient_step_gain(Table(logits), rows, labels, fractions)
    assert gain == pytest.approx(1 - min(losses) / losses[0], rel=1e-5)


def test_a_gradient_of_zero_gains_nothing() -> None:
    class Constant(Table):
        def forward(self, rows: Tensor) -> Tensor:
            return 0 * self.logits[rows]

    rows, labels = torch.arange(2), torch.tensor([0, 1])
    assert gradient_step_gain(Constant(torch.ones(2, 2)), rows, labels) == 0  # no direction to go in
    saturated = 1000 * torch.eye(2)
    assert F.cross_entropy(saturated, labels) == 0
    assert gradient_step_gain(Table(saturated), rows, labels) == 0  # nothing to lose
