import collections
import functools
import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats

from resnotes.analysis.intervals import (
    Interval,
    all_of,
    bootstrap,
    interval,
    paired_difference,
    rank_correlation,
    rank_test,
    unpaired_difference,
    verdict,
)
from resnotes.book.ledger import Ledger, load
from resnotes.book.results import read_results
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
        "expected_zh": "更差",
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


def test_a_single_seed_has_no_bounds_and_decides_nothing():
    single = interval([12.345], "%")
    assert (single.low, single.high, str(single)) == (None, None, "12.35 % (n = 1)")
    assert verdict(single, above=0) is None


def test_pairing_removes_what_seeds_share():
    a, b = [10.0, 20.0, 30.0], [9.0, 19.0, 29.0]
    assert paired_difference(a, b) == Interval(1.0, 1.0, 1.0, 3, "")
    assert paired_difference(a, b, "points").unit == "points"
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
        (12.0, 2.0, "", "12 ± 2 (n = 3)"),
        (1.0, 0.19, "", "1.00 ± 0.19 (n = 3)"),
        (1e-3, 3e-4, "", "0.0010 ± 0.0003 (n = 3)"),
        (9e5, 3e4, "", "900000 ± 30000 (n = 3)"),
        (1e6, 3e4, "", "(1.00 ± 0.03)e+6 (n = 3)"),
        (0.1, 0.0, "s", "0.1 ± 0 s (n = 3)"),
        (0.1, 1e-17, "s", "0.1 ± 0 s (n = 3)"),
        (0.0, 0.0, "%", "0 ± 0 % (n = 3)"),
    ],
)
def test_text_has_sensible_digits(mean, half, unit, text):
    assert str(Interval(mean, mean - half, mean + half, 3, unit)) == text


@pytest.mark.parametrize(
    ("bound", "above", "below"),
    [(0, True, False), (0.999, True, False), (1, None, None), (2, None, None), (3, None, None), (4, False, True)],
)
def test_verdict_of_an_interval_from_1_to_3(bound, above, below):
    """It lies above a bound if all of it does, and does not if nothing of it does."""
    measured = Interval(2.0, 1.0, 3.0, 3)
    assert verdict(measured, above=bound) is above
    assert verdict(measured, below=bound) is below


@pytest.mark.parametrize("bounds", [(None, 3.0), (1.0, None)])
def test_a_bound_that_is_unknown_decides_nothing(bounds):
    measured = Interval(2.0, *bounds, 1, "%")
    assert str(measured) == "2 % (n = 1)"
    for bound in (0, 2, 4):
        assert verdict(measured, above=bound) is verdict(measured, below=bound) is None


def test_what_is_drawn_unless_asked_for_otherwise():
    rng = np.random.default_rng(5)
    ours, theirs = rng.normal(size=(6, 5)) + np.arange(6)[:, None], np.arange(6)
    assert rank_correlation(ours, theirs) == rank_correlation(ours, theirs, draws=2000)
    assert rank_correlation(ours, theirs) != rank_correlation(ours, theirs, draws=500)
    assert interval([1, 2]).unit == ""


@given(samples, numbers)
def test_verdict_is_that_of_every_point(values, bound):
    measured = interval(values)
    points = [measured.low, measured.mean, measured.high]
    for holds, fails, side in (
        (lambda point: point > bound, lambda point: point < bound, {"above": bound}),
        (lambda point: point < bound, lambda point: point > bound, {"below": bound}),
    ):
        expected = True if all(map(holds, points)) else False if all(map(fails, points)) else None
        assert verdict(measured, **side) is expected


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


# Intervals that are not symmetric


@pytest.mark.parametrize(
    ("mean", "low", "high", "unit", "text"),
    [
        (0.81, 0.62, 0.88, "", "0.81 [0.62, 0.88] (n = 3)"),
        (0.8123, 0.6189, 0.8837, "", "0.81 [0.62, 0.88] (n = 3)"),
        (12.34, 11.0, 15.0, "%", "12 [11, 15] % (n = 3)"),
        (-0.5, -1.0, 0.125, "", "-0.5 [-1, 0.12] (n = 3)"),
        (1.0, 0.8, 1.0, "", "1 [0.8, 1] (n = 3)"),
        (1.0, 1.0, 1.0, "", "1 ± 0 (n = 3)"),
        (0.5, 0.4, 0.6, "", "0.50 ± 0.10 (n = 3)"),
        (2e-13, 1e-13, 8e-13, "", "2e-13 [1e-13, 8e-13] (n = 3)"),
    ],
)
def test_text_of_an_interval_that_is_not_symmetric(mean, low, high, unit, text):
    assert str(Interval(mean, low, high, 3, unit)) == text


