"""The papers' numbers: whole, consistent, and about networks that can be built."""

import pytest
from scipy.stats import binom

from resnotes import models, paths
from resnotes.book import papers
from resnotes.errors import UsageError
from resnotes.models.segmentation import SegmentationNetwork

COLUMNS = ["where", "network", "metric", "value", "spread", "unit", "mark", "note"]
MARKS = {"", "fig", "rep", "calc", "mem"}  # read off a figure, replicated by others, calculated, from memory
PAPERS = sorted(path.stem for path in paths.papers_root().glob("*.csv"))
LANGUAGE = {"xiong2020", "gromov2024"}  # whose networks cannot be built here
HE2016 = papers.numbers("he2016")

CONVOLUTIONS = {f"{inside}conv{i}.weight" for inside in ("", "branch.") for i in (1, 2, 3)}  # of a gated branch, too


def networks_in(paper: str) -> list[str]:
    """The different networks that are shallow enough to be built in no time."""
    found = papers.numbers(paper).network.unique()
    return [label for label in found if label != "annotator" and not label.split()[0].endswith(("-1001", "-1202"))]


def test_veit_2016_agrees_with_the_binomial() -> None:
    """54 units: the number of paths, and the share of those of 5 to 17 modules, follow from arithmetic."""
    value = papers.numbers("veit2016").set_index("metric").value
    assert value["paths"] == 2**54
    chances = binom(54, 0.5)
    first, last = value["shortest effective path"], value["longest effective path"]
    assert 100 * (chances.cdf(last) - chances.cdf(first - 1)) == pytest.approx(value["effective paths"], abs=0.005)
    from_19_to_35 = 100 * (chances.cdf(35) - chances.cdf(18))
    assert from_19_to_35 == pytest.approx(98.0, abs=0.05) != value["paths with 19 to 35 modules"]


def test_xiong_2020_agrees_with_its_bounds() -> None:
    table = papers.numbers("xiong2020")
    calculated = table[table.mark == "calc"].set_index(["where", "network"]).value
    assert calculated["Theorem 1", "transformer norm=post"] == 1
    assert calculated["Theorem 1", "transformer norm=pre"] == pytest.approx((6 / 48) ** 0.5, abs=5e-4)
    assert calculated["Appendix F", "transformer norm=post"] == pytest.approx((2 / 3) ** 0.5, abs=5e-4)


@pytest.mark.parametrize("paper", PAPERS)
def test_a_paper_has_one_number_a_row_with_its_place_and_mark(paper: str) -> None:
    found = papers.numbers(paper)
    assert list(found.columns) == COLUMNS
    assert set(found.mark) <= MARKS
    assert (found[["where", "network", "metric", "unit"]] != "").all(axis=None)
    assert not found.duplicated(["where", "network", "metric"]).any()
    assert (found["where"].str.startswith("Fig.") == (found.mark == "fig")).all()
    assert (found["where"].str.startswith("replication") == (found.mark == "rep")).all()
    assert (found.value.isna() == found.note.str.startswith("fail")).all()
    assert (found.value.dropna() > 0).all()
    assert ((found.spread > 0) | found.spread.isna()).all()
    errors = found[found.metric.str.contains("error")]
    assert (errors.unit == "%").all()
    assert (errors.value.dropna() < 100).all()
    assert (found.unit[found.metric == "parameters"] == "M").all()


@pytest.mark.parametrize(
    ("paper", "label"), [(paper, label) for paper in sorted({*PAPERS} - LANGUAGE) for label in networks_in(paper)]
)
def test_every_network_can_be_built(paper: str, label: str) -> None:
    name, options = models.from_label(label)
    assert models.label(name, options) == label
    network = models.build(name, **options, width=4)
    assert network.options.items() >= options.items()
    if not isinstance(network, SegmentationNetwork):
        depth = 2 + sum(len(block.residual.state_dict().keys() & CONVOLUTIONS) for block in network.blocks)
        assert depth == int(name.split("-")[1])


def test_find_gives_the_papers_first_number_or_nothing() -> None:
    assert papers.find("he2016", "resnet-110", "parameters") is None
    assert papers.find("he2016", "resnet-56", "test error") is None
    assert papers.find("he2015", "resnet-56", "test error") == 6.97
    assert papers.find("he2015", "resnet-56", "training error") is None  # replications have it, the paper has not


def test_an_unknown_paper_is_refused() -> None:
    with pytest.raises(UsageError, match=f"unknown paper 'he2014'; allowed: {', '.join(PAPERS)}"):
        papers.numbers("he2014")
