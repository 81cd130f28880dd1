"""What a command that is interrupted or killed leaves of its notebooks: no process, and nothing that counts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
from kit.calls import until
from kit.notebooks import deciding, write_notebook

import resnotes as package
from resnotes import paths
from resnotes.book import claims
from resnotes.book.pages import write_index
from resnotes.book.report import write_report
from resnotes.book.results import read_results

PATIENCE = 300  # seconds, where each of a dozen processes that start has a part of a core

SLEEPS = """
import time
print("in the middle")
Path("{mark}").touch()
time.sleep(600)
"""
DRAWS = """
import time
import matplotlib.pyplot as plt
from resnotes import figures

figures.save(plt.figure(), "{stem}", caption="", caption_zh="", claims=[], data={{}}, parameters={{}})
plt.close()
Path("{mark}").touch()
time.sleep({seconds})
"""
TRAINS = """
from resnotes.training.recipe import Recipe
from resnotes.runs.store import RunStore
from resnotes.runs.spec import RunSpec

recipe = Recipe(iterations=10**6, batch_size=64)
specs = [RunSpec(model="plain-8", dataset="digits", seed=seed, recipe=recipe) for seed in (0, 1)]
list(RunStore().start(specs, device="cpu", workers=2))
"""


def processes(out):
    """All that belong to the command, also what has lost its parent: environments are inherited."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RESNOTES_OUT") == str(out):
                found.append(process)
        except psutil.Error:
            continue
    return found


def orphans(command, out):
    """What still runs some seconds after the end of the command."""
    command.wait(60)
    return psutil.wait_procs(processes(out), timeout=20)[1]


@pytest.fixture
def start(tmp_path):
    """Starts `resnotes run` on notebooks, in a group of processes of its own, and ends it whatever the test found."""

    def starting(cells):
        for stem, cell in cells.items():
            first = "from pathlib import Path; print('first')"
            write_notebook(tmp_path / "notebooks", stem, first, cell, parameters="x = 1")
        program = (
            "import signal, sys; from pathlib import Path; from resnotes import cli, paths;"
            "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's background jobs ignore it
            f"paths.project_root = lambda: Path({str(tmp_path)!r});"
            "sys.argv = ['resnotes', 'run', '--jobs', '2']; cli.main()"
        )
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RESNOTES_")}
        environment |= {"PYTHONPATH": str(Path(package.__file__).parents[1]), "RESNOTES_OUT": str(tmp_path / "out")}
        environment |= {"RESNOTES_RUNS": str(tmp_path / "runs")}
        return subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    yield starting
    for process in processes(tmp_path / "out"):
        process.kill()


def test_an_interrupt_ends_notebooks_kernels_and_trainings(start, tmp_path):
    mark, out = tmp_path / "mark", tmp_path / "out"
    command = start({"01_a": SLEEPS.format(mark=mark), "02_a": TRAINS})
    until(lambda: mark.exists() and len(list(tmp_path.glob("runs/*/history.csv"))) == 2, PATIENCE)
    assert sum("ipykernel_launcher" in process.cmdline() for process in processes(out)) == 2
    assert len(processes(out)) > 5, "the command, a papermill and a kernel for each notebook, and what trains"
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does
    assert orphans(command, out) == []
    stdout, stderr = command.communicate()
    assert (command.returncode, stderr) == (130, "resnotes: interrupted; what was finished is kept\n")
    assert (stdout.count(": started"), stdout.count(": done")) == (2, 0)
    for stem in ("01_a", "02_a"):
        notebook = nbformat.read(out / "notebooks" / f"{stem}.ipynb", 4)
        assert notebook.cells[-2].outputs[0].text == "first\n"
        assert notebook.metadata.resnotes.failed
    assert not [path for path in out.rglob(".*") if path.is_file()]


def test_a_command_that_is_killed_has_not_finished(start, tmp_path, resnotes, monkeypatch):
    """What it claimed so far counts nowhere; an execution of before, which it replaced, is gone. What ended, counts."""
    mark, out = tmp_path / "mark", tmp_path / "out"
    first, second = "01_degradation", "02_identity_mappings"

    def claims_and_draws(stem, seconds=0):
        draws = DRAWS.format(stem=stem, seconds=seconds, mark=mark if seconds else tmp_path / stem)
        return deciding(tmp_path / "notebooks", stem) + draws

    other = claims_and_draws(second)
    assert start({first: claims_and_draws(first), second: other}).wait(PATIENCE) == 0
    assert len(read_results(out).claims) == 2
    command = start({first: claims_and_draws(first, seconds=600), second: other})
    until(mark.exists, PATIENCE)
    until(lambda: [claim["notebook"] for claim in claims.load(out / "claims.json")] == [second], PATIENCE)
    command.kill()
    assert orphans(command, out) == []

    results = read_results(out)
    assert [(book.stem, book.state) for book in results.notebooks] == [(first, "unfinished"), (second, "done")]
    assert [claim["notebook"] for claim in results.claims] == [second]
    assert [figure["name"] for figure in results.figures] == [second]
    kept = nbformat.read(out / "notebooks" / f"{first}.ipynb", 4)
    assert kept.cells[-2].outputs[0].text == "first\n"

    monkeypatch.setenv("RESNOTES_OUT", str(out))
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    listed = resnotes("run", "--list")[1]
    assert listed.index("last run not finished") < listed.index("done")
    assert resnotes("claims")[1].count("Said by") == 1
    assert not (out / "index.html").exists(), "it would be that of before"
    assert "not finished" in write_index(out).read_text()
    for lang, words in (("en", "The notebook was not finished"), ("zh", "该笔记本未执行完")):
        report = write_report(results, tmp_path / lang, lang=lang)
        for page in (report, report.with_suffix(".html")):
            assert words in page.read_text()
            assert "Said by 01_degradation" not in page.read_text()
