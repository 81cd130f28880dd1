"""The papers' numbers, from `data/papers/*.csv`, each with its place in the paper and a mark of how it was read."""

from __future__ import annotations

import pandas as pd

from resnotes import paths
from resnotes.errors import unknown


def numbers(paper: str) -> pd.DataFrame:
    """Every number of `paper`: columns `where, network, metric, value, spread, unit, mark, note`.

    Networks are labelled as in `resnotes.models.from_label`, those of language by names of their own.
    A value is NaN where the paper gives a word ("fail").

    Raises:
        UsageError: no such paper.
    """
    known = [path.stem for path in paths.of_project(paths.papers_root(), "*.csv")]
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


def differences(paper: str, network: str, other: str, metric: str) -> pd.Series:
    """`network` minus `other`, by `metric`, wherever one place gives both: the paper, and each replication by its name.

    A replication that trained without augmentation, which the paper does not, is left out.
    """
    table = numbers(paper).query("metric == @metric and network in [@network, @other]")
    table = table[~table["where"].str.contains("without augmentation")]
    values = table.pivot_table(index="where", columns="network", values="value").reindex(columns=[network, other])
    return (values[network] - values[other]).dropna()


def published_curves(author: str) -> pd.DataFrame:
    """Training curves of an author's networks, as far as their logs were published, with the columns of histories.

    Returns:
        ``model, iteration, clean_error, test_error``; the training error is the running one, over the augmented batches
        of an epoch, the other that on held-out images, in percent. Of networks logged twice, the later log.
    """
    curves = pd.read_csv(*paths.of_project(paths.published_root(), "curves.csv"))
    curves = curves[curves.source.str.startswith(author)].drop_duplicates(["network", "iteration"], keep="last")
    columns = {"network": "model", "train_error": "clean_error", "heldout_error": "test_error"}
    curves = curves.rename(columns=columns)[["model", "iteration", "clean_error", "test_error"]]
    return curves.sort_values("model", key=lambda name: name.str.pad(len("resnet-110")), kind="stable")
