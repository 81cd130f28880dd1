"""Progress bars, where somebody watches.

tqdm's own bar for notebooks is a widget. Closed, it stays in the notebook as an output whose model is gone, and is an
error message when the saved notebook is opened again. Here a bar is a line of text, which is replaced as it proceeds
and emptied in the end; what is empty is not saved (`resnotes.book.tidy`).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from multiprocessing import parent_process
from typing import Any

from tqdm import tqdm

from resnotes import distributed

DELAY = 0.5  # seconds; what is done sooner gets no bar, which would only flash up


def bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """tqdm's progress bar: in a terminal, or below the cell of a notebook that somebody looks at; else nothing.

    It vanishes when it is done. Worker processes, and all but the first of those that train together, draw none: they
    would draw over each other's.

    Args:
        iterable: what is gone through; None for a bar that is updated by hand.
        **options: tqdm's, such as `desc`, `total` and `unit`.
    """
    alone = parent_process() is None and distributed.rank() == 0
    if alone and attended():
        return _CellBar(iterable, leave=False, delay=DELAY, ncols=110, ascii=False, file=io.StringIO(), **options)
    disabled = None if alone else True  # None: unless in a terminal
    return tqdm(iterable, leave=False, delay=DELAY, disable=disabled, **options)


class _CellBar(tqdm):  # type: ignore[type-arg]  # at run time, tqdm takes no type
    """A bar below the cell at work. It follows from one cell to the next, as what takes long may go on in several."""

    _output: Any = None
    _cell: str | None = None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        from IPython.display import display  # which is there: this is a notebook

        text = str(self) if msg is None else msg
        cell = request().get("header", {}).get("msg_id")
        if cell != self._cell:
            self.clear()
            self._output, self._cell = None, cell
        if self._output is not None:
            self._output.update({"text/plain": text}, raw=True)
        elif text:
            self._output = display({"text/plain": text}, raw=True, display_id=True)

    def clear(self, nolock: bool = False) -> None:
        if self._output is not None:
            self._output.update({"text/plain": ""}, raw=True)

    def close(self) -> None:
        super().close()
        self.clear()


def request() -> dict[str, Any]:
    """The message that the kernel is at work on, in Jupyter's messaging protocol; empty outside of notebooks."""
    ipython: Any = sys.modules.get("IPython")  # importing it takes long, and it makes no notebook
    shell: Any = ipython.get_ipython() if ipython else None
    return shell.get_parent() if hasattr(shell, "get_parent") else {}


def attended() -> bool:
    """Whether the cell at work was sent by a front-end that a person sits at.

    Its request to execute the cell then says ``allow_stdin``, that is, a question could be put to that person.
    JupyterLab says so for every cell; papermill, nbconvert and nbval never do.
    """
    return bool(request().get("content", {}).get("allow_stdin"))
