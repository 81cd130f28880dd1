"""Who looks at the cell of a notebook that is being executed."""

from __future__ import annotations

from typing import Any

from IPython.core.getipython import get_ipython


def request() -> dict[str, Any]:
    """The message that the kernel is at work on, in Jupyter's messaging protocol; empty outside of notebooks."""
    shell: Any = get_ipython()
    return shell.get_parent() if hasattr(shell, "get_parent") else {}


def attended() -> bool:
    """Whether the cell at work was sent by a front-end that a person sits at.

    Its request to execute the cell then says ``allow_stdin``, that is, a question could be put to that person.
    JupyterLab says so for every cell; papermill, nbconvert and nbval never do.
    """
    return bool(request().get("content", {}).get("allow_stdin"))
