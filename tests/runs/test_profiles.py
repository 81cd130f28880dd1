"""What each study trains at each scale."""

import re
from pathlib import Path

import pytest
import torch

from resnotes import datasets, models
from resnotes.book import papers
from resnotes.errors import UsageError
from resnotes.runs import profiles
from resnotes.runs.spec import RunSpec
from resnotes.training.recipe import Recipe

STUDIES = [(name, study) for name in profiles.names() for study in profiles.load(name).studies]

TINY = """
[small]
dataset = "digits"
models = ["plain-8 width=4", "resnet-8 shortcut=B"]
seeds = [3, 5]
train_images = 100
deepen = { "plain-8 width=4" = "plain-14 width=4" }
[small.recipe]
iterations = 20
milestones = [10]
[small.recipes."resnet-8 shortcut=B"]
lr = 0.5
[small.settings]
batch = 17
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of profiles with one called tiny."""
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


# The profiles that there are


def test_the_three_scales_come_smallest_first() -> None:
    assert profiles.names() == ["quick", "desk", "paper"]


@pytest.mark.parametrize(("profile", "study"), STUDIES)
def test_every_run_can_be_asked_for(profile: str, study: str) -> None:
    specs = profiles.load(profile).study(study).all_specs()
    assert len({spec.name for spec in specs}) == len(specs) > 0
    for spec in specs:
        assert RunSpec.from_json(spec.to_json()) == spec
        assert spec.dataset in {"digits", "cifar10", "scenes", "camvid"}


def test_every_network_can_be_built() -> None:
    asked = {spec.label: spec for name, study in STUDIES for spec in profiles.load(name).study(study).all_specs()}
    with torch.device("meta"):
        for spec in asked.values():
            models.build(spec.model, **spec.options)


def test_quick_needs_no_data_but_what_is_always_at_hand() -> None:
    used = {spec.dataset for study in profiles.load("quick").studies.values() for spec in study.all_specs()}
    assert used == {"digits", "scenes"}