@given(st.lists(st.integers(-100, 100), min_size=3, max_size=3).map(sorted))
def test_text_shows_both_bounds_where_they_differ_in_distance(hundredths):
    low, mean, high = (value / 100 for value in hundredths)
    text = str(Interval(mean, low, high, 3))
    if hundredths[0] + hundredths[2] == 2 * hundredths[1]:
        assert "±" in text
        assert "[" not in text
    else:
        shown = [float(part) for part in text.removesuffix("] (n = 3)").replace("[", "").replace(",", "").split()]
        assert shown == pytest.approx([mean, low, high])


@given(samples)
@example([2.0**16 + 1e-10, 2.0**16 - 1e-10, 2.0**16 - 3e-10])  # floats are twice as far apart above as below
@example([0.1 + 0.2, 0.3, 0.3])
def test_t_intervals_are_symmetric(values):
    assert "±" in str(interval(values))


# Rank correlation


@st.composite
def compared(draw, fewest=5, most=7):
    """Our values, one list for each thing, and the paper's; the first thing is always below the last."""
    things = draw(st.integers(3, 18))
    ours = []
    for i in range(things):
        low, high = (0, 10) if i == 0 else (20, 30) if i == things - 1 else (0, 30)
        values = st.integers(low, high).map(float)
        n = draw(st.integers(fewest, most))
        ours.append(draw(st.lists(values, min_size=n, max_size=n)))
    theirs = draw(st.lists(st.integers(0, 9).map(float), min_size=things, max_size=things))
    assume(len(set(theirs)) > 1)
    return ours, theirs


@given(compared(1, 4))
def test_rank_correlation_is_scipys_of_the_means(drawn):
    ours, theirs = drawn
    expected = stats.spearmanr([np.mean(values) for values in ours], theirs).statistic
    found = rank_correlation(ours, theirs, draws=10)
    assert found.mean == pytest.approx(expected, abs=1e-12)
    assert (found.n, found.unit) == (min(map(len, ours)), "")


@given(compared())
@example(([[float(i)] * 5 for i in range(17)], list(range(17))))
@example(([[float(i)] * 5 for i in range(17)], list(range(17))[::-1]))
def test_rank_correlations_lie_between_minus_one_and_one(drawn):
    found = rank_correlation(*drawn, draws=200)
    assert -1 <= found.low <= found.high <= 1
    assert -1 <= found.mean <= 1


@pytest.mark.parametrize("things", [3, 4, 11, 16])
def test_the_same_order_correlates_fully_and_the_reverse_negatively(things):
    ours = [[10.0 * i + k for k in range(5)] for i in range(things)]  # no draw changes the order
    theirs = [float(i**2) for i in range(things)]
    for sign in (1, -1):
        found = rank_correlation(ours, [sign * value for value in theirs])
        assert (found.mean, found.low, found.high) == pytest.approx((sign, sign, sign), abs=1e-12)
        assert found.n == 5


@given(compared(1, 1), st.integers(5, 7))
def test_seeds_that_agree_leave_no_doubt(drawn, seeds):
    ours, theirs = drawn
    found = rank_correlation([values * seeds for values in ours], theirs, draws=50)
    assert found.low == found.mean == found.high
    assert found.n == seeds


@given(compared(1, 1), st.integers(1, 4))
def test_few_seeds_bound_no_correlation(drawn, seeds):
    ours, theirs = drawn
    found = rank_correlation([values * seeds for values in ours], theirs)
    assert (found.low, found.high, found.n) == (None, None, seeds)
    more = [ours[0] * 4, *(values * 5 for values in ours[1:])]  # for all but one, that is too little
    assert (rank_correlation(more, theirs).low, rank_correlation(more, theirs).n) == (None, 4)
    assert verdict(found, above=0.5) is verdict(found, below=-0.5) is None


