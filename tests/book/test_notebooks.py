import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.notebooks import write_notebook
from nbformat import v4
from PIL import Image

import resnotes
from resnotes import paths
from resnotes.book import notebooks, rendering
from resnotes.book.execution import execute
from resnotes.book.lifeline import Lifeline
from resnotes.book.notebooks import parse_overrides, select
from resnotes.book.tidy import hygiene, refresh, tidied
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
    with pytest.raises(ResnotesError, match=f"^no notebooks in {root / 'notebooks'}; they come with a checkout"):
        select([])


def test_select_by_number_stem_and_name(root):
    for stem in ("02_identity_mappings", "01_degradation", "scratch"):
        write_notebook(root / "notebooks", stem)
    both = ["01_degradation", "02_identity_mappings"]
    assert [found.stem for found in select([])] == both
    assert [found.stem for found in select(["identity_mappings", "01", "01_degradation"])] == both
    with pytest.raises(UsageError, match=r"'1_degradation'; allowed: 01_degradation, 02_identity_mappings$"):
        select(["1_degradation"])


def test_parameters_are_typed_defaults(book):
    assert book.parameters == {
        **{"profile": "quick", "seed": 0, "rate": 0.1},
        **{"depths": [20, 56], "noisy": False, "note": None},
    }


@pytest.mark.parametrize("source", ["seed = 1 + x", "import os", "a = b = 1", "a, b = 1, 2", "x = ["])
def test_parameters_cell_holds_literals_only(root, source):
    with pytest.raises(ResnotesError, match="literals"):
        _ = write_notebook(root, "01_a", parameters=source).parameters


def test_overrides_are_literals_or_words(book):
    settings = ["seed=3", "rate=1", "depths=[20, 110]", "noisy=true", "profile=desk", "note=free text"]
    expected = {"seed": 3, "rate": 1.0, "depths": [20, 110], "noisy": True, "profile": "desk", "note": "free text"}
    found = parse_overrides(settings, [book])
    assert found == expected
    assert isinstance(found["rate"], float)


