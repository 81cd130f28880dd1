"""One list of requirements, two ways to install it, and commands that do what the README says."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from resnotes import cli

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
EXTRAS = PROJECT["optional-dependencies"]
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
COMMANDS = [line for step in WORKFLOW["jobs"]["test"]["steps"] for line in step.get("run", "").splitlines()]
for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        COMMANDS += block.splitlines()


def test_conda_installs_what_pip_does() -> None:
    python, pip, section = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert (python, pip) == (f"python{PROJECT['requires-python']}", "pip")
    [itself] = section["pip"]
    installed = re.fullmatch(r"(?:-e|--editable) \.\[([\w,]+)\]", itself)
    assert installed
    assert set(installed[1].split(",")) == set(EXTRAS)


def test_whatever_the_package_reads_is_installed() -> None:
    """Templates, profiles, styles: an installed copy finds what a checkout has."""
    files = {path for path in (ROOT / "resnotes").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    packages = {path.parent for path in (ROOT / "resnotes").rglob("__init__.py")}
    patterns = SETUPTOOLS["package-data"]["*"]
    assert files == {path for folder in packages for pattern in patterns for path in folder.glob(pattern)}
    modules = (ROOT / "resnotes").rglob("*.py")
    assert {path.parent for path in modules} == packages, "or setuptools would not find it"


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_commands_exist(command: str) -> None:
    """Those of the workflow, and of the pages for readers that are ours."""
    program, *arguments = shlex.split(command, comments=True) or [""]
    if Path(program).name == "make":
        assert {word for word in arguments if "=" not in word} <= TARGETS
    elif Path(program).name == "resnotes":
        # Options are read, but a call for help carries nothing out.
        result = CliRunner().invoke(cli.app, [*arguments, "--help"])
        assert result.exit_code == 0, result.output
