"""One list of requirements, two ways to install it, and targets that do what the README says."""

import os
import re
import shlex
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
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = PROJECT["dependencies"] + [requirement for group in EXTRAS.values() for requirement in group]
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
STEPS = WORKFLOW["jobs"]["test"]["steps"]
WORKFLOW_COMMANDS = [line for step in STEPS for line in step.get("run", "").splitlines()]
BLOCKS = [
    block
    for name in ("README.md", "CONTRIBUTING.md")
    for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)
]
COMMANDS = WORKFLOW_COMMANDS + [line for block in BLOCKS for line in block.splitlines()]


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
    assert {"run", "test", "lab"} <= TARGETS
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"


def with_action(name: str) -> list[dict[str, str]]:
    """What the steps of the workflow give to an action of GitHub's."""
    return [step["with"] for step in STEPS if step.get("uses", "").partition("@")[0] == f"actions/{name}"]


def test_github_does_what_ci_does_on_two_pythons() -> None:
    assert set(WORKFLOW[True]) == {"push", "pull_request"}  # the key `on`, which YAML 1.1 takes for a truth value
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    job = WORKFLOW["jobs"]["test"]
    assert job["timeout-minutes"] <= 120
    lowest, *others = job["strategy"]["matrix"]["python"]  # strings: 3.10 unquoted would be 3.1
    assert f">={lowest}" == PROJECT["requires-python"]
    assert len(others) == 1
    assert all(int(other.removeprefix("3.")) > int(lowest.removeprefix("3.")) for other in others)
    assert with_action("setup-python") == [
        {"python-version": "${{ matrix.python }}", "cache": "pip", "cache-dependency-path": "pyproject.toml"}
    ]
    assert job["env"]["PIP_EXTRA_INDEX_URL"].endswith("/cpu")
    assert WORKFLOW_COMMANDS[:2] == [".ci/run", "make run PROFILE=quick"]


def test_github_keeps_index_and_report_of_each_python() -> None:
    uploads = with_action("upload-artifact")
    assert [upload["path"] for upload in uploads] == ["out", "report"]
    assert len({upload["name"] for upload in uploads}) == 2
    assert all("${{ matrix.python }}" in upload["name"] for upload in uploads), "or the second would be refused"
    assert all(step["if"] == "always()" for step in STEPS if step.get("with") in uploads)
    written = [shlex.split(command) for command in WORKFLOW_COMMANDS if " report " in command]
    assert [(words[3], Path(words[5]).parts[0]) for words in written] == [("en", "report"), ("zh", "report")]
    assert not any(step.get("uses", "").startswith("actions/cache") for step in STEPS), "a run store hides regressions"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_exist(command: str) -> None:
    """Those of the workflow, and of the README and of CONTRIBUTING that are ours."""
    program, *arguments = shlex.split(command, comments=True) or [""]
    if Path(program).name == "make":
        assert {word for word in arguments if "=" not in word} <= TARGETS
    elif Path(program).name == "resnotes":
        # Options are read, but a call for help carries nothing out.
        result = CliRunner().invoke(cli.app, [*arguments, "--help"])
        assert result.exit_code == 0, result.output
    elif command in WORKFLOW_COMMANDS:
        assert os.access(ROOT / program, os.X_OK)


def test_importing_the_package_is_light() -> None:
    program = "import sys, resnotes; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "resnotes" in done.stdout.split()
    assert not {"torch", "torchvision", "sklearn", "pandas", "matplotlib"} & set(done.stdout.split())
