import os
import subprocess
import sys
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest
from kit.notebooks import deciding, write_notebook
from kit.report import executed
from kit.runs import TINY

from resnotes import paths
from resnotes.book import execution, notebooks
from resnotes.book.claims import load
from resnotes.figures.saving import FORMATS
from resnotes.files import write_atomic
from resnotes.runs import profiles, recording
from resnotes.runs.store import RunStore


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty project with one profile."""
    monkeypatch.setenv("RESNOTES_OUT", str(tmp_path / "out"))
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    monkeypatch.setattr(notebooks, "profiles", lambda: ["quick"])
    return tmp_path


@pytest.fixture
def tiny(root, monkeypatch):
    """A profile of two runs in an empty store."""
    monkeypatch.setenv("RESNOTES_RUNS", str(root / "runs"))
    monkeypatch.setattr(profiles, "FOLDER", root)
    (root / "tiny.toml").write_text(TINY)


@pytest.fixture
def trained(tiny):
    """Its runs, trained."""
    return RunStore().get_all(profiles.load("tiny").study("small").specs(), device="cpu", workers=1)


def test_run_writes_notebooks_claims_figures_and_index(root, resnotes):
    write_notebook(
        root / "notebooks",
        "01_a",
        "import pandas as pd; from matplotlib.figure import Figure; from resnotes import figures",
        deciding(root / "notebooks", "01_a", "seed"),
        "_ = figures.save(Figure(), 'empty', caption='Nothing', caption_zh='无', claims=['a.positive'],\n"
        "                 data=pd.DataFrame(), parameters={'seed': seed})",
    )
    write_notebook(root / "notebooks", "02_b", "1 / 0")
    out = root / "elsewhere"
    status, stdout, stderr = resnotes("run", "--profile", "quick", "--out", out, "-p", "seed=4")
    assert status == 1
    assert stdout.splitlines()[-1] == str(out / "index.html")
    assert "02_b: " in stderr
    assert "ZeroDivisionError: division by zero" in stderr
    assert str(out / "notebooks/02_b.ipynb") in stderr
    [claim] = load(out / "claims.json")
    assert claim["scopes"]["live"]["measured"]["value"] == 4
    assert {path.name for path in (out / "figures").iterdir()} == {f"empty.{kind}" for kind in ("json", *FORMATS)}
    page = (out / "index.html").read_text()
    assert 'src="figures/empty.png"' in page
    assert "1 claim:" in page
    assert (page.count("<td>done</td>"), page.count('<td class="failed">failed</td>')) == (1, 1)


def test_notebooks_are_listed_with_parameters_and_last_run(root, resnotes):
    for stem in ("01_a", "02_b", "03_c"):
        write_notebook(root / "notebooks", stem)
    executed(root / "out", "01_a", ids=[])
    executed(root / "out", "02_b", ids=[], failed=True)
    status, stdout, _ = resnotes("run", "--list")
    when = datetime(2026, 3, 4, 12, tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    assert status == 0
    assert [line.strip() for line in stdout.splitlines() if "run" in line] == [
        *(f"last run {when}: {outcome}, profile quick, 1.5 s" for outcome in ("done", "failed")),
        f"never run in {root / 'out'}",
    ]
    assert stdout.startswith("01_a: Notebook 01_a\n    -p profile='quick'     scale\n    -p seed=0")


@pytest.mark.parametrize("arguments", [["runn"], ["run", "--jobs", "0"], ["figures"]])
def test_wrong_usage_exits_with_2(resnotes, arguments):
    status, _, stderr = resnotes(*arguments)
    assert (status, "Error" in stderr) == (2, True)


def test_why_a_notebook_failed_is_said_before_what_else_is_wrong(root, resnotes, monkeypatch):
    write_notebook(root / "notebooks", "01_a")
    failed = subprocess.CompletedProcess([], 1, "ZeroDivisionError: division by zero", "")
    monkeypatch.setattr(execution, "execute_in_child", lambda *_, **__: failed)
    damaged = write_atomic(root / "out/figures/02_curves.json", "{}")
    status, _, stderr = resnotes("run")
    assert (status, stderr.index("ZeroDivisionError") < stderr.index(f"{damaged} describes no figure")) == (1, True)
    damaged.unlink()
    monkeypatch.setattr(execution, "write_atomic", Mock(side_effect=OSError(28, "No space left")))
    status, stdout, stderr = resnotes("run")
    assert (status, stdout.splitlines()[-1]) == (1, str(root / "out/index.html"))
    assert "01_a: [Errno 28] No space left" in stderr


def test_claims_are_printed(root, resnotes):
    assert resnotes("claims") == (0, f"no claims in {root / 'out'}; `resnotes run` makes them\n", "")
    executed(root / "elsewhere", "01_degradation", ids=["degradation.x"])
    assert resnotes("claims", "--out", root / "elsewhere")[1].splitlines() == [
        "✓ true on digits after 132 iterations (recorded): Claim degradation.x.",
        "    live: ✓ 2 ± 14\u00a0points (n = 2); digits after 132 iterations; 2 of each",
        "    recorded: ✓ 102 ± 14\u00a0points (n = 2); digits after 132 iterations; 2 of each",
        "    paper: over 4.5",
        "    degradation.x",
    ]
    (root / "elsewhere/claims/01_degradation.json").write_text("[{")
    status, _, stderr = resnotes("claims", "--out", root / "elsewhere")
    assert (status, stderr.count("\n")) == (1, 1)
    assert stderr.startswith("resnotes: cannot read")


def test_figures_are_exported_with_markdown(root, resnotes):
    status, _, stderr = resnotes("figures", "--to", root / "report")
    assert (status, stderr.count("\n")) == (1, 1)
    executed(root / "out", "01_degradation", ["01_curves"])
    status, stdout, _ = resnotes("figures", "--to", root / "report", "--format", "png, svg")
    assert (status, "(01_curves.png)" in stdout) == (0, True)
    assert sorted(path.suffix for path in (root / "report").iterdir()) == [".json", ".png", ".svg"]


def test_help_comes_at_once():
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "resnotes", "--help"], capture_output=True, text=True
    )
    assert os.times().children_user - before.children_user < 2, "half a second of the processor's time when idle"
    assert "run" in done.stdout
    assert not [heavy for heavy in ("torch", "matplotlib", "pandas", "nbconvert") if f" {heavy}\n" in done.stderr]


def test_training_fills_the_store(tiny, resnotes):
    status, stdout, _ = resnotes("train", "--profile", "tiny", "--study", "small", "--workers", 1, "--device", "cpu")
    finished = RunStore().finished()
    assert status == 0
    assert [line.split()[0] for line in stdout.splitlines()] == [run.name for run in finished]
    assert [run.spec.model for run in finished] == ["plain-8", "resnet-8"]
    before = [run.facts for run in finished]
    assert resnotes("train", "--profile", "tiny") == (0, stdout, "")
    assert [run.facts for run in RunStore().finished()] == before


def test_runs_are_listed(tiny, resnotes):
    assert resnotes("runs", "list") == (0, f"no runs in {paths.runs_root()}; `resnotes train` makes them\n", "")
    run = RunStore().get(profiles.load("tiny").study("small").spec("plain-8", 0), device="cpu")
    status, stdout, _ = resnotes("runs", "list")
    assert (status, stdout.count("\n")) == (0, 1)
    name, variant, _, clean, _, _, test, _ = stdout.split()
    assert (name, variant) == (run.name, "digits")
    assert float(clean) == pytest.approx(run.final.clean_error, abs=0.005)
    assert float(test) == pytest.approx(run.final.test_error, abs=0.005)
    assert resnotes("runs", "list", "--recorded")[1].startswith("no runs in")


def test_a_run_is_shown(trained, resnotes):
    status, stdout, _ = resnotes("runs", "show", "plain-8")
    assert status == 0
    for part in (str(trained[0].folder), '"train_images": 64', trained[0].fingerprint, "clean_error"):
        assert part in stdout
    assert str(trained[1].folder) not in stdout


def test_verification_names_the_runs_that_fail_and_goes_on(trained, resnotes):
    (trained[0].folder / "history.csv").write_text("epoch\n")
    status, stdout, _ = resnotes("runs", "verify")
    assert (status, [line.split()[0] for line in stdout.splitlines()]) == (1, ["FAILED", "ok"])
    assert "history.csv is not what the run wrote" in stdout
    assert resnotes("runs", "verify", "resnet")[0] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's pipe")
def test_whoever_reads_the_output_may_have_seen_enough(trained):
    """Then nothing is said about it."""
    command = f"{sys.executable} -m resnotes runs show '' | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "1"}


def test_an_error_that_is_not_reached_again_fails(trained, resnotes, monkeypatch):
    monkeypatch.setattr(recording, "verify", lambda run: (10.0, 10.3))
    status, stdout, _ = resnotes("runs", "verify", "plain-8")
    assert (status, stdout) == (1, f"FAILED   {trained[0].name}: 10.00 % stored, 10.30 % measured\n")
    assert resnotes("runs", "verify", "plain-8", "--tolerance", "0.5")[0] == 0


def test_recording_copies_the_runs_of_a_profile(root, trained, resnotes):
    status, stdout, _ = resnotes("runs", "record", "--profile", "tiny")
    folders = [root / "data/recorded" / run.name for run in trained]
    assert (status, stdout.split()) == (0, [str(folder) for folder in folders])
    assert [run.folder for run in RunStore().finished(recorded=True)] == folders
    assert resnotes("runs", "list", "--recorded")[1] == resnotes("runs", "list")[1]
    assert resnotes("runs", "verify", "--recorded")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["run", "9"], "'9'; allowed: 01_a"),
        (["run", "--profile", "huge"], "allowed: quick"),
        (["run", "-p", "sed=1"], "01_a takes profile='quick', seed=0"),
        (["train", "--profile", "huge"], "unknown profile 'huge'; allowed: tiny"),
        (["train", "--profile", "tiny", "--study", "big"], "allowed: small"),
        (["runs", "show", "vgg"], "unknown run 'vgg'; allowed: none, the store is empty"),
        (["data", "fetch", "imagenet"], "unknown data set 'imagenet'; allowed: digits, cifar10, scenes, camvid"),
    ],
)
def test_what_is_unknown_is_refused_in_one_line(tiny, root, resnotes, arguments, names):
    write_notebook(root / "notebooks", "01_a")
    status, stdout, stderr = resnotes(*arguments)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert names in stderr


def test_studies_are_taken_in_the_order_they_are_named(resnotes, monkeypatch):
    asked = []
    monkeypatch.setattr(RunStore, "sweep", lambda self, specs, **_: (each for each in asked.append(specs) or []))
    resnotes("train", "--profile", "desk", "--device", "cpu", "--study", "lesions", "--study", "degradation")
    resnotes("train", "--profile", "desk", "--device", "cpu")
    desk = profiles.load("desk")
    specs = {name: desk.study(name).all_specs() for name in desk.studies}
    assert asked == [[*specs["lesions"], *specs["degradation"]], [spec for each in specs.values() for spec in each]]


def test_data_sets_are_listed_and_fetched(root, resnotes, monkeypatch):
    monkeypatch.setenv("RESNOTES_DATA", str(root / "data"))
    status, stdout, _ = resnotes("data", "status")
    assert status == 0
    assert stdout.startswith("digits     found\n")
    assert "cifar10    missing\n" in stdout
    assert "resnotes data fetch cifar10" in stdout
    assert f"published  missing\n{'':<10} 0 of 13 networks in {root / 'data' / 'weights'}; missing: " in stdout
    assert resnotes("data", "fetch", "digits") == (0, "", "digits: there is nothing to download\n")
