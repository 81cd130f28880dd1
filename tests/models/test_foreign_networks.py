"""Networks that others wrote: their own modules, hooks and habits; a sweep of lesions is the plain loop, or refused."""

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
import torchvision.models as vision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.networks import first_gradient, plain_loop, randomise_bn
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import StochasticDepth

from resnotes import unravel
from resnotes.analysis.propagation import gradient_flow
from resnotes.errors import UsageError
from resnotes.models import Network

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6)
CHANNELS = 8


# Networks as they are found


class Unit(nn.Module):
    """Shortcut first, as many write it."""

    def __init__(self, residual: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.residual, self.shortcut = residual, shortcut or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.shortcut(x) + self.residual(x))


class Stack(nn.Module):
    def __init__(self, blocks: Iterable[nn.Module], stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = stem or conv(3)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def conv(channels: int = CHANNELS) -> nn.Conv2d:
    return nn.Conv2d(channels, CHANNELS, 3, padding=1)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(CHANNELS)


class PreActivated(nn.Sequential):
    """Registered in the order of a paper's table, called in another."""

    def forward(self, x: Tensor) -> Tensor:
        convolution, bn, relu = self
        return convolution(relu(bn(x)))


class Kept(nn.Module):
    """Keeps what it puts out, to be looked at, and adds what it put out before: its last map is read elsewhere."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        self.map = self.layer(x)
        return self.map


class Does(nn.Module):
    """What a function does with its input and with some layers."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


class Odd(Unit):
    """A block with a forward of its own: a function of the block, its input, and what its parts would make of it."""

    def __init__(self, function: Callable[[Any, Tensor, Tensor], Tensor], residual: nn.Module | None = None) -> None:
        super().__init__(residual or RESIDUALS["conv-bn"]())
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x, super().forward(x))


def twins(function: Callable[[Any, Tensor, Tensor], Tensor], residual: str = "conv-bn") -> Stack:
    return settled(Stack([Odd(function, RESIDUALS[residual]()) for _ in range(2)]))


def halved(_: nn.Module, __: object, output: Tensor) -> Tensor:
    return output / 2


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(halved)
    return layer


def shifted(layer: nn.Module) -> nn.Module:
    """The method is replaced, as libraries that offload or quantise do."""
    inner = layer.forward
    layer.forward = lambda x: inner(x) + 1  # type: ignore[method-assign]
    return layer


RESIDUALS: dict[str, Callable[[], nn.Module]] = {
    "conv-bn": lambda: nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm()),
    "pair": lambda: nn.Sequential(conv(), norm()),
    "in place": lambda: nn.Sequential(conv(), norm(), nn.ReLU(inplace=True), conv(), norm()),
    "in place first": lambda: nn.Sequential(nn.ReLU(inplace=True), conv(), nn.ReLU(inplace=True), conv()),
    "subclass": lambda: PreActivated(conv(), norm(), nn.ReLU()),
    "hooked conv": lambda: nn.Sequential(hooked(conv()), norm(), nn.ReLU(), conv(), norm()),
    "replaced forward": lambda: nn.Sequential(shifted(conv()), norm()),
    "squeezed": lambda: Does(lambda x: x.mean((2, 3), keepdim=True)),  # the addition broadcasts it
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv()), norm()),
    "no affine": lambda: nn.Sequential(conv(), nn.BatchNorm2d(CHANNELS, affine=False), nn.ReLU()),
    "hands on": nn.Identity,
}
AFTERS: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.ReLU(inplace=True),
    "BN": norm,
    "hooked nothing": lambda: hooked(nn.Identity()),
}
SHORTCUTS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "projection": lambda: nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), norm()),
    "dropout": lambda: nn.Dropout(0.5),
    "hooked": lambda: hooked(nn.Identity()),
    "ReLU in place": lambda: nn.ReLU(inplace=True),
}
STEMS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: conv(3),
    "writes over images": lambda: Does(lambda x, layer: layer(x.sub_(0.5)), conv(3)),
}


