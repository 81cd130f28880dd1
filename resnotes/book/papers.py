"""The papers' numbers, from `data/papers/*.csv`, each with its place in the paper and a mark of how it was read."""

from __future__ import annotations

import pandas as pd

from resnotes import paths
from resnotes.errors import unknown


def numbers(paper: str) -> pd.DataFrame:
    """Every number of `paper`: columns `where, network, metric, value, spread, unit, mark, note`.

    Networks are labelled as in `resnotes.models.from_label`. A value is NaN where the paper gives a word ("fail").

    Raises:
        UsageError: no such paper.
    """
    known = sorted(path.stem for path in paths.papers_root().glob("*.csv"))
    if paper not in known:
        raise unknown("paper", paper, known)
    return pd.read_csv(
        paths.papers_root() / f"{paper}.csv", keep_default_na=False, na_values={"value": [""], "spread": [""]}
    )


def find(paper: str, network: str, metric: str) -> float | None:
    """The first value that `paper` gives for `network` and `metric`; None where it has no row, NaN for a word.

    What independent replications found is not the paper's: `numbers` has it.
    """
    table = numbers(paper)
    found = table[(table.network == network) & (table.metric == metric) & (table.mark != "rep")].value
    return None if found.empty else float(found.iloc[0])
