"""Processes that are killed, full disks, locks that are left, clocks that go back: results stay what they are."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import psutil
import pytest
from filelock import FileLock
from kit import crashes
from kit import runs as kit_runs
from kit.cifar10 import IMAGE, as_folder, encoded, pixels, tree
from kit.notebooks import write_notebook
from kit.runs import SPEC, assert_same_run, content
from typer.testing import CliRunner

import resnotes
from resnotes import datasets, paths
from resnotes.book import ledger
from resnotes.book.index import write_index
from resnotes.book.report import write_report
from resnotes.book.results import read_results
from resnotes.cli import app
from resnotes.errors import RunError
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import Run, RunStore
from resnotes.training.recipe import Recipe

SHORT = dataclasses.replace(SPEC, recipe=dataclasses.replace(SPEC.recipe, iterations=5, snapshots=(4,)))
# 24 epochs, in a second or two.
LONG = dataclasses.replace(SPEC, recipe=dataclasses.replace(SPEC.recipe, iterations=48, snapshots=(14,)))
FILES = ["model.safetensors", "run.json", "spec.json", "iteration-000004.safetensors"]

store = kit_runs.store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs that were not interrupted."""
    root = tmp_path_factory.mktemp("whole")
    return {spec.name: RunStore(root, root / "recorded").get(spec, device="cpu") for spec in (SHORT, LONG)}


def assert_whole(run: Run, whole: dict[str, Run]) -> None:
    """It is what an uninterrupted one is, with nothing else in the folder."""
    assert sorted(content(run.folder)) == sorted(content(whole[run.name].folder))
    assert_same_run(run, whole[run.name])


def epochs(folder: Path) -> int:
    """How many a run has behind it, killed or not."""
    path = folder / "history.csv"
    return len(pd.read_csv(path)) if path.exists() else 0


def wait_until(reached: Callable[[], object], process: Any) -> None:
    """Wait for what `process` does, as long as it runs."""
    limit = time.monotonic() + 120
    while not reached() and (process.exitcode if isinstance(process, ForkServerProcess) else process.poll()) is None:
        assert time.monotonic() < limit
        time.sleep(0.005)


# Killed


def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path, whole: dict[str, Run]) -> None:
    """Each process is killed within some epochs of where the last one was, as often as not before its first one."""
    draw = random.Random(0)
    moments: list[int] = []  # epochs that were behind a process when it was killed
    finished: list[Run] = []
    while len(moments) < 10:
        folder = tmp_path / str(len(finished)) / LONG.name
        process = crashes.start(LONG, folder.parent)
        goal = epochs(folder) + draw.choice([0, 0, 1, 2, 4])
        wait_until(lambda folder=folder, goal=goal: epochs(folder) >= goal, process)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.join(120)
        if process.exitcode == -signal.SIGKILL:
            moments.append(epochs(folder))
        else:
            finished.append(Run(folder))
    finished.append(RunStore(tmp_path / str(len(finished))).get(LONG, device="cpu"))
    for run in finished:
        assert_whole(run, whole)
    assert sum(run.facts["resumed"] for run in finished) >= 3
    assert len(set(moments)) >= 4, "they are spread over the run"


def test_killed_before_any_change_of_a_file_a_run_goes_on(tmp_path: Path, whole: dict[str, Run]) -> None:
    """A file may then be whole but without its name; the next process clears that."""
    changed = ["spec", "history", "checkpoint", "iteration-000004", "history", "checkpoint", "history", "checkpoint"]
    changed += ["model", "run"]
    roots = [tmp_path / str(number) for number in range(len(changed) + 2)]
    killed = [crashes.start(SHORT, root, dies_at=number) for number, root in enumerate(roots)]
    for process in killed:
        process.join(120)
    # The last change is the removal of the checkpoint, and after that there is nothing to die of.
    assert [process.exitcode for process in killed] == [-signal.SIGKILL] * (len(changed) + 1) + [0]
    for root, name in zip(roots[: len(changed)], changed, strict=True):
        [leftover] = (root / SHORT.name).glob(".*")
        assert leftover.name.startswith(f".{name}.")
        assert RunStore(root).find(SHORT) is None
    (roots[-2] / SHORT.name / "checkpoint.pt").unlink()  # the one thing that is not missed, nor in the way
    for root in roots:
        assert_whole(RunStore(root, tmp_path / "recorded").get(SHORT, device="cpu"), whole)