@pytest.mark.parametrize("theirs", [[1, 2, 3], [3, 1, 1], [2, 1, 3]])
def test_bounds_are_percentiles_over_all_ways_to_draw_seeds(theirs):
    """Of few distinct values, every mean of five draws can be listed with its chance."""
    ours = [[0, 4, 4, 4, 9], [1, 2, 2, 2, 8], [1, 1, 1, 6, 6]]

    def means(values):
        drawn = collections.Counter(sum(each) / 5 for each in itertools.product(values, repeat=5))
        return [(mean, count / 5**5) for mean, count in drawn.items()]

    rho = functools.cache(lambda *means: stats.spearmanr(means, theirs).statistic if len(set(means)) > 1 else 0.0)
    every = collections.Counter()
    for chosen in itertools.product(*map(means, ours)):
        ranks = tuple(stats.rankdata([mean for mean, _ in chosen]))
        every[rho(*ranks)] += math.prod(chance for _, chance in chosen)
    found = rank_correlation(ours, theirs)
    slack = 4 * math.sqrt(0.025 * 0.975 / 2000)  # of the share among 2000 draws
    assert len(every) > 1
    for bound, share in ((found.low, 0.025), (found.high, 0.975)):
        assert sum(chance for value, chance in every.items() if value < bound - 1e-9) <= share + slack
        assert sum(chance for value, chance in every.items() if value <= bound + 1e-9) >= share - slack


def test_rank_correlation_is_the_same_each_time():
    generator = np.random.default_rng(3)
    ours, theirs = generator.normal(size=(9, 5)), generator.normal(size=9)
    first = rank_correlation(ours, theirs)
    np.random.seed(5)  # noqa: NPY002 - that it does not matter is the point
    assert rank_correlation(ours.tolist(), theirs.tolist()) == first
    assert first.low < first.high


def test_a_draw_whose_means_are_all_equal_is_no_error():
    """The values differ, and so do their means; some draws have nothing but ones."""
    found = rank_correlation([[1, 1, 1, 1, 2], [1, 1, 1, 1, 2], [1, 1, 1, 1, 2.5]], [1, 2, 3])
    assert -1 <= found.low <= found.high <= 1


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([[1], [2], [3]], [1, 2], "at least three values on both sides; found 3 and 2"),
        ([], [], "found 0 and 0"),
        ([[1], [math.nan], [3]], [1, 2, 3], "finite"),
        ([[1], [2], [3]], [1, math.nan, 3], "finite"),
        ([[1], [], [3]], [1, 2, 3], "finite"),
        ([[1, 3], [2, 2], [3, 1]], [1, 2, 3], "differ"),
        ([[1], [2], [3]], [5, 5, 5], "differ"),
    ],
)
def test_rank_correlation_refuses(ours, theirs, message):
    with pytest.raises(UsageError, match=message):
        rank_correlation(ours, theirs)


# Permutation tests


@given(compared(1, 1))
@settings(max_examples=40)
def test_a_rank_test_is_scipys(drawn):
    ours, theirs = [values[0] for values in drawn[0]], drawn[1]
    found = rank_test([ours], [theirs], draws=300)
    assert found.rho == pytest.approx(stats.spearmanr(ours, theirs).statistic, abs=1e-12)
    assert found.n == len(ours)
    assert 0 < found.p <= 1


@pytest.mark.parametrize("theirs", [[1, 2, 3, 4, 5], [5, 3, 4, 1, 2], [2, 2, 1, 5, 4], [1, 5, 2, 4, 3]])
def test_p_is_the_share_of_all_orders_that_do_as_well(theirs):
    ours = [0.1, 0.4, 0.5, 0.7, 1.3]
    rho = stats.spearmanr(ours, theirs).statistic
    every = np.array([stats.spearmanr(ours, order).statistic for order in itertools.permutations(theirs)])
    tail = min((every >= rho - 1e-9).mean(), (every <= rho + 1e-9).mean())
    assert rank_test([ours], [theirs]).p == pytest.approx(min(1, 2 * tail))


