"""How much there is to read: lines of code by room, without docstrings, comments and blank lines.

    python -m benchmarks.size

It ends with 1 if the package is larger than what it allows itself, or a module or a function is.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = {"package": 10_700, "tests": 16_700, "module": 400, "function": 60}  # lines; of modules and tests all, else code
GROWN = " (MOST in benchmarks/size.py): take something out first, or raise it knowingly"

_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(source: str) -> set[int]:
    """The numbers of the lines that hold code."""
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            found -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return found


def functions(source: str) -> dict[str, int]:
    """The functions of a module, and the lines of code of each."""
    lines = code_lines(source)
    return {
        node.name: len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1)))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def rooms(package: Path) -> Counter[str]:
    """Lines of code of each room; modules that stand outside of all are one."""
    found: Counter[str] = Counter()
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        found[parts[0] if len(parts) > 1 else "."] += len(code_lines(path.read_text(encoding="utf-8")))
    return found


def too_large(package: Path, tests: Path) -> list[str]:
    """What is larger than `MOST` allows, one line each."""
    lines = [
        (f"{path.relative_to(package.parent)}", path.read_text(encoding="utf-8")) for path in package.rglob("*.py")
    ]
    found = [
        f"{name} has {source.count(chr(10))} lines, expected {MOST['module']} at most"
        for name, source in lines
        if source.count("\n") > MOST["module"]
    ]
    found += [
        f"{name}: {function} has {count} lines of code, expected {MOST['function']} at most"
        for name, source in lines
        for function, count in functions(source).items()
        if count > MOST["function"]
    ]
    total = sum(rooms(package).values())
    if total > MOST["package"]:
        found.append(f"the package has {total} lines of code, expected {MOST['package']} at most{GROWN}")
    written = sum(path.read_text(encoding="utf-8").count("\n") for path in tests.rglob("*.py"))
    if written > MOST["tests"]:
        found.append(f"the tests have {written} lines, expected {MOST['tests']} at most{GROWN}")
    return sorted(found)


def main() -> int:
    """See the head of this module."""
    counted = rooms(ROOT / "resnotes")
    for room, count in counted.most_common():
        print(f"{count:6,}  {room}")
    print(f"{counted.total():6,}  lines of code")
    problems = too_large(ROOT / "resnotes", ROOT / "tests")
    print(*problems, sep="\n", end="\n" if problems else "")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
