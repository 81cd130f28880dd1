import json
import os
import re
import subprocess
import sys
from datetime import datetime

import pandas as pd
import pytest
from kit.notebooks import write_notebook
from kit.runs import TINY
from matplotlib.figure import Figure

from resnotes import figures, paths
from resnotes.analysis.intervals import interval
from resnotes.book import notebooks
from resnotes.book.index import write_index
from resnotes.book.ledger import Ledger, load
from resnotes.datasets import cifar10
from resnotes.errors import DatasetError
from resnotes.runs import profiles, recording
from resnotes.runs.store import RunStore


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty project with one profile."""
    monkeypatch.setenv("RESNOTES_OUT", str(tmp_path / "out"))
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    monkeypatch.setattr(notebooks, "profiles", lambda: ["quick"])
    return tmp_path


def add_claim(holds=True, statement="Deeper <b>is</b> worse."):
    ledger = Ledger("01_a", "quick", "digits", [0, 1])
    ledger.record(
        "a.deeper",
        statement,
        statement_zh="越深越差。",
        source="He et al.",
        expected="worse",
        expected_zh="更差",
        measured=interval([1, 2], "%"),
        holds=holds,
    )


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


def add_figure(name="curves"):
    figures.save(
        Figure(),
        name,
        caption='Error "curves" <i>',
        caption_zh="曲线",
        claims=["a.deeper"],
        data=pd.DataFrame({"x": [1]}),
        parameters={},
    )


def test_run_writes_notebooks_claims_figures_and_index(root, resnotes):
    write_notebook(
        root / "notebooks",
        "01_a",
        "import pandas as pd; from matplotlib.figure import Figure; from resnotes import figures",
        "from resnotes.book.ledger import Ledger; ledger = Ledger('01_a', profile, 'digits', [seed])\n"
        "_ = ledger.record('a.b', 'Yes.', statement_zh='是', source='', expected='', expected_zh='',\n"
        "                  measured=seed, holds=True)",
        "_ = figures.save(Figure(), 'empty', caption='Nothing', caption_zh='无', claims=['a.b'],\n"
        "                 data=pd.DataFrame(), parameters={'seed': seed})",
    )
    write_notebook(root / "notebooks", "02_b", "1 / 0")
    out = root / "elsewhere"
    status, stdout, stderr = resnotes("run", "--profile", "quick", "--out", out, "-p", "seed=4")
    assert status == 1
    assert stdout.splitlines()[-1] == str(out / "index.html")
    assert "02_b: cell In [3] raised ZeroDivisionError" in stderr
    assert str(out / "notebooks/02_b.ipynb") in stderr
    [claim] = load(out / "claims.json")
    assert claim["measured"]["value"] == 4
    assert sorted(str(path.relative_to(out / "figures")) for path in (out / "figures").rglob("*.*")) == [
        *("empty.json", "empty.pdf", "empty.png", "empty.svg", "thumbnails/empty.png")
    ]
    page = (out / "index.html").read_text()
    assert 'src="figures/thumbnails/empty.png"' in page
    assert "1 claim:" in page
    assert (page.count("<td>done</td>"), page.count('<td class="failed">failed</td>')) == (1, 1)


def test_notebooks_are_listed_with_parameters_and_last_run(root, resnotes):
    write_notebook(root / "notebooks", "01_a")
    write_notebook(root / "notebooks", "02_b", "1 / 0")
    status, stdout, _ = resnotes("run", "--list", "01")
    assert status == 0
    assert stdout.startswith("01_a: ")
    assert "-p profile='quick'" in stdout
    assert "-p seed=0" in stdout
    assert f"never run in {root / 'out'}" in stdout
    assert not (root / "out").exists(), "listing executes nothing"
    resnotes("run", "-p", "seed=3")
    day = datetime.now().astimezone().strftime("%Y-%m-%d")
    lines = [line for line in resnotes("run", "--list")[1].splitlines() if "last run" in line]
    assert [re.sub(r"[\d.]+ s$", "N s", re.sub(r"\d\d:\d\d", "T", line)).strip() for line in lines] == [
        f"last run {day} T: {outcome}, profile quick, N s" for outcome in ("done", "failed")
    ]


@pytest.mark.parametrize("arguments", [["runn"], ["run", "--jobs", "0"], ["figures"]])
def test_wrong_usage_exits_with_2(resnotes, arguments):
    status, _, stderr = resnotes(*arguments)
    assert status == 2
    assert "Error" in stderr
    assert "Traceback" not in stderr


def test_claims_are_printed(root, resnotes):
    assert resnotes("claims") == (0, f"no claims in {root / 'out'}; `resnotes run` makes them\n", "")
    add_claim(holds=None)
    write_index(root / "out")
    status, stdout, _ = resnotes("claims", "--out", root / "out")
    assert status == 0
    assert stdout.splitlines()[0] == "undecided  a.deeper: Deeper <b>is</b> worse."
    assert "expected worse; measured 2 ± 6 % (n = 2)" in stdout
    (root / "out/claims/01_a.json").write_text("[{")
    status, _, stderr = resnotes("claims")
    assert (status, stderr.count("\n")) == (1, 1)
    assert stderr.startswith("resnotes: cannot read")


def test_figures_are_exported_with_markdown(root, resnotes):
    status, _, stderr = resnotes("figures", "--to", root / "report")
    assert (status, stderr.count("\n")) == (1, 1)
    add_figure()
    status, stdout, _ = resnotes("figures", "--to", root / "report")
    assert status == 0
    assert "(curves.png)" in stdout
    assert (root / "report/curves.pdf").exists()
    assert resnotes("figures", "--to", root / "others", "--format", "png, svg")[0] == 0
    assert sorted(path.suffix for path in (root / "others").iterdir()) == [".json", ".png", ".svg"]


def test_index_escapes_and_needs_no_network(root):
    add_claim()
    add_figure()
    index = write_index(root / "out")
    page = index.read_text()
    assert json.loads((root / "out/claims.json").read_text())[0]["id"] == "a.deeper"
    assert "Deeper &lt;b&gt;is&lt;/b&gt; worse." in page
    assert 'alt="Error &#34;curves&#34; &lt;i&gt;"' in page
    assert "://" not in page
    assert write_index(root / "out").read_text() == page


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


def test_verification_names_the_runs_that_fail(trained, resnotes):
    status, stdout, _ = resnotes("runs", "verify")
    assert (status, [line.split()[0] for line in stdout.splitlines()]) == (0, ["ok", "ok"])
    (trained[0].folder / "history.csv").write_text("epoch\n")
    status, stdout, _ = resnotes("runs", "verify")
    assert (status, [line.split()[0] for line in stdout.splitlines()]) == (1, ["FAILED", "ok"])
    assert "history.csv is not what the run wrote" in stdout
    assert resnotes("runs", "verify", "resnet")[0] == 0


def test_verification_goes_on_where_the_data_of_a_run_is_not_at_hand(trained, resnotes, monkeypatch):
    load, missing = recording.load_data, trained[0].spec

    def loading(spec):
        if spec == missing:
            raise DatasetError("no digits")
        return load(spec)

    monkeypatch.setattr(recording, "load_data", loading)
    status, stdout, _ = resnotes("runs", "verify")
    words = {line.split()[1].rstrip(":"): line.split()[0] for line in stdout.splitlines()}
    assert (status, words) == (1, {trained[0].name: "FAILED", trained[1].name: "ok"})


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
        (["run", "-p", "seed=x"], "seed=0"),
        (["train", "--profile", "huge"], "unknown profile 'huge'; allowed: tiny"),
        (["train", "--profile", "tiny", "--study", "big"], "allowed: small"),
        (["runs", "record", "--profile", "huge"], "allowed: tiny"),
        (["runs", "show", "vgg"], "unknown run 'vgg'; allowed: none, the store is empty"),
        (["runs", "verify", "vgg"], "unknown run 'vgg'"),
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
    lesions, degradation = (desk.study(name).all_specs() for name in ("lesions", "degradation"))
    assert asked == [
        [*lesions, *degradation],
        [spec for name in desk.studies for spec in desk.study(name).all_specs()],
    ]


def test_data_sets_are_listed_and_fetched(root, resnotes, monkeypatch):
    monkeypatch.setenv("RESNOTES_DATA", str(root / "data"))
    status, stdout, _ = resnotes("data", "status")
    assert status == 0
    assert stdout.startswith("digits     found\n")
    assert "cifar10    missing\n" in stdout
    assert "resnotes data fetch cifar10" in stdout
    assert f"published  missing\n{'':<10} 0 of 13 networks in {root / 'data' / 'weights'}; missing: " in stdout
    assert resnotes("data", "fetch", "digits") == (0, "", "digits: there is nothing to download\n")


def test_a_download_that_fails_ends_in_a_message(root, resnotes, monkeypatch):
    monkeypatch.setenv("RESNOTES_DATA", str(root / "data"))
    monkeypatch.setattr(cifar10, "URL", (root / "nowhere.tar.gz").as_uri())
    status, _, stderr = resnotes("data", "fetch", "cifar10")
    assert (status, stderr.count("\n")) == (1, 1)
    assert stderr.startswith("resnotes: cannot download file:")
    assert not [path for path in (root / "data").rglob("*") if path.is_file()]
