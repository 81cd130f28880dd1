"""What each study trains at each scale."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch

from resnotes import models
from resnotes.analysis.receptive_fields import theoretical_receptive_field
from resnotes.book import papers
from resnotes.errors import UsageError
from resnotes.runs import profiles
from resnotes.runs.spec import RunSpec
from resnotes.training.recipe import Recipe

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


@pytest.mark.parametrize("profile", ["quick", "desk", "paper"])
def test_every_run_can_be_asked_for_and_its_network_built(profile: str) -> None:
    for study in profiles.load(profile).studies.values():
        specs = study.all_specs()
        assert len({spec.name for spec in specs}) == len(specs) > 0
        assert specs == [RunSpec.from_json(spec.to_json()) for spec in specs]
    built = {spec.label: spec for study in profiles.load(profile).studies.values() for spec in study.all_specs()}
    with torch.device("meta"):
        for spec in built.values():
            models.build(spec.model, **spec.options)


def test_quick_needs_no_data_but_what_is_always_at_hand() -> None:
    assert profiles.names()[0] == "quick"
    assert {study.dataset for study in profiles.load("quick").studies.values()} == {"digits", "scenes"}


def test_the_paper_profile_is_the_papers_protocol_and_desk_an_eighth_of_it() -> None:
    """He et al. 2015, Sec. 4.2; both hold out 5,000 of the training images."""
    paper, desk = (profiles.load(name).study("degradation") for name in ("paper", "desk"))
    protocol = Recipe(iterations=64_000, milestones=(32_000, 48_000), probe_images=2000)
    assert len(paper.seeds) == 5
    for spec in paper.all_specs():
        assert spec.recipe == dataclasses.replace(protocol, warmup_iterations=400 * (spec.model == "resnet-110"))
        assert spec.data == {"holdout": 500}
    for spec in desk.all_specs():
        assert spec.recipe == Recipe(iterations=8000, schedule="one-cycle", probe_images=2000)
        assert spec.data == {"holdout": 500}


def test_snapshots_are_evenly_spaced_in_the_logarithm_of_the_iterations() -> None:
    for study, model in (("lesions-110", "preresnet-110"), ("lesions", "preresnet-56")):
        recipe = profiles.load("desk").study(study).spec(model, 0).recipe
        kept = [*recipe.snapshots, recipe.iterations]
        assert len(kept) == 10
        assert kept == [round(float(8000 ** (i / 9))) for i in range(10)]


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


@pytest.mark.parametrize(
    ("profile", "classes", "size", "field"), [("quick", 25, (64, 64), 31), ("desk", 11, (180, 240), 63)]
)
@torch.no_grad()
def test_context_reach_and_pyramid_have_as_many_parameters(
    profile: str, classes: int, size: tuple[int, int], field: int
) -> None:
    specs = profiles.load(profile).study("context").specs(seeds=[0])
    networks = [models.build(spec.model, num_classes=classes, **spec.options).eval() for spec in specs]
    assert [theoretical_receptive_field(network).size for network in networks[::2]] == [field, math.inf]
    reach = theoretical_receptive_field(networks[1])
    assert 0 <= reach.size - (2 * max(size) - 1) <= 2 * reach.stride, "from corner to corner, and no farther"
    assert [list(network.pyramid.bins) for network in networks] == [[], [], [1], [1, 2, 3, 6]]
    counts = [models.count_parameters(network) for network in networks]
    assert max(counts) < 1.02 * min(counts)
    for network in networks:
        assert network(torch.randn(1, 3, *size)).shape == (1, classes, *size)


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


def test_every_model_at_every_rate(folder: Path) -> None:
    deepen = 'deepen = { "plain-8 width=4" = "plain-14 width=4" }'
    (folder / "tiny.toml").write_text(TINY.replace(deepen, "lrs = [0.1, 1]").replace("lr = 0.5", "momentum = 0.5"))
    study = profiles.load("tiny").study("small")
    specs = study.specs(["plain-8"], [3])
    assert specs == [study.spec("plain-8", 3, lr) for lr in (0.1, 1.0)] == [study.spec("plain-8", 3), specs[1]]
    assert [(spec.seed, spec.recipe.lr) for spec in study.all_specs()][::2] == [(3, 0.1), (3, 1.0), (5, 0.1), (5, 1.0)]
    assert [spec.recipe.lr for spec in study.specs(["plain-8"], [3], lrs=[0.2])] == [0.2]


def test_at_the_usual_rate_a_run_of_the_sweep_is_the_degradation_studys() -> None:
    quick = profiles.load("quick")
    sweep, usual = quick.study("learning-rates"), quick.study("degradation")
    assert sweep.specs(lrs=[0.1]) == usual.specs()
    assert len(sweep.specs()) == 5 * len(usual.specs())


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
        ("iterations = 20", "iterations = 0", "iterations must be positive"),
        ("seeds = [3, 5]", "", "seeds"),
        ("seeds = [3, 5]", "seeds = [3, 5, 3]", "seeds must differ"),
        ("seeds = [3, 5]", "seeds = [3, 5]\nlrs = [0.1]", "leave out deepen, and lr in the recipes"),
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
