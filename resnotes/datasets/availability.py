"""The record that says whether a data set is at hand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Availability:
    """Where a data set lies, or the networks that others published, or how to get them.

    Attributes:
        name: as `resnotes.datasets.load` takes it, or ``published``.
        found: whether it loads without a download; of published networks, whether any does.
        variant: its edition, or None where that is not known before decoding.
        where: what it is read from; where it is missing, what was looked for.
        how: how to get it, where it is missing or incomplete.
    """

    name: str
    found: bool
    variant: str | None
    where: str
    how: str = ""
