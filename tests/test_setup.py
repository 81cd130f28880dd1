"""One list of requirements, two ways to install it, and commands that do what the README says."""

import os
import re
import shlex
import shutil
import subprocess
import sys
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


def test_an_installed_copy_keeps_to_the_current_folder(tmp_path: Path) -> None:
    """Whatever lies beside it."""
    site, here = tmp_path / "site-packages", tmp_path / "mine"
    shutil.copytree(ROOT / "resnotes", site / "resnotes", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (site / "notebooks", here):
        folder.mkdir()
    before = sorted(site.rglob("*"))
    program = (
        "from resnotes import paths, cli; print(paths.__file__, paths.runs_root(), paths.cache_root()); cli.main()"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RESNOTES_")}
    environment |= {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program, "run", "--list"]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [
        str(site / "resnotes/paths.py"),
        str(here / "runs"),
        str(here / "data/cache/decoded"),
    ]
    assert (done.returncode, "such files come with a checkout" in done.stderr) == (1, True)
    assert sorted(site.rglob("*")) == before


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
