"""The suite at a glance: tallies, chain of questions and tables say what the ledger says."""

import json
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from kit.report import claim

from resnotes.book import overview, story
from resnotes.book.claims import WORDS
from resnotes.errors import ResnotesError

RECORDED = json.loads((Path(__file__).parents[2] / "data" / "recorded" / "claims.json").read_text())


@pytest.fixture
def nothing_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty output folder."""
    monkeypatch.setenv("RESNOTES_OUT", str(tmp_path))
    return tmp_path


def test_claims_come_from_the_repository_until_their_notebook_is_executed(nothing_executed: Path) -> None:
    shipped = overview.ledger()
    assert set(shipped) == {claim["id"] for claim in RECORDED}
    book = str(RECORDED[0]["notebook"])
    executed = RECORDED[0] | {"holds": None}
    (nothing_executed / "claims.json").write_text(json.dumps([executed]))
    found = overview.ledger()
    assert [claim | {"survives": None} for claim in overview.claims_of(found, book)] == [executed]
    others = {claim["id"] for claim in RECORDED if claim["notebook"] != book}
    assert set(found) == {executed["id"]} | others
    (nothing_executed / "claims.json").write_text("[{")
    with pytest.raises(ResnotesError, match=r"claims\.json"):
        overview.ledger()


def test_tally_and_chain_count_every_claim_of_a_study_once(nothing_executed: Path) -> None:
    entries = overview.ledger()
    fig = overview.question_chain(entries)
    texts = [text.get_text() for text in fig.axes[0].texts]
    plt.close(fig)
    table = overview.tally(entries)
    counted = Counter((claim["notebook"], WORDS[claim["holds"]]) for claim in RECORDED)
    for study in story.chapters():
        assert study.name["en"] in texts
        counts = {word: counted[study.notebook, word] for word in overview.COLORS}
        assert dict(table.loc[study.notebook]) == counts
        assert {str(count) for count in counts.values() if count} <= set(texts)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_tables_hold_the_claims_and_are_the_same_each_time(nothing_executed: Path, lang: str) -> None:
    entries = overview.ledger()
    book = story.chapters()[1].notebook
    claims = overview.claims_of(entries, book)
    tables = [overview.claims_table(claims, lang), overview.statements(entries, lang)]
    assert tables[0].data == overview.claims_table(claims, lang).data
    assert [table.data.count("<tr") - 1 for table in tables] == [len(claims), len(story.statements())]
    assert overview.claims_table([], lang).data.count("<tr") == 1, "a header alone"


def test_claims_at_several_scopes(nothing_executed: Path) -> None:
    both, live = claim("unravel.both"), claim("unravel.live")
    del live["scopes"]["recorded"]
    assert overview.at_several_scopes({"unravel.both": both, "unravel.live": live}) == [both]
