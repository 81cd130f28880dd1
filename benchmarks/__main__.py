"""Measure this package against references, on this machine, and write the report.

    python -m benchmarks                    # all but cost; about a quarter of an hour on two cores
    python -m benchmarks lesions training   # these alone; what else is in the report stays
    python -m benchmarks report             # write the report anew from the numbers that are there
    python -m benchmarks cost               # what the paper profile costs; half an hour
    python -m benchmarks --quick            # tiny sizes, to see that all works; printed, not written

The table is printed, and the report written to benchmarks/results. Lesions are those of published weights on CIFAR-10
if RESNOTES_DATA has both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import cost, gradients, growth, lesions, loading, report, segmentation, training
from benchmarks.growth import Curve
from benchmarks.timing import Row, Settings, machine
from resnotes.devices import one_thread
from resnotes.errors import UsageError, reporting_errors, unknown
from resnotes.paths import expanded

PARTS: dict[str, Callable[[Settings], Sequence[Row] | Sequence[Curve]]] = {
    "lesions": lesions.measure,
    "gradients": gradients.measure,
    "training": training.measure,
    "segmentation": segmentation.measure,
    "loading": loading.measure,
    "growth": growth.measure,
}
RESULTS = Path(__file__).parent / "results"


def run(what: Sequence[str], settings: Settings, folder: Path | None) -> None:
    """Measure the parts in `what`, all if it is empty, print them, and write the report to `folder`.

    Each part is written once it is measured: an interruption loses one at most.

    Raises:
        UsageError: no such part, or fewer rounds than one.
        ResnotesError: the results in `folder` are damaged.
    """
    allowed = (*PARTS, "cost", "report")
    for name in what:
        if name not in allowed:
            raise unknown("benchmark", name, allowed)
    if settings.rounds < 1:
        raise UsageError(f"--rounds must be at least 1, found {settings.rounds}")
    results = {} if folder is None else report.load(folder)
    for name in PARTS:
        if what and name not in what:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        conditions = machine()
        with one_thread(), torch.random.fork_rng():
            torch.manual_seed(0)
            found = PARTS[name](settings)
        results[name] = {"machine": conditions, **report.plain(found)}
        results = {part: results[part] for part in PARTS if part in results}  # in their order
        if folder is not None:
            report.save(folder, results)
    rows, curves = report.rows_of(results), report.curves_of(results)
    tables = [report.table(rows) if rows else [], report.growth_table(curves) if curves else []]
    print("\n\n".join("\n".join(table) for table in tables if table))
    if folder is not None:
        with one_thread():
            report.save(folder, results, cost.report() if "cost" in what else None)
        print(f"\n{folder / report.REPORT}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help=f"{', '.join(PARTS)} (all of these by default), cost, report")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and a single round")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side; 3 by default")
    parser.add_argument("--to", type=expanded, help=f"folder of the report; {RESULTS} by default, none with --quick")
    given = parser.parse_args(arguments)
    with reporting_errors():
        settings = Settings(given.quick, 1 if given.quick else given.rounds, torch.get_num_threads())
        run(given.what, settings, given.to or (None if given.quick else RESULTS))


if __name__ == "__main__":
    main()
