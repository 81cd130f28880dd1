import json
import subprocess
import sys
import time

import pandas as pd
import pytest
from matplotlib.figure import Figure
from test_notebooks import write_notebook

from resnotes import cli, figures, notebooks, paths
from resnotes.claims import Ledger, interval, load
from resnotes.report import write_index


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty project with one profile."""
    monkeypatch.setenv("RESNOTES_OUT", str(tmp_path / "out"))
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    monkeypatch.setattr(notebooks, "profiles", lambda: ["quick"])
    return tmp_path


@pytest.fixture
def resnotes(monkeypatch, capsys):
    """Runs the command line; returns exit status, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["resnotes", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return call


def add_claim(holds=True, statement="Deeper <b>is</b> worse."):
    ledger = Ledger("01_a", "quick", "digits", [0, 1])
    ledger.record(
        "a.deeper",
        statement,
        statement_zh="越深越差。",
        source="He et al.",
        expected="worse",
        measured=interval([1, 2], "%"),
        holds=holds,
    )


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
        "from resnotes.claims import Ledger; ledger = Ledger('01_a', profile, 'digits', [seed])\n"
        "_ = ledger.record('a.b', 'Yes.', statement_zh='是', source='', expected='', measured=seed, holds=True)",
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
    assert sorted(path.name for path in (out / "figures").iterdir()) == ["empty.json", "empty.pdf", "empty.png"]
    page = (out / "index.html").read_text()
    assert "1 claim:" in page
    assert (page.count("<td>done</td>"), page.count('<td class="failed">failed</td>')) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["run", "9"], "'9'; allowed: 01_a"),
        (["run", "--profile", "huge"], "allowed: quick"),
        (["run", "-p", "sed=1"], "01_a takes profile='quick', seed=0"),
        (["run", "-p", "seed=x"], "seed=0"),
    ],
)
def test_what_is_unknown_is_refused_in_one_line(root, resnotes, arguments, names):
    write_notebook(root / "notebooks", "01_a")
    status, stdout, stderr = resnotes(*arguments)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert names in stderr


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


def test_damaged_claims_end_in_a_message(root, resnotes):
    (root / "out").mkdir()
    (root / "out/claims.json").write_text("[{")
    status, _, stderr = resnotes("claims")
    assert status == 1
    assert stderr.startswith("resnotes: cannot read")
    assert stderr.count("\n") == 1


def test_figures_are_exported_with_markdown(root, resnotes):
    status, _, stderr = resnotes("figures", "--to", root / "report")
    assert (status, stderr.count("\n")) == (1, 1)
    add_figure()
    status, stdout, _ = resnotes("figures", "--to", root / "report")
    assert status == 0
    assert "(curves.png)" in stdout
    assert (root / "report/curves.pdf").exists()


def test_index_escapes_and_needs_no_network(root):
    add_claim()
    add_figure()
    index = write_index(root / "out")
    page = index.read_text()
    assert json.loads((root / "out/claims.json").read_text())[0]["id"] == "a.deeper"
    assert "Deeper &lt;b&gt;is&lt;/b&gt; worse." in page
    assert 'alt="Error &#34;curves&#34; &lt;i&gt;"' in page
    assert "✓ true" in page
    assert "://" not in page
    assert "prefers-color-scheme: dark" in page
    assert write_index(root / "out").read_text() == page


def test_help_comes_at_once():
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "resnotes", "--help"], capture_output=True, text=True
    )
    assert time.perf_counter() - start < 2, "half a second when idle"
    assert "run" in done.stdout
    assert not [heavy for heavy in ("torch", "matplotlib", "pandas", "nbconvert") if f" {heavy}\n" in done.stderr]
