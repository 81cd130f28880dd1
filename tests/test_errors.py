"""Messages: what may be meant, and nothing that is another one each time. Paths: whose folder, and none."""

import pickle
from pathlib import Path

import pytest

from resnotes import paths
from resnotes.errors import RunError, UsageError, did_you_mean, unknown


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ("degradatoin", "01_degradation"),
        ("DEGRADATION", "01_degradation"),
        ("1", "01_degradation"),
        ("identity", "02_identity_mappings"),
        ("_", "01_degradation or 02_identity_mappings"),
    ],
)
def test_what_is_written_alike_may_be_meant(found, meant):
    assert did_you_mean(found, ["01_degradation", "02_identity_mappings"]) == f"; did you mean {meant}?"


@pytest.mark.parametrize("found", ["", "nope", None, ["vgg"]])
def test_of_many_names_three_are_given(found):
    names = [f"resnet-{depth}-digits-s0" for depth in range(8, 80)]
    assert did_you_mean(found, names) == ""
    said = str(unknown("run", found, names))
    assert (said.count("resnet-"), "of 72, " in said) == (3, True)
    assert str(unknown("run", found, names[:2])).endswith(f"; allowed: {names[0]}, {names[1]}")


@pytest.mark.parametrize("error", [UsageError, RunError])
def test_no_message_says_where_in_memory_an_object_lies(error):
    said = error(f"expected a name, found {object()!r} and {test_no_message_says_where_in_memory_an_object_lies!r}")
    assert str(said) == (
        "expected a name, found <object object> and <function test_no_message_says_where_in_memory_an_object_lies>"
    )
    assert str(pickle.loads(pickle.dumps(said))) == str(said)


def test_paths_of_the_environment_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RESNOTES_OUT", "~/out")
    assert paths.out_root() == tmp_path / "out"
    assert paths.expanded("here") == Path.cwd() / "here"
    monkeypatch.setenv("RESNOTES_RUNS", "~nobody-is-called-so")
    with pytest.raises(UsageError, match="is no path"):
        paths.runs_root()
