"""What a training step asks of a GPU, which need not be there: fake tensors go through it, and copies are noted."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from resnotes import datasets, models
from resnotes.datasets import Classification, Segmentation
from resnotes.devices import layout, send
from resnotes.training.loop import task_for
from resnotes.training.recipe import Recipe

GPU = torch.device("cuda", 0)

with_cuda = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this PyTorch knows no GPU")


class Transfers(TorchDispatchMode):
    """Notes every operation between the host and the GPU, and whether the host waits for it.

    A fake tensor has no values: where one is read (`item`, a boolean index), PyTorch itself raises an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.sent = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        tensors = [each for each in (*args, out) if isinstance(each, Tensor)]
        if {each.device.type for each in tensors} == {"cpu", "cuda"} and "copy" in str(function):
            if kwargs.get("non_blocking"):
                self.sent += 1
            else:
                self.waits.append(f"{function} {[tuple(each.shape) for each in tensors]}")
        return out


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # which needs a driver
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CUDA is not available", UserWarning)  # autocast says so
        yield


def data_of(name: str) -> tuple[Classification | Segmentation, str, Recipe]:
    if name == "digits":
        data: Any = datasets.load("digits")
        return data, "resnet-8", Recipe(iterations=9, pad=1)
    data = datasets.load("scenes", train=16, test=4)
    recipe = Recipe(iterations=9, batch_size=4, crop=(48, 64), scale=(0.5, 2.0), rotate=10.0, blur=True)
    return data, "pspnet-small", recipe


@pytest.fixture(params=["digits", "scenes"])
def loaded(request: pytest.FixtureRequest) -> tuple[Any, str, Recipe]:
    data, model, recipe = data_of(request.param)
    _ = data.normalization  # measured once, on images with values
    return data, model, recipe


@with_cuda
def test_in_a_step_on_a_gpu_the_host_never_waits(loaded: tuple[Any, str, Recipe], fake: None) -> None:
    data, model, recipe = loaded
    with GPU:
        network = models.build(model, num_classes=data.num_classes, in_channels=data.in_channels)
    task = task_for(data, recipe, seed=0, device=GPU, precision="bfloat16")
    batches = task.batches(1)
    next(batches)  # what an epoch begins with may take its time
    noted = Transfers()
    with noted, torch.no_grad():  # going back needs a driver, and is PyTorch's
        inputs, labels = next(batches)
        loss, logits = task.objective(network, inputs, labels)
        found = [inputs, labels, loss, task.wrong(logits, labels), task.labelled(labels)]
    assert noted.waits == []
    assert {each.device for each in found} == {GPU}
    assert noted.sent == (0 if isinstance(data, Classification) else 3), "indices, points, and what is blurred"


@with_cuda
def test_waits_are_noted(fake: None) -> None:
    """The test above can fail."""
    with Transfers() as noted:
        torch.ones(3).to(GPU)
        torch.tensor(3, device=GPU)
        send(torch.ones(3), GPU)
    assert len(noted.waits) == 2
    assert noted.sent == 1
    with pytest.raises(Exception, match="_local_scalar_dense"):
        torch.ones(3, device=GPU).sum().item()


def test_what_is_sent_arrives() -> None:
    tensor = torch.arange(4)
    assert send(tensor, torch.device("cpu")) is tensor
    assert send(tensor, torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize(("channels", "expected"), [(4, torch.contiguous_format), (8, torch.channels_last)])
def test_weights_lie_where_their_gradients_are_right(channels: int, expected: torch.memory_format) -> None:
    """On some processors oneDNN gets those of strided 1x1 convolutions of few channels wrong, channels last."""
    layer = nn.Conv2d(channels, 8, 1, stride=2, bias=False)
    found = layout(layer, torch.device("cpu"))
    assert found == expected
    images = torch.randn(2, channels, 24, 32)
    layer.to(memory_format=found)(images.contiguous(memory_format=found)).square().sum().backward()
    exact = nn.Conv2d(channels, 8, 1, stride=2, bias=False).double()
    exact.load_state_dict(layer.state_dict())
    exact(images.double()).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, exact.weight.grad, check_dtype=False, rtol=1e-4, atol=1e-3)
