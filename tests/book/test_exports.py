"""The figures of a run are copied with what describes them, all or none."""

import pytest
from kit.report import executed

from resnotes.book.exports import export
from resnotes.errors import ResnotesError, UsageError


@pytest.fixture
def out(tmp_path):
    executed(tmp_path / "out", "01_degradation", ["01_curves", "01_flow"])
    return tmp_path / "out"


def test_figures_are_copied_and_shown_in_markdown(out, tmp_path):
    snippets = export(tmp_path / "to", out, formats=["png", "pdf"])
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        f"01_{name}.{kind}" for name in ("curves", "flow") for kind in ("json", "pdf", "png")
    ]
    assert snippets[0] == "![Figure 01\\_curves](01_curves.png)\n\n*Figure 01\\_curves*\n\n*图 01\\_curves*\n"
    assert len(snippets) == 2


@pytest.mark.parametrize(
    ("formats", "link"),
    [(["pdf", "svg", "png"], "![Figure 01\\_curves](01_curves.svg)"), (["pdf"], "[01_curves](01_curves.pdf)")],
)
def test_the_first_format_that_is_an_image_is_shown(out, tmp_path, formats, link):
    assert export(tmp_path / "to", out, formats=formats)[0].startswith(link)
    for kind in formats:
        copy = tmp_path / "to" / f"01_flow.{kind}"
        assert copy.read_bytes() == (out / "figures" / copy.name).read_bytes()


def test_some_are_exported_by_name_and_in_chinese(out, tmp_path):
    with pytest.raises(ResnotesError, match=r"has no 01_flow\.zh\.png; .* where it finds a font with Chinese"):
        export(tmp_path / "to", out, names=["01_flow"], lang="zh")
    (out / "figures/01_flow.zh.png").write_bytes(b"Chinese")
    [snippet] = export(tmp_path / "to", out, names=["01_flow"], lang="zh")
    assert {path.name: path.read_bytes() == b"Chinese" for path in (tmp_path / "to").iterdir()} == {
        "01_flow.zh.png": True,
        "01_flow.json": False,
    }
    assert "(01_flow.zh.png)" in snippet
    for asked, said in (({"names": ["01_flaw"]}, "unknown figure '01_flaw'"), ({"lang": "fr"}, "unknown language")):
        with pytest.raises(UsageError, match=said):
            export(tmp_path / "other", out, **asked)


@pytest.mark.parametrize(
    ("formats", "said"),
    [
        (["pdf", "png"], r"01_curves\.png"),
        (["svg"], r"figures has no 01_flow\.svg; `resnotes run --format svg` draws"),
    ],
)
def test_all_figures_are_exported_or_none(out, tmp_path, formats, said):
    (out / "figures/01_flow.svg").unlink()
    (tmp_path / "to/01_curves.png").mkdir(parents=True)
    with pytest.raises((ResnotesError, OSError), match=said):
        export(tmp_path / "to", out, formats=formats)
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["01_curves.png"]
