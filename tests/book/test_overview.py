"""The suite at a glance: tallies, chain of questions and tables say what the ledger says."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from resnotes.book import overview, story
from resnotes.book.claims import WORDS
from resnotes.book.words import words_of
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
def test_a_study_shows_its_answer_a_figure_and_each_claim_once(
    nothing_executed: Path, lang: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(overview, "display", lambda *each: shown.extend(each))
    entries = overview.ledger()
    chapter = story.chapters()[1]
    claims = overview.claims_of(entries, chapter.notebook)
    overview.study(chapter.notebook, entries, lang)
    answer, image, caption, key, others = shown
    assert chapter.answer[lang] in answer.data and words_of(lang)["otherwise"] not in answer.data
    assert image.width == 700 and image.alt == repr(caption) and len(image.alt) > 20
    tables = key.data + others.data
    assert tables.count("<tr") - 2 == len(claims)
    assert all(tables.count(f">{claim['id']}<") == 1 for claim in claims)

    id, word = next(iter(chapter.rests_on.items()))
    shown.clear()
    overview.study(chapter.notebook, {**entries, id: {**entries[id], "holds": word != "true"}}, lang)
    assert re.search(f"{words_of(lang)['otherwise']}.*{id}", shown[0].data, re.DOTALL)


def test_figures_of_the_run_come_first(nothing_executed: Path) -> None:
    name = story.chapters()[0].figure
    assert overview.figure(name, "en")[0].width == 700
    (nothing_executed / "figures").mkdir()
    Image.new("RGB", (90, 40)).save(nothing_executed / "figures" / f"{name}.png")
    (nothing_executed / "figures" / f"{name}.json").write_text(
        json.dumps({"name": name, "caption": {"en": "<b>", "zh": "图"}, "claims": []})
    )
    image, caption = overview.figure(name, "en")
    assert (image.width, image.alt, caption.data) == (45, "<b>", "<p>&lt;b&gt;</p>")
    with pytest.raises(ResnotesError, match=r"no figure 09_no\.png in .*; `resnotes run` makes it"):
        overview.figure("09_no", "en")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_statements_and_places_are_all_shown(nothing_executed: Path, lang: str) -> None:
    entries = overview.ledger()
    for shown, all_of in (
        (overview.statements(entries, lang), story.statements()),
        (overview.places(lang), story.places()),
    ):
        assert shown.data.count("<tr") - 1 == len(all_of)
        assert len(repr(shown).splitlines()) == len(all_of)
    assert str(len(entries)) in repr(overview.chance(entries, lang))
