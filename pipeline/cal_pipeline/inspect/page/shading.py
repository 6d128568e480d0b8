"""Shades a word: blue where the image speaks for it, red where it speaks against it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cal_pipeline.inspect.tables.flat import noun, with_unit
from cal_pipeline.inspect.tables.samples import ShownToken
from cal_pipeline.inspect.tables.statistics import bounds_scores
from cal_schemas.maps import Map
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score

FOR, AGAINST = (30, 120, 255), (230, 60, 40)
"""RGB of full strength, in terminal, plots and pages: a pair that people tell apart who see no green."""
STRONGEST = 0.85


def characters(tokens: Sequence[ShownToken]) -> Iterator[Sequence[ShownToken]]:
    """Each token alone, and those that share a character (the text of all but the last is empty) together."""
    start = 0
    for stop, token in enumerate(tokens, 1):
        if token.text or stop == len(tokens):
            yield tokens[start:stop]
            start = stop


@dataclass(frozen=True, kw_only=True, slots=True)
class Shading:
    """What the shade tells, and its bounds."""

    by: Literal["score", "weight"]
    alpha: float
    beta: float
    score: Score = DEFAULT_SCORE
    full: float | None = None
    """What has full strength where beta does not say."""

    @classmethod
    def of(
        cls, by: Literal["score", "weight"], shown: Iterable[ShownToken], *, score: Score, map: Map | str,  # noqa: A002
        alpha: float, beta: float, **_: object,
    ) -> Shading:  # fmt: skip
        """Of these weights; full at the largest that is shown where beta bounds something else, or nothing."""
        full = None
        if not bounds_scores(map) and (by == "score" or math.isinf(beta)):
            full = max((abs(value) for token in shown if not math.isnan(value := getattr(token, by))), default=None)
        return cls(by=by, alpha=alpha, beta=beta, score=score, full=full or None)

    @property
    def top(self) -> float:
        """What has full strength: beta, or where that is infinite 5 logits and more than alpha."""
        if self.full is not None:
            return self.full
        return self.beta if math.isfinite(self.beta) else max(5.0, self.alpha + 1.0)

    def strength(self, value: float) -> float:
        """-1 (red) to 1 (blue), 0 for no shade and for NaN.

        A score is at full strength at `top`, on either side of 0; a weight runs from none at alpha to full at `top`.
        """
        least = self.alpha if self.by == "weight" else 0.0
        if math.isnan(value) or self.top <= least:
            return 0.0
        return max(0.0 if self.by == "weight" else -1.0, min(1.0, (value - least) / (self.top - least)))

    def extreme(self, tokens: Sequence[ShownToken]) -> float:
        """The strongest shade of tokens that share a character."""
        return max((self.strength(getattr(token, self.by)) for token in tokens), key=abs)

    def bar(self) -> tuple[str, float, str]:
        """What stands left of a bar of colours, the strength it begins with (it ends with 1), and what stands right."""
        if self.by == "weight":
            return f"weighs least, {self.alpha:g}", 0.0, f"{self.top:.3g}, weighs most"
        definition = SCORES[self.score]
        unit = f" {definition.unit}" if definition.unit else ""
        if not definition.signed:
            return f"{noun(self.score)} 0", 0.0, f"{self.top:.3g}{unit}"
        return f"the image speaks against the word, {-self.top:.3g}", -1.0, f"{self.top:.3g}{unit}, for it"

    @property
    def unit(self) -> str:
        """What a number behind a word is."""
        return "weight" if self.by == "weight" else with_unit(self.score)


def rgb_on(background: tuple[int, int, int], shade: float) -> tuple[int, int, int]:
    """The shade laid over an opaque background."""
    colour, opacity = (FOR if shade >= 0 else AGAINST), abs(shade) * STRONGEST
    red, green, blue = (round(b + (c - b) * opacity) for b, c in zip(background, colour, strict=True))
    return red, green, blue


def css(shade: float) -> str:
    """The shade as a CSS colour that light and dark pages can lie under."""
    red, green, blue = FOR if shade >= 0 else AGAINST
    return f"rgba({red},{green},{blue},{abs(shade) * STRONGEST:.3f})"
