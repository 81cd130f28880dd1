import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from resnotes.claims import Interval, Ledger, all_of, collect, interval, load, paired_difference, verdict
from resnotes.errors import ResnotesError, UsageError

numbers = st.floats(-1e6, 1e6)
samples = st.lists(numbers, min_size=2, max_size=8)
verdicts = st.sampled_from([True, False, None])


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
        "measured": measured,
        "holds": holds,
    }
    return ledger.record(id, **{**fields, **changes})


@given(samples)
def test_interval_is_scipys_t_interval(values):
    found = interval(values)
    mean, error = np.mean(values), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, mean, error) if error > 0 else (mean, mean)
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_interval_of_three_by_hand():
    # t(2, 97.5 %) = 4.3027, standard error of 1, 2, 3 is 1/sqrt(3)
    found = interval([1, 2, 3], "%")
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (found.n, found.unit) == (3, "%")


def test_a_single_seed_has_no_bounds_and_decides_nothing():
    single = interval([12.345], "%")
    assert (single.low, single.high, str(single)) == (None, None, "12.35 % (n = 1)")
    assert verdict(single, above=0) is None


def test_pairing_removes_what_seeds_share():
    a, b = [10.0, 20.0, 30.0], [9.0, 19.0, 29.0]
    assert paired_difference(a, b) == Interval(1.0, 1.0, 1.0, 3)
    with pytest.raises(UsageError, match="3 and 2"):
        paired_difference(a, b[:2])


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_interval_refuses(values):
    with pytest.raises(UsageError, match="finite"):
        interval(values)


@pytest.mark.parametrize(
    ("mean", "half", "unit", "text"),
    [
        (12.34, 0.43, "%", "12.3 ± 0.4 % (n = 3)"),
        (12.34, 0.143, "%", "12.34 ± 0.14 % (n = 3)"),
        (80.4, 12.0, "%", "80 ± 12 % (n = 3)"),
        (-0.04, 0.3, "", "0.0 ± 0.3 (n = 3)"),
        (1.24e-7, 3e-8, "", "(1.2 ± 0.3)e-7 (n = 3)"),
        (2.5e8, 3e7, "", "(2.5 ± 0.3)e+8 (n = 3)"),
        (0.1, 0.0, "s", "0.1 ± 0 s (n = 3)"),
        (0.1, 1e-17, "s", "0.1 ± 0 s (n = 3)"),
        (0.0, 0.0, "%", "0 ± 0 % (n = 3)"),
    ],
)
def test_text_has_sensible_digits(mean, half, unit, text):
    assert str(Interval(mean, mean - half, mean + half, 3, unit)) == text


@given(samples, numbers)
def test_verdict_is_true_on_at_most_one_side(values, bound):
    measured = interval(values)
    above, below = verdict(measured, above=bound), verdict(measured, below=bound)
    assert not (above and below)
    assert (above is None) == (below is None) or bound in (measured.low, measured.high)
    if above:
        assert measured.low > bound
        assert below is False
    if measured.low < bound < measured.high:
        assert above is None


@given(samples, numbers)
def test_verdict_mirrors(values, bound):
    mirrored = interval([-value for value in values])
    assert verdict(interval(values), above=bound) == verdict(mirrored, below=-bound)


@pytest.mark.parametrize("bounds", [{}, {"above": 1, "below": 2}])
def test_verdict_takes_one_bound(bounds):
    with pytest.raises(UsageError, match="exactly one"):
        verdict(interval([1, 2]), **bounds)


@given(st.lists(verdicts), st.lists(verdicts))
def test_all_of_is_kleenes_and(first, second):
    assert all_of(*first, *second) == all_of(*second, *first) == all_of(all_of(*first), all_of(*second))
    assert all_of(*first, True) == all_of(*first)
    assert all_of(*first, False) is False
    assert all_of(*first) == min(first, key=[False, None, True].index, default=True)


def test_ledger_on_disk(out):
    ledger = Ledger("01_degradation", "quick", "digits", range(3))
    record(ledger, "degradation.first", interval([1, 2, 3], "%"))
    record(ledger, "degradation.second", torch.tensor(0.5), np.bool_(False), dataset="cifar10", seeds=[7])
    record(ledger, "degradation.third", "grows with depth", None)
    entries = load(out / "claims" / "01_degradation.json")
    assert [entry["holds"] for entry in entries] == [True, False, None]
    assert set(entries[0]) == {
        *("id", "statement", "statement_zh", "source", "expected", "measured", "holds"),
        *("profile", "dataset", "seeds", "notebook"),
    }
    assert set(entries[0]["measured"]) == {"mean", "low", "high", "n", "unit", "text"}
    assert entries[1]["measured"] == {"value": 0.5, "text": "0.5"}
    assert (entries[1]["dataset"], entries[1]["seeds"], entries[0]["seeds"]) == ("cifar10", [7], [0, 1, 2])
    assert entries[2]["measured"]["text"] == "grows with depth"
    assert not list(out.glob("claims/.*")), "no temporary file is left"


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
    assert [entry["id"] for entry in collect(out / "claims")] == ["a.z", "a.a", "b.z", "b.a"]
    Ledger("01_a", "quick", "digits", [0])
    assert [entry["id"] for entry in collect(out / "claims")] == ["b.z", "b.a"]


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
    assert [entry["id"] for entry in collect(out / "claims")] == ["a.kept"]


def test_load_refuses_damage(out):
    record(Ledger("01_a", "quick", "digits", [0]))
    good = json.loads((out / "claims/01_a.json").read_text())
    path = out / "claims.json"
    damaged = [
        json.dumps(good)[:-9],
        json.dumps({"claims": good}),
        json.dumps([{**good[0], "holds": "yes"}]),
        json.dumps([{**good[0], "measured": 3}]),
        json.dumps([{key: value for key, value in good[0].items() if key != "statement"}]),
        json.dumps(["claim"]),
    ]
    for text in damaged:
        path.write_text(text)
        with pytest.raises(ResnotesError, match=r"claims\.json"):
            load(path)
    with pytest.raises(ResnotesError, match="cannot read"):
        load(out / "missing.json")
