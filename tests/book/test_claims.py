import json
import math

import numpy as np
import pytest
import torch

from resnotes.analysis.intervals import interval
from resnotes.book.ledger import Ledger, load
from resnotes.book.results import read_results
from resnotes.errors import ResnotesError, UsageError


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNOTES_OUT", str(tmp_path))
    return tmp_path


def record(ledger, id="study.claim", measured=1.0, holds=True, **changes):
    fields = {
        "statement": "Deeper is worse.",
        "statement_zh": "越深越差。",
        "source": "He et al.",
        "expected": "worse",
        "expected_zh": "更差",
        "measured": measured,
        "holds": holds,
    }
    return ledger.record(id, **{**fields, **changes})


def test_ledger_on_disk(out):
    ledger = Ledger("01_degradation", "quick", "digits", range(3))
    record(ledger, "degradation.first", interval([1, 2, 3], "points"))
    record(ledger, "degradation.second", torch.tensor(0.5), np.bool_(False), dataset="cifar10", seeds=[7])
    record(ledger, "degradation.third", "3 of 4 networks", None, measured_zh="4 个网络中的 3 个")
    first, second, third = load(out / "claims" / "01_degradation.json")
    assert [entry["holds"] for entry in (first, second, third)] == [True, False, None]
    assert set(first["measured"]) == {"mean", "low", "high", "n", "unit", "text", "text_zh"}
    assert first["measured"]["text_zh"] == "2 ± 2 个百分点 (n = 3)"
    assert second["measured"] == {"value": 0.5, "text": "0.5", "text_zh": "0.5"}
    assert (second["dataset"], second["seeds"], first["seeds"]) == ("cifar10", [7], [0, 1, 2])
    assert (third["measured"]["text"], third["measured"]["text_zh"]) == ("3 of 4 networks", "4 个网络中的 3 个")


def test_a_claim_that_holds_needs_no_reason(out):
    ledger = Ledger("01_a", "quick", "digits", [0])
    for holds in (True, False, None):
        record(ledger, f"a.{holds}".lower(), holds=holds, why="Too few steps.", why_zh="步数太少。")
    entries = load(out / "claims" / "01_a.json")
    assert [entry["why"] for entry in entries] == ["", "Too few steps.", "Too few steps."]
    assert entries[1]["why_zh"] == "步数太少。"


def test_recording_again_replaces_in_place():
    ledger = Ledger("01_a", "quick", "digits", [0])
    for id, holds in [("a.x", True), ("a.y", True), ("a.x", None)]:
        record(ledger, id, holds=holds)
    assert ledger.verdicts() == {"a.x": "undecided", "a.y": "true"}
    assert list(ledger.table().verdict) == ["undecided", "true"]


def test_opening_a_ledger_starts_afresh_and_results_are_of_all(out):
    for name in ("02_b", "01_a"):
        ledger = Ledger(name, "quick", "digits", [0])
        record(ledger, f"{name[3:]}.z")
        record(ledger, f"{name[3:]}.a")
    assert [entry["id"] for entry in read_results(out).claims] == ["a.z", "a.a", "b.z", "b.a"]
    Ledger("01_a", "quick", "digits", [0])
    assert [entry["id"] for entry in read_results(out).claims] == ["b.z", "b.a"]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"id": id} for id in ("degradation", "Degradation.x", "../x.y")),
        *({"measured": value} for value in (math.nan, np.float32("inf"), None, [1.0])),
        *({"holds": value} for value in (1, "true", np.array([True]))),
        {"why": "In one language alone."},
    ],
)
def test_record_refuses_and_keeps_the_ledger(wrong, out):
    ledger = Ledger("01_a", "quick", "digits", [0])
    record(ledger, "a.kept")
    with pytest.raises(UsageError):
        record(ledger, **wrong)
    assert [entry["id"] for entry in read_results(out).claims] == ["a.kept"]


def test_load_refuses_damage(out):
    record(Ledger("01_a", "quick", "digits", [0]))
    path = out / "claims/01_a.json"
    [good] = load(path)
    lacking = {key: value for key, value in good.items() if key != "statement"}
    for text in ("[{", json.dumps({"claims": [good]}), json.dumps([lacking]), json.dumps([good | {"holds": "yes"}])):
        path.write_text(text)
        with pytest.raises(ResnotesError, match=r"01_a\.json"):
            load(path)
