from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from resnotes import datasets
from resnotes.datasets import scenes
from resnotes.datasets.scenes import CLASSES, KINDS, Noise
from resnotes.datasets.segmentation import Stacked
from resnotes.errors import UsageError

NOTHING = 128  # stands for all that a classifier must not see


@pytest.fixture(scope="module")
def some() -> Stacked:
    return scenes.generate(150, seed=5)


def share(labels: torch.Tensor, exact: Stacked) -> float:
    """Of the pixels, those with another label."""
    return (labels != exact.labels).double().mean().item()


def test_shapes_and_types_and_the_same_pixels_for_a_seed(some: Stacked) -> None:
    assert some.images.shape == (150, 3, 64, 64)
    assert some.labels.shape == some.instances.shape == (150, 64, 64)
    assert some.images.dtype == some.labels.dtype == some.instances.dtype == torch.uint8
    assert set(some.scenes) == set(KINDS)
    assert set(some.labels.unique().tolist()) == set(range(len(CLASSES)))
    assert len(set(some.names)) == 150
    again = scenes.generate(20, seed=5)
    assert torch.equal(again.images, some.images[:20])
    assert torch.equal(again.labels, some.labels[:20])
    assert not torch.equal(scenes.generate(20, seed=6).images, again.images)


CAUSES = {
    "relationship": {"boat", "car", "airplane", "bus", "water", "road", "runway"},
    "confusion": {"building", "skyscraper", "mountain", "hill", "field", "earth"},
    "inconspicuous": {"streetlight", "signboard", "pillow", "bed"},
}


def test_every_pixel_belongs_to_an_object_of_its_class_whose_ambiguity_is_known(some: Stacked) -> None:
    for sample in some:
        label_of = torch.tensor([each.label for each in sample.objects])
        assert torch.equal(label_of[sample.instances.int()], sample.label.long())
        assert sample.instances.unique().tolist() == list(range(len(sample.objects)))
        for each in sample.objects:
            named = [cause for cause, names in CAUSES.items() if CLASSES[each.label] in names]
            assert each.ambiguity == (named[0] if named else "none")


def test_vehicles_keep_to_their_scenes(some: Stacked) -> None:
    homes = {"boat": {"harbour"}, "car": {"street", "city"}, "airplane": {"airfield"}, "bus": {"street", "city"}}
    for name, home in homes.items():
        shown = {sample.scene for sample in some if torch.any(sample.label == CLASSES.index(name))}
        assert shown == home


def test_skyscrapers_are_tall_and_beds_are_large(some: Stacked) -> None:
    heights: dict[str, list[int]] = {"building": [], "skyscraper": []}
    for sample in some:
        for index, each in enumerate(sample.objects):
            rows, columns = torch.nonzero(sample.instances == index, as_tuple=True)
            if sample.scene == "city" and CLASSES[each.label] in heights and len(rows) > 40:
                heights[CLASSES[each.label]].append(int(rows.max() - rows.min()))
            if CLASSES[each.label] == "bed":
                assert min(int(columns.max() - columns.min()), int(rows.max() - rows.min())) > 28
            if CLASSES[each.label] in ("streetlight", "signboard"):
                assert len(rows) < 0.01 * 64**2
    assert max(heights["building"]) < min(heights["skyscraper"])


