import pandas as pd
import pytest
from matplotlib.figure import Figure

from resnotes import figures, paths
from resnotes.book import exports
from resnotes.errors import UsageError


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNOTES_OUT", str(tmp_path / "out"))
    return tmp_path / "out"


def export(to, **options):
    return exports.export(to, paths.out_root(), **options)


def save(name="degradation"):
    caption = {"caption": "Deeper [plain] nets", "caption_zh": "更深的网络"}
    return figures.save(Figure(), name, **caption, claims=["a.b"], data=pd.DataFrame(), parameters={})


def test_export_copies_and_captions(out, tmp_path):
    save("second")
    save("first")
    snippets = export(tmp_path / "report")
    assert [path.name for path in sorted((tmp_path / "report").iterdir())] == [
        f"{name}.{kind}" for name in ("first", "second") for kind in ("json", "pdf", "png")
    ]
    assert len(snippets) == 2
    assert snippets[0].startswith(r"![Deeper \[plain\] nets](first.png)")
    assert "更深的网络" in snippets[0]


def test_export_takes_the_formats_and_figures_asked_for(out, tmp_path):
    for name in ("01_curve", "01_flow", "02_curve"):
        save(name)
    assert export(tmp_path / "a", formats=["pdf"], only=["01"])[0].startswith("[01_curve](01_curve.pdf)")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        *("01_curve.json", "01_curve.pdf", "01_flow.json", "01_flow.pdf")
    ]
    [snippet] = export(tmp_path / "b", formats=["pdf", "svg", "png"], only=["02_curve"])
    assert "](02_curve.svg)" in snippet
    assert (tmp_path / "b/02_curve.svg").read_bytes() == (out / "figures/02_curve.svg").read_bytes()
    with pytest.raises(UsageError, match="unknown format 'jpg'; allowed: png, pdf, svg"):
        export(tmp_path / "c", formats=["jpg"])
    with pytest.raises(UsageError, match="unknown figure '03'; allowed: 01, 01_curve, 01_flow, 02, 02_curve"):
        export(tmp_path / "c", only=["01", "03"])
    assert not (tmp_path / "c").exists()
