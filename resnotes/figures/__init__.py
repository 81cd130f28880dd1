"""Figures: one style, one look per network, drawings of networks, and files that say where they came from."""

from resnotes.figures.saving import save
from resnotes.figures.style import bands, readable, style_for, use_style

__all__ = ["bands", "readable", "save", "style_for", "use_style"]
