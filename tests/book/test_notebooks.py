"""Notebooks: found, given what they take, executed each on its own; and those of the repository are fit to be there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.notebooks import deciding, write_notebook

import resnotes
from resnotes import paths
from resnotes.book import execution, notebooks, rendering
from resnotes.book.execution import execute
from resnotes.book.notebooks import parse_overrides, select
from resnotes.book.tidy import refresh, tidied
from resnotes.errors import ResnotesError, UsageError

PACKAGE = Path(resnotes.__file__).parent
COMMITTED = sorted((PACKAGE.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty project with the profiles quick and desk."""
    monkeypatch.setenv("RESNOTES_OUT", str(tmp_path / "out"))
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    monkeypatch.setattr(notebooks, "profiles", lambda: ["desk", "quick"])
    return tmp_path


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return write_notebook(tmp_path_factory.mktemp("book"), "01_a")


def test_without_a_checkout_there_are_none(root):
    with pytest.raises(ResnotesError, match="such files come with a checkout"):
        select([])


def test_select_by_number_stem_and_name(root):
    for stem in ("02_identity_mappings", "01_degradation", "scratch"):
        write_notebook(root / "notebooks", stem)
    both = ["01_degradation", "02_identity_mappings"]
    assert [found.stem for found in select([])] == both
    assert [found.stem for found in select(["identity_mappings", "01", "01_degradation"])] == both
    with pytest.raises(
        UsageError,
        match=r"'1_degradation'; allowed: 01_degradation, 02_identity_mappings; did you mean 01_degradation\?$",
    ):
        select(["1_degradation"])


@pytest.mark.parametrize("source", ["seed = 1 + x", "import os", "a = b = 1", "x = [", "x = {[]: 1}"])
def test_parameters_cell_holds_literals_only(root, source):
    with pytest.raises(ResnotesError, match="literals"):
        _ = write_notebook(root, "01_a", parameters=source).parameters


