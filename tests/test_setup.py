"""One list of requirements, two ways to install it, and targets that do what the README says."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = PROJECT["dependencies"] + [requirement for group in EXTRAS.values() for requirement in group]


def test_conda_installs_what_pip_does() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge"]
    python, pip, section = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    [itself] = section["pip"]
    installed = re.fullmatch(r"(?:-e|--editable) \.\[([\w,]+)\]", itself)
    assert installed
    assert set(installed[1].split(",")) == set(EXTRAS)


@pytest.mark.parametrize("requirement", REQUIREMENTS + PYPROJECT["build-system"]["requires"])
def test_requirements_are_lower_bounds(requirement: str) -> None:
    assert re.fullmatch(r"[\w-]+>=\d+(\.\d+)*", requirement)


def test_torch_and_torchvision_go_together() -> None:
    assert {"torch>=2.9", "torchvision>=0.24"} <= set(PROJECT["dependencies"])


def test_every_module_is_installed() -> None:
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "resnotes").rglob("__init__.py")}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages


def test_make_has_its_targets_and_ci_tests() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"run", "test", "lab"} <= set(targets)
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"


def test_importing_the_package_is_light() -> None:
    program = "import sys, resnotes; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "resnotes" in done.stdout.split()
    assert not {"torch", "torchvision", "sklearn", "pandas", "matplotlib"} & set(done.stdout.split())
