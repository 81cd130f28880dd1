"""The suite at a glance: tallies, chain of questions and tables say what the ledger says."""

import json
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from resnotes import paths
from resnotes.book import overview, story
from resnotes.errors import ResnotesError

RECORDED = json.loads((Path(__file__).parents[2] / "data" / "recorded" / "claims.json").read_text())


@pytest.fixture
def nothing_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty output folder."""
    monkeypatch.setenv("RESNOTES_OUT", str(tmp_path))
    assert paths.out_root() == tmp_path
    return tmp_path


def test_claims_come_from_the_repository_until_their_notebook_is_executed(nothing_executed: Path) -> None:
    shipped = overview.ledger()
    assert set(shipped) == {claim["id"] for claim in RECORDED}
    book = str(RECORDED[0]["notebook"])
    executed = RECORDED[0] | {"holds": None}
    (nothing_executed / "claims.json").write_text(json.dumps([executed]))
    found = overview.ledger()
    assert overview.claims_of(found, book) == [executed]
    others = {claim["id"] for claim in RECORDED if claim["notebook"] != book}
    assert set(found) == {executed["id"]} | others
    (nothing_executed / "claims.json").write_text("[{")
    with pytest.raises(ResnotesError, match=r"claims\.json"):
        overview.ledger()


def test_the_tally_counts_every_claim_once(nothing_executed: Path) -> None:
    table = overview.tally(overview.ledger())
    words = {True: "true", False: "false", None: "undecided"}
    counted = Counter((claim["notebook"], words[claim["holds"]]) for claim in RECORDED)
    for notebook in table.index:
        assert dict(table.loc[notebook]) == {word: counted[notebook, word] for word in overview.COLORS}


def test_the_chain_shows_each_study_with_its_verdicts(nothing_executed: Path) -> None:
    entries = overview.ledger()
    fig = overview.question_chain(entries)
    texts = [text.get_text() for text in fig.axes[0].texts]
    plt.close(fig)
    table = overview.tally(entries)
    for study in story.chapters():
        assert study.name["en"] in texts
        assert f"notebook {study.notebook[:2]}" in texts
        for count in table.loc[study.notebook]:
            assert count == 0 or str(count) in texts


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_tables_hold_the_claims_and_are_the_same_each_time(nothing_executed: Path, lang: str) -> None:
    entries = overview.ledger()
    book = story.chapters()[1].notebook
    tables = {
        "all": overview.all_claims(overview.claims_of(entries, book), lang),
        "key": overview.key_claims(entries, lang),
        "statements": overview.statements(entries, lang),
    }
    again = overview.all_claims(overview.claims_of(entries, book), lang)
    assert tables["all"].data == again.data
    rows = {name: table.data.count("<tr>") - 1 for name, table in tables.items()}
    assert rows["all"] == len(overview.claims_of(entries, book))
    assert rows["key"] == sum(live in entries for live, _ in story.pairs())
    assert rows["statements"] > 0
    assert overview.all_claims([], lang).data.count("<tr>") == 1, "a header alone"
