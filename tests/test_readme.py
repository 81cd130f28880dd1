"""What the READMEs say is so: findings, files, links, and snippets that work as they stand, in both languages."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pytest
import torch
import torchvision

import resnotes
from resnotes import datasets, models
from resnotes.models import registry

PACKAGE = Path(resnotes.__file__).parent
ROOT = PACKAGE.parent
README, README_ZH = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
SNIPPETS = {code.split("\n", 1)[0]: code for code in CODE.findall(README)}
SHOWN = ("20", "56")  # layers
PAGES = [path for under in ("", "docs", "data", "benchmarks/results") for path in (ROOT / under).glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_at_something(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = unquote(link).partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, link


def test_findings_are_those_of_the_ledger_and_of_the_tables() -> None:
    """The numbers of the findings, in both languages: what is measured anew changes them here, too."""
    errors = pd.read_csv(ROOT / "data/published/errors.csv", index_col="network")["training error"]
    responses = pd.read_csv(ROOT / "data/published/responses.csv").groupby("network")["std"].mean()
    numbers = [f"{errors[f'wooyeolBaek/{name}']:.2f} %" for name in ("plain-20", "plain-44", "plain-56")]
    numbers += [
        f"{each:.2f}" for name, each in responses.items() if name.startswith("wooyeolBaek") and name[-2:] in SHOWN
    ]
    by_us = pd.read_csv(ROOT / "data/recorded/measurements/01_responses.csv").groupby("network")["std"].mean()
    numbers += [f"{by_us[name]:.2f}" for name in ("plain-56", "resnet-56")]
    claims = json.loads((ROOT / "data/recorded/claims.json").read_text(encoding="utf-8"))
    measured = {claim["id"]: claim["scopes"][claim["scope"]]["measured"]["text"] for claim in claims}
    for claim in (
        "degradation.survives-best-rate",
        "degradation.gradients-vanish",
        "pspnet.boats-become-cars",
        "pspnet.reach-helps",
        "pspnet.pyramid-gains-over-reach",
    ):
        numbers.append(" ".join(measured[claim].replace("-", "−").split()[:3]))  # 48 ± 9
    scopes = {claim["id"]: claim["scopes"] for claim in claims}
    numbers.append(" ".join(scopes["unravel.sampling-overstates"]["live"]["measured"]["text"].split()[:3]))
    of_the_published = scopes["unravel.sampling-overstates"]["published"]["measured"]["value"]["resnet-56"]["text"]
    numbers.append(" ".join(of_the_published.split()[:3]))
    for scope in ("published", "recorded"):
        of_runs = scopes["unravel.deep-runs-cost-less"][scope]["measured"]["value"]
        numbers += [part["text"].partition("\N{NO-BREAK SPACE}")[0] for part in of_runs.values()]
    for claim, scope, part in (
        ("pre-ln-needs-no-warm-up", "recorded", "24 layers"),
        ("post-ln-needs-warm-up", "recorded", "24 layers"),
        ("training-shortens-paths", "live", "Pre-LN"),
        ("training-shortens-paths", "live", "Post-LN"),
        ("training-shortens-paths", "recorded", "Pre-LN"),
        ("training-shortens-paths", "recorded", "Post-LN"),
    ):
        text = scopes[f"transformers.{claim}"][scope]["measured"]["value"][part]["text"]
        numbers.append(" ".join(text.replace("\N{NO-BREAK SPACE}", " ").split()[:3]))
    for name in ("plain-20", "plain-56", "resnet-56"):
        ends = [pd.read_csv(path).iloc[-1] for path in ROOT.glob(f"data/recorded/{name}-cifar10-s0-*/history.csv")]
        numbers += [f"{end.clean_error:.2f} %" for end in ends if end.iteration == 64_000]
    for path in ("published/lesions.csv", "recorded/measurements/03_lesions.csv"):
        lesions = pd.read_csv(ROOT / "data" / path)
        kept = lesions[~lesions.shrinks].set_index(["network", "bn"])
        costs = kept[kept.kind == "single"].error.groupby(level=[0, 1]).mean() - kept[kept.kind == "intact"].error
        shown = {"resnet-56", "plain-56", "preresnet-56"} & set(lesions.network)
        numbers += [f"{costs[name, bn]:.1f}" for name in shown for bn in ("as trained", "repaired")]
    lengths = pd.read_csv(ROOT / "data/published/lengths.csv").query("moment == 'trained'")
    centres = (lengths.length * lengths.share).groupby([lengths.network, lengths.seed]).sum().groupby(level=0).mean()
    numbers += [f"{centres[name]:.1f}" for name in ("resnet-20", "resnet-56")]
    for page in (README, README_ZH):
        text = " ".join(page.split())
        assert [number for number in numbers if number not in text] == []
    assert errors["constructed"] == errors["wooyeolBaek/plain-20"]


def test_both_languages_show_the_same_code_files_and_links() -> None:
    shown = []
    for page in (README, README_ZH):
        code = [re.sub(r" *#.*", "", block) for block in re.findall(r"```\w+\n.*?```", page, re.DOTALL)]
        files, links = set(re.findall(r"`([\w/*]+\.\w+)`", page)), set(re.findall(r"\]\(([^)]*)\)", page))
        shown.append((code, files, {link for link in links if not link.startswith("README")}))
    assert shown[0] == shown[1]


def test_the_readme_is_short() -> None:
    most = max(len(page.splitlines()) for page in (README, README_ZH))
    assert most <= 180, "say it in docs/, or shorten something else"


def test_what_the_readme_says_where_is_there() -> None:
    table = README.split("| where is … |")[1].split("\n\n")[0]
    found = {file: list(PACKAGE.glob(file)) for file in re.findall(r"`([\w/*]+\.(?:py|toml))`", table)}
    assert len(found) > 15 and all(found.values())
    source = "".join(path.read_text("utf-8") for paths in found.values() for path in paths)
    for name in set(re.findall(r"`([\w.]+)`", table)) - set(found):
        assert re.search(rf"(def|class) {name.rpartition('.')[2]}\b", source), name


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader brings along."""
    monkeypatch.setenv("RESNOTES_RUNS", str(tmp_path))
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(datasets, "_LOADERS", dict(datasets._LOADERS))
    generator = torch.Generator().manual_seed(0)

    def drawn(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    return {
        "torchvision": torchvision,
        "images": torch.randn(4, 3, 64, 64, generator=generator),
        "labels": drawn(10, 4),
        "classes": ("a", "b"),
        **{f"{part}_images": drawn(256, 4, 3, 8, 8).to(torch.uint8) for part in ("train", "test")},
        **{f"{part}_labels": drawn(2, 4) for part in ("train", "test")},
    }


def run(first_line: str, given: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """What a snippet leaves; its source is a file, as that of a program or of a cell is."""
    path = tmp_path / "program.py"
    path.write_text(SNIPPETS[first_line], encoding="utf-8")
    exec(compile(SNIPPETS[first_line], path, "exec"), given)
    return given


def test_snippets_are_short() -> None:
    assert len(SNIPPETS) == 4
    for code in SNIPPETS.values():
        assert len([line for line in code.splitlines() if line]) <= 10, code


def test_a_network_of_torchvision_is_taken_apart(given: dict[str, Any], tmp_path: Path) -> None:
    found = run("from resnotes import unravel", given, tmp_path)
    assert len(found["net"].blocks) == 16


def test_a_network_of_ones_own_is_trained(given: dict[str, Any], tmp_path: Path) -> None:
    trained = run("from resnotes import models, runs", given, tmp_path)["run"]
    assert trained.spec.source == models.source("my-resnet-18") is not None
    assert len(trained.model().blocks) == 8


def test_a_data_set_of_ones_own_is_loaded(given: dict[str, Any], tmp_path: Path) -> None:
    run("from resnotes import datasets", given, tmp_path)
    data = datasets.load("mine")
    assert torch.equal(data.train_images, given["train_images"]) and datasets.task("mine") == "classification"


def test_failures_are_studied(given: dict[str, Any], tmp_path: Path) -> None:
    maps = torch.zeros(6, 48, 48, dtype=torch.int64)
    maps[:, 8:24, 8:24] = 1
    given |= {"labels": maps, "predictions": torch.zeros_like(maps), "training_labels": maps}
    found = run("from resnotes import failures", given, tmp_path)["found"]
    assert len(found.failures) == 6
    assert found.counts.size
