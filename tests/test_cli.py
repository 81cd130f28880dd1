import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from unittest.mock import Mock

import pytest
import typer
from kit.notebooks import deciding, write_notebook
from kit.report import Markdown, executed
from kit.runs import TINY

from resnotes import __version__, cli, paths
from resnotes.book import execution, notebooks
from resnotes.book.claims import load
from resnotes.files import write_atomic
from resnotes.runs import catalogue, profiles, recording
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
    status, stdout, stderr = resnotes("run", "--profile", "quick", "--out", out, "-p", "seed=4", "--format", "svg")
    assert status == 1
    assert stdout.splitlines()[-1] == str(out / "index.html")
    assert "02_b: " in stderr
    assert "ZeroDivisionError: division by zero" in stderr
    assert str(out / "notebooks/02_b.ipynb") in stderr
    [claim] = load(out / "claims.json")
    assert claim["scopes"]["live"]["measured"]["value"] == 4
    assert {path.name for path in (out / "figures").iterdir()} == {f"empty.{kind}" for kind in ("json", "png", "svg")}
    page = (out / "index.html").read_text()
    assert [file in page for file in ('src="figures/empty.png"', "empty.svg", "empty.pdf")] == [True, True, False]
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


def test_a_notebook_that_cannot_be_read_does_not_keep_the_others_from_being_listed(root, resnotes):
    for stem in ("01_a", "02_b", "04_d"):
        write_notebook(root / "notebooks", stem, parameters="x = {[]: 1}" if stem == "02_b" else "x = 1")
    (root / "notebooks/03_c.ipynb").write_text('{"cells": [{"cell_type": "code"}], "nbformat": 4, "nbformat_minor": 5}')
    executed(root / "out", "04_d", ids=[], finished="yesterday")
    status, stdout, stderr = resnotes("run", "--list")
    assert (status, [line for line in stdout.splitlines() if line[0] != " "]) == (
        1,
        [f"{stem}: Notebook {stem}" for stem in ("01_a", "04_d")],
    )
    assert [line.partition(".ipynb")[0][-4:] for line in stderr.splitlines()] == ["02_b", "03_c"]


@pytest.mark.parametrize("arguments", [["runn"], ["run", "--jobs", "0"], ["report", "--langg", "en"]])
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
    assert resnotes("claims") == (1, "", f"resnotes: no claims in {root / 'out'}; `resnotes run` makes them\n")
    executed(root / "elsewhere", "01_degradation", ids=["degradation.x"])
    assert resnotes("claims", "--results", root / "elsewhere")[1].splitlines() == [
        "✓ true on digits after 132 iterations (recorded): Claim degradation.x.",
        "    live: ✓ 2 ± 14\u00a0points (n = 2); digits after 132 iterations; 2 of each",
        "    recorded: ✓ 102 ± 14\u00a0points (n = 2); digits after 132 iterations; 2 of each",
        "    paper: over 4.5",
        "    degradation.x",
    ]
    (root / "elsewhere/claims/01_degradation.json").write_text("[{")
    status, _, stderr = resnotes("claims", "--results", root / "elsewhere")
    assert (status, stderr.count("\n")) == (1, 1)
    assert stderr.startswith("resnotes: cannot read")


@pytest.fixture
def ledger(root):
    """Two notebooks with six claims, by turns true, false and undecided."""
    for stem, study in (("01_degradation", "degradation"), ("03_unraveled_paths", "unravel")):
        write_notebook(root / "notebooks", stem)
        executed(root / "out", stem, ids=[f"{study}.{letter}" for letter in "abc"])


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ([], ["degradation.a", "degradation.b", "degradation.c", "unravel.a", "unravel.b", "unravel.c"]),
        (["--notebook", "03", "--verdict", "true", "--verdict", "undecided"], ["unravel.a", "unravel.c"]),
        (["--scope", "recorded", "--verdict", "false"], ["degradation.b", "unravel.b"]),
        (["--scope", "live"], []),
    ],
)
def test_claims_are_chosen_and_written_in_a_form_that_others_read(ledger, resnotes, filters, ids):
    status, stdout, stderr = resnotes("claims", "--format", "json", *filters)
    if not ids:
        assert (status, stdout, stderr.count("\n")) == (1, "", 1)
        return
    found = json.loads(stdout)
    assert (status, [claim["id"] for claim in found]) == (0, ids)
    rows = Markdown(resnotes("claims", "--format", "md", *filters)[1]).rows
    assert rows[0] == ["verdict", "claim", "live", "recorded", "published", "paper"]
    assert [row[1] for row in rows[1:]] == [f"{claim['statement']} ({claim['id']})" for claim in found]
    texts = [claim["scopes"]["recorded"]["measured"]["text"].replace("\u00a0", " ") for claim in found]
    assert [row[3] for row in rows[1:]] == [f"{row[0][0]} {text}" for row, text in zip(rows[1:], texts, strict=True)]


@pytest.mark.parametrize("quiet", ["", "1"])
def test_claims_fit_a_terminal_in_colour_unless_unwanted(ledger, resnotes, monkeypatch, quiet):
    whole = resnotes("claims")[1]
    assert "\x1b" not in whole, "a pipe"
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("NO_COLOR", quiet)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    resnotes("claims")
    plain = re.sub(r"\x1b\[\d+m", "", terminal.getvalue())
    assert (plain == terminal.getvalue()) == bool(quiet)
    assert max(map(len, plain.splitlines())) <= 50
    assert plain.split(" ") != whole.split(" ")
    assert plain.split() == whole.split()


