"""Committed notebooks: what makes one fit to commit, and making it so."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from resnotes.errors import ResnotesError

PARAMETERS_TAG = "parameters"

# Papermill's, nbclient's and the JupyterLab ExecuteTime extension's records of when and where a cell ran.
_RUN_METADATA = ("papermill", "execution", "ExecuteTime", "widgets")
_LAB_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_ABSOLUTE_PATH = re.compile(r"(?<![\w./:<~\\-])/(?:[\w.~-]+/)+[\w.~-]+|\b[A-Za-z]:\\[\w.~-]+")
_TIMESTAMP = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def hygiene(notebook: Any) -> list[str]:
    """What keeps a notebook (an nbformat 4 node) from being committed, one line each; empty if it is fit."""
    return [
        *_layout_problems(notebook),
        *_metadata_problems(notebook),
        *(
            f"cell {position}: {problem}"
            for position, cell in enumerate(notebook.cells, start=1)
            for problem in _cell_problems(cell)
        ),
    ]


def tidied(notebook: Any, replacements: Mapping[str, str]) -> Any:
    """A copy of an executed notebook that keeps outputs and drops all that depends on when and where it ran.

    Args:
        notebook: nbformat 4 node, executed with its defaults.
        replacements: texts to replace in outputs, such as the absolute path of the checkout, longest first.
    """
    notebook = copy.deepcopy(notebook)
    notebook.metadata = {"kernelspec": _LAB_KERNEL, "language_info": {"name": "python"}}
    notebook.nbformat_minor = 5
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        for key in _RUN_METADATA:
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type != "code":
            continue
        cell.outputs = _joined([output for output in cell.outputs if output.get("name") != "stderr"])
        for holder, key, text in _texts(cell.outputs):
            for found, instead in replacements.items():
                text = text.replace(found, instead)
            holder[key] = text
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """What was printed in one go as one output: in how many it arrives depends on how busy the machine is."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _layout_problems(notebook: Any) -> Iterator[str]:
    cells = notebook.cells
    first = cells[0] if cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell is no Markdown that starts with a title"
    elif not _CHINESE.search(first.source):
        yield "the first cell has no Chinese abstract"
    tagged = [position for position, cell in enumerate(cells) if PARAMETERS_TAG in cell.metadata.get("tags", [])]
    if tagged != [1] or cells[1].cell_type != "code":
        yield "the second cell, and no other, must be the code cell tagged parameters"


def _metadata_problems(notebook: Any) -> Iterator[str]:
    if (notebook.nbformat, notebook.nbformat_minor) != (4, 5):
        yield f"nbformat is {notebook.nbformat}.{notebook.nbformat_minor}, expected 4.5"
    if (name := notebook.metadata.get("kernelspec", {}).get("name")) != "python3":
        yield f"kernelspec is {name!r}, expected 'python3'"
    for key in notebook.metadata.keys() & set(_RUN_METADATA):
        yield f"the notebook has {key} metadata"
    ids = [cell.get("id") for cell in notebook.cells]
    if None in ids or len(set(ids)) != len(ids):
        yield "a cell id is missing or used twice"


def _cell_problems(cell: Any) -> Iterator[str]:
    for key in cell.metadata.keys() & set(_RUN_METADATA):
        yield f"has {key} metadata"
    if "injected-parameters" in cell.metadata.get("tags", []):
        yield "holds injected parameters"
    if cell.cell_type != "code":
        return
    if any(output.output_type == "error" for output in cell.outputs):
        yield "ends in an error"
    if any(output.get("name") == "stderr" for output in cell.outputs):
        yield "writes to stderr"
    for _, _, text in _texts(cell.outputs):
        if found := _ABSOLUTE_PATH.search(text):
            yield f"prints the absolute path {found[0]}"
        if found := _TIMESTAMP.search(text):
            yield f"prints the time {found[0]}"
        if found := _ADDRESS.search(text):
            yield f"prints where an object lies, {found[0]!r}, another place each time"


def _texts(outputs: list[Any]) -> Iterator[tuple[Any, str, str]]:
    """Every text of the outputs of a cell, with the mapping and key that hold it."""
    for output in outputs:
        if isinstance(output.get("text"), str):
            yield output, "text", output["text"]
        data = output.get("data", {})
        for mime in [mime for mime in data if mime.startswith("text/")]:
            if not isinstance(data[mime], str):
                raise ResnotesError(f"an output of type {mime} holds {type(data[mime]).__name__}, not text")
            yield data, mime, data[mime]
