import subprocess

from resnotes import paths, provenance


def test_code_version(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.code_version() == {"commit": None, "dirty": False}

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "resnotes").mkdir()
    source = tmp_path / "resnotes/models.py"
    source.write_text("depth = 20\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = provenance.code_version()
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "figure.png").touch()
    assert provenance.code_version() == clean
    source.write_text("depth = 56\n")
    assert provenance.code_version() == {**clean, "dirty": True}
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path / "resnotes")
    assert provenance.code_version()["commit"] is None, "a folder inside another repository is not ours"
    monkeypatch.setattr(paths, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert provenance.code_version()["commit"] is None, "nor is a repository in which somebody uses the package"


def test_versions_name_what_results_depend_on():
    assert {"resnotes", "python", "torch", "torchvision", "numpy"} == set(provenance.versions())