def test_quick_trains_whole_epochs() -> None:
    images = len(datasets.load("digits").train_images)
    for spec in profiles.load("quick").study("degradation").all_specs():
        assert spec.recipe.iterations % (images // spec.recipe.batch_size) == 0


def test_desk_is_an_eighth_of_the_papers_iterations_on_45_000_images() -> None:
    desk, paper = (profiles.load(name).study("degradation") for name in ("desk", "paper"))
    protocol = Recipe(iterations=8000, schedule="one-cycle", probe_images=2000)
    assert 8 * protocol.iterations == paper.spec("plain-20", 0).recipe.iterations
    for spec in desk.all_specs():
        assert (spec.recipe, spec.data, spec.options, spec.train_images) == (protocol, {"holdout": 500}, {}, None)
    for study in profiles.load("desk").studies.values():
        if study.dataset == "cifar10":
            assert study.data == {"holdout": 500}
            assert study.train_images is None


def test_snapshots_are_evenly_spaced_in_the_logarithm_of_the_iterations() -> None:
    for study, model in (("lesions-110", "preresnet-110"), ("lesions", "preresnet-56")):
        recipe = profiles.load("desk").study(study).spec(model, 0).recipe
        kept = [*recipe.snapshots, recipe.iterations]
        assert len(kept) == 10
        assert kept == [round(float(8000 ** (i / 9))) for i in range(10)]


def test_the_paper_profile_is_the_papers_protocol() -> None:
    """He et al. 2015, Sec. 4.2."""
    study = profiles.load("paper").study("degradation")
    protocol = Recipe(
        iterations=64_000,
        batch_size=128,
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="steps",
        milestones=(32_000, 48_000),
        warmup_iterations=0,
        pad=4,
        flip=True,
        probe_images=None,
        snapshots=study.spec("plain-20", 0).recipe.snapshots,
    )
    assert study.dataset == "cifar10"
    assert len(study.seeds) == 5
    depths = {"plain": (20, 32, 44, 56), "resnet": (20, 32, 44, 56, 110)}
    assert set(study.models) == {f"{family}-{depth}" for family, found in depths.items() for depth in found}
    for spec in study.all_specs():
        assert (spec.options, spec.train_images) == ({}, None)
        if spec.model != "resnet-110":
            assert spec.recipe == protocol
    deep = study.spec("resnet-110", 0).recipe
    assert [deep.lr_at(i) for i in (0, 399, 400, 31_999)] == [0.01, 0.01, 0.1, 0.1]
    assert deep == Recipe(**{**vars(protocol), "warmup_iterations": 400})


@pytest.mark.parametrize("profile", profiles.names())
def test_ablations_are_rows_of_tables_1_and_2(profile: str) -> None:
    """He et al. 2016; the profiles differ in depth, and desk takes some of the rows."""
    table = papers.numbers("he2016")
    rows = table[table["where"].isin(["Table 1", "Table 2"]) & table.network.str.contains("-110")].network
    study = profiles.load(profile).study("ablations")
    taken = [re.sub(r"-\d+", "-110", label, count=1) for label in study.models]
    assert sorted(taken) == sorted(set(rows) if profile != "desk" else set(rows) & set(taken))
    assert len({models.from_label(label)[0].rpartition("-")[2] for label in study.models}) == 1
    assert len(study.seeds) >= 3


def test_ablations_at_paper_scale_warm_up() -> None:
    """He et al. 2016: as in 2015, with 400 iterations at 0.01 first."""
    for study in ("ablations", "depth"):
        for spec in profiles.load("paper").study(study).specs(seeds=[0]):
            recipe = spec.recipe
            assert (recipe.iterations, recipe.milestones, recipe.batch_size) == (64_000, (32_000, 48_000), 128)
            assert [recipe.lr_at(i) for i in (0, 399, 400)] == [0.01, 0.01, 0.1]


@pytest.mark.parametrize("profile", profiles.names())
def test_gradients_are_followed_in_three_depths_and_four_kinds(profile: str) -> None:
    loaded = profiles.load(profile)
    studies = [loaded.studies[name] for name in ("ablations", "flow-shallow", "flow-deep") if name in loaded.studies]
    labels = {label for study in studies for label in study.models}
    for depth in (20, 56, 110):
        kinds = {f"plain-{depth}", f"resnet-{depth}", f"preresnet-{depth}", f"resnet-{depth} shortcut=scaling:0.5,1"}
        assert kinds <= labels


# How a profile is read


@pytest.mark.usefixtures("folder")
def test_every_seed_of_every_model() -> None:
    study = profiles.load("tiny").study("small")
    assert [(spec.seed, spec.model) for spec in study.specs()] == [
        (3, "plain-8"),
        (3, "resnet-8"),
        (5, "plain-8"),
        (5, "resnet-8"),
    ]
    assert [spec.label for spec in study.specs()] == ["plain-8 width=4", "resnet-8 shortcut=B"] * 2
    assert [(spec.seed, spec.model) for spec in study.specs(["plain-20"], [9])] == [(9, "plain-20")]
    assert study.settings == {"batch": 17}


@pytest.mark.usefixtures("folder")
def test_one_models_recipe_overrides_the_studys() -> None:
    study = profiles.load("tiny").study("small")
    assert study.spec("plain-8", 0).recipe == Recipe(iterations=20, milestones=(10,))
    assert study.spec("resnet-8", 0).recipe == Recipe(iterations=20, milestones=(10,))
    assert study.spec("resnet-8 shortcut=B", 0).recipe == Recipe(iterations=20, milestones=(10,), lr=0.5)


@pytest.mark.usefixtures("folder")
def test_deepened_runs_start_from_the_studys_own() -> None:
    study = profiles.load("tiny").study("small")
    deepened = study.deepened("plain-8 width=4", "plain-14 width=4", 3)
    assert deepened.model == "plain-14"
    assert deepened.start == study.spec("plain-8 width=4", 3)
    assert (deepened.options, deepened.train_images, deepened.seed) == ({"width": 4}, 100, 3)
    assert study.all_specs() == [*study.specs(), deepened, study.deepened("plain-8 width=4", "plain-14 width=4", 5)]


@pytest.mark.usefixtures("folder")
def test_unknown_names_list_the_allowed_ones() -> None:
    with pytest.raises(UsageError, match="unknown profile 'huge'; allowed: tiny"):
        profiles.load("huge")
    with pytest.raises(UsageError, match="unknown study of profile tiny 'large'; allowed: small"):
        profiles.load("tiny").study("large")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("iterations = 20", "iteration = 20", "iteration"),
        ("iterations = 20", "", "iterations"),
        ("iterations = 20", "iterations = 0", "iterations must be positive"),
        ("milestones = [10]", "milestones = 10", "int"),
        ("lr = 0.5", "rate = 0.5", "rate"),
        ('dataset = "digits"', 'data = "digits"', "data"),
        ("seeds = [3, 5]", "", "seeds"),
        ("[small]", "[small", "line"),
        ("[small]", "answer = 42\n[small]", "int"),
        (
            "[small.recipe]",
            '[small.recipes."plain-80"]\nlr = 1\n[small.recipe]',
            "'plain-80', which is none of the models",
        ),
    ],
)
def test_a_profile_that_cannot_be_is_refused_in_one_line(folder: Path, old: str, new: str, named: str) -> None:
    (folder / "tiny.toml").write_text(TINY.replace(old, new))
    with pytest.raises(UsageError, match=rf"tiny\.toml: .*{named}") as caught:
        profiles.load("tiny")
    assert "\n" not in str(caught.value)
