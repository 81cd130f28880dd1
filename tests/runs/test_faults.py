"""Processes that are killed, full disks, locks that are left, clocks that go back: results stay what they are."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tqdm.std
from filelock import FileLock
from kit import crashes
from kit.cifar10 import IMAGE, as_folder, encoded, pixels, tree
from kit.runs import content, timeless

from resnotes import datasets, files, progress
from resnotes.errors import RunError
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import Run, RunStore
from resnotes.training.recipe import Recipe

# 24 epochs, in a second or two.
SPEC = RunSpec(
    model="plain-8",
    dataset="digits",
    seed=0,
    recipe=Recipe(iterations=48, batch_size=64, schedule="one-cycle", snapshots=(14,), precision="float32"),
    options={"width": 4},
    train_images=128,
)
SHORT = dataclasses.replace(SPEC, recipe=dataclasses.replace(SPEC.recipe, iterations=5, snapshots=(4,)))
FILES = ["history.csv", "model.safetensors", "run.json", "spec.json"]


def finish(spec: RunSpec, root: Path) -> Run:
    """The run, by a process that nothing happens to."""
    process = crashes.start(spec, root)
    process.join(120)
    assert process.exitcode == 0
    return Run(root / spec.name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RunSpec], Run]:
    """A run that was not interrupted."""
    root = tmp_path_factory.mktemp("whole") / "runs"
    return lambda spec: Run(root / spec.name) if (root / spec.name).exists() else finish(spec, root)


def assert_same(run: Run, reference: Run) -> None:
    """Bit by bit, and with nothing else in the folder."""
    assert sorted(content(run.folder)) == sorted(content(reference.folder))
    pd.testing.assert_frame_equal(timeless(run.history), timeless(reference.history), check_exact=True)
    for path in reference.folder.glob("*.safetensors"):
        assert (run.folder / path.name).read_bytes() == path.read_bytes(), path.name


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


# Training


def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path, whole: Callable[[RunSpec], Run]) -> None:
    """Each process is killed within some epochs of where the last one was, as often as not before its first one."""
    reference = whole(SPEC)
    draw = random.Random(0)
    moments: list[int] = []  # epochs that were behind a process when it was killed
    finished: list[Run] = []
    killed = False
    while killed or len(moments) < 20:
        folder = tmp_path / str(len(finished)) / SPEC.name
        process = crashes.start(SPEC, folder.parent)
        if len(moments) < 20:
            goal = epochs(folder) + draw.choice([0, 0, 1, 2, 4])
            wait_until(lambda folder=folder, goal=goal: epochs(folder) >= goal, process)
            time.sleep(draw.uniform(0, 0.3))
            process.kill()
        process.join(120)
        killed = process.exitcode == -signal.SIGKILL
        if killed:
            moments.append(epochs(folder))
        else:
            assert process.exitcode == 0
            finished.append(Run(folder))
    for run in finished:
        assert_same(run, reference)
    assert sum(run.facts["resumed"] for run in finished) >= 5
    assert len(set(moments)) >= 8, "they are spread over the run"


def test_killed_before_any_change_of_a_file_a_run_goes_on(tmp_path: Path, whole: Callable[[RunSpec], Run]) -> None:
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
        assert_same(RunStore(root, tmp_path / "recorded").get(SHORT, device="cpu"), whole(SHORT))


@pytest.mark.parametrize("file", ["history.csv", "checkpoint.pt", "iteration-000004.safetensors", *FILES[1:]])
def test_a_disk_that_is_full_ends_a_run_and_costs_nothing_of_it(
    tmp_path: Path, whole: Callable[[RunSpec], Run], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Half of the second version of a file can be written, or of the first, where there is no other."""
    store = RunStore(tmp_path / "runs", tmp_path / "recorded")
    folder = store.root / SHORT.name
    spared = iter([True] if file in ("history.csv", "checkpoint.pt") else [])
    before: dict[str, bytes] = {}
    opened = os.fdopen

    class Full:
        def __init__(self, handle: int, mode: str) -> None:
            self.stream = opened(handle, mode)

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def write(self, payload: bytes) -> None:
            before.update({name: data for name, data in content(folder).items() if not name.startswith(".")})
            self.stream.write(payload[: len(payload) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opening(handle: int, mode: str) -> Any:
        [name] = [path.name for path in folder.glob(".*")]
        return Full(handle, mode) if name.startswith(f".{file}.") and not next(spared, False) else opened(handle, mode)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fdopen", opening)
        message = r"cannot write to the run store: .*No space left on device, in .*runs; set RESNOTES_RUNS to a folder"
        with pytest.raises(RunError, match=message):
            store.get(SHORT, device="cpu")
    assert content(folder) == before, "all that was there is there, and no half of anything"
    assert (file in before) == (file in ("history.csv", "checkpoint.pt"))
    assert store.find(SHORT) is None
    run = store.get(SHORT, device="cpu")
    assert run.facts["resumed"] == ("checkpoint.pt" in before)
    assert_same(run, whole(SHORT))


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_previous_one(
    tmp_path: Path, whole: Callable[[RunSpec], Run]
) -> None:
    """The system itself refuses to write it, to a process of its own."""
    root = tmp_path / "runs"
    checkpoint = root / SHORT.name / "checkpoint.pt"
    process = crashes.start(SHORT, root, dies_at=4)  # specification, history, checkpoint, history
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    before = checkpoint.read_bytes()
    process = crashes.start(SHORT, root, largest=len(before) - 1)
    process.join(120)
    assert process.exitcode == 1
    assert f"cannot write to the run store: [Errno {errno.EFBIG}] " in crashes.message(root)
    assert checkpoint.read_bytes() == before
    assert not list(checkpoint.parent.glob(".*"))
    run = finish(SHORT, root)
    assert run.facts["resumed"] == 1
    assert_same(run, whole(SHORT))


# The store: locks, rights, clocks, data


def test_a_lock_that_a_dead_process_left_stops_nobody(tmp_path: Path, whole: Callable[[RunSpec], Run]) -> None:
    root = tmp_path / "runs"
    lock = root / ".locks" / f"{SHORT.name}.lock"
    process = crashes.start(SHORT, root, dies_at=2)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert lock.exists()
    with FileLock(lock, timeout=0):  # no one waits for a process that is gone
        pass
    lock.write_text("4194304\nsome.other.machine\n")  # nor does it matter what the file says
    os.utime(lock, (0, 0))
    assert_same(finish(SHORT, root), whole(SHORT))


def test_where_the_process_that_trains_is_killed_one_that_waits_takes_over(
    tmp_path: Path, whole: Callable[[RunSpec], Run]
) -> None:
    folder = tmp_path / "runs" / SPEC.name
    first = crashes.start(SPEC, folder.parent)
    wait_until(lambda: epochs(folder) >= 2, first)
    os.kill(first.pid, signal.SIGSTOP)  # or it might have finished by now
    others = [crashes.start(SPEC, folder.parent) for _ in range(2)]
    time.sleep(0.5)
    assert [process.exitcode for process in (first, *others)] == [None] * 3
    first.kill()
    for process in others:
        process.join(120)
        assert process.exitcode == 0
    run = Run(folder)
    assert run.facts["resumed"] == 1, "by one of the two, the other found it finished"
    assert_same(run, whole(SPEC))


def test_a_store_without_the_right_to_write_gives_what_it_has(tmp_path: Path, whole: Callable[[RunSpec], Run]) -> None:
    root = whole(SHORT).folder.parent
    other = dataclasses.replace(SHORT, seed=1)
    before = content(root)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        found, missing = (crashes.start(spec, root, powerless=True) for spec in (SHORT, other))
        for process in (found, missing):
            process.join(120)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    if crashes.NO_NAMESPACES in (found.exitcode, missing.exitcode):
        pytest.skip("no mode of a folder stops the superuser, and the system does not let us give up its rights")
    assert (found.exitcode, missing.exitcode) == (0, 1)
    message = crashes.message(root)
    assert message.startswith(f"cannot write to the run store: [Errno {errno.EACCES}] ")
    assert f", in {root}; set RESNOTES_RUNS to a folder of yours that has room, " in message
    assert content(root) == before


def test_a_clock_that_goes_back_changes_nothing(
    tmp_path: Path, whole: Callable[[RunSpec], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an hour whenever someone looks, with the bar shown, which looks; in the end the store's files are of later."""
    now = iter(range(2_000_000_000, 0, -3600))
    for module, name in ((time, "time"), (tqdm.std, "time")):
        monkeypatch.setattr(module, name, lambda: float(next(now)))
    monkeypatch.setattr(time, "time_ns", lambda: next(now) * 10**9)
    shown = open(os.devnull, "w")  # noqa: PTH123, SIM115
    monkeypatch.setattr(
        progress, "tqdm", lambda *data, **options: tqdm.std.tqdm(*data, **{**options, "disable": False, "file": shown})
    )
    store = RunStore(tmp_path / "runs", tmp_path / "recorded")
    run = store.get(SHORT, device="cpu")
    assert next(now) < 2_000_000_000 - 3 * 3600, "someone did look"
    assert_same(run, whole(SHORT))
    assert run.history.seconds.between(0, 60).all()
    assert 0 <= run.facts["seconds"] < 60
    for path in store.root.rglob("*"):
        os.utime(path, (4_000_000_000, 4_000_000_000))
    monkeypatch.setattr("resnotes.runs.store.train", lambda *_, **__: pytest.fail("trained again"))
    assert RunStore(store.root, store.recorded).get(SHORT).facts == run.facts


def test_data_with_other_times_is_the_same_data(root: Path) -> None:
    as_folder(tree(), root / "cifar10")
    before = datasets.load("cifar10", root).fingerprint
    for moment in (0, 4_000_000_000):  # a copy, or a clock that went back
        for path in (root / "cifar10").rglob("*"):
            os.utime(path, (moment, moment))
        assert datasets.load("cifar10", root).fingerprint == before


@pytest.mark.parametrize("unfinished", [True, False])
def test_a_data_folder_that_changes_between_runs_is_named_and_never_mixed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unfinished: bool
) -> None:
    monkeypatch.setenv("RESNOTES_DATA", str(root))
    as_folder(tree(), root / "cifar10")
    store = RunStore(tmp_path / "runs", tmp_path / "recorded")
    recipe = Recipe(iterations=4, batch_size=10, precision="float32")
    spec = RunSpec(model="plain-8", dataset="cifar10", seed=0, recipe=recipe, options={"width": 4})
    was = datasets.load("cifar10").fingerprint
    if unfinished:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("resnotes.runs.store.save_weights", interrupt)
            store.get(spec, device="cpu")
    else:
        store.get(spec, device="cpu")
    before, image = content(store.root), (root / "cifar10" / IMAGE).read_bytes()
    as_folder({IMAGE: encoded(pixels(99), "PNG")}, root / "cifar10")
    now = datasets.load("cifar10").fingerprint
    message = rf"belongs to data with fingerprint {was}, .* has {now}; delete it"
    if not unfinished:
        variant = "cifar10, train 20, test 10"
        message = (
            rf"was made on {variant} \({was}\), but the data at hand is {variant} \({now}\);"
            " set RESNOTES_RUNS .*delete"
        )
    with pytest.raises(RunError, match=message):
        store.get(spec, device="cpu")
    assert content(store.root) == before
    (root / "cifar10" / IMAGE).write_bytes(image)
    run = store.get(spec, device="cpu")
    assert (run.fingerprint, run.facts["resumed"]) == (was, unfinished)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
