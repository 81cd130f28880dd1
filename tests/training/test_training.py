"""The training loop against torch.optim, torchvision and itself, interrupted in every way."""

import copy
import dataclasses
import io
import itertools
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kit.runs import assert_same, interrupted, timeless
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, PolynomialLR, SequentialLR
from torchvision.transforms import functional as vision

from resnotes import datasets, models
from resnotes.datasets import Classification
from resnotes.errors import RunError, TrainingDiverged, UsageError
from resnotes.files import sealed, unsealed
from resnotes.models import Network
from resnotes.training import classification, loop
from resnotes.training.classification import augment, batches, evaluate
from resnotes.training.loop import Training, train
from resnotes.training.recipe import Recipe
from resnotes.training.task import Scores


@pytest.fixture(scope="module")
def data() -> Classification:
    """200 training and 60 test images of digits."""
    digits = datasets.load("digits").train_subset(200)
    return dataclasses.replace(digits, test_images=digits.test_images[:60], test_labels=digits.test_labels[:60])


def network(seed: int = 0) -> Network:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return models.build("resnet-8", width=4, in_channels=1)


# Four iterations an epoch.
SHORT = Recipe(iterations=14, batch_size=50, precision="float32")


def fit(data: Classification, recipe: Recipe = SHORT, *, seed: int = 0, **where: Path) -> tuple[Network, Training]:
    trained = network()
    return trained, train(trained, data, recipe, seed=seed, device="cpu", **where)


# Recipes


@pytest.mark.parametrize(
    ("change", "scheduler", "options"),
    [
        ({"milestones": (320, 480)}, MultiStepLR, {"milestones": [320, 480]}),
        ({"milestones": (320, 480), "warmup_iterations": 40}, MultiStepLR, {"milestones": [320, 480]}),
        ({"schedule": "poly", "warmup_iterations": 3}, PolynomialLR, {"total_iters": 640, "power": 0.9}),
    ],
)
def test_schedules_are_torchs(change: dict[str, Any], scheduler: Any, options: dict[str, Any]) -> None:
    recipe = Recipe(iterations=640, **change)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    expected = scheduler(optimizer, **options)
    for iteration in range(640):
        warm = iteration >= recipe.warmup_iterations
        assert math.isclose(recipe.lr_at(iteration), expected.get_last_lr()[0] if warm else 0.01)
        optimizer.step()
        expected.step()


@pytest.mark.parametrize("warmup", [0, 1, 40])
def test_cosine_is_torchs_after_a_linear_warmup(warmup: int) -> None:
    recipe = Recipe(iterations=640, schedule="cosine", warmup_iterations=warmup)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    rise, fall = LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup), CosineAnnealingLR(optimizer, 640 - warmup)
    expected = SequentialLR(optimizer, [rise, fall], [warmup]) if warmup else fall
    for iteration in range(640):
        assert math.isclose(recipe.lr_at(iteration), expected.get_last_lr()[0], abs_tol=1e-9)
        optimizer.step()
        expected.step()


