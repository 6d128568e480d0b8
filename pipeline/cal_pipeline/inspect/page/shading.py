"""Shades a word: green where the image speaks for it, red where it speaks against it."""

from __future__ import annotations

import math
from typing import Literal

By = Literal["delta", "weight"]
FOR, AGAINST = (34, 139, 84), (203, 55, 55)
"""RGB of full strength."""
STRONGEST = 0.85


def strength(value: float, by: By, *, alpha: float, beta: float) -> float:
    """-1 (red) to 1 (green), 0 for no shade and for NaN.

    A delta is at full strength at beta, or at 5 logits where beta is infinite, on either side of 0; a weight runs from
    none at alpha to full at beta.
    """
    top = beta if math.isfinite(beta) else max(5.0, alpha + 1.0)
    if math.isnan(value):
        return 0.0
    if by == "weight":
        return max(0.0, min(1.0, (value - alpha) / (top - alpha))) if top > alpha else 0.0
    return max(-1.0, min(1.0, value / top)) if top > 0 else 0.0


def rgb_on(background: tuple[int, int, int], shade: float) -> tuple[int, int, int]:
    """The shade laid over an opaque background."""
    colour, opacity = (FOR if shade >= 0 else AGAINST), abs(shade) * STRONGEST
    red, green, blue = (round(b + (c - b) * opacity) for b, c in zip(background, colour, strict=True))
    return red, green, blue


def css(shade: float) -> str:
    """The shade as a CSS colour that light and dark pages can lie under."""
    red, green, blue = FOR if shade >= 0 else AGAINST
    return f"rgba({red},{green},{blue},{abs(shade) * STRONGEST:.3f})"