def test_loading_by_name() -> None:
    data = datasets.load("scenes", train=30, test=10)
    assert (data.name, data.variant, len(data.train), len(data.test), data.val) == ("scenes", "scenes", 30, 10, None)
    assert (data.classes, data.num_classes, data.in_channels) == (CLASSES, 25, 3)
    images = torch.stack([sample.image for sample in data.train])
    normalized = data.normalization(images)
    torch.testing.assert_close(normalized.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalized.square().mean(dim=(0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    known = {sample.image.numpy().tobytes() for sample in data.train}
    assert not known & {sample.image.numpy().tobytes() for sample in data.test}


@settings(max_examples=15, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from(KINDS))
def test_any_seed_gives_a_scene(seed: int, kind: str) -> None:
    [sample] = scenes.generate(1, seed, [kind])
    assert sample.image.shape == (3, 64, 64)
    assert sample.scene == kind
    assert sample.label.max() < len(CLASSES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "0 scenes by seed 0 are not possible; allowed: 1 and more"),
        ({"seed": -1}, "seeds of 0 and more"),
        ({"kinds": ["moon"]}, "unknown kind of scene 'moon'; allowed: harbour"),
    ],
)
def test_impossible_scenes(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        scenes.generate(**{"count": 1, **values})


def patches(split: Stacked, pair: tuple[str, str], margin: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Place and surroundings of every vehicle of a `pair`, as many of either, and which it is.

    Only the vehicle's own pixels are shown, or, with a `margin`, the box around it and so much more.
    """
    features, classes = [], []
    for sample in split:
        for index, each in enumerate(sample.objects):
            if CLASSES[each.label] not in pair:
                continue
            shown = sample.instances == index
            rows, columns = torch.nonzero(shown, as_tuple=True)
            top, left = int(rows.min()), int(columns.min())
            if margin is not None:
                shown = torch.zeros(64, 64, dtype=torch.bool)
                shown[
                    max(top - margin, 0) : int(rows.max()) + margin + 1,
                    max(left - margin, 0) : int(columns.max()) + margin + 1,
                ] = True
            seen = torch.where(shown, sample.image, torch.tensor(NOTHING, dtype=torch.uint8)).numpy()
            around = np.pad(seen, ((0, 0), (16, 32), (16, 48)), constant_values=NOTHING)
            # In the patch's frame: `top + 16` is the vehicle's own top.
            patch = around[:, top + 6 : top + 38, left + 6 : left + 58]
            features.append(np.concatenate([patch.ravel(), [top, left, int(rows.max()), int(columns.max())]]))
            classes.append(pair.index(CLASSES[each.label]))
    labels = np.array(classes)
    rng, count = np.random.default_rng(0), np.bincount(labels).min()
    chosen = np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:count] for label in (0, 1)])
    return np.array(features, np.float32)[chosen], labels[chosen]


PAIRS = {("boat", "car"): ("harbour", "street"), ("airplane", "bus"): ("airfield", "street")}


@cache
def many(count: int, seed: int, kinds: tuple[str, ...]) -> Stacked:
    return scenes.generate(count, seed, kinds=kinds)


@pytest.mark.parametrize("margin", [None, 9])
@pytest.mark.parametrize("pair", PAIRS)
def test_who_sees_a_vehicle_only_cannot_name_it(pair: tuple[str, str], margin: int | None) -> None:
    count = 900 if pair == ("boat", "car") else 1300
    (train, labels), (test, truth) = (patches(many(count, seed, PAIRS[pair]), pair, margin) for seed in (1, 2))
    # 900 guesses are right in 55 % of the cases with a probability of 0.2 %.
    assert len(truth) > 900
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3))
    assert classifier.fit(train, labels).score(test, truth) < 0.55


@pytest.mark.parametrize("pair", PAIRS)
def test_who_sees_the_scene_can(pair: tuple[str, str]) -> None:
    train, test = (scenes.generate(150, seed, kinds=PAIRS[pair]) for seed in (1, 2))
    features, seen = (split.images[:, :, ::4, ::4].flatten(1).numpy() / 255 for split in (train, test))
    labels, truth = ([kind == "street" for kind in split.scenes] for split in (train, test))
    assert LogisticRegression().fit(features, labels).score(seen, truth) > 0.97


@pytest.mark.parametrize("kinds", [("harbour", "street", "city"), ("airfield", "city")])
def test_the_same_vehicles_in_other_scenes(kinds: tuple[str, ...]) -> None:
    for seed in range(5):
        for one, other in pairwise(scenes.same_vehicles(kinds, seed)):
            changed = torch.any(one.image != other.image, dim=0)
            assert not changed[27:].any()
            assert changed[:27].float().mean() > 0.2
            names = [{CLASSES[each.label] for each in sample.objects} for sample in (one, other)]
            assert names[0] != names[1]
    with pytest.raises(UsageError, match="harbour, airfield have no vehicle in common; small ones are in harbour"):
        scenes.same_vehicles(["harbour", "airfield"])


def test_vehicles_are_put_where_they_do_not_belong() -> None:
    (street,) = scenes.same_vehicles(["street"], seed=2)
    boats, empty = scenes.composed("street", "boat", 2), scenes.composed("street", "", 2)
    assert torch.equal(boats.image, street.image)
    assert torch.equal(boats.label == CLASSES.index("boat"), street.label == CLASSES.index("car"))
    vehicles = boats.label == CLASSES.index("boat")
    assert vehicles.any() and torch.equal(empty.image[:, ~vehicles], street.image[:, ~vehicles])
    assert not torch.isin(empty.label, torch.tensor([CLASSES.index(name) for name in scenes.VEHICLES])).any()
    with pytest.raises(UsageError, match="sea"):
        scenes.composed("sea", "boat")
    with pytest.raises(UsageError, match="crane"):
        scenes.composed("street", "crane")


KINDS_OF_NOISE = {"boundary": 0.057, "naming": 0.060, "missing": 0.059}


def annotated(exact: Stacked, noise: Noise) -> torch.Tensor:
    """Labels that an annotator with this noise gives to scenes."""
    assert exact.instances is not None
    rng = np.random.default_rng(0)
    return torch.from_numpy(scenes.annotated(exact.labels.numpy(), exact.instances.numpy(), exact.objects, noise, rng))


def test_the_standard_noise_is_that_of_the_annotation_study(some: Stacked) -> None:
    noisy = annotated(some, Noise())
    assert vars(Noise()) == KINDS_OF_NOISE
    assert share(noisy, some) == pytest.approx(0.176, abs=0.001)


@pytest.mark.parametrize("kind", KINDS_OF_NOISE)
def test_each_noise_has_its_share_and_its_nature(some: Stacked, kind: str) -> None:
    noisy = annotated(some, Noise(**dict.fromkeys(KINDS_OF_NOISE, 0.0) | {kind: 0.05}))
    assert share(noisy, some) == pytest.approx(0.05, abs=0.001)
    wrong = noisy != some.labels
    near = torch.nn.functional.max_pool2d(outlines(some.labels)[:, None].float(), 9, 1, 4)[:, 0].bool()
    if kind == "boundary":
        assert near[wrong].float().mean() > 0.97
        return
    for sample, bad in zip(some, wrong, strict=True):
        shares = [bad[sample.instances == index].float().mean().item() for index in range(len(sample.objects))]
        if kind == "naming":
            assert all(part in (0.0, 1.0) for part in shares)
        else:
            assert all(each.thing for each, part in zip(sample.objects, shares, strict=True) if part)


def outlines(labels: torch.Tensor) -> torch.Tensor:
    edges = torch.zeros_like(labels, dtype=torch.bool)
    for axis in (1, 2):
        edges |= labels != labels.roll(1, axis)
    return edges


@settings(max_examples=10, derandomize=True)
@given(st.floats(0, 0.07), st.floats(0, 0.15), st.floats(0, 0.05))
def test_noise_adds_up(boundary: float, naming: float, missing: float) -> None:
    exact = many(40, 2, KINDS)
    noisy = annotated(exact, Noise(boundary, naming, missing))
    assert share(noisy, exact) == pytest.approx(boundary + naming + missing, abs=0.004)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"missing": 0.3}, "overlooking every thing .*'missing'"),
        ({"boundary": 0.49}, "no outlines to bend .*'boundary'"),
        ({"naming": -0.1}, "naming=-0.1 is not possible; allowed: 0 to 0.5"),
    ],
)
def test_impossible_noise(noise: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        annotated(many(20, 0, KINDS), Noise(**noise))
