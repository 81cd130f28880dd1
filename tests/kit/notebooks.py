"""Notebooks that tests write and execute."""

from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbformat import v4

import resnotes
from resnotes.book.notebooks import Notebook

PARAMETERS = """
profile = "quick"  # scale
seed = 0
rate = 0.1
depths = [20, 56]
noisy = False
note = None
"""

WORDS = """
study = "{study}"

[claims.positive]
statement = {{ en = "Said by {stem}.", zh = "{stem} 所言。" }}
source = "He et al."
paper = {{ en = "above 0", zh = "高于 0" }}
rule = {{ above = 0, exact = true }}
"""
DECIDES = """
from pathlib import Path
from resnotes import paths
from resnotes.book.claims import Evidence
from resnotes.book.ledger import Ledger

paths.project_root = Path.cwd  # the package is that of the checkout
claims = Ledger("{stem}", "quick", Evidence(None, "digits"))
claims.decide("positive", live={measured})
"""


def write_notebook(folder, stem, *cells, parameters=PARAMETERS):
    heading = v4.new_markdown_cell(f"# Notebook {stem}\n\n摘要。")
    tagged = v4.new_code_cell(parameters.strip(), metadata={"tags": ["parameters"]})
    notebook = v4.new_notebook(cells=[heading, tagged, *(v4.new_code_cell(cell) for cell in cells)])
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata.update(kernelspec=kernel, language_info={"name": "python"})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.ipynb"
    nbformat.write(notebook, path)
    return Notebook(path)


def deciding(folder, stem, measured="1"):
    """A cell of the notebook NN_study that decides the claim `study.positive`, whose words are written here."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.toml").write_text(WORDS.format(study=stem.partition("_")[2], stem=stem), encoding="utf-8")
    return DECIDES.format(stem=stem, measured=measured)


def request(**content: object) -> SimpleNamespace:
    """A shell at work on a request to execute a cell."""
    header = {"msg_type": "execute_request", "msg_id": "cell"}
    return SimpleNamespace(get_parent=lambda: {"header": header, "content": content})


def executed(
    cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: type[NotebookClient]
) -> nbformat.NotebookNode:
    """A notebook of this cell."""
    package = str(Path(resnotes.__file__).parent.parent)
    write_kernel_spec(tmp_path / "kernels" / "python3")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", package)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    return client(notebook, kernel_name="python3", timeout=120).execute()


class Lab(NotebookClient):
    """Says, as JupyterLab does, that its user can be asked."""

    async def async_start_new_kernel_client(self) -> object:
        kernel = await super().async_start_new_kernel_client()
        kernel.allow_stdin = True
        return kernel