def test_overrides_are_literals_or_words(book):
    settings = ["seed=3", "rate=1", "depths=[20, 110]", "noisy=true", "profile=desk", "note=free text"]
    expected = {"seed": 3, "rate": 1.0, "depths": [20, 110], "noisy": True, "profile": "desk", "note": "free text"}
    found = parse_overrides(settings, [book])
    assert found == expected
    assert isinstance(found["rate"], float)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_overrides_round_trip(book, note):
    assert parse_overrides([f"note={note!r}"], [book]) == {"note": note}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sed=3", "unknown parameter 'sed'; allowed: 01_a takes profile='quick', seed=0"),
        ("seed=1.5", "'seed' expects int like 0, found 1.5"),
        ("seed=True", "'seed' expects int"),
        ("seed=-1", "'seed' expects a whole number from 0 on, like 0, found -1"),
        ("depths=[-20]", "'depths' expects a whole number from 0 on, like 20, found -20"),
        ("depths=20", "'depths' expects list"),
        ("depths=[20, 'x']", "'depths' expects int"),
        ("depths=[20, 56, 20]", "'depths' expects values, each once, like [20, 56], found [20, 56, 20]"),
        ("depths=[]", "'depths' expects values"),
        ("rate=1" + 400 * "0", "'rate'"),
        ("seed={[]: 1}", "'seed' expects int"),
        ("profile=huge", "unknown profile 'huge'; allowed: desk, quick"),
        ("seed", "not of the form name=value"),
    ],
)
def test_overrides_refused_in_one_line(book, setting, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        parse_overrides([setting], [book])
    assert "\n" not in str(caught.value)


def test_each_notebook_is_given_what_it_takes_and_failures_stay_apart(root, monkeypatch):
    """One run with everything that can happen, since each kernel takes seconds to start."""
    monkeypatch.setenv("RESNOTES_RUNS", "relative")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (root / "out" / "figures").mkdir(parents=True)
    stale, other = (root / "out" / "figures" / f"{number}_old.png" for number in ("01", "010"))
    for path in (stale, other):
        path.touch()
    cells = {
        "01_good": [
            "import os, sys, resnotes; print([seed, rate, sys.executable, os.getcwd(), resnotes.__file__])\n"
            "print(os.environ['OMP_NUM_THREADS'], os.environ['RESNOTES_RUNS'])",
            deciding(root / "notebooks", "01_good"),
        ],
        "02_fails": [deciding(root / "notebooks", "02_fails"), "seed / 0"],
        "03_dies": ["import os; os._exit(3)"],
        "04_refuses": ["import resnotes.errors; raise resnotes.errors.UsageError('no such thing')"],
    }
    books = [write_notebook(root / "notebooks", stem, *sources) for stem, sources in cells.items()]
    lines = []
    good, *failed = execute(books, {"seed": 7, "rate": 1e-05}, root / "out", jobs=2, report=lines.append)
    assert (good.failure, good.output) == (None, root / "out/notebooks/01_good.ipynb")
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert nbformat.read(good.output, 4).cells[3].outputs[0].text.splitlines() == [
        str([7, 1e-05, sys.executable, str(root), resnotes.__file__]),
        f"{threads} {Path.cwd() / 'relative'}",
    ]
    said = ['In [4]":\n', "Kernel died: it was killed, ran out of memory", ": UsageError: no such thing\n"]
    for one, words in zip(failed, said, strict=True):
        assert one.failure.startswith(f"{one.notebook.stem}: ")
        assert words in one.failure
        assert one.failure.endswith(f"partial notebook: {one.output}")
    assert "----> 1 seed / 0\n\nZeroDivisionError: division by zero" in failed[0].failure
    for one in (good, *failed):
        noted = nbformat.read(one.output, 4).metadata.resnotes
        assert (noted.failed, noted.seconds) == (one is not good, round(one.seconds, 1))
        assert one.output.with_suffix(".html").stat().st_size > 0
    assert [path.name for path in (root / "out/claims").iterdir()] == ["01_good.json"], "failed ones lose their claims"
    assert (stale.exists(), other.exists()) == (False, True)
    assert len(failed[-1].failure.splitlines()) == 2, "what we refuse takes no traceback"
    assert len(lines) == 8
    assert "01_good: started" in lines


def test_a_notebook_that_hangs_is_ended(root):
    hanging = write_notebook(root / "notebooks", "01_hangs", "import time; time.sleep(600)")
    [ended] = execute([hanging], {}, root / "out", cell_timeout=2, report=lambda line: None)
    assert "after 2 seconds" in ended.failure
    assert nbformat.read(ended.output, 4).metadata.resnotes.failed


def test_what_goes_wrong_around_a_notebook_fails_it_alone(root, monkeypatch):
    """Of the first no page can be made, the second is cut while it is written."""
    page, execute_in_child = rendering.notebook_page, execution.execute_in_child

    def rendered(notebook, stem, figures):
        if stem == "01_a":
            raise ValueError("too much")
        return page(notebook, stem, figures)

    def cut(held, environment, *, output_path, **arguments):
        done = execute_in_child(held, environment, output_path=output_path, **arguments)
        if "02_a" in output_path:
            Path(output_path).write_bytes(Path(output_path).read_bytes()[:200])
            done.returncode = -9
        return done

    monkeypatch.setattr(rendering, "notebook_page", rendered)
    monkeypatch.setattr(execution, "execute_in_child", cut)
    books = [write_notebook(root / "notebooks", f"0{number}_a", parameters="x = 1") for number in (1, 2, 3)]
    one, two, three = execute(books, {}, root / "out", report=lambda line: None)
    assert one.failure == f"01_a: no page could be made of {one.output}, ValueError: too much"
    assert two.failure.startswith("02_a: papermill ended with status -9")
    assert two.failure.endswith("no cell was executed")
    assert not two.output.exists()
    assert three.failure is None
    assert three.output.with_suffix(".html").exists()


def test_refresh_leaves_clean_outputs_and_stable_ids_and_what_fails_as_it_was(root):
    code = (
        "import os, sys; print(os.getcwd(), end='', flush=True); print('warning', file=sys.stderr, flush=True);"
        "print('/data'); profile"
    )
    book, failing = (write_notebook(root / "notebooks", *cell) for cell in (("01_a", code), ("02_b", "1 / 0")))
    before, kept = nbformat.read(book.path, 4), failing.path.read_bytes()
    with pytest.raises(ResnotesError, match=r"(?s)^02_b: .*ZeroDivisionError"):
        refresh()
    assert failing.path.read_bytes() == kept
    after = nbformat.read(book.path, 4)
    stdout, value = after.cells[2].outputs
    assert (stdout.text, value.data["text/plain"]) == ("./data\n", "'quick'")
    assert after == tidied(after, {})
    assert [(cell.id, cell.source) for cell in after.cells] == [(cell.id, cell.source) for cell in before.cells]


# What no output may print, as it is another one on each machine or each time: an absolute path, the time, where an
# object lies.
UNFIT = (
    r"(?<![\w./:<~\\-])/(?:[\w.~-]+/)+[\w.~-]+|\b[A-Za-z]:\\[\w.~-]+",
    r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d",
    r"\bat 0x[0-9a-fA-F]+",
)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebooks_are_fit_to_be_shown(path):
    notebook = notebooks.read(path)
    nbformat.validate(notebook)
    assert notebook == tidied(notebook, {}), "`make notebooks` makes it so"
    assert notebook.cells[0].cell_type == "markdown"
    assert re.match(r"# .*[\u4e00-\u9fff]", notebook.cells[0].source, re.DOTALL), "a title and a Chinese abstract"
    tagged = [position for position, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [1]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        assert output.output_type != "error"
        data = output.get("data", {})
        for text in [output.get("text", ""), *(data[mime] for mime in data if mime.startswith("text/"))]:
            assert [re.findall(pattern, text) for pattern in UNFIT] == [[], [], []]


def test_a_checkout_with_spaces_and_other_scripts_in_its_path(tmp_path):
    checkout = tmp_path / "résnotes 测试 dir"
    shutil.copytree(PACKAGE, checkout / "resnotes", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("Makefile", "pyproject.toml"):
        shutil.copy2(PACKAGE.parent / file, checkout)
    package = checkout / "resnotes/__init__.py"
    check = f"import resnotes; assert resnotes.__file__ == {str(package)!r}, resnotes.__file__"
    write_notebook(checkout / "notebooks", "01_a", check)
    # Another python3 kernel comes first for this user, and must not be the one that runs.
    kernel = tmp_path / "jupyter/kernels/python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "wrong", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RESNOTES_")}
    # This interpreter's environment is set up already, whatever its stamp says: make need not make it.
    stamp = Path(sys.prefix) / ".resnotes-installed"
    done = subprocess.run(
        ["make", "--silent", "run", f"VENV={sys.prefix}", f"--old-file={stamp}"],
        cwd=checkout,
        env={**environment, "JUPYTER_PATH": str(kernel.parent.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    index = Path(done.stdout.splitlines()[-1])
    assert index == checkout / "out/index.html"
    assert "Notebook 01_a" in index.read_text()
