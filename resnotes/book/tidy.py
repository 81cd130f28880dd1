"""Committed notebooks: `python -m resnotes.book.tidy` refreshes their outputs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from resnotes import paths
from resnotes.book.execution import execute
from resnotes.book.notebooks import discover, read
from resnotes.errors import ResnotesError, reporting_errors
from resnotes.files import write_atomic

_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def tidied(notebook: Any, replacements: Mapping[str, str]) -> Any:
    """A copy of an executed notebook that keeps outputs and drops all that depends on when and where it ran.

    Args:
        notebook: nbformat 4 node, executed with its defaults.
        replacements: texts to replace in outputs, such as the absolute path of the checkout, longest first.
    """
    notebook = nbformat.from_dict({**notebook, "metadata": _METADATA, "nbformat_minor": 5})
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            # In how many outputs arrives what was printed in one go depends on how busy the machine is.
            CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)
            outputs = json.dumps(cell.outputs)
            for found, instead in replacements.items():
                outputs = outputs.replace(json.dumps(found)[1:-1], json.dumps(instead)[1:-1])
            cell.outputs = nbformat.from_dict(json.loads(outputs))
    return notebook


def refresh() -> None:
    """Execute the committed notebooks with their defaults and put clean outputs in their place.

    Raises:
        ResnotesError: a notebook fails; that one stays as it was.
    """
    failures = []
    with tempfile.TemporaryDirectory() as scratch:
        roots = {str(Path(scratch).resolve()): "out", str(paths.project_root()): "."}
        for execution in execute(discover(), {}, Path(scratch)):
            if execution.failure:
                failures.append(execution.failure)
            else:
                notebook = tidied(read(execution.output), roots)
                write_atomic(execution.notebook.path, nbformat.writes(notebook) + "\n")
    if failures:
        raise ResnotesError("\n".join(failures))


if __name__ == "__main__":
    with reporting_errors():
        refresh()