def test_what_a_console_has_no_letters_for_is_escaped(ledger, resnotes, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    assert resnotes("claims")[0] == 0
    assert console.buffer.getvalue().decode("cp1252").startswith("\\u2713 true on digits")


@pytest.mark.parametrize("option", ["--out", "--to"])
def test_figures_are_exported_with_markdown(root, resnotes, monkeypatch, option):
    monkeypatch.setenv("HOME", str(root))
    status, _, stderr = resnotes("figures", option, "~/report")
    assert (status, stderr.count("\n")) == (1, 1)
    executed(root / "elsewhere", "01_degradation", ["01_curves"])
    status, stdout, _ = resnotes("figures", option, "~/report", "--format", "png, svg", "--results", "~/elsewhere")
    assert (status, "(01_curves.png)" in stdout) == (0, True)
    assert sorted(path.suffix for path in (root / "report").iterdir()) == [".json", ".png", ".svg"]


def commands(group, *names):
    """The names and the command of everything that can be called."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield [*names, name], command


@pytest.mark.parametrize(("names", "command"), [*commands(typer.main.get_command(cli.app))], ids=str)
def test_help_has_an_example_that_is_understood(resnotes, names, command):
    status, stdout, _ = resnotes(*names, "--help")
    assert (status, stdout.isascii()) == (0, True)
    head, example = stdout.rstrip().splitlines()[-2:]
    program, *arguments = shlex.split(example)
    assert (head.strip(), program, arguments[: len(names)]) == ("Example:", "resnotes", names)
    command.make_context(names[-1], arguments[len(names) :])


def test_the_version_is_said(resnotes):
    assert resnotes("--version") == (0, f"resnotes {__version__}\n", "")


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
    nothing = (1, "", f"resnotes: no runs in {paths.runs_root()}; `resnotes train` makes them\n")
    assert [resnotes("runs", *command) for command in (["list"], ["show", "vgg"], ["verify"])] == [nothing] * 3
    run = RunStore().get(profiles.load("tiny").study("small").spec("plain-8 width=4", 0), device="cpu")
    status, stdout, _ = resnotes("runs", "list")
    assert (status, stdout.count("\n")) == (0, 1)
    name, iterations, _, variant, _, clean, _, _, test, _, study, option = stdout.split()
    assert (name, iterations, variant, study, option) == (run.name, "2", "digits", "tiny/small", "width=4")
    assert float(clean) == pytest.approx(run.final.clean_error, abs=0.005)
    assert float(test) == pytest.approx(run.final.test_error, abs=0.005)
    assert resnotes("runs", "list", "--recorded")[2].startswith("resnotes: no runs in")


def test_runs_of_nearly_the_same_name_are_told_apart():
    spec = profiles.load("quick").study("degradation").spec("resnet-20", 0)
    slower, other = (replace(spec, **changed) for changed in ({"recipe": replace(spec.recipe, lr=0.01)}, {"seed": 1}))
    wide = replace(spec, options={"width": 4, "shortcut": "B"}, train_images=100)
    assert catalogue.differences([spec, slower, wide, other]) == {
        spec.name: "lr=0.1 train_images=None",
        slower.name: "lr=0.01 train_images=None",
        wide.name: "width=4 shortcut=B lr=0.1 train_images=100",
        other.name: "",
    }
    assert "quick/degradation" in catalogue.studies()[spec.name]


def test_what_is_no_run_names_those_that_begin_alike(trained, resnotes, tmp_path, monkeypatch):
    for name in ("", "PLAIN-8", "plain-9"):
        status, stdout, stderr = resnotes("runs", "show", name)
        assert (status, stdout, f"unknown run {name!r}; allowed: {trained[0].name}" in stderr) == (2, "", True)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESNOTES_RUNS", str(tmp_path / "file" / "runs"))
    assert resnotes("runs", "list") == (2, "", f"resnotes: {tmp_path / 'file'} is a file; expected a folder\n")


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
    command = f"{sys.executable} -m resnotes runs show plain | true; echo ${{PIPESTATUS[0]}}"
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
        (["run", "9"], "'9'; allowed: 01_a\n"),
        (["run", "1"], "'1'; allowed: 01_a; did you mean 01_a?\n"),
        (["run", "--profile", "huge"], "allowed: quick\n"),
        (["run", "--profile", "Quik"], "did you mean quick?"),
        (["run", "-p", "sed=1"], "01_a takes profile='quick', seed=0"),
        (["run", "-p", "sed=1"], "did you mean seed?"),
        (["run", "-p", "seed=1", "-p", "seed=2"], "'seed' is given twice"),
        (["train", "--profile", "huge"], "unknown profile 'huge'; allowed: tiny"),
        (["train", "--profile", "tiny", "--study", "big"], "allowed: small\n"),
        (["train", "--profile", "tiny", "--study", "smal"], "did you mean small?"),
        (["data", "fetch", "imagenet"], "unknown data set 'imagenet'; allowed: digits, "),
        (["claims", "--verdict", "True"], "did you mean true?"),
        (["claims", "--scope", "paper"], "allowed: live, recorded, published"),
        (["claims", "--format", "csv"], "allowed: table, json, md"),
        (["claims", "--results", " "], "found an empty one"),
        (["claims", "--results", "~nobody-is-called-so/out"], "'~nobody-is-called-so/out' is no path"),
        (["run", "--list", "--out", ""], "found an empty one"),
        (["report", "--out", ""], "found an empty one"),
        (["figures", "--to", ""], "found an empty one"),
        (["figures"], "expected --out"),
        (["figures", "--out", "run", "--to", "slides"], "expected --out"),
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
    assert (
        f"published  missing\n{'':<10} 0 of 13 networks in {root / 'data' / 'weights'}; missing or damaged: " in stdout
    )
    assert resnotes("data", "fetch", "digits") == (0, "", "digits: there is nothing to download\n")
