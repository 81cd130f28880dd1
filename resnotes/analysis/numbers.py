"""Numbers as they are set in tables and texts, the same in every language.

A minus sign (U+2212), powers of ten as ``×10⁻¹⁶``, and a space before a percent sign at which no line breaks.
"""

from __future__ import annotations

import math
import re

MINUS, NO_BREAK = "\u2212", "\u00a0"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Before a number, but neither in `resnet-56` nor in `4-5`; ASCII, or a Chinese character would count as a letter.
_HYPHEN = re.compile(r"(?<![\w.\-)/])-(?=\.?\d)", re.ASCII)


def typeset(text: str) -> str:
    """`text` with a minus sign for each hyphen that stands for one, and no line break before a percent sign."""
    return _HYPHEN.sub(MINUS, text).replace(" %", f"{NO_BREAK}%")


def number(value: float, digits: int = 4) -> str:
    """A number to so many digits: ``−0.25``, ``61.52``, ``12350``, ``5.6×10⁻¹⁷``."""
    if not isinstance(value, float):
        return typeset(str(value))
    text = f"{value:.{digits}g}"
    if value and math.isfinite(value) and not 1e-3 <= abs(float(text)) < 1e6:
        mantissa, power = f"{value:.{min(digits, 2) - 1}e}".split("e")
        return f"{typeset(f'{float(mantissa):g}')}{_times_ten(int(power))}"
    return typeset(f"{float(text):.0f}" if "e" in text else text)


def plus_minus(mean: float, half: float) -> str:
    """`mean ± half`, to the first digit of `half`, or its second where the first is a 1."""
    largest = max(abs(mean), half)
    if not 1e-3 <= largest < 1e6:
        power = math.floor(math.log10(largest))
        return f"({plus_minus(mean / 10.0**power, half / 10.0**power)}){_times_ten(power)}"
    leading = math.floor(math.log10(half))
    decimals = max(0, (1 if half / 10.0**leading < 2 else 0) - leading)
    return typeset(f"{mean:z.{decimals}f} ± {half:.{decimals}f}")


def with_bounds(mean: float, low: float, high: float) -> str:
    """`mean [low, high]`, to two digits: for an interval that is not symmetric."""
    return f"{number(mean, 2)} [{number(low, 2)}, {number(high, 2)}]"


def with_unit(text: str, unit: str) -> str:
    """The two with a space between them, at which no line breaks."""
    return f"{text}{NO_BREAK}{unit}" if unit else text


def _times_ten(power: int) -> str:
    return f"×10{str(power).translate(_SUPERSCRIPTS)}"
