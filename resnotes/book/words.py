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
    headline = "plain-deeper-trains-worse"           # of those in reports: with what its caption concludes

    [labels]                                         # what stands in those, and names of measurements, in Chinese
    "learning rate" = "..."
    "{n} layers" = "{n} ..."

Names in braces are filled in by the cell that decides the claim or saves the figure; in labels they stand for any
words. The file is checked as a whole when it is first read; what is wrong is said with file, entry and name.
"""

from __future__ import annotations

import re
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeGuard

from resnotes import paths
from resnotes.analysis.intervals import UNITS_ZH
from resnotes.analysis.numbers import number, typeset, with_unit
from resnotes.errors import ResnotesError, UsageError, unknown
from resnotes.figures.translation import translate
from resnotes.files import read_json

LANGUAGES = ("en", "zh")
Text = dict[str, str]  # by language

# The texts that an entry has to have, those that it may have, and what else stands in it.
_PARTS = {
    "claims": (("statement", "paper"), ("control", "why", "changed"), ("source", "rule")),
    "figures": (("caption",), (), ("claims", "headline")),
}
_USE = re.compile(r"""\bclaims\.(decide|figure)\(\s*(?:[\w.]+,\s*)?["']([\w-]+)["']""")


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
    limits: Sequence[float] | None = None
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
        bound, unit = number(self.bound), re.sub(r"^(point|decade|unit)s\b", r"\1", self.unit)
        unit = unit if abs(self.bound) == 1 else self.unit
        what = ("the number itself", "数值本身") if self.exact else ("95 % interval", "95 % 区间")
        return {
            "en": typeset(f"{what[0]} {side[0]} {with_unit(bound, unit)}"),
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
            ResnotesError: the file is damaged, there is no such entry, or it lacks a text, a language, or one of the
                values, or is given one that it does not name.
        """
        entry = self._entry("claims", key)
        texts = self._filled("claims", key, values)
        return ClaimWords(self._id(key), source=entry["source"], rule=Rule(**entry["rule"]), **texts)

    def figure(self, name: str, values: Mapping[str, Any]) -> tuple[Text, list[str]]:
        """The captions of a figure, with `values` in them, and the ids of the claims that it supports.

        Raises:
            ResnotesError: as for `claim`.
        """
        ids = [self._id(key) for key in self._entry("figures", name).get("claims", [])]
        return self._filled("figures", name, values)["caption"], ids

    @property
    def headlines(self) -> dict[str, str]:
        """The figures that a report shows, in order, each with the id of the claim that its caption concludes with.

        None where the file is not there, as where only what was executed is at hand.

        Raises:
            ResnotesError: the file is damaged.
        """
        figures = self._all.get("figures", {}) if self.path.exists() else {}
        return {name: self._id(entry["headline"]) for name, entry in figures.items() if "headline" in entry}

    @property
    def labels(self) -> dict[str, str]:
        """The words in its figures, with their Chinese; none where the file is not there.

        Raises:
            ResnotesError: the file is damaged.
        """
        return dict(self._all.get("labels", {})) if self.path.exists() else {}

    def chinese(self, label: str) -> str:
        """What stands in a figure, or the name of one of several measurements, in Chinese; as it is without an entry.

        Raises:
            ResnotesError: the file is damaged.
        """
        return translate(label, self.labels)

    def check_uses(self) -> None:
        """See that the notebook beside it names every entry, and uses none that is not there.

        Raises:
            ResnotesError: it does not, or the file is damaged.
        """
        cells = read_json(self.path.with_suffix(".ipynb"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for use, name in _USE.findall(code):
            self._entry({"decide": "claims", "figure": "figures"}[use], name)
        for kind in _PARTS:
            for name in self._all.get(kind, {}):
                if f'"{name}"' not in code:  # a cell may go through several
                    raise self._wrong(kind, name, f"no cell of {self.path.stem}.ipynb names it; take it out or use it")

    @cached_property
    def _all(self) -> dict[str, Any]:
        try:
            found = tomllib.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResnotesError(f"{self.path} cannot be read as the words of a notebook: {error}") from error
        if not isinstance(found.get("study"), str) or set(found) - {"study", "labels", *_PARTS}:
            raise UsageError(f"{self.path.name}: found {', '.join(found)}; expected study, claims, figures, labels")
        for kind in _PARTS:
            for name, entry in found.get(kind, {}).items():
                self._check(kind, name, entry)
        for name, entry in found.get("figures", {}).items():
            keys = {*entry.get("claims", []), *([entry["headline"]] if "headline" in entry else [])}
            for key in keys - set(found.get("claims", {})):
                raise self._wrong("figures", name, f"it supports the claim {key!r}, which has no entry")
        for text, translation in found.get("labels", {}).items():
            try:
                translate(text, {text: translation})  # fits itself, its names standing for themselves
            except Exception as error:
                what = f"found {translation!r:.200}, expected a text with the names of its label: {error!r}"
                raise self._wrong("labels", text, what) from error
        return found

    def _check(self, kind: str, name: str, entry: Any) -> None:
        """See that an entry has all of its parts and no others, and its texts in both languages."""
        needed, optional, others = _PARTS[kind]
        if not isinstance(entry, dict) or set(entry) - {*needed, *optional, *others}:
            raise self._wrong(kind, name, f"found {entry!r:.200}, expected {', '.join(needed + optional + others)}")
        for part in (*needed, *(part for part in optional if part in entry)):
            texts = entry.get(part)
            if not _is_text(texts):
                raise self._wrong(kind, name, f"found {texts!r} for {part}, expected a text in each of en and zh")
            for text in texts.values():
                try:
                    list(string.Formatter().parse(text))
                except ValueError as error:
                    raise self._wrong(kind, name, f"{part} is no template, {error}: {text!r}") from error
        if not isinstance(entry.get("headline", ""), str):
            raise self._wrong(kind, name, f"found headline {entry['headline']!r}, expected one of its claims")
        if kind == "claims" and not isinstance(entry.get("source"), str):
            raise self._wrong(kind, name, f"found {entry.get('source')!r} for source, expected where it is stated")
        if kind == "claims" and not _is_rule(entry.get("rule")):
            expected = 'one of above = 0, below = 0, rank = "same" or "reversed"; with bounds also unit = "points"'
            expected += ", limits = [0, 100], exact = true"
            raise self._wrong(kind, name, f"found rule {entry.get('rule')!r}, expected {expected}")

    def _entry(self, kind: str, name: str) -> dict[str, Any]:
        entries: dict[str, dict[str, Any]] = self._all.get(kind, {})
        if name not in entries:
            raise self._wrong(kind, name, f"there is no such entry; there are: {', '.join(sorted(entries)) or 'none'}")
        return entries[name]

    def _id(self, key: str) -> str:
        return f"{self._all['study']}.{key}"

    def _filled(self, kind: str, name: str, values: Mapping[str, Any]) -> dict[str, Text]:
        """The texts of an entry with the values in them, none of which is left over; empty ones that it lacks."""
        entry, (needed, optional, _) = self._entry(kind, name), _PARTS[kind]
        texts = {part: entry.get(part, dict.fromkeys(LANGUAGES, "")) for part in needed + optional}
        parsed = [
            piece for each in texts.values() for text in each.values() for piece in string.Formatter().parse(text)
        ]
        named = {field for _, field, _, _ in parsed if field is not None}
        for field in sorted(named - set(values) - set(self.common)):
            raise self._wrong(kind, name, f"its texts name {{{field}}}, which the cell does not give")
        for field in sorted(set(values) - named):
            raise self._wrong(kind, name, f"the cell gives {field}=, which none of its texts names")
        all_values = {**self.common, **values}
        try:
            return {
                part: {language: typeset(_Filling().format(text, **all_values)) for language, text in each.items()}
                for part, each in texts.items()
            }
        except (TypeError, ValueError) as error:  # such as {gap:.1f} of a text
            raise self._wrong(kind, name, f"its texts cannot be filled with {dict(values)!r:.200}: {error}") from error

    def _wrong(self, kind: str, name: str, what: str) -> UsageError:
        return UsageError(f"{self.path.name}, [{kind}.{name}]: {what}")


class _Filling(string.Formatter):
    """Sets numbers to which a text gives no format of their own to three digits."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, float) and not format_spec:
            return number(value, 3)
        return str(super().format_field(value, format_spec))


def _is_text(found: Any) -> TypeGuard[Text]:
    """Whether it is a text in both languages."""
    return (
        isinstance(found, dict)
        and set(found) == set(LANGUAGES)
        and all(isinstance(text, str) and text.strip() for text in found.values())
    )


def _is_rule(found: Any) -> bool:
    """Whether it is a rule that `Rule` takes."""
    if not isinstance(found, dict) or len({"above", "below", "rank"} & set(found)) != 1:
        return False
    if "rank" in found:
        return found in ({"rank": "same"}, {"rank": "reversed"})
    limits = found.get("limits", [0, 0])
    return (
        not set(found) - {"above", "below", "unit", "limits", "exact"}
        and isinstance(limits, list)
        and len(limits) == 2
        and all(type(number) in (int, float) for number in (found.get("above", found.get("below")), *limits))
        and isinstance(found.get("unit", ""), str)
        and isinstance(found.get("exact", False), bool)
    )


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
