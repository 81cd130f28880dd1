"""The ledger: what each notebook claims, what was expected, what was measured, and whether the claim holds.

Every text is there in English and in Chinese, so that reports in both languages come from the same entries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resnotes import paths
from resnotes.analysis.intervals import Interval, Verdict
from resnotes.errors import ResnotesError, UsageError
from resnotes.files import read_json, write_json

WORDS: dict[Verdict, str] = {True: "true", False: "false", None: "undecided"}

_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)+")


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger, as it stands in `claims.json`.

    `measured` is `{mean, low, high, n, unit, text, text_zh}` for an interval and `{value, text, text_zh}` for
    anything else. `why` and `why_zh` are empty for a claim that holds, and may be for any other.
    """

    id: str
    statement: str
    statement_zh: str
    source: str
    expected: str
    expected_zh: str
    measured: dict[str, Any]
    why: str
    why_zh: str
    holds: Verdict
    profile: str
    dataset: str
    seeds: tuple[int, ...]
    notebook: str


class Ledger:
    """The claims of one notebook, kept on disk as they are recorded.

    Args:
        notebook: stem of the notebook's file, such as `01_degradation`; its ledger starts afresh.
        profile: profile that the measurements were made at.
        dataset: variant of the data set measured on.
        seeds: seeds measured.
    """

    def __init__(self, notebook: str, profile: str, dataset: str, seeds: Sequence[int]) -> None:
        self.notebook = notebook
        self._on: dict[str, Any] = {"profile": profile, "dataset": dataset, "seeds": seeds}
        self._claims: dict[str, Claim] = {}
        self._write()

    def record(
        self,
        id: str,
        statement: str,
        *,
        statement_zh: str,
        source: str,
        expected: str,
        expected_zh: str,
        measured: Interval | float | str,
        measured_zh: str | None = None,
        holds: Verdict,
        why: str = "",
        why_zh: str = "",
        **on: Any,
    ) -> Claim:
        """Enter a claim, replacing one of the same id, and write the ledger.

        Args:
            id: `study.claim` in lower case with hyphens, such as `degradation.plain-deeper-worse`.
            statement: what is claimed, in English.
            statement_zh: the same in Chinese.
            source: where it is claimed, such as `He et al. 2016, Fig. 6`.
            expected: what the source reports.
            expected_zh: the same in Chinese.
            measured: what was found; NumPy and torch scalars are taken as numbers.
            measured_zh: the same in Chinese, for a string with words in it; `Interval.zh` gives that of an interval.
            holds: True, False, or None where the measurement cannot decide.
            why: why it may not hold, as far as it is known; forgotten where it does.
            why_zh: the same in Chinese.
            **on: `profile`, `dataset` or `seeds` where they differ from the ledger's, as for recorded runs.

        Raises:
            UsageError: the id is malformed, a number is NaN or infinite, `holds` is none of the three, or `why` is
                given in one language alone.
        """
        if not _ID.fullmatch(id):
            raise UsageError(f"claim id {id!r} is not of the form study.claim (lower case, digits, hyphens)")
        if bool(why) != bool(why_zh):
            raise UsageError(f"claim {id} says why in one language alone; give both why= and why_zh=")
        if holds is not None and not isinstance(holds, bool | np.bool_):  # 1, 0 and arrays are mistakes, not verdicts
            raise UsageError(f"claim {id} holds {holds!r}; expected True, False or None")
        claim = Claim(
            id=id,
            statement=statement,
            statement_zh=statement_zh,
            source=source,
            expected=expected,
            expected_zh=expected_zh,
            measured=_measured(id, measured, measured_zh),
            why="" if holds else why,
            why_zh="" if holds else why_zh,
            holds=None if holds is None else bool(holds),
            notebook=self.notebook,
            **{**self._on, **on, "seeds": tuple(int(seed) for seed in on.get("seeds", self._on["seeds"]))},
        )
        self._claims[id] = claim
        self._write()
        return claim

    def table(self) -> pd.DataFrame:
        """Statement, expected, measured and verdict, one row per claim, by id."""
        rows = {
            claim.id: (claim.statement, claim.expected, claim.measured["text"], WORDS[claim.holds])
            for claim in self._claims.values()
        }
        columns = ["statement", "expected", "measured", "verdict"]
        return pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("claim")

    def verdicts(self) -> dict[str, str]:
        """`true`, `false` or `undecided` by id: what nbval compares, free of numbers that vary by machine."""
        return {claim.id: WORDS[claim.holds] for claim in self._claims.values()}

    def _write(self) -> None:
        entries = [asdict(claim) for claim in self._claims.values()]
        write_json(paths.out_root() / "claims" / f"{self.notebook}.json", entries)


def load(path: Path) -> list[dict[str, Any]]:
    """The claims in a ledger or in a run's `claims.json`.

    Raises:
        ResnotesError: the file is missing, damaged, or an entry lacks a field or a valid verdict.
    """
    entries: list[dict[str, Any]] = read_json(path)
    names = [field.name for field in fields(Claim)]
    for entry in entries:
        if not isinstance(entry, dict) or not set(names) <= entry.keys() or entry["holds"] not in WORDS:
            raise ResnotesError(f"{path} is no ledger: found {entry!r:.200}, expected a claim with {', '.join(names)}")
    return entries


def _measured(id: str, measured: Any, measured_zh: str | None) -> dict[str, Any]:
    """The JSON form of a measurement."""
    if isinstance(measured, str):
        return {"value": measured, "text": measured, "text_zh": measured_zh or measured}
    if isinstance(measured, Interval):
        return {**asdict(measured), "text": str(measured), "text_zh": measured.zh}
    value = measured.item() if hasattr(measured, "item") else measured
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"claim {id} measured {measured!r}; expected an interval, a finite number or a string")
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return {"value": value, "text": text, "text_zh": text}
