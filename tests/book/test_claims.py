"""Claims: decided by their rules at three scopes, kept on disk, shown as cards, and weighed against chance."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter
from kit.report import Page, claim
from matplotlib.figure import Figure
from scipy import stats

from resnotes import paths
from resnotes.analysis.intervals import all_of, interval, rank_test, replicated
from resnotes.book import cards
from resnotes.book import ledger as ledgers
from resnotes.book.claims import Evidence, by_chance, load, marked
from resnotes.book.ledger import Ledger
from resnotes.book.results import read_results
from resnotes.book.words import words_of
from resnotes.errors import ResnotesError, UsageError
from resnotes.files import write_json

RULES = {
    "worse": "{ above = 0, unit = 'points', limits = [-100, 100] }",
    "small": "{ below = 1, unit = '%' }",
    "equal": "{ below = 1e-6, exact = true }",
    "ranked": "{ rank = 'same' }",
    "reversed": "{ rank = 'reversed' }",
}
ENTRY = """
[claims.{key}]
statement = {{ en = "It is {key}.", zh = "论断 {key}。" }}
source = "He et al."
paper = {{ en = "yes", zh = "是" }}
rule = {rule}
why = {{ en = "Too few steps.", zh = "步数太少。" }}
"""
WORSE, UNCLEAR, BETTER = [2.0, 3.0, 4.0], [-3.0, 1.0, 3.0], [-2.0, -3.0, -4.0]
SAME, CHANCE = rank_test([range(7)], [range(7)]), rank_test([range(5)], [[2, 1, 3, 5, 4]])


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNOTES_OUT", str(tmp_path))
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def ledger(out):
    """A ledger with an entry for each rule, and a figure."""
    (out / "notebooks").mkdir()
    figure = '[figures.01_a]\ncaption = { en = "A figure", zh = "图" }\nclaims = ["worse"]'
    labels = '[labels]\nplain = "普通"\ngated = "门控"'
    text = "".join(ENTRY.format(key=key, rule=rule) for key, rule in RULES.items())
    (out / "notebooks/01_a.toml").write_text(f'study = "a"\n{text}\n{figure}\n{labels}', encoding="utf-8")
    return Ledger(
        "01_a", "quick", Evidence(None, "digits", 132), Evidence(None, "cifar10", 8000), Evidence(None, "x", 9)
    )


def decided(ledger, key, **scopes):
    ledger.decide(key, **scopes)
    return next(entry for entry in load(paths.out_root() / "claims/01_a.json") if entry["id"] == f"a.{key}")


# Deciding


@pytest.mark.parametrize(
    ("scopes", "holds", "scope"),
    [
        ({"live": WORSE}, True, "live"),
        ({"live": BETTER, "recorded": WORSE}, True, "recorded"),
        ({"live": WORSE, "recorded": BETTER, "published": UNCLEAR}, False, "recorded"),
        ({"live": WORSE, "published": replicated(-3, [-3.5])}, False, "published"),
        ({"live": WORSE, "published": replicated(-3, [1])}, True, "live"),
        ({"live": UNCLEAR, "recorded": [3.0]}, None, "recorded"),
    ],
)
def test_the_strongest_scope_that_decides_gives_the_verdict(ledger, scopes, holds, scope):
    found = decided(ledger, "worse", **scopes)
    assert (found["holds"], found["scope"], set(found["scopes"])) == (holds, scope, set(scopes))
    assert found["why"] == ("" if holds else "Too few steps.")
    assert ledger.verdicts() == {"a.worse": {True: "true", False: "false", None: "undecided"}[holds]}


def test_a_scope_says_what_was_measured_on_what(ledger):
    live, recorded = np.array([0.5, 99.0, 200.0]), Evidence(pd.Series(WORSE), iterations=0, images=128)
    found = decided(ledger, "worse", live=live, recorded=recorded)["scopes"]
    measured = interval(live, "points")
    assert found["live"]["measured"]["high"] == 100, "no interval goes beyond the limits"
    assert found["live"]["p"] == pytest.approx(stats.ttest_1samp(live, 0).pvalue) == measured.p(0)
    assert {name: found["recorded"][name] for name in ("dataset", "iterations", "networks", "images")} == {
        "dataset": "cifar10",
        "iterations": 0,
        "networks": 3,
        "images": 128,
    }
    assert found["recorded"]["measured"]["text_zh"] == "3 ± 2\u00a0个百分点 (n = 3)"


@pytest.mark.parametrize(
    ("key", "measured", "holds", "p"),
    [
        ("equal", 1e-9, True, None),
        ("equal", np.float32(0.1), False, None),
        ("ranked", SAME, True, SAME.p),
        ("reversed", SAME, False, SAME.p),
        ("ranked", CHANCE, None, CHANCE.p),
        ("small", interval([0.1, 0.1, 0.1], "%"), True, None),
    ],
)
def test_exact_numbers_and_ranks_decide_by_themselves(ledger, key, measured, holds, p):
    found = decided(ledger, key, live=measured)["scopes"]["live"]
    assert (found["holds"], found["p"]) == (holds, p)


SAMPLES = st.lists(st.sampled_from([WORSE, UNCLEAR, BETTER, [5.0], [1.0, 1.0]]), min_size=1, max_size=4)


@given(SAMPLES)
def test_of_several_all_have_to_keep_the_rule(samples):
    """By Kleene's logic; where one breaks it, by a test of as many (Bonferroni)."""
    found = ledgers._decided("a.b", Evidence(dict(zip("abcd", samples, strict=False))), ledgers.Rule(above=0))
    each = [ledgers._decided("a.b", Evidence(sample), ledgers.Rule(above=0)) for sample in samples]
    broken = [one["p"] for one in each if one["holds"] is False]
    by_chance = bool(broken) and len(each) * min(broken) >= 0.05
    assert found["holds"] is (None if by_chance else all_of(*(one["holds"] for one in each)))
    if found["p"] is not None:
        assert found["p"] == (min(1, len(each) * min(broken)) if broken else max(one["p"] for one in each))
        assert (found["p"] < 0.05) == (found["holds"] is not None)