def test_where_the_process_that_trains_is_killed_one_that_waits_takes_over(
    tmp_path: Path, whole: dict[str, Run]
) -> None:
    folder = tmp_path / "runs" / LONG.name
    first = crashes.start(LONG, folder.parent)
    wait_until(lambda: epochs(folder) >= 2, first)
    os.kill(first.pid, signal.SIGSTOP)  # or it might have finished by now
    others = [crashes.start(LONG, folder.parent) for _ in range(2)]
    time.sleep(0.5)
    assert [process.exitcode for process in (first, *others)] == [None] * 3
    first.kill()
    for process in others:
        process.join(120)
        assert process.exitcode == 0
    run = Run(folder)
    assert run.facts["resumed"] == 1, "by one of the two, the other found it finished"
    assert_whole(run, whole)


def test_a_lock_that_a_dead_process_left_stops_nobody(store: RunStore, whole: dict[str, Run]) -> None:
    lock = store.root / ".locks" / f"{SHORT.name}.lock"
    process = crashes.start(SHORT, store.root, dies_at=2)
    process.join(120)
    with FileLock(lock, timeout=0):  # no one waits for a process that is gone
        pass
    lock.write_text("4194304\nsome.other.machine\n")  # nor does it matter what the file says
    os.utime(lock, (0, 0))
    assert_whole(store.get(SHORT, device="cpu"), whole)


# Disks, rights, clocks, data


