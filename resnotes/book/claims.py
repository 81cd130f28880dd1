"""Claims as they stand in the ledger, which of their verdicts counts, and how many of them chance alone decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from resnotes.analysis.intervals import Verdict
from resnotes.errors import ResnotesError, UsageError
from resnotes.files import read_json
from resnotes.typed import Rule, check_entry

WORDS: dict[Verdict, str] = {True: "true", False: "false", None: "undecided"}
SCOPES = ("live", "recorded", "published")  # from the weakest to the strongest

_CHANCE = 0.05  # how often a test decides where there is nothing


@dataclass(frozen=True)
class Evidence:
    """What was measured at a scope, and on what.

    Attributes:
        measured: a sample (one value a seed), an `Interval`, a `RankTest`, a number, or several by name, all of which
            have to keep the rule.
        dataset: variant measured on.
        iterations: how long the networks were trained, 0 for fresh ones.
        networks: how many of a kind, such as seeds; of an interval over seeds its `n`; 0 where data alone is measured.
        images: how many the measurement is made on, where that is not all of a data set.
    """

    measured: Any
    dataset: str | None = None
    iterations: int | None = None
    networks: int | None = None
    images: int | None = None

    def on(self, other: Evidence) -> Evidence:
        """The same, with what it leaves open taken from another."""
        open_ = [field.name for field in fields(self) if getattr(self, field.name) is None]
        return replace(self, **{name: getattr(other, name) for name in open_})


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger, as it stands in `claims.json`.

    `scopes` has for each scope `measured` (`{mean, low, high, n, unit, text, text_zh}` of an interval, else `{value,
    text, text_zh}`), `holds`, `p`, `dataset`, `iterations`, `networks`, `images`. `holds` is that of the strongest
    scope that decides, which `scope` names. `why` is empty for a claim that holds, `changed` where the rule never did.
    `survives` says whether the verdict is among those that pass Benjamini and Hochberg's procedure over the ledger;
    None where no test was made, and until the claims of all notebooks are together.
    """

    id: str
    notebook: str
    statement: str
    statement_zh: str
    source: str
    paper: str
    paper_zh: str
    rule: str
    rule_zh: str
    control: str
    control_zh: str
    why: str
    why_zh: str
    changed: str
    changed_zh: str
    holds: Verdict
    scope: str
    scopes: dict[str, dict[str, Any]]
    survives: bool | None = None


_TEXTS = Rule("must have a text and a text_zh", lambda measured: {"text", "text_zh"} <= measured.keys())


@dataclass(frozen=True)
class _Scope:
    """What stands in an entry for a scope, see `Claim`."""

    measured: Annotated[Mapping[str, Any], _TEXTS]
    holds: Verdict
    p: float | None
    dataset: str | None
    iterations: int | None
    networks: int | None
    images: int | None


def load(path: Path) -> list[dict[str, Any]]:
    """The claims in a ledger or in a run's `claims.json`.

    Raises:
        ResnotesError: the file is missing or damaged, or a field of an entry is, which is named.
    """
    entries = read_json(path)
    for entry in entries if isinstance(entries, list) else [entries]:
        try:
            _check(entry)
        except UsageError as misfit:
            raise ResnotesError(
                f"{path} is no ledger: {misfit}; `resnotes run` makes it anew, as where an earlier version wrote it"
            ) from None
    return list(entries)


def _check(entry: Any) -> None:
    """See that an entry has the fields of `Claim`, each of its type, and at least the scope that it names."""
    what = f"claim {entry['id']}" if isinstance(entry, dict) and "id" in entry else "a claim"
    scopes = check_entry(Claim, entry, what)["scopes"]
    if set(scopes) - set(SCOPES) or entry["scope"] not in scopes:
        raise UsageError(f"{what}: found scope {entry['scope']!r} of {[*scopes]}, expected one of {', '.join(SCOPES)}")
    for name, scope in scopes.items():
        check_entry(_Scope, scope, f"{what}, {name}")


def verdicts(claims: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many claims are `true`, `false` and `undecided`."""
    return Counter(WORDS[claim["holds"]] for claim in claims)


def p_value(claim: Mapping[str, Any]) -> float | None:
    """That of the test which decided a claim, or else of its strongest scope that was tested; None for none."""
    scopes = claim["scopes"]
    names = reversed(SCOPES) if claim["holds"] is None else [claim["scope"]]
    found: list[float | None] = [scopes[name]["p"] for name in names if name in scopes]
    return next((p for p in found if p is not None), None)


def by_chance(claims: Iterable[Mapping[str, Any]]) -> tuple[int, float]:
    """How many claims were tested, and how many of these a test at 5 % would decide if there were nothing to find."""
    tests = sum(p_value(claim) is not None for claim in claims)
    return tests, _CHANCE * tests


def marked(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The claims, with `survives` by Benjamini and Hochberg (1995) at a false discovery rate of 5 %.

    Of m tests with the p-values p_(1) <= ... <= p_(m), the first k survive, k the largest with p_(k) <= 0.05 k/m.
    """
    found = sorted(p for claim in claims if (p := p_value(claim)) is not None)
    passing = [p for rank, p in enumerate(found, start=1) if p <= _CHANCE * rank / len(found)]
    largest = max(passing, default=-1.0)
    return [{**claim, "survives": None if (p := p_value(claim)) is None else bool(p <= largest)} for claim in claims]


def strongest(scopes: Mapping[str, Mapping[str, Any]]) -> tuple[str, Verdict]:
    """The strongest scope that decides, with its verdict; of none that does, the strongest measured."""
    there = [scope for scope in reversed(SCOPES) if scope in scopes]
    deciding = next((scope for scope in there if scopes[scope]["holds"] is not None), there[0])
    return deciding, scopes[deciding]["holds"]
