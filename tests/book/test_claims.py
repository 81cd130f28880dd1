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
    record(ledger, "degradation.first", interval([1, 2, 3], "%"))
    record(ledger, "degradation.second", torch.tensor(0.5), np.bool_(False), dataset="cifar10", seeds=[7])
    record(ledger, "degradation.third", "grows with depth", None)
    entries = load(out / "claims" / "01_degradation.json")
    assert [entry["holds"] for entry in entries] == [True, False, None]
    assert set(entries[0]) == {
        *("id", "statement", "statement_zh", "source", "expected", "expected_zh", "measured", "holds", "why", "why_zh"),
        *("profile", "dataset", "seeds", "notebook"),
    }
    assert set(entries[0]["measured"]) == {"mean", "low", "high", "n", "unit", "text", "text_zh"}
    assert entries[1]["measured"] == {"value": 0.5, "text": "0.5", "text_zh": "0.5"}
    assert (entries[1]["dataset"], entries[1]["seeds"], entries[0]["seeds"]) == ("cifar10", [7], [0, 1, 2])
    assert entries[2]["measured"]["text"] == "grows with depth"
    assert not list(out.glob("claims/.*")), "no temporary file is left"


def test_both_languages_come_from_one_entry(out):
    ledger = Ledger("01_a", "quick", "digits", [0])
    record(ledger, "a.interval", interval([1, 2, 3], "points"))
    record(ledger, "a.words", "3 of 4 networks", measured_zh="4 个网络中的 3 个")
    record(ledger, "a.symbols", "5e-15")
    texts = {entry["id"]: entry["measured"]["text_zh"] for entry in load(out / "claims" / "01_a.json")}
    assert texts == {"a.interval": "2 ± 2 个百分点 (n = 3)", "a.words": "4 个网络中的 3 个", "a.symbols": "5e-15"}
    with pytest.raises(UsageError, match="needs no measured_zh"):
        record(ledger, "a.number", 1.0, measured_zh="一")


def test_a_claim_that_holds_needs_no_reason(out):
    ledger = Ledger("01_a", "quick", "digits", [0])
    for holds in (True, False, None):
        record(ledger, f"a.{holds}".lower(), holds=holds, why="Too few steps.", why_zh="步数太少。")
    assert [entry["why"] for entry in load(out / "claims" / "01_a.json")] == ["", "Too few steps.", "Too few steps."]
    assert load(out / "claims" / "01_a.json")[1]["why_zh"] == "步数太少。"
    with pytest.raises(UsageError, match="one language alone"):
        record(ledger, "a.half", why="Too few steps.")


def test_recording_again_replaces_in_place():
    ledger = Ledger("01_a", "quick", "digits", [0])
    for id, holds in [("a.x", True), ("a.y", True), ("a.x", None)]:
        record(ledger, id, holds=holds)
    assert ledger.verdicts() == {"a.x": "undecided", "a.y": "true"}
    assert list(ledger.table().columns) == ["statement", "expected", "measured", "verdict"]
    assert ledger.table().loc["a.x", "verdict"] == "undecided"


def test_opening_a_ledger_starts_afresh_and_collect_merges(out):
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
        *({"id": id} for id in ("", "degradation", "Degradation.x", "a..b", "a.b c", "../x.y", "a.-b")),
        *({"measured": value} for value in (math.nan, math.inf, np.float32("nan"), None, [1.0])),
        *({"holds": value} for value in (1, 0, "true", np.array([True]))),
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
    good = json.loads((out / "claims/01_a.json").read_text())
    path = out / "claims.json"
    damaged = [
        json.dumps(good)[:-9],
        json.dumps({"claims": good}),
        json.dumps([{**good[0], "holds": "yes"}]),
        json.dumps([{**good[0], "measured": 3}]),
        json.dumps([{**good[0], "statement_zh": None}]),
        json.dumps([{key: value for key, value in good[0].items() if key != "statement"}]),
        json.dumps(["claim"]),
    ]
    for text in damaged:
        path.write_text(text)
        with pytest.raises(ResnotesError, match=r"claims\.json"):
            load(path)
    with pytest.raises(ResnotesError, match="cannot read"):
        load(out / "missing.json")