def test_groups_are_ranked_each_by_itself():
    """Two seeds of five things each: the groups differ by far more than what is ranked within them."""
    ours, theirs = [[1, 2, 3, 4, 5], [101, 102, 103, 104, 105]], [[5, 6, 7, 8, 9], [1, 2, 3, 4, 5]]
    found = rank_test(ours, theirs)
    assert found.rho == 1
    assert found.p == pytest.approx(2 / 120**2, abs=2e-4)  # both in order, or both in reverse
    assert found.verdict() is True
    assert found.verdict(same=False) is False
    reverse = rank_test(ours, [group[::-1] for group in theirs])
    assert (reverse.verdict(), reverse.verdict(same=False)) == (False, True)


def test_orders_by_chance_are_rarely_decided():
    rng = np.random.default_rng(0)
    decided = [rank_test([rng.random(7)], [rng.random(7)], draws=5040).verdict() is not None for _ in range(300)]
    assert 0.02 < np.mean(decided) < 0.08  # 5 % and little more than a standard deviation of 1.3 % around it


def test_three_things_are_too_few_to_decide():
    assert rank_test([[1, 2, 3]], [[1, 2, 3]]).verdict() is None


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([], [], "at least three values"),
        ([[1, 2, 3]], [[1, 2, 3, 4]], "the same number in each group"),
        ([[1, 2, math.nan]], [[1, 2, 3]], "finite"),
        ([[1, 1, 1]], [[1, 2, 3]], "differ"),
        ([[1, 2, 3]], [[1, 2, 3], [1, 2, 3]], "the same groups on both sides; found 1 and 2"),
    ],
)
def test_rank_tests_refuse(x, y, message):
    with pytest.raises(UsageError, match=message):
        rank_test(x, y)


# Samples that have nothing in common, and any statistic of images


@pytest.mark.filterwarnings("ignore:Precision loss")
@given(samples, samples)
def test_an_unpaired_difference_is_scipys_welch_interval(a, b):
    found = unpaired_difference(a, b, "%")
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b))
    assert found.n == min(len(a), len(b))
    if np.std(a) > 1e-3 or np.std(b) > 1e-3:  # of two that do not differ, SciPy has no interval
        expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
        assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-6)


def test_rounding_decides_nothing():
    assert paired_difference([0.1 + 0.2] * 3, [0.3] * 3) == Interval(0, 0, 0, 3)
    assert unpaired_difference([0.1 + 0.2] * 3, [0.3] * 2) == Interval(0, 0, 0, 2)
    assert paired_difference([1e-30, 2e-30], [0, 0]).mean == pytest.approx(1.5e-30)


def test_an_unpaired_difference_at_its_ends():
    assert unpaired_difference([1], [2, 3]) == Interval(-1.5, None, None, 1)
    assert unpaired_difference([1, 1], [3, 3, 3]) == Interval(-2, -2, -2, 2)
    with pytest.raises(UsageError, match="at least one value on each side"):
        unpaired_difference([], [1, 2])


def test_a_bootstrap_of_the_mean_is_scipys():
    values = np.random.default_rng(2).random(60)
    found = bootstrap(values, np.mean, "%", draws=4000)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert (found.n, found.unit) == (60, "%")
    assert bootstrap(values[:1], np.mean) == Interval(values[0], None, None, 1)


def test_images_are_drawn_with_all_that_is_theirs():
    """Paired by image, two columns that differ by 1 differ by 1 in every sample."""
    first = np.random.default_rng(1).random(30)
    found = bootstrap(np.stack([first, first + 1], axis=1), lambda rows: rows[:, 1].mean() - rows[:, 0].mean())
    assert (found.low, found.high) == pytest.approx((1, 1))


@pytest.mark.parametrize("images", [[], [1, math.nan], 3.0])
def test_a_bootstrap_refuses(images):
    with pytest.raises(UsageError, match="at least one image, and finite numbers"):
        bootstrap(images, np.mean)


def test_a_rate_over_images_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        regions = rng.integers(1, 12, 200)
        wrong = rng.binomial(regions, rng.beta(2, 6, 200))  # images differ in how often they go wrong
        rows = np.stack([wrong, regions], axis=1)
        found = bootstrap(rows, lambda drawn: drawn[:, 0].sum() / drawn[:, 1].sum(), draws=300, seed=seed)
        covered += found.low <= 0.25 <= found.high
    assert covered >= 88
