"""Benchmarks: a quick run as users start it, fitted power laws, references that agree, and the committed report."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import __main__ as command
from benchmarks import cost, gradients, lesions, report
from benchmarks.growth import fit
from benchmarks.timing import Row, Settings
from resnotes.runs import profiles
from resnotes.unravel import lesion_predictions, path_gradients, single_deletions

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "benchmarks" / "results"
ROW = Row(what="adding; by hand", ours=[1.0, 2.0, 4.0], reference=[6.0, 6.0, 8.0], operations=10.0, ceiling=20.0)


def lines_of_tables(markdown: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line.startswith("|")
    ]


def refuse(*_: object) -> Any:
    raise AssertionError("measured, though nobody asked for it")


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of parts that were measured, each of which finds one row at once."""
    found: list[str] = []

    def instead(name: str) -> Callable[[Settings], list[Row]]:
        return lambda settings: [found.append(name) or ROW]  # type: ignore[func-returns-value]

    monkeypatch.setattr(command, "PARTS", {name: instead(name) for name in command.PARTS})
    monkeypatch.setattr(cost, "report", refuse)
    return found  # type: ignore[return-value]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that a quick run wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("benchmarks") / "results"
    before = torch.get_num_threads(), torch.initial_seed()
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr(
            "builtins.print", lambda *texts, file=None, **_: file or printed.append(" ".join(map(str, texts)))
        )
        command.main(["--quick", "--to", str(folder)])
    assert (torch.get_num_threads(), torch.initial_seed()) == before
    return folder, "\n".join(printed)


def test_a_quick_run_prints_and_writes_the_table(quick: tuple[Path, str]) -> None:
    folder, printed = quick
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "growth.png", "results.json"]
    header, _, *rows = lines_of_tables(printed)
    assert header == ["what", "ours", "reference", "ratio", "share of the measured ceiling"]
    [split] = [i for i, row in enumerate(rows) if row[0] == "what"]  # where the table of growth begins
    assert {re.match(r"\W*(\w+)", row[0])[1] for row in rows[:split]} == {  # type: ignore[index]
        *("lesions", "training", "path", "predictions", "loading")
    }
    for what, ours, reference, ratio, share in rows[:split]:
        unit = r"[\d.,e+-]+ (s|images/s)"
        assert re.fullmatch(unit, ours), ours
        assert re.fullmatch(unit, reference), reference
        assert float(ratio) > 0
        assert (share == "–") == ("import torch" in what)
    text = (folder / "README.md").read_text()
    assert all(line in text for line in printed.splitlines() if line.startswith("|"))
    assert (folder / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_results_name_their_machine_and_both_sides_agree(quick: tuple[Path, str]) -> None:
    results = json.loads((quick[0] / "results.json").read_text())
    assert list(results) == list(command.PARTS)
    for part in results.values():
        assert {"machine", "memory_gib", "date", "versions", "commit", "dirty"} <= set(part["machine"])
        assert "torch" in part["machine"]["versions"]
    paths = [row["remark"] for row in results["gradients"]["rows"]]
    assert all(float(re.findall(r"by (\S+) of", remark)[0]) < 1e-4 for remark in paths)
    assert all(float(re.findall(r"float64 by (\S+)$", remark)[0]) < 1e-12 for remark in paths)
    assert results["lesions"]["rows"][0]["remark"].startswith("0 of 24 predictions differ")
    for curve in results["growth"]["curves"]:
        assert curve["operations"] == sorted(curve["operations"])
        assert len(curve["seconds"]) == len(curve["sizes"]) >= 3


def test_references_compute_what_ours_does() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 8, 8), torch.tensor([3, 7])
    network = gradients.random_network("preresnet-14", images).double()
    images = images.double()
    expected = gradients.brute_force(network, images, labels)
    assert expected.flatten(1).norm(dim=1).min() > 0
    for found in (gradients.interpolated(network, images, labels), path_gradients(network, images, labels)):
        torch.testing.assert_close(found, expected)
    deletions = single_deletions(range(6))
    for repair in (None, torch.randn(16, 3, 8, 8).double()):
        predicted = lesions.loop(network, deletions, images, repair)
        assert torch.equal(predicted, lesion_predictions(network, deletions, images, repair=repair))


