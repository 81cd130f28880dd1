"""Committed notebooks: what makes one fit to commit, and making it so.

`python -m resnotes.book.tidy` refreshes their outputs.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat

from resnotes import paths
from resnotes.book.notebooks import PARAMETERS_TAG, discover, read
from resnotes.errors import ResnotesError, reporting_errors
from resnotes.files import write_atomic

INJECTED_TAG = "injected-parameters"

# Papermill's, nbclient's and the JupyterLab ExecuteTime extension's records of when and where a cell ran.
_RUN_METADATA = {"papermill", "execution", "ExecuteTime", "widgets"}
_LAB_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_UNFIT = {  # what no output may print, as it is another one on each machine or each time
    "the absolute path": re.compile(r"(?<![\w./:<~\\-])/(?:[\w.~-]+/)+[\w.~-]+|\b[A-Za-z]:\\[\w.~-]+"),
    "the time": re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d"),
    "where an object lies,": re.compile(r"\bat 0x[0-9a-fA-F]+"),
}


def hygiene(notebook: Any) -> list[str]:
    """What keeps a notebook (an nbformat 4 node) from being committed, one line each; empty if it is fit."""
    cells, tidy = notebook.cells, tidied(notebook, {})
    problems = []
    if not (
        cells and cells[0].cell_type == "markdown" and re.match(r"# .*[\u4e00-\u9fff]", cells[0].source, re.DOTALL)
    ):
        problems.append("the first cell is no Markdown that starts with a title and has a Chinese abstract")
    tagged = [position for position, cell in enumerate(cells) if PARAMETERS_TAG in cell.metadata.get("tags", [])]
    if tagged != [1] or cells[1].cell_type != "code":
        problems.append("the second cell, and no other, must be the code cell tagged parameters")
    if len({cell.get("id") for cell in cells} - {None}) != len(cells):
        problems.append("a cell id is missing or used twice")
    if (notebook.nbformat, notebook.nbformat_minor, notebook.metadata) != (4, 5, tidy.metadata):
        problems.append("format or metadata is not tidy: expected nbformat 4.5, kernel python3 and no records of a run")
    for position, cell in enumerate(cells, start=1):
        if cell not in tidy.cells:
            problems.append(f"cell {position} is not tidy: metadata of a run, injected parameters or outputs on stderr")
        problems += [f"cell {position} {problem}" for problem in _output_problems(cell)]
    return problems


def tidied(notebook: Any, replacements: Mapping[str, str]) -> Any:
    """A copy of an executed notebook that keeps outputs and drops all that depends on when and where it ran.

    Args:
        notebook: nbformat 4 node, executed with its defaults.
        replacements: texts to replace in outputs, such as the absolute path of the checkout, longest first.
    """
    notebook = nbformat.from_dict(
        {
            **notebook,
            "metadata": {"kernelspec": _LAB_KERNEL, "language_info": {"name": "python"}},
            "nbformat_minor": 5,
            "cells": [cell for cell in notebook.cells if INJECTED_TAG not in cell.metadata.get("tags", [])],
        }
    )
    for cell in notebook.cells:
        for key in _RUN_METADATA & cell.metadata.keys():
            del cell.metadata[key]
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            outputs = json.dumps(_joined([output for output in cell.outputs if output.get("name") != "stderr"]))
            for found, instead in replacements.items():
                outputs = outputs.replace(json.dumps(found)[1:-1], json.dumps(instead)[1:-1])
            cell.outputs = nbformat.from_dict(json.loads(outputs))
    return notebook


def refresh() -> None:
    """Execute the committed notebooks with their defaults and put clean outputs in their place.

    Raises:
        ResnotesError: a notebook fails or would not be fit to commit; that one stays as it was.
    """
    from resnotes.book.execution import execute

    problems = []
    with tempfile.TemporaryDirectory() as scratch:
        for execution in execute(discover(), {}, Path(scratch)):
            if execution.failure:
                problems.append(execution.failure)
                continue
            path = execution.notebook.path
            roots = {str(Path(scratch).resolve()): "out", str(paths.project_root()): "."}
            notebook = tidied(read(execution.output), roots)
            unfit = [f"{path.name}: {problem}" for problem in hygiene(notebook)]
            problems += unfit
            if not unfit:
                write_atomic(path, nbformat.writes(notebook) + "\n")
    if problems:
        raise ResnotesError("\n".join(problems))


def _joined(outputs: list[Any]) -> list[Any]:
    """What was printed in one go as one output: in how many it arrives depends on how busy the machine is."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _output_problems(cell: Any) -> Iterator[str]:
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            yield "ends in an error"
        data = output.get("data", {})
        for text in [output.get("text", ""), *(data[mime] for mime in data if mime.startswith("text/"))]:
            for what, pattern in _UNFIT.items():
                if found := pattern.search(text):
                    yield f"prints {what} {found[0]!r}"


if __name__ == "__main__":
    with reporting_errors():
        refresh()