def test_of_several_those_that_do_not_are_named(ledger):
    found = decided(ledger, "worse", live={"plain": WORSE, "residual": [-3.0, -3.1, -3.0], "gated": UNCLEAR})
    measured = found["scopes"]["live"]["measured"]
    assert (found["holds"], measured["text"]) == (False, "1 of 3; not: residual; undecided: gated")
    assert measured["text_zh"] == "3 项中 1 项；不成立：residual；未定：门控"
    measured = decided(ledger, "worse", live={"plain": WORSE, "gated": UNCLEAR})["scopes"]["live"]["measured"]
    each = {
        name: decided(ledger, "worse", live=sample)["scopes"]["live"]["measured"]
        for name, sample in (("plain", WORSE), ("gated", UNCLEAR))
    }
    assert measured["text"] == f"plain: {each['plain']['text']}; gated: {each['gated']['text']}, undecided"
    assert measured["text_zh"] == f"普通：{each['plain']['text_zh']}；门控：{each['gated']['text_zh']}，未定"


@pytest.mark.parametrize(
    ("key", "measured"),
    [
        *(("worse", measured) for measured in ("text", {}, [], [math.nan, 1], [[1, 2], [3, 4]], 1.0, SAME, {"a": 1.0})),
        *(("equal", measured) for measured in (math.nan, -np.float32("inf"), WORSE, SAME, None)),
        ("worse", interval(WORSE, "%")),
        ("ranked", WORSE),
        ("unheard-of", WORSE),
    ],
)
def test_what_a_rule_cannot_decide_is_refused_and_the_ledger_kept(ledger, out, key, measured):
    decided(ledger, "small", live=[0.0, 0.1])
    with pytest.raises(UsageError) as caught:
        ledger.decide(key, live=measured)
    assert "\n" not in str(caught.value)
    assert [entry["id"] for entry in load(out / "claims/01_a.json")] == ["a.small"]


def test_a_figure_has_its_words_and_claims(ledger, out):
    ledger.figure(Figure(), "01_a", pd.DataFrame({"x": [1]}))
    described = json.loads((out / "figures/01_a.json").read_text())
    assert (described["caption"], described["claims"]) == ({"en": "A figure", "zh": "图"}, ["a.worse"])
    assert described["parameters"]["recorded"] == {"dataset": "cifar10", "iterations": 8000}


def test_runs_say_what_they_were_trained_on():
    spec = SimpleNamespace(recipe=SimpleNamespace(iterations=7))
    runs = [SimpleNamespace(variant="digits", spec=SimpleNamespace(**vars(spec), seed=seed)) for seed in (0, 1, 1)]
    assert ledgers.trained(runs) == Evidence(None, "digits", 7, 2)
    assert ledgers.trained([]) == Evidence(None)


# Chance


@given(st.lists(st.none() | st.floats(0, 1) | st.floats(0, 0.05), max_size=12))
def test_marks_are_benjamini_and_hochbergs(ps):
    claims = [claim("unravel.x", p=p) for p in ps]
    tested = [p for p in ps if p is not None]
    adjusted = iter(stats.false_discovery_control(tested) if tested else [])
    expected = [None if p is None else next(adjusted) for p in ps]
    for one, q in zip(marked(claims), expected, strict=True):
        if q is None or q != pytest.approx(0.05):
            assert one["survives"] == (None if q is None else q < 0.05)
    assert by_chance(claims) == (len(tested), pytest.approx(len(tested) / 20))


def test_the_test_that_counts_is_that_of_the_verdict(ledger):
    first = decided(ledger, "worse", live=WORSE, recorded=UNCLEAR)
    second = decided(ledger, "equal", live=1e-9)
    assert by_chance([first, second]) == (1, 0.05)
    [one, other] = marked([first, second])
    assert (one["survives"], other["survives"]) == (first["scopes"]["live"]["p"] < 0.05, None)


