"""Processes that are killed, full disks, locks that are left, clocks that go back: results stay what they are."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from kit import crashes
from kit import runs as kit_runs
from kit.calls import until
from kit.cifar10 import IMAGE, as_folder, encoded, pixels, tree
from kit.runs import SPEC, assert_same_run, content

from resnotes import datasets
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
        until(lambda: epochs(folder) >= goal or process.exitcode is not None)  # noqa: B023 - called at once
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
    until(lambda: epochs(folder) >= 2 or first.exitcode is not None)
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