@pytest.mark.parametrize("file", ["history.csv", "checkpoint.pt", *FILES])
def test_a_disk_that_is_full_ends_a_run_and_costs_nothing_of_it(
    store: RunStore, whole: dict[str, Run], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """There is no room for the second version of a file, or for the first, where there is no other."""
    folder = store.root / SHORT.name
    spared = iter([True] if file in ("history.csv", "checkpoint.pt") else [])
    before: dict[str, bytes] = {}

    def full(path: Path, mode: int) -> None:
        if path.name.startswith(f".{file}.") and not next(spared, False):
            before.update({name: data for name, data in content(folder).items() if not name.startswith(".")})
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", full)  # the last thing that is done to a file before it gets its name
        message = r"cannot write to the run store: .*No space left on device, in .*runs; set RESNOTES_RUNS to a folder"
        with pytest.raises(RunError, match=message):
            store.get(SHORT, device="cpu")
    assert content(folder) == before, "all that was there is there, and no half of anything"
    assert store.find(SHORT) is None
    run = store.get(SHORT, device="cpu")
    assert run.facts["resumed"] == ("checkpoint.pt" in before)
    assert_whole(run, whole)


def test_a_store_that_cannot_be_locked_gives_what_it_has(
    whole: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that is a mere file would outlive a process that is killed, and stop whoever takes over."""
    fcntl = pytest.importorskip("fcntl")

    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    root = whole[SHORT.name].folder.parent
    assert RunStore(root).get(SHORT) == whole[SHORT.name]
    other = dataclasses.replace(SHORT, seed=1)
    with pytest.raises(RunError, match=r"cannot write to the run store: .*on a file system with locks"):
        RunStore(root).get(other)
    assert not (root / other.name).exists()


def test_a_clock_that_goes_back_changes_nothing(
    store: RunStore, whole: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an hour whenever someone looks; in the end the store's files are of later."""
    now = iter(range(2_000_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    monkeypatch.setattr(time, "time_ns", lambda: next(now) * 10**9)
    run = store.get(SHORT, device="cpu")
    assert_whole(run, whole)
    assert run.history.seconds.between(0, 60).all()
    for path in store.root.rglob("*"):
        os.utime(path, (4_000_000_000, 4_000_000_000))
    monkeypatch.setattr("resnotes.runs.store.train", lambda *_, **__: pytest.fail("trained again"))
    assert store.get(SHORT) == run


def test_data_with_other_times_is_the_same_data(root: Path) -> None:
    as_folder(tree(), root / "cifar10")
    before = datasets.load("cifar10", root).fingerprint
    for moment in (0, 4_000_000_000):  # a copy, or a clock that went back
        for path in (root / "cifar10").rglob("*"):
            os.utime(path, (moment, moment))
        assert datasets.load("cifar10", root).fingerprint == before


def test_a_data_folder_that_changes_between_runs_is_named_and_never_mixed(
    root: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNOTES_DATA", str(root))
    as_folder(tree(), root / "cifar10")
    recipe = Recipe(iterations=4, batch_size=10, precision="float32")
    spec = RunSpec(model="plain-8", dataset="cifar10", seed=0, recipe=recipe, options={"width": 4})
    run = store.get(spec, device="cpu")
    before, image = content(store.root), (root / "cifar10" / IMAGE).read_bytes()
    as_folder({IMAGE: encoded(pixels(99), "PNG")}, root / "cifar10")
    now = datasets.load("cifar10").fingerprint
    with pytest.raises(
        RunError, match=rf"\({run.fingerprint}\), but the data at hand is .* \({now}\); set RESNOTES_RUNS"
    ):
        store.get(spec, device="cpu")
    assert content(store.root) == before
    (root / "cifar10" / IMAGE).write_bytes(image)
    assert store.get(spec, device="cpu") == run


# Notebooks

SLEEPS = """
import os, time
print("in the middle")
Path("{mark}").write_text(str(os.getpid()))
time.sleep(600)
"""
CLAIMS = """
import time
import matplotlib.pyplot as plt
from resnotes import figures
from resnotes.book.ledger import Ledger

texts = dict(statement_zh="", source="", expected="", expected_zh="")
ledger = Ledger("{stem}", "quick", "digits", [0])
ledger.record("{study}.early", "Said too early.", measured=1, holds=True, **texts)
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


@dataclasses.dataclass
class Suite:
    """`resnotes run`, in a group of processes of its own, on notebooks that do not end."""

    root: Path
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, root: Path, *cells: str, name: str = "a") -> Suite:
        for number, cell in enumerate(cells, start=1):
            first = "from pathlib import Path; print('first')"
            write_notebook(root / "notebooks", f"0{number}_{name}", first, cell, parameters="x = 1")
        program = (
            "import signal, sys; from pathlib import Path; from resnotes import cli, paths;"
            "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's background jobs ignore it
            f"paths.project_root = lambda: Path({str(root)!r});"
            "sys.argv = ['resnotes', 'run', '--jobs', '2']; cli.main()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("RESNOTES_")},
                "PYTHONPATH": str(Path(resnotes.__file__).parent.parent),
                "RESNOTES_OUT": str(root / "out"),
                "RESNOTES_RUNS": str(root / "runs"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return cls(root, process)

    def processes(self) -> list[psutil.Process]:
        """All that belongs to it, also what has lost its parent: environments are inherited."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("RESNOTES_OUT") == str(self.root / "out")
        except psutil.Error:
            return False

    def orphans(self) -> list[psutil.Process]:
        """What still runs some seconds after the end of the command."""
        self.process.wait(60)
        return psutil.wait_procs(self.processes(), timeout=20)[1]

    def notebook(self, stem: str) -> Any:
        return nbformat.read(self.root / "out" / "notebooks" / f"{stem}.ipynb", 4)


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Callable[..., Suite]]:
    """Starts one, and ends it whatever the test found."""
    started: list[Suite] = []

    def starting(*cells: str, name: str = "a") -> Suite:
        started.append(Suite.start(tmp_path, *cells, name=name))
        return started[-1]

    yield starting
    for one in started:
        for process in one.processes():
            process.kill()


@pytest.mark.parametrize("to_all", [False, True], ids=["to the command alone", "in a terminal"])
def test_an_interrupt_ends_notebooks_kernels_and_trainings(suite: Any, tmp_path: Path, to_all: bool) -> None:
    mark = tmp_path / "mark"
    running = suite(SLEEPS.format(mark=mark), TRAINS)
    histories = tmp_path / "runs"
    wait_until(lambda: mark.exists() and len(list(histories.glob("*/history.csv"))) == 2, running.process)
    lines = [" ".join(process.cmdline()) for process in running.processes()]
    assert sum("ipykernel_launcher" in line for line in lines) == 2
    workers = ("multiprocessing.forkserver", 3) if sys.platform == "linux" else ("spawn_main", 2)
    assert sum(workers[0] in line for line in lines) == workers[1], "one for each training, and what they are forked of"
    (os.killpg if to_all else os.kill)(running.process.pid, signal.SIGINT)
    assert running.orphans() == []
    stdout, stderr = running.process.communicate()
    assert (running.process.returncode, stderr) == (130, "resnotes: interrupted; what was finished is kept\n")
    assert sorted(stdout.splitlines()) == ["01_a: started", "02_a: started"]
    for stem in ("01_a", "02_a"):
        notebook = running.notebook(stem)
        assert notebook.cells[-2].outputs[0].text == "first\n"
        assert notebook.metadata.resnotes.failed
    assert not [path for path in tmp_path.rglob(".*") if path.is_file() and "runs" not in path.parts]


def test_a_command_that_is_killed_takes_its_notebooks_along(suite: Any, tmp_path: Path) -> None:
    """None is left to work for nobody, for up to a day."""
    mark = tmp_path / "mark"
    running = suite(SLEEPS.format(mark=mark))
    wait_until(mark.exists, running.process)
    assert len(running.processes()) == 3, "the command, papermill, the kernel"
    running.process.kill()
    assert running.orphans() == []
    assert running.notebook("01_a").cells[-2].outputs[0].text == "first\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def test_a_command_that_is_ended_has_not_finished(
    suite: Any, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it claimed so far is nowhere taken for the study; an execution of before, which it replaced, is gone.

    A notebook that was finished beside it counts.
    """
    mark, out = tmp_path / "mark", tmp_path / "out"

    def claiming(stem: str, seconds: int) -> str:
        study = stem.partition("_")[2].replace("_", "-")
        return CLAIMS.format(
            stem=stem, study=study, seconds=seconds, mark=mark if stem[:2] == "01" else tmp_path / "no"
        )

    first, second = "01_degradation", "02_degradation"
    whole = suite(claiming(first, 0), claiming(second, 0), name="degradation")
    assert whole.process.wait(120) == 0
    mark.unlink()
    assert len(read_results(out).claims) == 2
    running = suite(claiming(first, 600), claiming(second, 0), name="degradation")
    wait_until(mark.exists, running.process)
    claims = out / "claims.json"
    wait_until(lambda: [each["notebook"] for each in ledger.load(claims)] == [second], running.process)
    running.process.send_signal(number)
    assert running.orphans() == []

    monkeypatch.setenv("RESNOTES_OUT", str(out))
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)

    def said(*arguments: str) -> str:
        return CliRunner().invoke(app, arguments).output

    listed = said("run", "--list")
    assert listed.index("last run not finished") < listed.index("done")
    results = read_results(out)
    assert [(book.stem, book.state) for book in results.notebooks] == [(first, "unfinished"), (second, "done")]
    assert {claim["notebook"] for claim in results.claims} == {second}
    assert [figure["name"] for figure in results.figures] == [second]
    assert said("claims").count("Said too early.") == 1
    assert {claim["notebook"] for claim in ledger.load(out / "claims.json")} == {second}
    assert "02_degradation.png" in said("figures", "--to", str(tmp_path / "exported"), "--format", "png")
    assert [path.name for path in (tmp_path / "exported").glob("*.png")] == ["02_degradation.png"]
    assert not (out / "index.html").exists(), "it would be that of before"
    assert "not finished" in write_index(out).read_text()
    for lang, words in (("en", "The notebook was not finished"), ("zh", "该笔记本未执行完")):
        report = write_report(results, tmp_path / lang, lang=lang)
        assert words in report.read_text()
        assert words in report.with_suffix(".html").read_text()
        assert "Said too early" not in report.read_text()

    notebook = out / "notebooks" / f"{first}.ipynb"
    notebook.write_bytes(notebook.read_bytes()[:1000])  # ended while it was written
    assert read_results(out).notebooks[0].state == "unfinished"
    write_index(out)


def test_a_kernel_that_is_killed_in_mid_cell_fails_its_notebook_alone(suite: Any, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    running = suite(SLEEPS.format(mark=mark), "print('second')")
    wait_until(lambda: mark.exists() and mark.read_text(), running.process)
    os.kill(int(mark.read_text()), signal.SIGKILL)
    stdout, stderr = running.process.communicate(timeout=60)
    kept = tmp_path / "out" / "notebooks" / "01_a.ipynb"
    assert running.process.returncode == 1
    assert stderr.splitlines() == [
        "01_a: cell In [3] ended its kernel: the process was killed, ran out of memory or exited",
        f"partial notebook: {kept}",
    ]
    assert "02_a: done" in stdout
    notebook = running.notebook("01_a")
    assert notebook.cells[-2].outputs[0].text == "first\n"
    assert notebook.metadata.resnotes.failed
    assert not running.notebook("02_a").metadata.resnotes.failed
    assert running.orphans() == []
