"""The words of a notebook: statements, rules and captions in both languages, from `notebooks/NN_name.toml`.

    study = "degradation"                 # what the ids of its claims begin with

    [claims.plain-deeper-trains-worse]
    statement = { en = "A {deep}-layer ...", zh = "..." }
    source = "He et al. 2015, Fig. 6 (left)"
    paper = { en = "+4.7 points", zh = "..." }       # what the source reports
    rule = { above = 0, unit = "points" }            # or below; exact = true; rank = "same" or "reversed"
    control = { en = "...", zh = "..." }             # may be left out, as may why and changed
    why = { en = "...", zh = "..." }                 # where it does not hold
    changed = { en = "2026-11-28: ...", zh = "..." } # if the rule changed after a first measurement

    [figures.01_degradation]
    caption = { en = "...", zh = "..." }
    claims = ["plain-deeper-trains-worse"]

Names in braces are filled in by the cell that decides the claim or saves the figure.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from resnotes import paths
from resnotes.analysis.intervals import UNITS_ZH
from resnotes.analysis.numbers import number, typeset, with_unit
from resnotes.errors import ResnotesError, UsageError, unknown
from resnotes.files import read_json

LANGUAGES = ("en", "zh")
Text = dict[str, str]  # by language

_OPTIONAL = ("control", "why", "changed")
_USE = re.compile(r"""\bclaims\.(decide|figure)\(\s*(?:fig\w*,\s*)?["']([\w-]+)["']""")
_RULE = {"above", "below", "unit", "limits", "exact", "rank"}


@dataclass(frozen=True)
class Rule:
    """When a claim holds.

    Attributes:
        above: the bound above which all of the interval lies; None for another rule.
        below: the bound below which it lies.
        unit: of the measurement.
        limits: beyond which nothing can lie, such as 0 and 100 of a percentage.
        exact: the number itself decides, not an interval: it is the same for all seeds but for rounding.
        rank: ``"same"`` or ``"reversed"``: a permutation test of two rankings decides.
    """

    above: float | None = None
    below: float | None = None
    unit: str = ""
    limits: tuple[float, float] | None = None
    exact: bool = False
    rank: str = ""

    @property
    def bound(self) -> float | None:
        """The one of the two that is given."""
        return self.below if self.above is None else self.above

    @property
    def text(self) -> Text:
        """The rule in words."""
        if self.bound is None:
            order = {"same": ("the same order", "次序相同"), "reversed": ("the reverse order", "次序相反")}[self.rank]
            return {"en": f"{order[0]}, permutation test with p < 0.05", "zh": f"{order[1]}，置换检验 p < 0.05"}
        side = ("below", "低于") if self.above is None else ("above", "高于")
        bound = number(self.bound)
        what = ("the number itself", "数值本身") if self.exact else ("95 % interval", "95 % 区间")
        return {
            "en": typeset(f"{what[0]} {side[0]} {with_unit(bound, self.unit)}"),
            "zh": typeset(f"{what[1]}{side[1]} {with_unit(bound, UNITS_ZH.get(self.unit, self.unit))}"),
        }


@dataclass(frozen=True)
class ClaimWords:
    """The entry of a claim, its texts filled in."""

    id: str
    statement: Text
    source: str
    paper: Text
    rule: Rule
    control: Text
    why: Text
    changed: Text


class Words:
    """The words file of a notebook.

    Args:
        notebook: stem of the notebook, such as `01_degradation`.
        folder: where both lie; by default `notebooks/` of the project.
        **common: values that any text may name.
    """

    def __init__(self, notebook: str, folder: Path | None = None, **common: Any) -> None:
        self.common = common
        self.path = (folder or paths.project_root() / "notebooks") / f"{notebook}.toml"

    def claim(self, key: str, values: Mapping[str, Any]) -> ClaimWords:
        """The entry of a claim, with `values` in its texts.

        Raises:
            ResnotesError: there is no such entry, or it lacks a text, a language, or one of the values, or is given one
                that it does not name.
        """
        entry = self._entry("claims", key)
        self._check_values("claims", key, entry, values)
        optional = {
            name: self._text("claims", key, name, values) if name in entry else {"en": "", "zh": ""}
            for name in _OPTIONAL
        }
        source = entry.get("source")
        if not isinstance(source, str):
            raise self._wrong("claims", key, f"found {source!r} for source, expected where the statement is made")
        return ClaimWords(
            id=f"{self._all['study']}.{key}",
            statement=self._text("claims", key, "statement", values),
            source=source,
            paper=self._text("claims", key, "paper", values),
            rule=self._rule(key, entry.get("rule")),
            **optional,
        )

    def figure(self, name: str, values: Mapping[str, Any]) -> tuple[Text, list[str]]:
        """The captions of a figure, with `values` in them, and the ids of the claims that it supports.

        Raises:
            ResnotesError: as for `claim`, or a claim without an entry.
        """
        entry = self._entry("figures", name)
        self._check_values("figures", name, entry, values)
        keys = entry.get("claims", [])
        for key in keys:
            self._entry("claims", key)
        return self._text("figures", name, "caption", values), [f"{self._all['study']}.{key}" for key in keys]

    def check_uses(self) -> None:
        """See that the notebook beside it names every entry, and uses none that is not there.

        Raises:
            ResnotesError: it does not.
        """
        cells = read_json(self.path.with_suffix(".ipynb"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for use, name in _USE.findall(code):
            self._entry({"decide": "claims", "figure": "figures"}[use], name)
        for kind in ("claims", "figures"):
            for name in self._all.get(kind, {}):
                if f'"{name}"' not in code:  # a cell may go through several
                    raise self._wrong(kind, name, f"no cell of {self.path.stem}.ipynb names it; take it out or use it")

    @cached_property
    def _all(self) -> dict[str, Any]:
        try:
            found = tomllib.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResnotesError(f"{self.path} cannot be read as the words of a notebook: {error}") from error
        if not isinstance(found.get("study"), str):
            raise ResnotesError(f'{self.path}: expected study = "name", which the ids of its claims begin with')
        return found

    def _entry(self, kind: str, name: str) -> dict[str, Any]:
        entry = self._all.get(kind, {}).get(name)
        if not isinstance(entry, dict):
            there = ", ".join(sorted(self._all.get(kind, {}))) or "none"
            raise self._wrong(kind, name, f"there is no such entry; there are: {there}")
        return entry

    def _text(self, kind: str, name: str, part: str, values: Mapping[str, Any]) -> Text:
        """Both languages of one text, filled in."""
        texts = self._entry(kind, name).get(part)
        if not isinstance(texts, dict) or set(texts) != set(LANGUAGES):
            raise self._wrong(kind, name, f"found {texts!r} for {part}, expected a text in each of en and zh")
        return {language: typeset(texts[language].format(**self.common, **values)) for language in LANGUAGES}

    def _check_values(self, kind: str, name: str, entry: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """See that the cell gives what the texts name, and nothing else."""
        texts = [text for part in entry.values() if isinstance(part, dict) for text in part.values()]
        named = {
            field
            for text in texts
            if isinstance(text, str)
            for _, field, _, _ in string.Formatter().parse(text)
            if field is not None
        }
        for field in sorted(named - set(values) - set(self.common)):
            raise self._wrong(kind, name, f"its texts name {{{field}}}, which the cell does not give")
        for field in sorted(set(values) - named):
            raise self._wrong(kind, name, f"the cell gives {field}=, which none of its texts names")

    def _rule(self, key: str, rule: Any) -> Rule:
        ways = [way for way in ("above", "below", "rank") if isinstance(rule, dict) and way in rule]
        if len(ways) != 1 or set(rule) - _RULE or rule.get("rank", "same") not in ("same", "reversed"):
            raise self._wrong(
                "claims", key, f"found rule {rule!r}, expected one of above, below, rank, with unit, limits, exact"
            )
        return Rule(**{**rule, **({"limits": tuple(rule["limits"])} if "limits" in rule else {})})

    def _wrong(self, kind: str, name: str, what: str) -> UsageError:
        return UsageError(f"{self.path.name}, [{kind}.{name}]: {what}")


@cache
def words_of(lang: str) -> dict[str, Any]:
    """The words of cards, tables and reports in one language, by key; see `templates/words.toml`.

    Raises:
        UsageError: no such language.
    """
    if lang not in LANGUAGES:
        raise unknown("language", lang, LANGUAGES)
    path = Path(__file__).parent / "templates" / "words.toml"
    words: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))[lang]
    return words
