"""Segmentation networks whose encoders start from a classifier's weights."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.weights import FILE, SPEC
from torch import Tensor

from resnotes import models
from resnotes.errors import DatasetError, RunError, UsageError
from resnotes.models.pretrained import PUBLISHED, load_pretrained
from resnotes.models.segmentation import SegmentationNetwork
from resnotes.runs.folder import initial_network
from resnotes.runs.recording import verify
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import RunStore
from resnotes.training.loop import Training, train
from resnotes.training.recipe import Recipe

RESNET50 = "resnet50-11ad3fa6.pth"


def network(name: str = "pspnet-resnet18", **options: Any) -> Any:
    return models.build(name, num_classes=5, **{"head_width": 4, **options})


def assert_is_the_classifiers(encoder: torch.nn.Module, state: dict[str, Tensor]) -> None:
    expected = {key: value for key, value in state.items() if not key.startswith("fc.")}
    torch.testing.assert_close(dict(encoder.state_dict()), expected, rtol=0, atol=0)


def test_the_encoder_starts_from_a_classifiers_weights(weights: Path, state: dict[str, Tensor]) -> None:
    fresh = network()
    head = fresh.head[0].weight.clone()
    assert load_pretrained(fresh, FILE) == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert_is_the_classifiers(fresh.encoder, state)
    assert torch.equal(fresh.head[0].weight, head)
    torch.save({f"module.backbone.{key}": value for key, value in state.items()} | {"module.classifier": head}, weights)
    load_pretrained(fresh, FILE)
    assert_is_the_classifiers(fresh.encoder, state)


def test_a_run_starts_from_them_and_is_read_without(
    weights: Path, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial: list[dict[str, Tensor]] = []

    def noting(started: SegmentationNetwork, *arguments: Any, **options: Any) -> Training:
        assert_is_the_classifiers(started.encoder, state)
        initial.append({key: value.clone() for key, value in started.state_dict().items()})
        return train(started, *arguments, **options)

    monkeypatch.setattr("resnotes.runs.store.train", noting)
    store = RunStore(tmp_path / "runs", tmp_path / "recorded")
    run = store.get(SPEC, device="cpu")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.unlink()
    assert store.get(SPEC) == run
    assert len(initial) == 1
    assert run.spec == SPEC
    assert run.facts["pretrained"] == digest
    final: Any = run.model()
    assert not torch.equal(final.encoder.conv1.weight, state["conv1.weight"])
    torch.testing.assert_close(final.encoder.conv1.weight, state["conv1.weight"], rtol=0, atol=0.1)
    # The rest is drawn from the seed, as without them.
    random: Any = initial_network(SPEC, {"classes": 25, "channels": 3})
    assert torch.equal(initial[0]["head.0.weight"], random.head[0].weight)
    with pytest.raises(RunError, match="iteration-000000"):
        run.model(0)  # these weights are not drawn from the seed
    assert verify(run)[1] == pytest.approx(run.final.test_error, abs=1e-4)

    other = dataclasses.replace(SPEC, pretrained=None)
    assert other.name != SPEC.name
    with pytest.raises(DatasetError, match="cannot read the weights"):
        store.get(dataclasses.replace(SPEC, seed=1), device="cpu")


def test_a_missing_file_is_named_with_its_place_and_source(weights: Path) -> None:
    weights.unlink()
    message = (
        rf"^cannot .* {weights.parent}/{RESNET50} .No such file.*; get {PUBLISHED}/{RESNET50}, .* RESNOTES_DATA .*$"
    )
    with pytest.raises(DatasetError, match=message):
        load_pretrained(network(), RESNET50)


def test_a_checksum_in_the_name_is_checked(weights: Path) -> None:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    right, wrong, date = (f"resnet18-{start}.pth" for start in (digest[:8], "0123456a", "20240115"))
    for file in (right, wrong, date):
        (weights.parent / file).hardlink_to(weights)
    assert load_pretrained(network(), right) == load_pretrained(network(), date) == digest
    message = (
        f"{wrong} is damaged, or another file: .* have the SHA-256 {digest}, expected 0123456a...; rename it, if"
        " 0123456a is no checksum, or remove it"
    )
    with pytest.raises(DatasetError, match=message):
        load_pretrained(network(), wrong)


def test_what_does_not_fit_is_refused_in_one_line(weights: Path) -> None:
    with pytest.raises(UsageError, match=r'do not fit the encoder of fcn-resnet34: .* "layer1\.2') as caught:
        load_pretrained(network("fcn-resnet34"), FILE)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    message = "resnet18 cannot start from resnet18.pth: only encoders of segmentation networks are pretrained"
    with pytest.raises(UsageError, match=message):
        load_pretrained(models.build("resnet18"), FILE)
    for path in (str(weights), f"../weights/{FILE}"):
        with pytest.raises(UsageError, match=r"pretrained must be the name of a file in .*weights, found"):
            load_pretrained(network(), path)


def test_a_classifiers_run_is_refused(weights: Path, tmp_path: Path) -> None:
    spec = RunSpec(model="resnet-8", dataset="digits", seed=0, recipe=Recipe(iterations=1), pretrained=FILE)
    with pytest.raises(UsageError, match="only encoders of segmentation networks are pretrained"):
        RunStore(tmp_path / "runs", tmp_path / "recorded").get(spec, device="cpu")
    assert not [path for path in (tmp_path / "runs").glob("*/*") if path.suffix != ".lock"], "nothing is left of it"
