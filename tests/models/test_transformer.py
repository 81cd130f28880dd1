"""Transformers: ours against torchvision's, theirs adapted, and every measure that was written for convolutions."""

import copy
from collections.abc import Callable

import pytest
import torch
from kit.networks import first_gradient, plain_loop
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from resnotes import models, unravel
from resnotes.analysis.propagation import gradient_flow, identity_errors
from resnotes.errors import UsageError
from resnotes.models import Network
from resnotes.models.transformer import Attention

LABELS = torch.arange(6)


def small(norm: str = "pre", **options: object) -> Network:
    """Three layers, whose norms all differ."""
    return drawn(models.build("vit-3", in_channels=1, width=8, heads=2, norm=norm, **options))


def drawn(model: nn.Module) -> Network:
    """In eval mode, with every weight that would be 0 or 1 at first drawn anew."""
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            nn.init.normal_(parameter, parameter.mean().item(), std=0.3)
    return model.eval()  # type: ignore[return-value]


def torchvisions(layers: int = 3) -> VisionTransformer:
    return drawn(VisionTransformer(8, 2, layers, num_heads=2, hidden_dim=8, mlp_dim=32, num_classes=10))


def gpt2(**options: object) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    no_dropout = dict.fromkeys(["embd_pdrop", "resid_pdrop", "attn_pdrop"], 0)
    config = transformers.GPT2Config(vocab_size=19, n_positions=12, n_embd=8, n_layer=3, n_head=2, **no_dropout)
    return drawn(transformers.GPT2LMHeadModel._from_config(config, **options))


def vit() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=2, num_labels=10)
    return drawn(transformers.ViTForImageClassification(config))


# Each with inputs.
THEIRS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "torchvision": (torchvisions, torch.randn(6, 3, 8, 8)),
    "ViT": (vit, torch.randn(6, 3, 8, 8)),
    "GPT-2": (gpt2, torch.randint(19, (6, 7))),
}
KINDS: dict[str, tuple[Callable[[], Network], Tensor]] = {
    "pre": (small, torch.randn(6, 1, 8, 8)),
    "post": (lambda: small("post", class_token=False), torch.randn(6, 1, 8, 8)),
    **{kind: (lambda make=make: unravel.adapt(make()), inputs) for kind, (make, inputs) in THEIRS.items()},  # type: ignore[misc]
}