# What is shown


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_cards_and_tables_carry_their_styles_and_show_any_text(lang):
    texts = {name: f"<script>{name}</script> & 变" for name in ("statement", "paper", "rule", "control", "changed")}
    entry = claim("unravel.x", 1, **{f"{name}{suffix}": text for name, text in texts.items() for suffix in ("", "_zh")})
    entry |= {"source": "<b>", "survives": True}
    for shown in (cards.card(entry, lang), cards.table([entry, entry], lang)):
        page = Page(shown.data)
        assert {tag for tag, _, _ in page.elements} <= {"div", "span", "b", "table", "thead", "tr", "td", "th"}
        assert all("style" in attributes for tag, attributes, _ in page.elements if tag in ("th", "td", "table"))
        labels = {attributes.get("data-label") for tag, attributes, _ in page.elements if tag == "td"}
        assert words_of(lang)["measured"] in labels, "on a phone, where the heads of columns are not seen"
        said = page.elements[0][2] + shown.data
        for text in [texts["statement"], texts["paper"], texts["changed"]]:
            assert text in "".join(page.texts("div", "td"))
        assert ("false" if lang == "en" else "不成立") in said
        assert " %" not in shown.data, "a percent sign stays with its number"
    assert texts["control"] in "".join(Page(cards.card(entry, lang).data).texts("div"))


def test_a_measurement_of_data_alone_names_no_training():
    scope = {"dataset": "camvid", "iterations": 900, "networks": 0, "images": 367}
    assert cards.sample(scope, "en") == "camvid; images: 367"


def test_a_terminal_shows_a_claim_as_text_and_the_same_each_time(ledger, capsys):
    ledger.decide("worse", live=WORSE, published=Evidence(UNCLEAR, images=5000))
    said = capsys.readouterr().out
    assert said.splitlines() == [
        "✓ true on digits after 132 iterations (live): It is worse.",
        "    live: ✓ 3 ± 2\u00a0points (n = 3); digits after 132 iterations; 3 of each",
        "    published: ? 0 ± 8\u00a0points (n = 3); x after 9 iterations; 3 of each; images: 5,000",
        "    paper: yes",
        "    a.worse",
    ]
    both = [DisplayFormatter().format(ledger.table())[0] for _ in range(2)]
    assert both[0] == both[1]
    assert both[0]["text/plain"] == said.splitlines()[0]
    assert both[0]["text/html"] == ledger.table().data


# The disk


def test_opening_a_ledger_starts_afresh_and_results_are_of_all(ledger, out):
    words = (out / "notebooks/01_a.toml").read_text(encoding="utf-8")
    (out / "notebooks/02_b.toml").write_text(words.replace('"a"', '"b"'), encoding="utf-8")
    for each in (Ledger("02_b", "quick", Evidence(None, "digits", networks=7)), ledger):
        for key, measured in (("worse", WORSE), ("equal", 1e-9), ("worse", BETTER)):  # the last replaces the first
            each.decide(key, live=measured)
    found = read_results(out).claims
    assert [entry["id"] for entry in found] == ["a.worse", "a.equal", "b.worse", "b.equal"]
    assert [entry["holds"] for entry in found] == [False, True] * 2
    assert [entry["scopes"]["live"]["networks"] for entry in found] == [3, None, 3, 7]
    Ledger("01_a", "quick", Evidence(None, "digits"))
    assert [entry["id"] for entry in read_results(out).claims] == ["b.worse", "b.equal"]


def test_load_refuses_damage(out):
    path = out / "claims.json"
    good = claim("unravel.x")
    live = good["scopes"]["live"]
    changed = [{"holds": 1}, {"p": "small"}, {"p": float("nan")}, {"iterations": "9"}, {"dataset": 3}, {"measured": {}}]
    scopes = [{}, {"live": {}}, {"elsewhere": live}, *({"live": live | each} for each in changed)]
    damaged = [good | {"holds": "yes"}, good | {"holds": 1}, *(good | {"scopes": each} for each in scopes)]
    damaged += [good | {"statement": 3}, good | {"why_zh": None}, good | {"notebook": ["01"]}, good | {"scope": {}}]
    damaged += [{key: value for key, value in good.items() if key != missing} for missing in ("statement", "scopes")]
    for text in ("[{", "3", json.dumps({"claims": [good]}), *(json.dumps([each]) for each in damaged)):
        path.write_text(text)
        with pytest.raises(ResnotesError, match=r"claims\.json"):
            load(path)
    path.write_text(json.dumps([good]))
    assert load(path) == [good]
    with pytest.raises(
        ResnotesError, match=r"claim unravel\.x: statement must be a text, found 3; `resnotes run` makes"
    ):
        load(write_json(path, [good | {"statement": 3}]))
