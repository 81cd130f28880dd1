"""The notebooks of the suite: finding them, what they take, and checking what they are given."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from resnotes import paths
from resnotes.errors import ResnotesError, UsageError, did_you_mean, unknown

PARAMETERS_TAG = "parameters"


@dataclass(frozen=True)
class Notebook:
    """A notebook of the suite, such as `notebooks/01_degradation.ipynb`."""

    path: Path

    @property
    def stem(self) -> str:
        """File name without its ending: `01_degradation`."""
        return self.path.stem

    @property
    def number(self) -> str:
        """What its name begins with, and the names of its figures: `01`."""
        return self.stem.partition("_")[0]

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """Defaults by name, from the cell tagged `parameters`.

        Raises:
            ResnotesError: the file is no notebook, or the cell holds something other than named literals.
        """
        found = {}
        try:
            for statement in ast.parse(self._parameters_source).body:
                match statement:
                    case ast.Assign(targets=[ast.Name(id=name)], value=value):
                        found[name] = ast.literal_eval(value)
                    case _:
                        raise ValueError(f"line {statement.lineno} assigns no single name")
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
            raise ResnotesError(f"{self.path}: the parameters cell may only hold literals: {error}") from error
        return found

    @property
    def comments(self) -> dict[str, str]:
        """What the parameters cell says of each parameter, after its value."""
        found = re.findall(r"^(\w+)\b[^#\n]*#\s*(.*)$", self._parameters_source, re.MULTILINE)
        return {name: comment.strip() for name, comment in found}

    @property
    def title(self) -> str:
        """Its first heading."""
        return title_of(read(self.path))

    @cached_property
    def _parameters_source(self) -> str:
        try:  # as JSON: nbformat takes a second to import, for which a wrong parameter need not wait
            return _tagged(json.loads(self.path.read_bytes())["cells"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError):  # of an older format, or no notebook
            return _tagged(read(self.path).cells)


def _tagged(cells: Sequence[Mapping[str, Any]]) -> str:
    """The source of the parameters cell, of cells as JSON or nbformat have them."""
    return "\n".join("".join(cell["source"]) for cell in cells if PARAMETERS_TAG in cell["metadata"].get("tags", []))


def read(path: Path) -> Any:
    """The notebook at `path` as nbformat's node, in format 4.

    Raises:
        ResnotesError: it is missing or no notebook.
    """
    import nbformat  # half a second or more, which a wrong name need not wait for

    flaws: dict[str, Exception] = {}
    try:
        notebook = nbformat.read(path, as_version=4, capture_validation_error=flaws)
        for flaw in flaws.values():
            raise flaw
    except Exception as error:  # nbformat lets errors of json, jsonschema and its own through
        raise ResnotesError(f"{path} is not a readable notebook: {str(error).partition(chr(10))[0]}") from error
    return notebook


def title_of(notebook: Mapping[str, Any]) -> str:
    """The first Markdown heading of a node or of its JSON; papermill may have put a note on an error above it."""
    cells = ("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    heading = re.search(r"^#+ +(.*)$", "\n".join(cells), re.MULTILINE)
    return heading[1].replace("*", "") if heading else ""


def discover() -> list[Notebook]:
    """The notebooks of the checkout, in their order.

    Raises:
        ResnotesError: there is none.
    """
    return [Notebook(path) for path in paths.of_project(paths.project_root() / "notebooks", "[0-9][0-9]_*.ipynb")]


def select(names: Sequence[str]) -> list[Notebook]:
    """Notebooks by number (`01`), stem (`01_degradation`) or name (`degradation`), in order; all for none.

    Raises:
        UsageError: there is no such notebook.
        ResnotesError: there is none at all.
    """
    found = discover()
    called = {name: book for book in found for name in (book.stem, *book.stem.split("_", 1))}
    for name in names:
        if name not in called:
            raise unknown("notebook", name, [book.stem for book in found])
    chosen = [called[name] for name in names]
    return [book for book in found if book in chosen] if names else found


def profiles() -> list[str]:
    """Names of the profiles, without importing what reads them."""
    return sorted(path.stem for path in (Path(__file__).parents[1] / "runs" / "profiles").glob("*.toml"))


def parse_overrides(settings: Sequence[str], notebooks: Sequence[Notebook]) -> dict[str, Any]:
    """Parameters from `name=value` texts: values are Python literals, anything else is a string.

    Raises:
        UsageError: a text has no `=`, no notebook takes the name, or the default is of another type.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UsageError(f"parameter {setting!r} is not of the form name=value")
        if name in overrides:
            raise UsageError(f"parameter {name!r} is given twice")
        takers = [book for book in notebooks if name in book.parameters]
        if not takers:
            near = did_you_mean(name, (taken for book in notebooks for taken in book.parameters))
            raise UsageError(f"unknown parameter {name!r}; allowed: {'; '.join(map(_signature, notebooks))}{near}")
        value = _literal(text)
        if name == "profile" and value not in profiles():
            raise unknown("profile", value, profiles())
        for book in takers:
            try:
                value = _as_type_of(book.parameters[name], value)
            except (TypeError, OverflowError) as error:
                raise UsageError(f"parameter {name!r} {error}; allowed: {_signature(book)}") from error
        overrides[name] = value
    return overrides


def _literal(text: str) -> Any:
    """`text` as a Python literal, or else as itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _as_type_of(default: Any, value: Any) -> Any:
    """`value`, checked against the type of `default`; whole numbers become floats where those are meant.

    Raises:
        TypeError: it is of another type, negative where the default is not, or a list that is empty or names something
            twice.
        OverflowError: no float is as large.
    """
    if default is None:
        return value
    if isinstance(default, bool) and value in ("true", "false"):  # as shells and JSON write them
        return value == "true"
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        fitted = [_as_type_of(default[0], element) for element in value] if default else list(value)
        if (default and not fitted) or any(element in fitted[:place] for place, element in enumerate(fitted)):
            raise TypeError(f"expects values, each once, like {default!r}, found {value!r}")
        return fitted
    if type(value) is not type(default):
        raise TypeError(f"expects {type(default).__name__} like {default!r}, found {value!r}")
    if type(value) is int and value < 0 <= default:  # seeds, depths, counts
        raise TypeError(f"expects a whole number from 0 on, like {default!r}, found {value!r}")
    return value


def _signature(book: Notebook) -> str:
    """`01_degradation takes profile='quick', seed=0`."""
    takes = ", ".join(f"{name}={default!r}" for name, default in book.parameters.items())
    return f"{book.stem} takes {takes or 'no parameters'}"