def build(
    residuals: Sequence[str],
    after: str = "ReLU",
    shortcut: str = "identity",
    stem: str = "conv",
    *,
    share: bool = False,
) -> Stack:
    """A network of these parts; `share` makes what follows the additions one module, and ties the last two blocks."""
    one = AFTERS[after]()
    blocks = [Unit(RESIDUALS[name](), SHORTCUTS[shortcut](), one if share else AFTERS[after]()) for name in residuals]
    if share:
        blocks[-1] = blocks[-2]
    return settled(Stack(blocks, STEMS[stem]()))


def settled(network: Stack) -> Stack:
    """In eval mode, with BN whose statistics, and weights if it has some, are not those of a fresh one."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            randomise_bn(layer)
    return network.eval()


ONE_BY_ONE = [unravel.Lesion(), *unravel.single_deletions(range(2))]


def assert_plain_loop(network: nn.Module, lesions: Sequence[unravel.Lesion], images: Tensor = IMAGES) -> None:
    """In float32 to the prediction, and to 1e-5 in the logits, relative to the largest."""
    expected = plain_loop(network, lesions, images)
    before, state = images.clone(), copy.deepcopy(network.state_dict())
    found = unravel.lesion_logits(network, lesions, images)
    predicted = unravel.lesion_predictions(network, lesions, images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))
    assert torch.equal(predicted, expected.argmax(2))
    assert torch.equal(images, before)
    torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)


# Each branch with the hardest of what may follow it, and some with all of it; a property test mixes the rest.
KINDS = sorted({(name, "ReLU in place") for name in RESIDUALS} | {("conv-bn", after) for after in AFTERS})


# Lesions


@pytest.mark.parametrize(("residual", "after"), KINDS)
def test_every_kind_of_branch_and_of_what_follows(residual: str, after: str) -> None:
    lesions = [unravel.Lesion(frozenset(each)) for k in (0, 1, 2, 3) for each in itertools.combinations(range(3), k)]
    assert_plain_loop(build([residual] * 3, after), lesions)


NETWORKS = st.builds(
    build,
    st.lists(st.sampled_from(list(RESIDUALS)), min_size=2, max_size=4),
    st.sampled_from(list(AFTERS)),
    st.sampled_from(list(SHORTCUTS)),
    st.sampled_from(list(STEMS)),
    share=st.booleans(),
)


@given(NETWORKS, st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_a_sweep_in_any_order_and_company_is_the_plain_loop(network: nn.Module, data: st.DataObject) -> None:
    blocks, groups = unravel.deletable(network, IMAGES), unravel.exchangeable(network, IMAGES)
    deleted = st.frozensets(st.sampled_from(blocks))
    orders = [
        tuple(lesion.order or ())
        for swaps in (0, 1, 2)
        if swaps == 0 or any(len(group) > 1 for group in groups)
        for lesion in unravel.random_reorderings(groups, swaps, 2, torch.Generator().manual_seed(swaps))
    ]
    lesions = data.draw(
        st.lists(st.builds(unravel.Lesion, deleted, st.sampled_from([None, *orders])), min_size=1, max_size=7)
    )
    assert_plain_loop(network, lesions)


@pytest.mark.parametrize(("make", "last"), [(vision.resnet18, "bn2"), (vision.resnet50, "bn3")])
@torch.no_grad()
def test_lesions_of_networks_of_torchvision(make: Callable[..., nn.Module], last: str) -> None:
    model = make(num_classes=10).eval()
    randomise_bn(model)
    network, images = unravel.adapt(model), torch.randn(3, 3, 64, 64)
    assert_plain_loop(network, [unravel.Lesion(), *unravel.single_deletions(network)], images)
    intact, without = unravel.lesion_logits(network, [(), (1,)], images)
    torch.testing.assert_close(intact, model(images), rtol=1e-4, atol=1e-4)
    # Block 1 by hand: in torchvision's words, its last BN puts out zero.
    nn.init.zeros_(model.layer1[1].get_submodule(last).weight)
    nn.init.zeros_(model.layer1[1].get_submodule(last).bias)
    torch.testing.assert_close(without, model(images), rtol=1e-4, atol=1e-4)


class Reminded(nn.Module):
    """A head that reads what the stem put out; between them, ReLU works in place."""

    def __init__(self, stem: Kept, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = [stem], head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.stem[0].map)


def constant(x: Tensor, table: nn.Embedding) -> Tensor:
    return table.weight.view(1, CHANNELS, 8, 8).expand(len(x), -1, -1, -1)


def viewed(x: Tensor, fc: nn.Linear) -> Tensor:
    """Which wants its maps with the channels first."""
    return fc(x.view(len(x), -1))


def with_a_hook_that_hides() -> Stack:
    """It changes nothing for one image, and much for others."""
    network = build(["conv-bn", "conv-bn"])
    with torch.no_grad():
        limit = network.blocks[0](network.stem(IMAGES[:1])).max()
    network.blocks[0].register_forward_hook(lambda _, __, output: output.clamp(max=limit))
    return network


def with_a_negative_block() -> Stack:
    """ReLU of the block after it, which is deleted, has something left to do."""
    network = build(["conv-bn"] * 2)
    network.blocks[0] = Odd(lambda self, x, whole: -whole.relu())
    return network.eval()


def with_maps_that_are_kept() -> Stack:
    network = build(["conv-bn"] * 2, "ReLU in place")
    network.stem = Kept(network.stem)
    network.head = Reminded(network.stem, network.head)
    return network


def with_the_older_weight_norm() -> Stack:
    """Its weight is a result with a history, which PyTorch does not copy."""
    network = build(["conv-bn", "conv-bn"])
    nn.utils.weight_norm(network.blocks[0].residual[0])
    network(IMAGES).sum().backward()
    return network


def replaced(part: str, layer: Callable[[nn.Module], nn.Module]) -> Stack:
    network = build(["conv-bn", "conv-bn"], "ReLU in place")
    owner = network.blocks[0] if part in ("residual", "after") else network
    setattr(owner, part, layer(getattr(owner, part)))
    return network


ODD: dict[str, Callable[[], nn.Module]] = {
    "own forward": lambda: twins(lambda self, x, _: x + 0.5 * self.residual(x)),
    "compiled": lambda: torch.compile(ODD["own forward"](), backend="eager"),  # type: ignore[dict-item,return-value]
    "hook on a block": with_a_hook_that_hides,
    "negative": with_a_negative_block,
    "another order": lambda: twins(lambda self, x, _: x + self.residual[0](self.residual[1](x)), "pair"),
    "kept maps": with_maps_that_are_kept,
    "stem is its parameter": lambda: replaced("stem", lambda _: Does(constant, nn.Embedding(CHANNELS, 64))),
    "head that views": lambda: replaced("head", lambda _: Does(viewed, nn.Linear(CHANNELS * 64, 10))),
    "older weight norm": with_the_older_weight_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("kind", ODD)
def test_a_sweep_of_an_odd_network_is_the_plain_loop(kind: str) -> None:
    network = ODD[kind]()
    if kind == "older weight norm":
        network(IMAGES)
        torch.testing.assert_close(unravel.lesion_logits(network, [()], IMAGES)[0], network(IMAGES).detach())
    else:
        assert_plain_loop(network, ONE_BY_ONE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_blocks_of_their_own_kind_in_any_precision(dtype: torch.dtype) -> None:
    network = twins(lambda self, x, whole: 0.93 * whole).to(dtype)
    images = IMAGES.to(dtype)
    found, expected = unravel.lesion_logits(network, ONE_BY_ONE, images), plain_loop(network, ONE_BY_ONE, images)
    torch.testing.assert_close(found, expected, rtol=0, atol=4 * torch.finfo(dtype).eps * expected.abs().max().item())
    with pytest.raises(UsageError, match="something else than its stem"):
        unravel.path_gradients(network, images, LABELS)


@pytest.mark.parametrize("around", [lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode, torch.no_grad])
def test_modes_of_the_caller_are_not_ours(around: Callable[[], Any]) -> None:
    network = build(["conv-bn", "conv-bn"])

    def measured() -> list[Tensor]:
        flow = gradient_flow(network, IMAGES, LABELS)  # type: ignore[arg-type]
        paths = unravel.path_gradients(network, IMAGES, LABELS)
        return [unravel.lesion_logits(network, ONE_BY_ONE, IMAGES), paths, torch.tensor(flow.to_numpy())]

    expected = measured()
    with around():
        found = measured()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# What is refused: in one line, that says why


def pair(layer: nn.Module) -> nn.Module:
    return Does(lambda x, layer: (layer(x), None), layer)


def noise(_: nn.Module | None = None) -> nn.Module:
    return Does(lambda x: x + torch.rand_like(x))


def mixed(_: nn.Module | None = None) -> nn.Module:
    return Does(lambda x: x - x.mean(0))


def without_statistics() -> nn.Module:
    network = build(["conv-bn", "conv-bn"])
    network.blocks[1].residual[1] = nn.BatchNorm2d(CHANNELS, track_running_stats=False)
    return network


def with_more_in_forward() -> nn.Module:
    class More(Stack):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    return More([Unit(RESIDUALS["conv-bn"]()) for _ in range(2)]).eval()


def container(after: nn.Module) -> nn.Module:
    """Without a forward of its own."""
    network = build(["conv-bn", "conv-bn"])
    network.blocks[0].after = after
    model = nn.Module()
    model.stem, model.blocks, model.head = network.stem, network.blocks, network.head
    return model.eval()


def lazy() -> nn.Module:
    network = build(["conv-bn", "conv-bn"])
    network.head[2] = nn.LazyLinear(10)
    return network


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no statistics": (without_statistics, r"blocks.1.residual.1 of Stack keeps no running statistics"),
    "after's tuple": (lambda: replaced("after", pair), "a Unit puts out a tuple, expected a tensor"),
    "head's tuple": (lambda: replaced("head", pair), "the head of Stack puts out a tuple, expected a tensor"),
    "forward": (with_more_in_forward, "More puts out something else than its stem, its blocks and its head in a row"),
    "chance": (lambda: replaced("after", noise), "Stack puts out other logits each time, in eval mode"),
    "batch": (lambda: replaced("after", mixed), "the logits that Stack puts out .* depend on the others"),
    "batch, no forward": (lambda: container(mixed()), "the logits that Module puts out .* depend on the others"),
    "lazy": (lazy, "Stack has lazy modules, without weights yet; send an image through it"),
    "maps": (lambda: replaced("head", lambda _: nn.Conv2d(8, 10, 1)), r"puts out \[\d, 10, 8, 8\], expected logits"),
    "numbers": (lambda: replaced("head", lambda _: nn.Flatten(0)), r"the head of Stack puts out \[\d+\]"),
    "channels": (lambda: replaced("stem", lambda _: conv(1)), r"on images \[6, 3, 8, 8\]: RuntimeError: .*channels"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_swept_is_refused(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(UsageError, match=message):
        unravel.lesion_errors(make(), [(), (1,)], IMAGES, LABELS)


def raises(x: Tensor) -> Tensor:
    raise ValueError("first\nsecond")


@pytest.mark.parametrize(
    "measure", [unravel.path_gradients, gradient_flow, lambda net, *data: unravel.lesion_errors(net, [()], *data)]
)
def test_a_message_is_one_line(measure: Callable[..., object]) -> None:
    with pytest.raises(UsageError, match=r"ValueError: first second$"):
        measure(replaced("head", lambda _: Does(raises)), IMAGES, LABELS)


@pytest.mark.parametrize("lesions", [3, [3], [torch.tensor(0)], [[[0]]], [unravel.Lesion(order=("a", 1))]])
def test_what_are_no_lesions_is_refused(lesions: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        unravel.lesion_errors(build(["conv-bn", "conv-bn"]), lesions, IMAGES, LABELS)


MEASURES: dict[str, Callable[[nn.Module, Tensor, Tensor], object]] = {
    "lesions": lambda model, images, labels: unravel.lesion_errors(model, [()], images, labels),
    "paths": unravel.path_gradients,
    "norms": lambda *data: unravel.path_norms(*data, 1, torch.Generator()),
    "flow": gradient_flow,  # type: ignore[dict-item]
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "expected at least one image, found none"),
        (
            {"images": IMAGES.to(torch.uint8)},
            r"floating point \[N, C, H, W\], or tokens, .*; found uint8 \[6, 3, 8, 8\]",
        ),
        ({"labels": LABELS[:5]}, r"expected one label an image, whole numbers \[6\]; found int64 \[5\]"),
        ({"labels": LABELS.tolist()}, "found list"),
        ({"labels": LABELS.float()}, r"found float32 \[6\]"),
        ({"labels": LABELS + 5}, "labels must be 0 to 9, found 5 to 10"),
        ({"model": nn.Linear(2, 2)}, "expected stem, blocks and head, .* found Linear without stem; .*adapt"),
        ({"model": Stack([])}, "at least one block, found Stack with none"),
        ({"model": Stack([nn.ReLU()])}, "found block 0 of Stack, a ReLU, without residual"),
    ],
)
@pytest.mark.parametrize("measure", MEASURES)
def test_what_does_not_fit_is_refused_by_every_measure(wrong: dict[str, Any], message: str, measure: str) -> None:
    fine: dict[str, Any] = {"model": build(["conv-bn", "conv-bn"]), "images": IMAGES, "labels": LABELS}
    with pytest.raises(UsageError, match=message) as caught:
        MEASURES[measure](*(fine | wrong).values())
    assert isinstance(caught.value, ValueError)


def test_logits_that_are_no_numbers_are_wrong() -> None:
    network = build(["conv-bn", "conv-bn"])
    nn.init.constant_(network.head[2].weight, torch.nan)
    assert unravel.lesion_errors(network, [(), (0,)], IMAGES, LABELS).tolist() == [100, 100]
    with pytest.raises(UsageError, match="a gradient that is finite and not zero"):
        unravel.path_shares(unravel.path_gradients(network, IMAGES, LABELS))


# Paths and gradients


@pytest.mark.parametrize(("residual", "after"), KINDS)
def test_paths_add_up_to_the_gradient(residual: str, after: str) -> None:
    network = build([residual] * 3, after).double()
    images = IMAGES.double()
    found = unravel.path_gradients(network, images, LABELS)
    torch.testing.assert_close(found.sum(0), first_gradient(network, images, LABELS), rtol=1e-9, atol=1e-12)
    paths = torch.tensor(list(itertools.product([False, True], repeat=3)))
    along = unravel.gradients_along(network, images, LABELS, paths)
    for length in range(4):
        torch.testing.assert_close(along[paths.sum(1) == length].sum(0), found[length], rtol=1e-9, atol=1e-12)


def test_an_input_that_is_written_over_before_the_shortcut_reads_it() -> None:
    """The sum of paths must be that of the network: of what a projection reads first nothing may be changed later."""
    blocks = [Unit(RESIDUALS["in place first"](), SHORTCUTS["projection"]()) for _ in range(2)]
    network = Stack(blocks).eval()
    assert_plain_loop(network, ONE_BY_ONE)
    with pytest.raises(UsageError, match=r"something else than .* each block after\(shortcut\(x\) \+ residual\(x\)\)"):
        unravel.path_gradients(network, IMAGES, LABELS)


def test_paths_that_do_not_add_up_are_refused() -> None:
    """Forward, all is as it should be."""
    detached = twins(lambda self, x, _: x + self.residual(x.detach()))
    hooks = build(["conv-bn", "conv-bn"])
    hooks.blocks[0].register_full_backward_hook(lambda _, given, __: tuple(each * 0.5 for each in given))
    for network in (detached, hooks):
        with pytest.raises(UsageError, match="do not add up to the gradient that autograd finds through its blocks"):
            unravel.path_gradients(network, IMAGES, LABELS)


@pytest.mark.parametrize("drop", [StochasticDepth(0.2, "row"), nn.Dropout2d()])
def test_what_drops_by_chance_is_refused(drop: nn.Module) -> None:
    network = build(["conv-bn", "conv-bn"]).train()
    network.blocks[1].residual.append(drop)
    for measure in (unravel.path_gradients, gradient_flow):
        with pytest.raises(UsageError, match=r"no active dropout.*model.eval\(\)"):
            measure(network, IMAGES, LABELS)  # type: ignore[arg-type]


class Counting(nn.BatchNorm2d):
    """Counts its passes in any mode."""

    def forward(self, x: Tensor) -> Tensor:
        self.num_batches_tracked += 1
        return x


def test_nothing_of_the_network_is_changed() -> None:
    """Buffers of all kinds of modules; and of those that only the original knows, behind a function."""
    network = build(["conv-bn", "weight norm"]).train()
    network.blocks[0].residual = shifted(network.blocks[0].residual)
    network.head = nn.Sequential(*network.head[:2], nn.BatchNorm1d(CHANNELS), Counting(1), network.head[2])
    model = vision.resnet18(num_classes=10)
    model.fc = nn.Sequential(Counting(1), model.fc)
    for each in (network, model):
        before = copy.deepcopy(each.state_dict())
        modes = [module.training for module in each.modules()]
        subject = unravel.adapt(each) if each is model else each
        images = torch.randn(6, 3, 32, 32) if each is model else IMAGES
        unravel.lesion_logits(subject, [(), (1,)], images)
        for measure in (unravel.path_gradients, gradient_flow):
            measure(subject, images, LABELS)
        torch.testing.assert_close(each.state_dict(), before, rtol=0, atol=0)
        assert modes == [module.training for module in each.modules()]
        assert not any(parameter.is_inference() for parameter in each.parameters())


@pytest.mark.parametrize("make", [vision.resnet18, vision.resnet50])
@pytest.mark.parametrize("training", [False, True])
def test_paths_of_networks_of_torchvision(make: Callable[..., nn.Module], training: bool) -> None:
    model = make(num_classes=10).double().train(training)
    images, state = torch.randn(6, 3, 33, 33, dtype=torch.float64), copy.deepcopy(model.state_dict())
    network = unravel.adapt(model)
    found = unravel.path_gradients(network, images, LABELS).sum(0)
    flow = gradient_flow(network, images, LABELS)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    expected = first_gradient(network, images, LABELS)
    assert (found - expected).norm() < 1e-9 * expected.norm()
    if training:  # whose gradient is of the mean
        assert flow.gradient[0] == pytest.approx(expected.norm().item() / len(images), rel=1e-9)


# Adapting


@pytest.mark.parametrize("make", [vision.quantization.resnet18, vision.resnext50_32x4d])
def test_networks_of_torchvision_are_adapted(make: Callable[..., nn.Module]) -> None:
    model = make(num_classes=10).eval()
    network = unravel.adapt(model)
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(network(image), model(image))
    assert sum(network.stages) == len(network.blocks)
    assert set(network.parameters()) == set(model.parameters())
    assert not any(module.training for module in network.modules())
    for block in network.blocks:
        assert set(vars(block)["_modules"]) == {"residual", "shortcut", "after"}


def test_adapting_changes_no_mode() -> None:
    model = vision.resnet18(num_classes=10)
    model.layer1.eval()  # its BN is kept as it was, while others train
    modes = {name: module.training for name, module in model.named_modules()}
    network = unravel.adapt(model)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert network.training


def with_other_forward() -> nn.Module:
    class Warm(ResNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    return Warm(BasicBlock, [1, 1, 1, 1])


def with_hook() -> nn.Module:
    model = ResNet(BasicBlock, [1, 1, 1, 1])
    model.layer2.register_forward_hook(halved)
    return model


def without_a_stage() -> nn.Module:
    model = ResNet(BasicBlock, [1, 1, 1, 1])
    model.layer3 = nn.Identity()
    return model


def with_flat_head() -> nn.Module:
    model = ResNet(BasicBlock, [1, 1, 1, 1])
    model.avgpool = nn.Identity()
    model.fc = nn.Linear(512 * 49, 10)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2), "cannot adapt a Linear; known are torchvision.ResNet, "),
        (with_other_forward, "cannot adapt this Warm: .* put out something else"),
        (with_hook, "cannot adapt this ResNet: .* put out something else"),
        (without_a_stage, "cannot adapt this ResNet: its parts are not those of a torchvision.ResNet"),
        (with_flat_head, r"ResNet cannot be evaluated on images \[1, 3, 64, 64\]"),
    ],
)
def test_what_cannot_be_adapted_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        unravel.adapt(make())


def test_images_to_compare_with_may_be_given() -> None:
    network = unravel.adapt(with_flat_head(), torch.randn(2, 3, 224, 224))
    assert isinstance(network, Network)