@torch.no_grad()
def test_ours_is_torchvisions_with_its_weights() -> None:
    theirs = torchvisions()
    ours = models.build("vit-3", width=8, heads=2).eval()
    names = {"class_token": "stem.class_token", "conv_proj.": "stem.patches.", "heads.head.": "head.fc."}
    names |= {"encoder.pos_embedding": "stem.positions", "encoder.ln.": "head.norm."}
    for i in range(3):
        layer, attention, mlp = f"encoder.layers.encoder_layer_{i}.", f"blocks.{2 * i}.", f"blocks.{2 * i + 1}."
        names |= {
            f"{layer}ln_1.": f"{attention}residual.norm.",
            f"{layer}self_attention.in_proj_": f"{attention}residual.attention.qkv.",
            f"{layer}self_attention.out_proj.": f"{attention}residual.attention.out.",
            f"{layer}ln_2.": f"{mlp}residual.norm.",
            f"{layer}mlp.0.": f"{mlp}residual.fc1.",
            f"{layer}mlp.3.": f"{mlp}residual.fc2.",
        }
    state = {}
    for name, weight in theirs.state_dict().items():
        begins = next(each for each in names if name.startswith(each))
        state[names[begins] + name.removeprefix(begins)] = weight
    ours.load_state_dict(state)
    assert models.count_parameters(ours) == models.count_parameters(theirs)
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(ours(images), theirs(images))
    torch.testing.assert_close(ours.double()(images.double()), theirs.double()(images.double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixed", [True, False])
def test_attention_in_bfloat16_rounds_no_more_than_torchs(mixed: bool) -> None:
    """Whether autocast makes it bfloat16 or the weights are: what it gives, and the gradient of what it was given."""
    exact = drawn(Attention(16, 2).double())
    theirs = nn.MultiheadAttention(16, 2, batch_first=True).double()
    theirs.in_proj_weight, theirs.in_proj_bias = exact.qkv.weight, exact.qkv.bias
    theirs.out_proj.weight, theirs.out_proj.bias = exact.out.weight, exact.out.bias
    inputs, weights = torch.randn(2, 8, 17, 16).double()

    def found(module: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        low = mixed and dtype is torch.bfloat16
        module = copy.deepcopy(module).to(torch.float32 if low else dtype)
        x = inputs.to(next(module.parameters()).dtype).requires_grad_()
        with torch.autocast("cpu", enabled=low):
            out = module(x) if isinstance(module, Attention) else module(x, x, x, need_weights=False)[0]
        assert out.dtype is dtype
        return out.double(), torch.autograd.grad((out * weights.to(out.dtype)).sum(), x)[0].double()

    wanted = found(exact, torch.float64)
    torch.testing.assert_close(wanted, found(theirs, torch.float64))
    for ours, other, right in zip(found(exact, torch.bfloat16), found(theirs, torch.bfloat16), wanted, strict=True):
        assert (ours - right).norm() < 1.1 * (other - right).norm() < 0.05 * right.norm()


def test_weights_are_drawn_as_said() -> None:
    network = models.build("vit-1", width=256, heads=4, size=32)
    for name, variance in [
        ("stem.positions", 0.02**2),
        ("stem.patches.weight", 1 / 12),
        ("blocks.0.residual.attention.qkv.weight", 2 / (256 + 768)),
        ("blocks.1.residual.fc1.weight", 2 / (256 + 1024)),
        ("head.fc.weight", 2 / (256 + 10)),
    ]:
        assert network.get_parameter(name).var().item() == pytest.approx(variance, rel=0.1)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match=r"images of 8x8 pixels, found \[2, 3, 9, 9\]"):
        models.build("vit-2")(torch.randn(2, 3, 9, 9))


@pytest.mark.parametrize("kind", THEIRS)
def test_theirs_are_adapted(kind: str) -> None:
    model, inputs = THEIRS[kind][0](), THEIRS[kind][1]
    network = unravel.adapt(model, inputs)
    with torch.no_grad():
        expected = model(inputs)
        expected = expected if kind == "torchvision" else expected.logits
        torch.testing.assert_close(network(inputs), expected[:, -1] if kind == "GPT-2" else expected)
    assert len(network.blocks) == 6
    assert set(network.parameters()) == set(model.parameters())


def test_a_mask_from_outside_is_refused() -> None:
    with pytest.raises(UsageError, match="eager attention; load it with attn_implementation='sdpa'"):
        unravel.adapt(gpt2(attn_implementation="eager"))


@pytest.mark.parametrize("kind", KINDS)
def test_lesions_are_the_plain_loop(kind: str) -> None:
    """Deletions, in company, in another order, and with the repair of a BN that is not there."""
    network, inputs = KINDS[kind][0](), KINDS[kind][1]
    count = len(network.blocks)
    assert unravel.deletable(network, inputs) == tuple(range(count))
    assert unravel.exchangeable(network, inputs) == [tuple(range(0, count, 2)), tuple(range(1, count, 2))]
    orders = unravel.random_reorderings(unravel.exchangeable(network, inputs), 1, 3, torch.Generator().manual_seed(0))
    lesions = [unravel.Lesion(), *unravel.single_deletions(network), *unravel.pairs(range(count)), *orders]
    expected = plain_loop(network, lesions, inputs)
    torch.testing.assert_close(unravel.lesion_logits(network, lesions, inputs), expected, rtol=1e-5, atol=1e-5)
    repaired = unravel.lesion_logits(network, lesions, inputs, repair=inputs[:3])
    torch.testing.assert_close(repaired, expected, rtol=1e-5, atol=1e-5)


def test_a_study_without_bn_says_the_same_twice() -> None:
    network, images = small(), KINDS["pre"][1]
    table = unravel.lesion_study(network, images, LABELS, draws=1, lengths=[2, 4], repair=images, repaired=["run"])
    assert not table.shrinks.any()
    before, after = (table[(table.kind == "run") & (table.bn == bn)] for bn in ("as trained", "repaired"))
    assert len(before) == 5 + 3
    assert before.wrong.tolist() == after.wrong.tolist()


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("kind", KINDS)
def test_paths_add_up_to_the_gradient(kind: str, dtype: torch.dtype, error: float) -> None:
    network, inputs = KINDS[kind][0]().to(dtype), KINDS[kind][1]
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    expected = first_gradient(network, inputs, LABELS)
    found = unravel.path_gradients(network, inputs, LABELS)
    assert found.shape == (len(network.blocks) + 1, *expected.shape)
    assert (found.sum(0) - expected).norm() < error * expected.norm()
    flow = gradient_flow(network, inputs, LABELS)
    assert flow.gradient[0] == pytest.approx(expected.norm().item() / len(inputs), rel=10 * error)


@pytest.mark.parametrize("kind", KINDS)
def test_angles_and_lens_by_hand(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = KINDS[kind][0](), KINDS[kind][1]
    before = copy.deepcopy(network.state_dict())
    with monkeypatch.context() as patch:  # it rounds otherwise than what has gradients
        patch.setattr(torch, "_native_multi_head_attention", None)
        found = unravel.refinement(network, inputs, LABELS)
    with torch.no_grad():
        x = network.stem(inputs)
        for block, row in zip(network.blocks, found.itertuples(), strict=True):
            y = block(x)
            cosines = F.cosine_similarity(x.double().flatten(1), y.double().flatten(1))
            assert row.angle == pytest.approx(cosines.acos().rad2deg().mean().item(), rel=1e-5)
            assert row.lens_loss == pytest.approx(F.cross_entropy(network.head(y), LABELS).item(), rel=1e-4)
            x = y
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_identity_equations_hold_for_pre_and_not_for_post() -> None:
    """He et al. 2016, Eqs. (4) and (5), between any two units."""
    images = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    pre, post = (identity_errors(small(norm).double(), images, LABELS) for norm in ("pre", "post"))
    assert len(pre) == len(post) == 6 * 7 / 2
    assert pre[["forward", "backward"]].max().max() < 1e-10
    assert post[["forward", "backward"]].min().min() > 0.01
