"""Identity by construction: the deeper network computes what the shallow one does."""

import copy

import pytest
import torch
from kit.networks import small

from resnotes import models
from resnotes.errors import UsageError
from resnotes.models import count_parameters, deepen

CASES = [
    ("plain-8", {}),
    ("plain-14", {"in_channels": 1, "num_classes": 3}),
    ("resnet-8", {}),
    ("resnet-8", {"shortcut": "B"}),
]


def images(seed: int, channels: int = 3, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(16, channels, 12, 12, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("name", "options"), CASES)
@torch.no_grad()
def test_outputs_are_equal_on_any_images(name: str, options: dict[str, object]) -> None:
    shallow = small(name, **options)
    channels = shallow.options["in_channels"]
    deep = deepen(shallow, 20, images(1, channels))
    others = images(2, channels, scale=3.0)  # not those that the statistics come from
    expected = shallow(others)
    assert (expected[0] - expected[1]).abs().max() > 0.01  # the logits do depend on the image
    torch.testing.assert_close(deep(others), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_it_is_the_network_that_build_makes(name: str, options: dict[str, object]) -> None:
    shallow = small(name, **options)
    deep = deepen(shallow, 26, images(1, shallow.options["in_channels"]))
    built = models.build(f"{name.partition('-')[0]}-26", width=4, **options)
    assert (deep.name, deep.options) == (built.name, built.options)
    assert count_parameters(deep) == count_parameters(built)
    assert all(parameter.requires_grad for parameter in deep.parameters())
    assert (deep.training, deep.head.fc.weight.dtype) == (False, torch.float64)


@pytest.mark.parametrize("name", ["plain-8", "resnet-8"])
def test_the_shallow_network_stays_as_it_was(name: str) -> None:
    shallow = small(name).train()
    before = copy.deepcopy(shallow.state_dict())
    deep = deepen(shallow, 14, images(1))
    assert shallow.training
    with torch.no_grad():
        for parameter in deep.parameters():
            parameter.zero_()  # nothing is shared
    torch.testing.assert_close(shallow.state_dict(), before, rtol=0, atol=0)


@torch.no_grad()
def test_in_training_mode_the_added_plain_layers_let_the_signal_through() -> None:
    """On the images they were measured on, batch statistics are those that the blocks put back."""
    shallow = small("plain-8")
    x = shallow.stem(images(1))
    deep = deepen(shallow, 14, images(1)).train()
    added = deep.blocks[1]
    x = shallow.blocks[0](x)
    torch.testing.assert_close(added(x), x)


@pytest.mark.parametrize(
    ("name", "options", "depth", "message"),
    [
        *((name, {}, 20, f"cannot deepen {name} ") for name in ("preresnet-8", "bottleneck-11", "prebottleneck-11")),
        *(
            ("resnet-8", {option: value}, 20, rf"cannot deepen resnet-8 \{{.*{value}.*\}}: identity blocks need")
            for option, value in (("order", "pre-activation"), ("batch_norm", False), ("shortcut", "scaling:0.5"))
        ),
        ("plain-14", {}, 14, "new depth must be larger"),
        ("plain-8", {}, 15, "depth must be 6n"),
    ],
)
def test_what_cannot_be_deepened_is_refused(name: str, options: dict[str, object], depth: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        deepen(small(name, **options), depth, images(1))
