"""Where networks compute, in which precision, and how weights lie in memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnotes import datasets, models
from resnotes.devices import layout, one_thread, resolve_device, resolve_precision, widest
from resnotes.errors import UsageError
from resnotes.training import loop
from resnotes.training.classification import ClassificationTask
from resnotes.training.recipe import Recipe

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bfloat16"),
        ({"bf16": True}, "bfloat16"),  # ARM
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ],
)
def test_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", CPU) == expected
    assert [resolve_precision(asked, CPU) for asked in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize("supported", [True, False])
def test_precision_follows_the_gpu(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    # With emulation, which is slow, every GPU says yes.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or supported)
    assert resolve_precision("auto", torch.device("cuda")) == ("bfloat16" if supported else "float32")


@pytest.mark.parametrize(
    ("gpus", "auto", "there", "not_there"),
    [(0, "cpu", ["cpu"], ["gpu", "meta", "cuda"]), (2, "cuda", ["cpu", "cuda", "cuda:1"], ["gpu", "meta", "cuda:2"])],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, gpus: int, auto: str, there: list[str], not_there: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert resolve_device().type == auto
    not_there = [*not_there, "mps"]
    for device in there:
        assert resolve_device(device) == torch.device(device)
    for device in not_there:
        with pytest.raises(UsageError, match=f"unknown device '{device}'; expected .* with {gpus} GPUs"):
            resolve_device(device)


def test_apples_gpu_computes_in_float32_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (resolve_device().type, resolve_device("mps")) == ("cpu", torch.device("mps"))
    assert resolve_precision("auto", torch.device("mps")) == "float32"
    with pytest.raises(UsageError, match="float32 or auto on mps, found bfloat16"):
        resolve_precision("bfloat16", torch.device("mps"))


class NoWider(TorchDispatchMode):
    """Refuses float64, which MPS has none of."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        assert not isinstance(found, Tensor) or found.dtype != torch.float64, f"{function} gives float64"
        return found


def test_a_step_of_training_does_with_what_apples_gpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even as fake tensors can those of MPS be had without it."""
    monkeypatch.setattr(loop, "widest", lambda _: widest(torch.device("mps")))
    recipe = Recipe(iterations=2, batch_size=4)
    task = ClassificationTask(datasets.load("digits"), recipe, seed=0, device=CPU, precision="float32")
    network = models.build("resnet-8", in_channels=1).train()
    steps = loop._steps(network, task, *loop._optimizer(network, recipe))
    with NoWider():
        loss, wrong, labelled = next(steps(1, range(1))).tolist()
    assert (0 < loss < 10, 0 <= wrong <= labelled == 4) == (True, True)


@pytest.mark.parametrize(("channels", "expected"), [(4, torch.contiguous_format), (8, torch.channels_last)])
def test_weights_lie_where_their_gradients_are_right(channels: int, expected: torch.memory_format) -> None:
    """On some processors oneDNN gets those of strided 1x1 convolutions of few channels wrong, channels last."""
    layer = nn.Conv2d(channels, 8, 1, stride=2, bias=False)
    found = layout(layer, CPU)
    assert found == expected
    images = torch.randn(2, channels, 24, 32)
    layer.to(memory_format=found)(images.contiguous(memory_format=found)).square().sum().backward()
    exact = nn.Conv2d(channels, 8, 1, stride=2, bias=False).double()
    exact.load_state_dict(layer.state_dict())
    exact(images.double()).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, exact.weight.grad, check_dtype=False, rtol=1e-4, atol=1e-3)


def test_one_thread_is_for_a_while() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