@given(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.integers()),
    st.booleans(),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5),
)
def test_overrides_round_trip_in_python_and_json(book, seed, rate, depths, noisy, note):
    values = {"seed": seed, "rate": rate, "depths": depths, "noisy": noisy, "note": note}
    for write in (repr, json.dumps):
        assert parse_overrides([f"{name}={write(value)}" for name, value in values.items()], [book]) == values


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sed=3", "unknown parameter 'sed'; allowed: 01_a takes profile='quick', seed=0"),
        ("seed=three", "'seed' expects int like 0, found 'three'"),
        ("seed=1.5", "'seed' expects int"),
        ("seed=True", "'seed' expects int"),
        ("noisy=1", "'noisy' expects bool"),
        ("depths=20", "'depths' expects list"),
        ("depths=[20, 'x']", "'depths' expects int"),
        ("profile=huge", "unknown profile 'huge'; allowed: desk, quick"),
        ("seed", "not of the form name=value"),
    ],
)
def test_overrides_refused_in_one_line(book, setting, message):
    with pytest.raises(UsageError) as caught:
        parse_overrides([setting], [book])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_notebook_is_given_what_it_takes_and_failures_stay_apart(root, monkeypatch):
    """One run with everything that can happen, since each kernel takes seconds to start."""
    monkeypatch.setenv("RESNOTES_RUNS", "relative")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folder = root / "notebooks"
    ledger = "from resnotes.book.ledger import Ledger; ledger = Ledger('{}', profile, 'digits', [seed])\n"
    claim = (
        "ledger.record('a.b', 'Yes.', statement_zh='是', source='', expected='', expected_zh='',"
        " measured=1, holds=True)"
    )
    books = [
        write_notebook(
            folder,
            "01_good",
            "import os, sys, resnotes; from pathlib import Path\n"
            "print([seed, rate, sys.executable, os.getcwd(), os.environ['OMP_NUM_THREADS'], resnotes.__file__])\n"
            "print(os.environ['RESNOTES_RUNS'])",
            ledger.format("01_good") + claim,
        ),
        write_notebook(
            folder, "02_fails", ledger.format("02_fails") + claim, "seed / 0", parameters="seed = 1\nprofile = ''"
        ),
        write_notebook(folder, "03_dies", "import os; os._exit(3)", parameters="x = 1"),
        write_notebook(folder, "04_hangs", "import time; time.sleep(600)", parameters="x = 1"),
    ]
    lines = []
    out = root / "out"
    good, fails, dies, hangs = execute(
        books, {"seed": 7, "rate": 1e-05}, out, jobs=2, cell_timeout=15, report=lines.append
    )

    assert (good.failure, good.output) == (None, out / "notebooks/01_good.ipynb")
    printed = nbformat.read(good.output, 4).cells[3].outputs[0].text.splitlines()
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert printed == [
        str([7, 1e-05, sys.executable, str(root), str(threads), resnotes.__file__]),
        str(Path.cwd() / "relative"),
    ]
    assert "02_fails: cell In [4] raised ZeroDivisionError: division by zero" in fails.failure
    assert "----> 1 seed / 0" in fails.failure
    assert "\x1b" not in fails.failure
    assert "03_dies: cell In [2] ended its kernel" in dies.failure
    assert "04_hangs: cell In [2] took longer than 15 s" in hangs.failure
    for failed in (fails, dies, hangs):
        assert failed.failure.endswith(f"partial notebook: {failed.output}")
    for execution in (good, fails, dies, hangs):
        noted = nbformat.read(execution.output, 4).metadata.resnotes
        assert (noted.failed, noted.seconds) == (execution is not good, round(execution.seconds, 1))
        assert execution.output.with_suffix(".html").stat().st_size > 0
    assert [path.name for path in (out / "claims").iterdir()] == ["01_good.json"], "failed ones lose their claims"
    assert len(lines) == 8
    assert "01_good: started" in lines


def test_what_goes_wrong_around_a_notebook_fails_it_alone_and_old_figures_go(root, monkeypatch):
    """Of the first no page can be made, the second is cut while it is written."""
    folder = root / "out" / "figures"
    (folder / "thumbnails").mkdir(parents=True)
    stale = [folder / "01_old.png", folder / "01_old.json", folder / "thumbnails" / "01_old.png"]
    others = [folder / "010_other.png", folder / "04_other.png"]
    for path in (*stale, *others):
        path.touch()
    page, papermill = rendering.notebook_page, Lifeline.papermill

    def rendered(notebook, title):
        if title == "01_a":
            raise ValueError("too much")
        return page(notebook, title)

    def cut(lifeline, environment, *, output_path, **arguments):
        done = papermill(lifeline, environment, output_path=output_path, **arguments)
        if "02_a" in output_path:
            Path(output_path).write_bytes(Path(output_path).read_bytes()[:200])
            done.returncode = -9
        return done

    monkeypatch.setattr(rendering, "notebook_page", rendered)
    monkeypatch.setattr(Lifeline, "papermill", cut)
    books = [write_notebook(root / "notebooks", f"0{number}_a", parameters="x = 1") for number in (1, 2, 3)]
    one, two, three = execute(books, {}, root / "out", report=lambda line: None)
    kept = f"the notebook is there: {one.output}"
    assert one.failure == f"01_a: no page could be made of it, ValueError: too much\n{kept}"
    assert two.failure.startswith("02_a: could not be executed")
    assert two.failure.endswith("no cell was executed")
    assert three.failure is None
    assert three.output.with_suffix(".html").exists()
    assert [path.exists() for path in (*stale, *others)] == [False] * 3 + [True] * 2


