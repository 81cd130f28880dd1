"""Intervals and tests against SciPy's, verdicts by their definition, and how intervals are written."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from resnotes.analysis.intervals import (
    Interval,
    all_of,
    bootstrap,
    interval,
    matrix_rank_test,
    paired_difference,
    rank_test,
    replicated,
    verdict,
)
from resnotes.analysis.numbers import number, typeset
from resnotes.errors import UsageError

numbers = st.floats(-1e6, 1e6)
samples = st.lists(numbers, min_size=2, max_size=8)
verdicts = st.sampled_from([True, False, None])


# Means and differences


@given(samples)
def test_interval_is_scipys_t_interval(values):
    found = interval(values)
    mean, error = np.mean(values), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, mean, error) if error > 0 else (mean, mean)
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_a_single_seed_has_no_bounds_and_decides_nothing():
    single = interval([12.345], "%")
    assert (single.low, single.high, str(single)) == (None, None, "12.35\u00a0% (n = 1)")
    assert verdict(single, above=0) is verdict(single, below=0) is None


def test_pairing_removes_what_seeds_share():
    a, b = [10.0, 20.0, 30.0], [9.0, 19.0, 29.0]
    assert paired_difference(a, b, "points") == Interval(1.0, 1.0, 1.0, 3, "points")


def test_rounding_decides_nothing():
    assert paired_difference([0.1 + 0.2] * 3, [0.3] * 3) == Interval(0, 0, 0, 3)
    assert paired_difference([1e-30, 2e-30], [0, 0]).mean == pytest.approx(1.5e-30)


@given(samples, numbers)
def test_p_is_scipys_and_agrees_with_the_interval(values, bound):
    found = interval(values)
    if np.ptp(values) <= 1e-6 * (1 + abs(found.mean)):
        return  # SciPy warns of precision lost
    assert found.p(bound) == pytest.approx(stats.ttest_1samp(values, bound).pvalue, rel=1e-6, abs=1e-12)
    if found.p(bound) != pytest.approx(0.05):
        assert (found.p(bound) < 0.05) == (verdict(found, above=bound) is not None)


@pytest.mark.parametrize("bound", [-7.0, -4.4, 0.0, 1.5])
def test_p_of_a_difference_is_that_of_shifted_samples(bound):
    a, b = [2.0, 3.0, 4.5], [7.0, 8.5, 9.0]
    assert paired_difference(a, b).p(bound) == pytest.approx(stats.ttest_rel(np.array(a) - bound, b).pvalue)


def test_what_does_not_vary_has_no_p():
    for found in (interval([1, 1, 1]), interval([1]), paired_difference([1, 1], [3, 3]), replicated(1, [2])):
        assert found.p(0) is None


def test_a_single_network_decides_where_replications_differ_by_less():
    """They range over 0.5 points, with ours."""
    found = replicated(3.0, [3.5, 3.2], "points")
    assert found == Interval(3.0, 2.5, 3.5, 3, "points", "networks")
    assert (verdict(found, above=2), verdict(found, above=2.6), verdict(found, above=4)) == (True, None, False)
    assert str(found) == "3 ± 0.5\u00a0points (± the range over 3 sources)"
    assert found.zh == "3 ± 0.5\u00a0个百分点 (± 为 3 个来源的全距)"


def test_no_interval_goes_where_nothing_can_lie():
    cut = interval([0.1, 0.2, 0.9], "%").within(0, 100)
    assert (cut.low, cut.high, cut.p(0)) == (0, interval([0.1, 0.2, 0.9]).high, interval([0.1, 0.2, 0.9]).p(0))
    assert interval([1]).within(0, 1) == interval([1])


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        *((lambda values=values: interval(values), "finite") for values in ([], [1.0, math.nan], [math.inf])),
        (lambda: paired_difference([1, 2, 3], [1, 2]), "3 and 2"),
        *(
            (lambda values=values: interval(values), "a number for each seed")
            for values in ([[1, 2], [3, 4]], ["x", "y"])
        ),
        (lambda: replicated(1.0, []), "what a replication found"),
        (lambda: replicated(1.0, [2.0, math.nan, 3.0]), "finite"),
        (lambda: paired_difference([1, math.nan], [1, 2]), "finite"),
        *((lambda x=x: bootstrap(x, np.mean), "at least one image, and finite") for x in ([], [1, math.nan], 3.0)),
        (lambda: rank_test([], []), "at least three things"),
        (lambda: rank_test([[1, 2]], [[1, 2]]), "at least three things"),
        (lambda: rank_test([[1, 2, 3]], [[1, 2, 3, 4]]), "as many in each group"),
        (lambda: rank_test([[1, 2, 3]], [[1, 2, 3], [1, 2, 3]]), "on both sides"),
        (lambda: rank_test([[1, 2, math.nan]], [[1, 2, 3]]), "finite"),
        (lambda: rank_test([[1, 1, 1]], [[1, 2, 3]]), "differ"),
        (lambda: verdict(interval([1, 2])), "exactly one"),
        (lambda: verdict(interval([1, 2]), above=1, below=2), "exactly one"),
    ],
)
def test_what_has_no_interval_is_refused(measure, message):
    with pytest.raises(UsageError, match=message):
        measure()


# Words


@pytest.mark.parametrize(
    ("mean", "half", "unit", "text"),
    [
        (12.34, 0.43, "%", "12.3 ± 0.4 % (n = 3)"),
        (12.34, 0.143, "%", "12.34 ± 0.14 % (n = 3)"),
        (80.4, 12.0, "%", "80 ± 12 % (n = 3)"),
        (-0.04, 0.3, "", "0.0 ± 0.3 (n = 3)"),
        (-0.5, 0.3, "of the initial norm", "−0.5 ± 0.3 of the initial norm (n = 3)"),
        (1.24e-7, 3e-8, "", "(1.2 ± 0.3)×10⁻⁷ (n = 3)"),
        (1.0, 0.19, "", "1.00 ± 0.19 (n = 3)"),
        (1e-3, 3e-4, "", "0.0010 ± 0.0003 (n = 3)"),
        (1e6, 3e4, "", "(1.00 ± 0.03)×10⁶ (n = 3)"),
        (0.1, 1e-17, "s", "all 3 seeds: 0.1 s"),
        (0.0, 0.0, "%", "all 3 seeds: 0 %"),
    ],
)
def test_text_has_sensible_digits(mean, half, unit, text):
    found = str(Interval(mean, mean - half, mean + half, 3, unit))
    assert found.replace("\u00a0", " ") == text
    assert (f"\u00a0{unit}" in found) == bool(unit), "the unit stays with its number"


@pytest.mark.parametrize(
    ("mean", "low", "high", "text"),
    [
        (0.8123, 0.6189, 0.8837, "0.81 [0.62, 0.88] (n = 3)"),
        (-0.5, -1.0, 0.125, "−0.5 [−1, 0.12] (n = 3)"),
        (0.5, 0.4, 0.6, "0.50 ± 0.10 (n = 3)"),
        (120.4, 111.0, 1501.0, "120 [110, 1500] (n = 3)"),
        (2e-13, 1e-13, 8e-13, "2×10⁻¹³ [1×10⁻¹³, 8×10⁻¹³] (n = 3)"),
    ],
)
def test_text_of_an_interval_that_is_not_symmetric(mean, low, high, text):
    assert str(Interval(mean, low, high, 3)) == text


@given(st.floats(-1e12, 1e12))
def test_a_number_is_itself_to_four_digits(value):
    text = number(value).replace("−", "-").replace("×10", "e").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    digits = 4 if 1e-3 <= abs(value) < 1e6 else 2
    assert float(text) == pytest.approx(value, rel=0.51 * 10 ** (1 - digits), abs=1e-308)
    assert "e+" not in text


@pytest.mark.parametrize("text", ["resnet-56", "4-5", "2026-11-28", "CIFAR-10", "warm-up", "1e-4", "a/-1"])
def test_a_hyphen_is_no_minus(text):
    assert typeset(text) == text


def test_minus_and_percent_are_set():
    assert typeset("from -0.5 to (-3), -.5 %") == "from −0.5 to (−3), −.5\u00a0%"
    assert typeset("降至-0.5 %") == "降至−0.5\u00a0%"


@given(samples)
@example([2.0**16 + 1e-10, 2.0**16 - 1e-10, 2.0**16 - 3e-10])  # floats are twice as far apart above as below
@example([0.1 + 0.2, 0.3, 0.3])
def test_t_intervals_are_symmetric(values):
    assert "[" not in str(interval(values))


def test_units_that_are_words_are_translated():
    assert interval([1, 2, 3], "points").zh == "2 ± 2\u00a0个百分点 (n = 3)"
    assert interval([1, 2, 3], "%").zh == "2 ± 2\u00a0% (n = 3)"
    assert interval([2, 2, 2], "points").zh == "3 个种子均为 2\u00a0个百分点"


# Verdicts


@pytest.mark.parametrize(
    ("bound", "above", "below"),
    [(0, True, False), (0.999, True, False), (1, None, None), (2, None, None), (3, None, None), (4, False, True)],
)
def test_verdict_of_an_interval_from_1_to_3(bound, above, below):
    """It lies above a bound if all of it does, and does not if nothing of it does."""
    measured = Interval(2.0, 1.0, 3.0, 3)
    assert verdict(measured, above=bound) is above
    assert verdict(measured, below=bound) is below


@given(st.lists(verdicts))
def test_all_of_is_kleenes_and(given_verdicts):
    assert all_of(*given_verdicts) == min(given_verdicts, key=[False, None, True].index, default=True)


# Rankings


@pytest.mark.parametrize("theirs", [[1, 2, 3, 4, 5], [5, 3, 4, 1, 2], [2, 2, 1, 5, 4], [1, 5, 2, 4, 3]])
def test_p_is_the_share_of_all_orders_that_do_as_well(theirs):
    ours = [0.1, 0.4, 0.5, 0.7, 1.3]
    rho = stats.spearmanr(ours, theirs).statistic
    every = np.array([stats.spearmanr(ours, order).statistic for order in itertools.permutations(theirs)])
    tail = min((every >= rho - 1e-9).mean(), (every <= rho + 1e-9).mean())
    found = rank_test([ours], [theirs])
    assert (found.rho, found.p, found.n) == pytest.approx((rho, min(1, 2 * tail), 5))


@given(st.lists(st.tuples(numbers, st.integers(0, 9)), min_size=3, max_size=18))
@settings(max_examples=20)
def test_rho_is_scipys(pairs):
    ours, theirs = zip(*pairs, strict=True)
    if len(set(ours)) > 1 and len(set(theirs)) > 1:
        found = rank_test([ours], [theirs], draws=50)
        assert found.rho == pytest.approx(stats.spearmanr(ours, theirs).statistic, abs=1e-12)


def test_groups_are_ranked_each_by_itself():
    """Two seeds of five things each: the groups differ by far more than what is ranked within them."""
    ours, theirs = [[1, 2, 3, 4, 5], [101, 102, 103, 104, 105]], [[5, 6, 7, 8, 9], [1, 2, 3, 4, 5]]
    found = rank_test(ours, theirs)
    assert found.rho == 1
    assert found.p == pytest.approx(2 / 120**2, abs=2e-4)  # both in order, or both in reverse
    assert (found.verdict(), found.verdict(same=False)) == (True, False)
    reverse = rank_test(ours, [group[::-1] for group in theirs])
    assert (reverse.verdict(), reverse.verdict(same=False)) == (False, True)


def test_orders_by_chance_are_rarely_decided():
    rng = np.random.default_rng(0)
    decided = [rank_test([rng.random(7)], [rng.random(7)], draws=5040).verdict() is not None for _ in range(150)]
    assert np.mean(decided) < 0.1  # 5 %, and a standard deviation of 1.8 % around it
    assert rank_test([[1, 2, 3]], [[1, 2, 3]]).verdict() is None, "three things are too few"


# Any statistic of images


def test_a_matrix_rank_test_counts_orders_of_things_as_all_of_them_do():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 5, 5))
    np.fill_diagonal(x, np.nan)
    known = ~np.isnan(x)

    def rho(order):
        return stats.spearmanr(x[known], y[np.ix_(order, order)][known]).statistic

    everyone = [abs(rho(order)) for order in itertools.permutations(range(5))]
    found = matrix_rank_test(x, y)
    assert found.rho == pytest.approx(rho(range(5))) and found.n == 5
    assert found.p == pytest.approx(np.mean(np.array(everyone) >= abs(found.rho) - 1e-12), abs=0.04)
    same = rng.random((9, 9))
    assert matrix_rank_test(np.where(np.eye(9), np.nan, same), np.where(same < 0.2, -np.inf, same)).verdict() is True
    with pytest.raises(UsageError, match="two square matrices"):
        matrix_rank_test(x, y[:4])


def test_a_thing_of_which_nothing_is_known_is_left_out_of_a_matrix_rank_test():
    x, y = np.random.default_rng(3).random((2, 6, 6))
    np.fill_diagonal(x, np.nan)
    absent = y.copy()
    absent[2], absent[:, 2] = np.nan, np.nan
    rest = [0, 1, 3, 4, 5]
    assert matrix_rank_test(x, absent) == matrix_rank_test(x[np.ix_(rest, rest)], y[np.ix_(rest, rest)])
    diagonal = np.where(np.eye(6), np.nan, y)
    assert matrix_rank_test(x, diagonal) == matrix_rank_test(x, y)
    some = y.copy()
    some[2, 3] = np.nan
    with pytest.raises(UsageError, match="found NaN among them"):
        matrix_rank_test(x, some)
    with pytest.raises(UsageError, match="ranks need values that differ"):
        matrix_rank_test(x, np.ones((6, 6)))


def test_a_bootstrap_of_the_mean_is_scipys():
    values = np.random.default_rng(2).random(60)
    found = bootstrap(values, np.mean, "%", draws=4000)
    scipys = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((scipys.low, scipys.high), abs=0.01)
    assert (found.n, found.unit) == (60, "%")
    assert bootstrap(values[:1], np.mean) == Interval(values[0], None, None, 1, of="images")


def test_images_are_drawn_with_all_that_is_theirs():
    """Paired by image, two columns that differ by 1 differ by 1 in every sample."""
    first = np.random.default_rng(1).random(30)
    found = bootstrap(np.stack([first, first + 1], axis=1), lambda rows: rows[:, 1].mean() - rows[:, 0].mean())
    assert (found.low, found.high) == pytest.approx((1, 1))


@given(st.floats(-0.5, 1.5))
def test_p_of_a_bootstrap_agrees_with_its_interval(bound):
    """Within what 2,000 draws tell: at a bound of the interval, one draw more or less decides."""
    found = BOOTSTRAPPED
    if not 0.048 < found.p(bound) < 0.052:
        assert (found.p(bound) < 0.05) == (verdict(found, above=bound) is not None)


BOOTSTRAPPED = bootstrap(np.random.default_rng(3).random(40), np.median)