@given(st.integers(1, 3000), st.floats(1e-3, 10))
def test_one_cycle_rises_for_three_tenths_and_falls_to_nothing(iterations: int, lr: float) -> None:
    recipe = Recipe(iterations=iterations, schedule="one-cycle", lr=lr)
    rates = [recipe.lr_at(i) for i in range(iterations)]
    top = rates.index(max(rates))
    assert all(0 < rate <= lr * (1 + 1e-9) for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert abs(top + 1 - 0.3 * (iterations + 1)) <= 1
    slope = lr / (0.3 * (iterations + 1))  # the longest step there is: of the rise
    assert all(abs(b - a) <= slope * (1 + 1e-6) for a, b in itertools.pairwise([0, *rates, 0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "iterations must be positive, found 0"),
        ({"lr": float("nan")}, "lr must be a finite number, found nan"),
        ({"weight_decay": -1e-4}, "weight_decay must not be negative"),
        ({"snapshots": (3, 0)}, "snapshots must be positive, found .3, 0."),
        ({"schedule": "linear"}, "schedule must be one of steps, one-cycle, poly, cosine, found 'linear'"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, found 'adam'"),
        ({"flip": 1}, "flip must be True or False, found 1"),
        ({"crop": (32,)}, r"crop must be a height and a width in whole pixels, found \(32,\)"),
        ({"crop": (0, 32)}, "crop must be a height and a width"),
        ({"crop": (32.0, 32.0)}, "crop must be a whole number"),
        ({"scale": (2, 1)}, "scale must be two positive factors in order"),
        ({"scale": (1, float("nan"))}, "scale must be a finite number"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**{"iterations": 1, **change})


# Augmentation


@given(st.data(), st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4))
def test_augmentation_is_torchvisions_image_by_image(
    drawn: st.DataObject, n: int, channels: int, height: int, width: int, pad: int
) -> None:
    images = torch.randint(256, (n, channels, height, width), dtype=torch.uint8)
    offsets = st.lists(st.integers(0, 2 * pad), min_size=n, max_size=n)
    dy, dx = torch.tensor(drawn.draw(offsets)), torch.tensor(drawn.draw(offsets))
    flip = torch.tensor(drawn.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    before = images.clone()
    augmented = augment(images, dy, dx, flip, pad)
    for i in range(n):
        expected = vision.crop(vision.pad(images[i], [pad]), int(dy[i]), int(dx[i]), height, width)
        assert torch.equal(augmented[i], vision.hflip(expected) if flip[i] else expected)
    assert augmented.dtype == torch.uint8
    assert torch.equal(images, before)


def draws(data: Classification, recipe: Recipe, seed: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """What the loop asks of `augment`, batch by batch."""
    asked: list[tuple[Tensor, ...]] = []

    def noting(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, pad: int) -> Tensor:
        asked.append((images, dy, dx, flip))
        return augment(images, dy, dx, flip, pad)

    with monkeypatch.context() as patch:
        patch.setattr(classification, "augment", noting)
        fit(data, recipe, seed=seed)
    return asked


def test_every_epoch_draws_anew_from_all_images(data: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = draws(data, dataclasses.replace(SHORT, iterations=8, pad=2), 0, monkeypatch)
    epochs = [[torch.cat(column) for column in zip(*batches[i : i + 4], strict=True)] for i in (0, 4)]
    everything = sorted(map(bytes, data.train_images.flatten(1).numpy()))
    for images, dy, dx, flip in epochs:
        assert sorted(map(bytes, images.flatten(1).numpy())) == everything
        assert set(dy.tolist()) == set(dx.tolist()) == {0, 1, 2, 3, 4}
        assert 60 <= flip.sum() <= 140  # 6 standard deviations about a half of 200
    for first, second in zip(*epochs, strict=True):
        assert not torch.equal(first, second)


# Steps


def test_training_is_torchs_sgd_on_the_whole_data(data: Classification) -> None:
    recipe = Recipe(iterations=4, batch_size=200, milestones=(2, 3), pad=0, flip=False, precision="float32")
    trained, record = fit(data, recipe)

    reference = network().train()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(reference(data.normalization(data.train_images)), data.train_labels)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(trained.state_dict(), reference.state_dict(), rtol=1e-3, atol=1e-5)
    assert [row.train_loss for row in record.history] == pytest.approx(losses, rel=1e-4)
    assert [row.iteration for row in record.history] == [1, 2, 3, 4]
    assert [row.lr for row in record.history] == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_adamw_is_torchs_and_lets_matrices_and_kernels_decay(data: Classification) -> None:
    """Bit by bit, on all that transformers are made of."""
    recipe = dataclasses.replace(SHORT, optimizer="adamw", schedule="cosine", lr=0.01, weight_decay=0.5)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm, self.places = nn.Conv2d(1, 4, 4, 4), nn.LayerNorm(4), nn.Embedding(5, 4)
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 10)
            self.class_token = nn.Parameter(torch.zeros(1, 1, 4))

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.patches(images).flatten(2).mT
            tokens = torch.cat([self.class_token.expand(len(images), 1, 4), tokens], 1) + self.places.weight
            return self.head(self.norm(self.attention(tokens, tokens, tokens)[0][:, 0]))

    torch.manual_seed(0)
    trained = Tokens().to(memory_format=torch.channels_last)
    reference = copy.deepcopy(trained).train()
    train(trained, data, recipe, seed=0, device="cpu")

    named = dict(reference.named_parameters())
    kernels = ["patches.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight"]
    others = [parameter for name, parameter in named.items() if name not in kernels]
    groups = [{"params": [named[name] for name in kernels]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.5, fused=True)
    epochs = (batches(data.train_images, data.train_labels, recipe, seed=0, epoch=epoch) for epoch in (1, 2, 3, 4))
    for iteration, (images, labels) in enumerate(itertools.islice(itertools.chain(*epochs), recipe.iterations)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(iteration)
        loop.optimizer_step(reference, optimizer, data.normalization(images), labels, "float32")
    torch.testing.assert_close(trained.state_dict(), reference.state_dict(), rtol=0, atol=0)


def test_epochs_leave_out_what_fills_no_batch(data: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(SHORT, batch_size=60, iterations=7)  # 3 batches of 60 from 200 images
    assert [len(batch[0]) for batch in draws(data, recipe, 0, monkeypatch)] == [60] * 7
    assert [row.iteration for row in fit(data, recipe)[1].history] == [3, 6, 7]


def test_more_than_the_data_in_a_batch_is_refused(data: Classification) -> None:
    with pytest.raises(UsageError, match="200 training images do not fill a batch of 201; choose a smaller batch_size"):
        fit(data, dataclasses.replace(SHORT, batch_size=201))


# Evaluation


def test_evaluation_is_a_loop_over_images(data: Classification) -> None:
    trained, record = fit(data)
    trained.train()
    loss, error, iou = evaluate(trained, data.test_images, data.test_labels, data.normalization, batch=7)
    assert iou is None
    assert trained.training  # left as it was

    trained.eval()
    losses, wrong = [], 0
    for image, label in zip(data.test_images, data.test_labels, strict=True):
        with torch.no_grad():
            logits = trained(((image - data.normalization.mean) / data.normalization.std)[None])[0]
        losses.append((logits.logsumexp(0) - logits[label]).item())
        wrong += int(logits.argmax() != label)
    assert loss == pytest.approx(sum(losses) / 60, rel=1e-4)
    assert error == 100 * wrong / 60
    assert (record.history[-1].test_loss, record.history[-1].test_error) == (pytest.approx(loss), error)


def test_nothing_to_evaluate_on_is_refused(data: Classification) -> None:
    with pytest.raises(UsageError, match="at least one image, found none"):
        evaluate(network(), data.test_images[:0], data.test_labels[:0], data.normalization)


def test_what_cannot_be_learned_is_refused_before_the_first_step(data: Classification) -> None:
    images, labels = data.train_images, data.train_labels
    for change, message in (
        ({"train_images": images / 255}, r"uint8 \[N, C, H, W\]; found float32 \[200, 1, 8, 8\]"),
        ({"train_images": images.numpy()}, "found numpy.ndarray"),
        ({"train_labels": labels.float()}, r"one label an image, whole numbers \[200\]; found float32"),
        ({"train_labels": labels + 1}, "labels must be 0 to 9, found 1 to 10"),
        ({"test_labels": data.test_labels - 1}, "labels must be 0 to 9, found -1 to 8"),
        ({"test_images": data.test_images[:0], "test_labels": data.test_labels[:0]}, "at least one image, found none"),
        ({"train_images": torch.full_like(images, 7)}, "training images have no variance"),
    ):
        with pytest.raises(UsageError, match=message):
            fit(dataclasses.replace(data, **change))


def test_what_goes_wrong_in_a_step_is_not_put_on_the_learning_rate(data: Classification) -> None:
    tiny = {name: getattr(data, name)[..., :4, :4] for name in ("train_images", "test_images")}
    with pytest.raises(
        UsageError, match=r"cannot be trained on images \[1, 1, 4, 4\]: ValueError: Expected more than 1"
    ):
        fit(dataclasses.replace(data, **tiny), dataclasses.replace(SHORT, batch_size=1, pad=0))
    damaged = network()
    nn.init.constant_(damaged.head[-1].bias, math.nan)  # type: ignore[index, arg-type]
    with pytest.raises(UsageError, match=r"^head\..*bias of the network holds NaN before a step is made"):
        train(damaged, data, SHORT, seed=0, device="cpu")
    assert evaluate(damaged, data.test_images, data.test_labels, data.normalization).error == 100


def test_labels_may_be_of_any_integer_type(data: Classification) -> None:
    labels = {name: getattr(data, name).to(torch.uint16) for name in ("train_labels", "test_labels")}
    assert fit(dataclasses.replace(data, **labels))[1].history[-1].test_error == fit(data)[1].history[-1].test_error


def test_a_busy_core_stalls_no_training_of_small_images(data: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads would wait for the one on that core in every operation."""
    step, threads, before = loop.optimizer_step, set[int](), torch.get_num_threads()
    monkeypatch.setattr(loop, "optimizer_step", lambda *all: (threads.add(torch.get_num_threads()), step(*all))[1])
    torch.set_num_threads(2)
    try:
        assert (fit(data)[1].threads, threads, torch.get_num_threads()) == (1, {1}, 2)
    finally:
        torch.set_num_threads(before)


def test_probes_are_used_between_epochs_and_all_images_at_the_end(
    data: Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def noting(model: nn.Module, images: Tensor, *others: object, **options: object) -> Scores:
        seen.append(images)
        return evaluate(model, images, *others, **options)

    monkeypatch.setattr(classification, "evaluate", noting)
    probed, _ = fit(data, dataclasses.replace(SHORT, probe_images=30), seed=1)
    assert [len(images) for images in seen] == [30] * 6 + [200, 60]  # training and test images of four epochs
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], data.train_images[:30])  # a random choice ...
    fit(data, dataclasses.replace(SHORT, probe_images=30), seed=2)
    assert torch.equal(seen[0], seen[8])  # ... that is the same for every run
    torch.testing.assert_close(probed.state_dict(), fit(data, seed=1)[0].state_dict(), rtol=0, atol=0)


# The same again, and interrupted


def test_a_seed_decides_everything(data: Classification) -> None:
    once = fit(data)
    torch.manual_seed(123)  # the global generator has no say, and is left alone
    expected = torch.rand(1)
    torch.manual_seed(123)
    again, other = fit(data), fit(data, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert_same(once, again)
    assert not torch.equal(once[0].head.fc.weight, other[0].head.fc.weight)
    assert once[1].history[0].train_loss != other[1].history[0].train_loss


AUGMENTED = dataclasses.replace(SHORT, batch_size=6, crop=(48, 48), scale=(0.5, 2.0), rotate=10, blur=True)
SEGMENTATION = {"num_classes": 25, "width": 4, "depths": (1, 1), "head_width": 4, "dropout": 0.3}


@pytest.mark.parametrize("iteration", [0, 4, 6, 13])
@pytest.mark.parametrize(
    ("name", "options", "recipe"),
    [
        ("resnet-8", {"shortcut": "dropout:0.5"}, SHORT),
        ("preresnet-14", {}, dataclasses.replace(SHORT, blocks="exactly:2")),
        ("preresnet-14", {}, dataclasses.replace(SHORT, blocks="stochastic-depth:0.3")),
        ("preresnet-14", {}, dataclasses.replace(SHORT, blocks="exactly:2", optimizer="adamw", lr=0.01)),
        ("pspnet-small", SEGMENTATION, AUGMENTED),
    ],
    ids=["classification", "exactly", "stochastic depth", "adamw", "segmentation"],
)
def test_going_on_after_an_interruption_changes_nothing(
    data: Classification, tmp_path: Path, name: str, options: dict[str, Any], recipe: Recipe, iteration: int
) -> None:
    used: Any = datasets.load("scenes", train=24, test=6) if options is SEGMENTATION else data

    def fitted(**where: Path) -> tuple[Network, Training]:
        torch.manual_seed(0)
        trained = models.build(name, in_channels=used.in_channels, **{"width": 4, **options})
        torch.manual_seed(iteration)  # has no say
        return trained, train(trained, used, recipe, seed=0, device="cpu", **where)

    with interrupted(loop, "optimizer_step", iteration):
        fitted(folder=tmp_path)
    resumed, straight = fitted(folder=tmp_path), fitted()
    assert (resumed[1].resumed, straight[1].resumed) == (int(iteration >= 4), 0)
    assert_same(resumed, straight)
    pd.testing.assert_frame_equal(timeless(pd.read_csv(tmp_path / "history.csv")), timeless(straight[1].frame()))


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_damaged_checkpoint_is_named_and_left_alone(
    data: Classification, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The run is trained from its start; "flipped" is a bit of a weight, of which PyTorch takes no notice."""
    whole = fit(data, folder=tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    content = checkpoint.read_bytes()
    at = content.index(whole[0].state_dict()["head.fc.weight"].numpy().tobytes()) + 3
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    checkpoint.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flipped": flipped}[damage])
    again = fit(data, folder=tmp_path)
    assert f"{checkpoint} is damaged; the run is trained from its start" in caplog.text
    assert again[1].resumed == 0
    assert_same(again, whole)


@pytest.mark.parametrize(
    "change",
    [{"network": {}}, {"optimizer": {"state": {}, "param_groups": []}}, {"history": [{"epochs": 1}]}],
    ids=["weights", "groups", "columns"],
)
def test_a_checkpoint_of_another_version_is_named(
    data: Classification, tmp_path: Path, change: dict[str, object]
) -> None:
    fit(data, folder=tmp_path)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(io.BytesIO(unsealed(path.read_bytes()) or b""), weights_only=True)
    buffer = io.BytesIO()
    torch.save(state | change, buffer)
    path.write_bytes(sealed(buffer.getvalue()))
    with pytest.raises(RunError, match=r"is no checkpoint .*; delete it to train the run from its start"):
        fit(data, folder=tmp_path)


def test_a_run_does_not_go_on_with_other_data(data: Classification, tmp_path: Path) -> None:
    fit(data, folder=tmp_path)
    with pytest.raises(RunError, match=f"belongs to data with fingerprint {data.fingerprint}, .* has 0123"):
        fit(dataclasses.replace(data, fingerprint="0123"), folder=tmp_path)


def test_snapshots_are_the_weights_after_their_iterations(data: Classification, tmp_path: Path) -> None:
    kept = (1, 8, SHORT.iterations)  # within an epoch, at the end of one, and of the training
    fit(data, dataclasses.replace(SHORT, snapshots=kept), folder=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        f"iteration-{iteration:06d}.safetensors" for iteration in kept
    ]
    for iteration in kept:
        shorter, _ = fit(data, dataclasses.replace(SHORT, iterations=iteration))
        found = load_file(tmp_path / f"iteration-{iteration:06d}.safetensors")
        torch.testing.assert_close(found, dict(shorter.state_dict()), rtol=0, atol=0)


# Divergence


def test_a_loss_that_is_no_number_ends_the_run(data: Classification, tmp_path: Path) -> None:
    recipe = dataclasses.replace(SHORT, lr=1e20, warmup_iterations=5)
    with pytest.raises(TrainingDiverged, match=r"resnet: the loss is (nan|inf) in epoch 2 at lr 1e\+20; lower the lr"):
        train(network(), data, recipe, seed=0, device="cpu", folder=tmp_path, label="resnet")
    history = pd.read_csv(tmp_path / "history.csv")
    assert history.epoch.tolist() == [1, 2]
    assert math.isfinite(history.train_loss[0])
    assert not math.isfinite(history.train_loss[1])


# Precision


def test_bfloat16_trains_like_float32(data: Classification) -> None:
    runs = [fit(data, dataclasses.replace(SHORT, precision=name)) for name in ("float32", "bfloat16")]
    assert [record.precision for _, record in runs] == ["float32", "bfloat16"]
    exact, rounded = ([row.train_loss for row in record.history] for _, record in runs)
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact
    assert all(parameter.dtype == torch.float32 for parameter in runs[1][0].parameters())
