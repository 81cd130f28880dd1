"""The ledger: what each notebook claims, how it is decided, and what was found at three scopes of evidence.

Texts come from the notebook's words file (`resnotes.book.words`) in English and in Chinese, so that reports in both
languages come from the same entries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from resnotes import paths
from resnotes.analysis.intervals import UNITS_ZH, Interval, RankTest, Verdict, all_of, interval, verdict
from resnotes.analysis.numbers import number, with_unit
from resnotes.book import cards
from resnotes.book.claims import WORDS, Claim, Evidence, strongest
from resnotes.book.words import Rule, Words
from resnotes.errors import UsageError
from resnotes.figures.saving import save
from resnotes.figures.style import readable
from resnotes.files import write_json

if TYPE_CHECKING:  # it would bring PyTorch, which takes seconds
    from resnotes.runs import Run

_FEW = 2  # measurements of a claim, at most, that are all written out


def trained(runs: Sequence[Run]) -> Evidence:
    """What runs of one recipe were trained on and for how long; nothing for no runs."""
    if not runs:
        return Evidence(None)
    return Evidence(None, runs[0].variant, runs[0].spec.recipe.iterations, len({run.spec.seed for run in runs}))


class Ledger:
    """The claims of one notebook, kept on disk as they are decided.

    Args:
        notebook: stem of the notebook's file, such as `01_degradation`; its ledger starts afresh.
        profile: of what is trained live.
        live: what the live networks were trained on, as `trained` gives it.
        recorded: the same of recorded runs.
        published: the same of networks that others trained.
        **common: values that any text of the words file may name, such as the depths compared.
    """

    def __init__(
        self,
        notebook: str,
        profile: str,
        live: Evidence,
        recorded: Evidence = Evidence(None),  # noqa: B008 - it is frozen
        published: Evidence = Evidence(None),  # noqa: B008
        **common: Any,
    ) -> None:
        self.notebook = notebook
        self.words = Words(notebook, **common)
        self.settings = {"live": live, "recorded": recorded, "published": published}
        self.conditions = {
            "profile": profile,
            **{
                scope: {name: value for name, value in asdict(setting).items() if value is not None}
                for scope, setting in self.settings.items()
                if setting.dataset is not None
            },
        }
        self._claims: dict[str, Claim] = {}
        self._write()

    def decide(self, key: str, *, live: Any = None, recorded: Any = None, published: Any = None, **values: Any) -> None:
        """Enter a claim of the words file, decide it at each scope measured by its rule, and show its card.

        Args:
            key: of its entry in the words file.
            live: what was measured live: an `Evidence`, or what one takes as measured; None where nothing was.
            recorded: the same on recorded runs.
            published: the same on published networks.
            **values: what the texts name in braces.

        Raises:
            ResnotesError: the words file lacks the entry or part of it.
            UsageError: nothing was measured, a number that is not finite, or what the rule cannot decide.
        """
        words = self.words.claim(key, values)
        given = {"live": live, "recorded": recorded, "published": published}
        scopes = {}
        for scope, evidence in given.items():
            if evidence is not None:
                evidence = evidence if isinstance(evidence, Evidence) else Evidence(evidence)
                scopes[scope] = _decided(words.id, evidence.on(self.settings[scope]), words.rule, self.words.chinese)
        if not scopes:
            raise UsageError(f"claim {words.id}: expected a measurement at one scope at least, found none")
        scope, holds = strongest(scopes)
        claim = Claim(
            id=words.id,
            notebook=self.notebook,
            **_both("statement", words.statement),
            source=words.source,
            **_both("paper", words.paper),
            **_both("rule", words.rule.text),
            **_both("control", words.control),
            **_both("why", {"en": "", "zh": ""} if holds else words.why),
            **_both("changed", words.changed),
            holds=holds,
            scope=scope,
            scopes=scopes,
        )
        self._claims[claim.id] = claim
        self._write()
        display(cards.card(asdict(claim)))

    def figure(self, fig: Figure, name: str, data: pd.DataFrame | Mapping[str, pd.DataFrame], **values: Any) -> Path:
        """Save a figure (`resnotes.figures.save`) with its captions and claims from the words file.

        Args:
            fig: the figure.
            name: stem of its files, and of its entry in the words file.
            data: what is drawn.
            **values: what the captions name in braces.

        Raises:
            ResnotesError: the words file lacks the entry or part of it.
        """
        caption, claims = self.words.figure(name, values)
        return save(
            fig,
            name,
            caption=caption["en"],
            caption_zh=caption["zh"],
            claims=claims,
            data=data,
            parameters=self.conditions,
            labels_zh=self.words.labels,
        )

    def table(self) -> cards.Shown:
        """The claims, with verdict and what was found at each scope."""
        return cards.table([asdict(claim) for claim in self._claims.values()])

    def verdicts(self) -> dict[str, str]:
        """`true`, `false` or `undecided` by id: what nbval compares, free of numbers that vary by machine."""
        return {claim.id: WORDS[claim.holds] for claim in self._claims.values()}

    def _write(self) -> None:
        entries = [asdict(claim) for claim in self._claims.values()]
        write_json(paths.out_root() / "claims" / f"{self.notebook}.json", entries)


def _decided(id: str, evidence: Evidence, rule: Rule, chinese: Callable[[str], str] = str) -> dict[str, Any]:
    """The JSON form of a scope: what was measured, and what the rule says of it; `chinese` translates names."""
    measured = evidence.measured
    if isinstance(measured, Mapping):
        return {**_setting(evidence), **_all_decided(id, measured, rule, chinese)}
    if isinstance(measured, list | tuple | np.ndarray | pd.Series):
        measured = interval(list(measured), rule.unit)
    if isinstance(measured, Interval):
        if measured.unit not in ("", rule.unit):
            raise UsageError(
                f"claim {id}: measured in {measured.unit!r}, while its rule is in {rule.unit!r}; convert one"
            )
        measured = replace(measured, unit=rule.unit)
        measured = measured.within(*rule.limits) if rule.limits else measured
        evidence = replace(evidence, networks=measured.n) if measured.of == "seeds" else evidence
    holds, p = _ruled(id, measured, rule)
    return {**_setting(evidence), "holds": holds, "p": p, "measured": _measured(id, measured, rule.unit)}


def _ruled(id: str, measured: Any, rule: Rule) -> tuple[Verdict, float | None]:
    """Whether a measurement keeps the rule, and the p-value of the test."""
    if isinstance(measured, RankTest) and rule.rank:
        return measured.verdict(same=rule.rank == "same"), measured.p
    if isinstance(measured, Interval) and rule.bound is not None and not rule.exact:
        return verdict(measured, above=rule.above, below=rule.below), measured.p(rule.bound)
    if rule.exact and rule.bound is not None and isinstance(measured, int | float | np.number):
        return bool(measured > rule.bound if rule.above is not None else measured < rule.bound), None
    raise UsageError(f"claim {id}: found {measured!r:.200}, which its rule ({rule.text['en']}) cannot decide")


def _all_decided(id: str, measured: Mapping[str, Any], rule: Rule, chinese: Callable[[str], str]) -> dict[str, Any]:
    """Several measurements, each of which has to keep the rule.

    That all do is tested by the largest p-value of all; that one does not, by the smallest of those that do not, times
    the number of all (Bonferroni), since one of many fails by chance.
    """
    if not measured:
        raise UsageError(f"claim {id}: expected measurements by name, found none")
    each = {readable(name): _decided(id, Evidence(value), rule, chinese) for name, value in measured.items()}
    holds = all_of(*(found["holds"] for found in each.values()))
    ps = [found["p"] for found in each.values() if holds is not False or found["holds"] is False]
    p = None if None in ps else min(1.0, len(each) * min(ps)) if holds is False else max(ps)
    if holds is False and p is not None and p >= 0.05:
        holds = None
    text, text_zh = (_listed if len(each) <= _FEW else _counted)(each, chinese)
    value = {name: found["measured"] for name, found in each.items()}
    return {"holds": holds, "p": p, "measured": {"value": value, "text": text, "text_zh": text_zh}}


def _listed(each: Mapping[str, dict[str, Any]], chinese: Callable[[str], str]) -> tuple[str, str]:
    """Several measurements, one by one, in both languages."""
    said = {True: ("", ""), False: (", not so", "，不成立"), None: (", undecided", "，未定")}
    en = [f"{name}: {found['measured']['text']}{said[found['holds']][0]}" for name, found in each.items()]
    zh = [f"{chinese(name)}：{found['measured']['text_zh']}{said[found['holds']][1]}" for name, found in each.items()]
    return "; ".join(en), "；".join(zh)


def _counted(each: Mapping[str, dict[str, Any]], chinese: Callable[[str], str]) -> tuple[str, str]:
    """How many of several measurements keep the rule, and which do not."""
    kept, broken, open_ = (
        [name for name, found in each.items() if found["holds"] is verdict] for verdict in (True, False, None)
    )
    text, text_zh = f"{len(kept)} of {len(each)}", f"{len(each)} 项中 {len(kept)} 项"
    for names, word, word_zh in ((broken, "not", "不成立"), (open_, "undecided", "未定")):
        if names:
            text += f"; {word}: {', '.join(names)}"
            text_zh += f"；{word_zh}：{'、'.join(map(chinese, names))}"
    return text, text_zh


def _setting(evidence: Evidence) -> dict[str, Any]:
    return {name: getattr(evidence, name) for name in ("dataset", "iterations", "networks", "images")}


def _both(name: str, text: Mapping[str, str]) -> dict[str, Any]:
    """A text as two fields."""
    return {name: text["en"], f"{name}_zh": text["zh"]}


def _measured(id: str, measured: Any, unit: str) -> dict[str, Any]:
    """The JSON form of a measurement."""
    if isinstance(measured, Interval):
        bounds = {name: getattr(measured, name) for name in ("mean", "low", "high", "n", "unit")}
        return {**bounds, "text": str(measured), "text_zh": measured.zh}
    if isinstance(measured, RankTest):
        return {"value": measured.rho, "text": str(measured), "text_zh": str(measured)}
    value = measured.item() if hasattr(measured, "item") else measured
    if not math.isfinite(value):
        raise UsageError(f"claim {id} measured {measured!r}; expected a finite number")
    text, text_zh = (with_unit(number(value), each) for each in (unit, UNITS_ZH.get(unit, unit)))
    return {"value": value, "text": text, "text_zh": text_zh}
