"""Who looks at the cell of a notebook that is being executed."""

from __future__ import annotations

import sys
from typing import Any


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
