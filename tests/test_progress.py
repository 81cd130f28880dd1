"""Progress bars: below the cell that somebody looks at, in a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import IPython
import IPython.display
import pytest
from kit.notebooks import Lab, executed, request
from kit.runs import SPEC
from nbclient import NotebookClient

import resnotes
from resnotes import progress
from resnotes.book.tidy import before_saving
from resnotes.progress import attended
from resnotes.runs import sweep

EMPTY = {"text/plain": ""}

# Who is there


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        (None, False),
        (SimpleNamespace(), False),  # IPython in a terminal
        (request(allow_stdin=False), False),
        (request(allow_stdin=True), True),
    ],
)
def test_somebody_is_there_who_could_be_asked(shell: object, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    assert attended() is expected


# Below the cell


class Screen:
    """Outputs as a front-end shows them, each with its cell; what stood in each, in `seen`."""

    def __init__(self) -> None:
        self.cell = "first"
        self.outputs: list[tuple[str, dict[str, str]]] = []
        self.seen: list[str] = []

    def get_parent(self) -> dict[str, Any]:
        return {"header": {"msg_id": self.cell}, "content": {"allow_stdin": True}}

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> SimpleNamespace:
        assert raw and display_id
        place = len(self.outputs)
        self.outputs.append((self.cell, data))
        self.seen.append(data["text/plain"])
        return SimpleNamespace(update=lambda data, raw: self.update(place, data))

    def update(self, place: int, data: dict[str, str]) -> None:
        self.outputs[place] = self.outputs[place][0], data
        self.seen.extend(text for text in data.values() if text)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen()
    monkeypatch.setattr(IPython, "get_ipython", lambda: screen)
    monkeypatch.setattr(IPython.display, "display", screen.display)
    monkeypatch.setattr(progress, "DELAY", 0)
    return screen


def test_a_bar_is_one_output_that_is_empty_in_the_end(screen: Screen, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in progress.bar(range(3), desc="counting", mininterval=0):
        pass
    assert [text.partition("[")[0].split()[-1] for text in screen.seen] == ["0/3", "1/3", "2/3", "3/3"]
    assert all(text.startswith("counting: ") for text in screen.seen)
    assert screen.outputs == [("first", EMPTY)]
    assert capfd.readouterr() == ("", "")


def test_a_bar_stands_in_the_cell_that_waits(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three runs, the second is ready first, and the others some time later, at once.

    A bar that is merely updated comes after a while; one that tells what is waited for, at once.
    """
    monkeypatch.setattr(progress, "DELAY", 60)
    futures: dict[str, Future[Any]] = {name: Future() for name in "abc"}
    looks = iter(("b", "", "ac"))
    monkeypatch.setattr(
        "resnotes.runs.sweep.wait", lambda *_, **__: [futures[name].set_result(None) for name in next(looks)]
    )
    with progress.bar(total=3, desc="runs", unit="run") as bar:
        ended = sweep.as_completed(futures, bar)
        for cell, name in zip(("first", "first", "second"), "bac", strict=True):
            screen.cell = cell
            assert next(ended) == name
            assert all(data == EMPTY for _, data in screen.outputs), "no bar where nothing is waited for"
    counts = [text.partition("[")[0].split()[-1] for text in screen.seen]
    assert list(dict.fromkeys(counts)) == ["1/3", "3/3"]
    assert [cell for cell, _ in screen.outputs] == ["first"]


CELL = """
from resnotes import progress

progress.DELAY = 0
for _ in progress.bar(range(1000)):
    pass
"""


@pytest.mark.parametrize(("client", "outputs"), [(NotebookClient, []), (Lab, [EMPTY])])
def test_a_notebook(
    client: type[NotebookClient], outputs: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = executed(CELL, tmp_path, monkeypatch, client)
    assert [output.data for output in notebook.cells[0].outputs] == outputs
    assert "widgets" not in notebook.metadata
    saved = {"type": "notebook", "content": notebook}
    before_saving(saved)
    assert saved["content"].cells[0].outputs == []


# Elsewhere

TRAIN = f"""
from pathlib import Path
from resnotes import progress
from resnotes.runs.store import RunStore
from resnotes.runs.spec import RunSpec

progress.DELAY = 0  # of the processes that train, too: they execute this again
spec = RunSpec.from_json({SPEC.to_json()!r})
if __name__ == "__main__":
    RunStore(Path("runs"), Path("none")).get_all([spec], device="cpu", workers=2)
    list(progress.bar(range(3)))
"""


def through_a_pipe(arguments: list[str], **options: Any) -> str:
    return subprocess.run(arguments, capture_output=True, text=True, check=True, **options).stderr


def in_a_terminal(arguments: list[str], **options: Any) -> str:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, 80))  # in which tqdm draws
    process = subprocess.Popen(arguments, stderr=theirs, **options)
    os.close(theirs)
    written = b""
    try:
        while some := os.read(ours, 1024):
            written += some
    except OSError:  # Linux's way to say that nobody is left who could write
        pass
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written.decode()


@pytest.mark.parametrize("start", [through_a_pipe, in_a_terminal])
def test_the_first_process_alone_draws_and_only_in_a_terminal(start: Callable[..., str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(TRAIN)
    path = str(Path(resnotes.__file__).parent.parent)
    written = start([sys.executable, str(program)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    terminal = start is in_a_terminal
    assert ("runs: " in written and "0/1" in written and "0/3" in written) is terminal
    assert SPEC.name not in written, "the bar of a process that trains"
    assert not written.split("\r")[-1].strip(), "the last bar is wiped out"
    assert bool(written) is terminal