sizes = st.lists(st.floats(1, 1e4), min_size=3, max_size=8, unique=True).filter(lambda x: max(x) > 1.5 * min(x))


@given(sizes, st.floats(-3, 4), st.floats(1e-6, 1e3))
def test_a_power_law_is_recovered(x: list[float], exponent: float, factor: float) -> None:
    found = fit(x, [factor * size**exponent for size in x])
    assert found.exponent == pytest.approx(exponent, abs=1e-6)
    assert found.factor == pytest.approx(factor, rel=1e-4)
    assert found.low <= found.exponent <= found.high < found.low + 1e-4


def test_parts_are_measured_alone_and_the_others_stay(measuring: list[str], tmp_path: Path) -> None:
    command.main(["training", "loading", "--to", str(tmp_path)])
    assert measuring == ["training", "loading"]
    command.main(["lesions", "--to", str(tmp_path)])
    assert measuring.pop() == "lesions"
    assert list(report.load(tmp_path)) == ["lesions", "training", "loading"]
    (tmp_path / "README.md").write_text("out of date")
    (tmp_path / "cost.md").write_text("It costs a lot.\n")
    command.main(["report", "--to", str(tmp_path)])
    assert measuring == ["training", "loading"]
    text = (tmp_path / "README.md").read_text()
    assert text.count("| adding; by hand |") == 3
    assert "## What the paper profile costs\n\nIt costs a lot." in text
    assert "(lesions" not in text, "one machine: no need to say which part was measured on it"


def test_what_a_profile_costs_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one second for each image, and recorded runs that took twice what their steps do."""
    monkeypatch.setattr(cost, "measured", lambda *_: (cost.Cost(1.0, 1e6, 100, 128), cost.Cost(1.0, 1e6, 100, 500)))
    monkeypatch.setattr(cost, "shortfall", lambda _: [1.0, 2.0, 5.0])
    text = cost.report()
    header, _, *studies, everything = lines_of_tables(text)
    committed = (COMMITTED / "cost.md").read_text()
    assert [row[0] for row in lines_of_tables(committed)] == [header[0], "---", *(row[0] for row in studies), "all"]
    specs = {spec.name: spec for study in profiles.load("paper").studies.values() for spec in study.all_specs()}
    assert sum(int(row[1]) for row in studies) == int(everything[1]) == len(specs)
    trained, evaluated = (sum(numbers) for numbers in zip(*map(cost.counts, specs.values()), strict=True))
    assert everything[2] == f"{trained / 1e6:,.1f}"
    hours = float(everything[4].replace(",", ""))
    assert hours == pytest.approx((trained + evaluated) / 3600, rel=0.01)  # each takes two seconds, on one of two cores
    assert "took 2.00 times what their steps do alone (median; 1.00\nto 5.00" in text
    assert "resnet: depth^0.00" in text


def test_a_step_does_three_times_the_operations_of_an_evaluation() -> None:
    """Forward, and back to the inputs and to the weights; but not to the images."""
    spec = profiles.load("paper").study("degradation").spec("resnet-20", seed=0)
    step, evaluated = cost.measured(spec, seconds=1e-9)
    assert 2.95 < step.operations / evaluated.operations < 3
    assert evaluated.operations == pytest.approx(2 * 40.6e6, rel=0.01)  # 40.6 million multiplications, as published
    assert step.calls > 3 * 20
    assert min(step.seconds, evaluated.seconds) > 0


# What is committed


def test_the_committed_report_is_that_of_the_committed_numbers() -> None:
    results = report.load(COMMITTED)
    assert list(results) == list(command.PARTS)
    assert all(len(row.ours) >= 3 for row in report.rows_of(results))
    assert (COMMITTED / "README.md").read_text() == report.written(results, (COMMITTED / "cost.md").read_text())
    assert (COMMITTED / "growth.png").stat().st_size < 200_000


def test_the_documentation_shows_the_headlines_of_the_committed_table() -> None:
    shown = (ROOT / "docs" / "scaling.md").read_text().splitlines()
    headlines = [row for row in report.rows_of(report.load(COMMITTED)) if row.headline]
    assert 6 <= len(headlines) <= 8
    table = report.table(headlines)
    start = shown.index(table[0])
    assert shown[start : start + len(table)] == table
