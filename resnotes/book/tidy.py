"""Committed notebooks: `python -m resnotes.book.tidy` refreshes their outputs.

What is saved in `make lab` passes `before_saving`, so that it differs from what is committed only where results do.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from resnotes import paths
from resnotes.book.execution import execute
from resnotes.book.notebooks import read, select
from resnotes.errors import ResnotesError, reporting_errors
from resnotes.files import write_atomic

_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_VIEW = "application/vnd.jupyter.widget-view+json"


def before_saving(model: dict[str, Any], **_: object) -> None:
    """Jupyter's ``pre_save_hook``: outputs that last, and nothing of the kernel but its language.

    Args:
        model: what is saved, in the form of Jupyter Server's contents API; its notebook is replaced.
    """
    if model["type"] == "notebook" and model["content"]["nbformat"] == 4:
        notebook = model["content"] = nbformat.from_dict(model["content"])
        notebook.metadata.language_info = _METADATA["language_info"]
        for cell in notebook.cells:
            _drop_what_is_gone(cell)


def _drop_what_is_gone(cell: Any) -> None:
    """Remove outputs of which nothing is left once the kernel is gone: controls, and progress bars, now blank."""
    if cell.cell_type == "code":
        bundles = [output.get("data") for output in cell.outputs]
        lasts = [bundle is None or (any(bundle.values()) and _VIEW not in bundle) for bundle in bundles]
        cell.outputs = list(compress(cell.outputs, lasts))
        # In how many outputs arrives what was printed in one go depends on how busy the machine is.
        CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)


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
            _drop_what_is_gone(cell)
            outputs = json.dumps(cell.outputs)
            for found, instead in replacements.items():
                outputs = outputs.replace(json.dumps(found)[1:-1], json.dumps(instead)[1:-1])
            cell.outputs = nbformat.from_dict(json.loads(outputs))
    return notebook


def refresh(names: Sequence[str] = ()) -> None:
    """Execute the committed notebooks with their defaults and put clean outputs in their place.

    Args:
        names: of notebooks, such as ``07``; all if none.

    Raises:
        ResnotesError: a notebook fails; that one stays as it was.
        UsageError: there is no such notebook.
    """
    failures = []
    with tempfile.TemporaryDirectory() as scratch:
        roots = {str(Path(scratch).resolve()): "out", str(paths.project_root()): "."}
        for execution in execute(select(names), {}, Path(scratch)):
            if execution.failure:
                failures.append(execution.failure)
            else:
                notebook = tidied(read(execution.output), roots)
                write_atomic(execution.notebook.path, nbformat.writes(notebook) + "\n")
    if failures:
        raise ResnotesError("\n".join(failures))


if __name__ == "__main__":
    with reporting_errors():
        refresh(sys.argv[1:])