def test_refresh_leaves_clean_outputs_and_stable_ids(root):
    code = (
        "import os, sys; print(os.getcwd(), end='', flush=True); print('warning', file=sys.stderr, flush=True);"
        "print('/data'); profile"
    )
    book = write_notebook(root / "notebooks", "01_a", code)
    before = nbformat.read(book.path, 4)
    refresh()
    after = nbformat.read(book.path, 4)
    assert hygiene(after) == []
    assert [cell.id for cell in after.cells] == [cell.id for cell in before.cells]
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert [output.get("text") or output.data["text/plain"] for output in after.cells[2].outputs] == [
        "./data\n",
        "'quick'",
    ]


def test_refresh_keeps_a_notebook_that_fails(root):
    book = write_notebook(root / "notebooks", "01_a", "1 / 0")
    before = book.path.read_bytes()
    with pytest.raises(ResnotesError, match="ZeroDivisionError"):
        refresh()
    assert book.path.read_bytes() == before


def stream(text, name="stdout"):
    return lambda cell: cell.outputs.append(v4.new_output("stream", name=name, text=text))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (stream("saved /home/me/x.png\n"), "absolute path '/home/me/x.png'"),
        (stream("saved C:\\Users\\me\n"), "absolute path 'C:"),
        (stream("on 2026-01-31 12:00\n"), "the time '2026-01-31 12:00'"),
        (stream("<Styler object at 0x7f434bf07ad0>\n"), "prints where an object lies, 'at 0x7f434bf07ad0'"),
        (stream("warning\n", "stderr"), "not tidy"),
        (lambda cell: cell.outputs.append(v4.new_output("error", ename="E")), "error"),
        (lambda cell: cell.metadata.update(papermill={}), "not tidy"),
        (lambda cell: cell.metadata.update(execution={}), "not tidy"),
        (lambda cell: cell.metadata.update(tags=["injected-parameters"]), "not tidy"),
        (lambda cell: cell.metadata.update(tags=["parameters"]), "second cell"),
        (lambda cell: cell.pop("id"), "cell id"),
    ],
)
def test_hygiene_names_what_is_wrong_and_tidying_mends_what_it_can(book, damage, problem):
    notebook = nbformat.read(book.path, 4)
    notebook.cells.append(v4.new_code_cell("1"))
    assert hygiene(notebook) == []
    damage(notebook.cells[-1])
    [violation] = hygiene(notebook)
    assert problem in violation
    if problem == "not tidy":
        assert hygiene(tidied(notebook, {})) == []


def test_hygiene_of_the_whole_notebook(book):
    notebook = nbformat.read(book.path, 4)
    notebook.metadata.kernelspec.name = "mine"
    notebook.metadata.papermill = {}
    notebook.nbformat_minor = 4
    notebook.cells[0].source = "Title"
    assert len(hygiene(notebook)) == 2


@pytest.mark.parametrize("text", ["1/2 of a/b", "https://arxiv.org/abs/1512.03385", "<td>x</td></tr>", "./out/a.png"])
def test_hygiene_takes_no_fraction_link_or_tag_for_a_path(book, text):
    notebook = nbformat.read(book.path, 4)
    notebook.cells.append(v4.new_code_cell("1"))
    stream(text)(notebook.cells[-1])
    assert hygiene(notebook) == []


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebooks_are_hygienic(path):
    notebook = notebooks.read(path)
    nbformat.validate(notebook)
    assert hygiene(notebook) == []


def test_committed_figures_have_a_white_ground():
    """Or they could not be read where a page is dark."""
    outputs = [
        output for path in COMMITTED for cell in notebooks.read(path).cells for output in cell.get("outputs", ())
    ]
    figures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", ())]
    assert figures
    for figure in figures:
        image = Image.open(io.BytesIO(base64.b64decode(figure))).convert("RGBA")
        right, bottom = image.width - 1, image.height - 1
        corners = {image.getpixel(corner) for corner in ((0, 0), (right, 0), (0, bottom), (right, bottom))}
        assert corners == {(255, 255, 255, 255)}


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
