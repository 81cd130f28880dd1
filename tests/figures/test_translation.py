"""Figures in Chinese: drawn beside the English ones, which stay as they are, and only where a font has it."""

import re
import shutil
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib import font_manager
from matplotlib.text import Text

from resnotes import figures, models
from resnotes.book.words import Words
from resnotes.figures import drawings, translation
from resnotes.figures.pspnet import pyramid_pooling
from resnotes.figures.unraveled import lesioned_view, unraveled_view

LABELS = {"{n} layers, {scope}": "{scope}, χ {n}", "live": "λ", "error": "ε" * 12, "plain": "π", "20": "κ"}


def drawn():
    fig, (left, right) = plt.subplots(1, 2, sharey=True)
    left.plot([0, 1], [0, 1], label="20 layers, live")
    left.set(xlabel="error", title="plainly", yticks=[0, 1])
    left.set_yticks([0, 1], labels=["plain", 20])
    fig.colorbar(right.scatter(["category", "live"], [0, 1], c=[0, 20]), label="error")
    fig.legend(loc="outside upper right", title="plain")
    return fig


def save(fig, out, **options):
    about = {"caption": "", "caption_zh": "", "claims": [], "data": pd.DataFrame(), "parameters": {}}
    figures.save(fig, "a", **about, **options)
    return {path.name: path.read_bytes() for path in (out / "figures").iterdir()}


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNOTES_OUT", str(tmp_path))
    figures.use_style()
    return tmp_path


def words_of(fig):
    fig.canvas.draw()
    return [text.get_text() for text in fig.findobj(Text) if text.get_text()]


def test_words_are_those_of_the_table_in_new_places_and_then_as_before():
    fig = drawn()
    before, layout = words_of(fig), fig.get_layout_engine()
    places = [ax.get_position().bounds for ax in fig.axes]
    fig.set_layout_engine("none")
    with translation.translated(fig, LABELS, "DejaVu Sans", layout):
        found = words_of(fig)
        assert {"λ, χ κ", "ε" * 12, "π", "κ", "plainly", "category", "λ"} <= set(found)
        assert not {"20 layers, live", "error", "plain", "live"} & set(found)
        drawn_on = fig.get_tightbbox()
        assert drawn_on.min.min() >= 0 and (drawn_on.max <= fig.get_size_inches()).all(), "nothing is cut off"
        assert places != [ax.get_position().bounds for ax in fig.axes]
    assert (words_of(fig), [ax.get_position().bounds for ax in fig.axes]) == (before, places)
    assert all(ax.get_in_layout() for ax in fig.axes)


def test_the_english_figure_is_the_same_with_and_without_the_chinese_one(out, monkeypatch):
    alone = save(drawn(), out)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    assert save(drawn(), out, labels_zh=LABELS) == alone, "no font, no figure"
    monkeypatch.setattr("resnotes.figures.saving.chinese_font", lambda: "DejaVu Sans")
    fig = drawn()
    both = save(fig, out, labels_zh=LABELS)
    assert both.pop("a.zh.png") != both["a.png"]
    assert both == alone
    assert save(fig, out) == alone, "nor is one of another figure left"


def test_a_font_is_found_that_was_installed_after_matplotlib_first_ran(tmp_path, monkeypatch):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "NotoSansCJK-Regular.ttc")])
    shutil.copy(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), tmp_path / "NotoSansCJK-Regular.ttc")
    assert translation.chinese_font() == "DejaVu Sans"


def test_of_several_entries_that_fit_the_closest_counts():
    labels = {
        "{what}, {when}": "{when}：{what}",
        "{name}, first stage": "{name} α",
        "gradient, of all": "γ",
        "plain": "π",
    }
    found = [
        translation.translate(text, labels) for text in ("plain, first stage", "gradient, of all", "plain, trained")
    ]
    assert found == ["π α", "γ", "trained：π"]


KEPT = re.compile(r"ReLU|BN|sigmoid|dropout [\d.]+|[^A-Za-z]*|.*\$.*")  # names, numbers and mathematics


@pytest.mark.parametrize(
    ("notebook", "draw"),
    [
        ("02_identity_mappings", drawings.building_block),
        ("02_identity_mappings", drawings.activation_orders),
        ("02_identity_mappings", drawings.shortcut_variants),
        ("03_unraveled_paths", lambda: unraveled_view(models.build("preresnet-8"), weights=torch.ones(8))),
        ("03_unraveled_paths", lambda: lesioned_view(models.build("preresnet-8"), deleted=1)),
        ("04_pspnet_failure_cases", lambda: pyramid_pooling(models.build("pspnet-small"))),
    ],
)
def test_drawings_of_the_package_have_chinese_for_all_their_words(notebook, draw):
    labels, fig = Words(notebook).labels, draw()
    for text in {found.get_text() for found in fig.findobj(Text)}:
        in_chinese = translation.translate(text, labels)
        assert re.search(r"[\u4e00-\u9fff]", in_chinese) or KEPT.fullmatch(text), text
    plt.close(fig)
