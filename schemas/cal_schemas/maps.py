"""Chooses a map of scores to weights, and weighs: clamps what it gives, and averages over neighbours. Pure.

B samples, L places, some of which are tokens of the sample. A score is NaN where it is undefined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self, TypedDict

from array_api_compat import array_namespace

from cal_schemas.errors import ConfigError
from cal_schemas.map_definitions import MAPS, Array, MapDefinition, MapName
from cal_schemas.scores import SCORES, Score


@dataclass(frozen=True, slots=True)
class Quantile:
    """Is a number that is known once the scores are."""

    share: float

    def __str__(self) -> str:
        return f"q{self.share:.9g}"


class Settings(TypedDict):
    """Bounds of the clamp, and the window."""

    alpha: float
    beta: float
    window: int


@dataclass(frozen=True, slots=True)
class Map:
    """A map by name, with its number; `str` of it is what `parse` reads."""

    name: MapName = "clamp"
    parameter: float | Quantile | None = None
    threshold: float | None = None
    """What the data made of the parameter."""

    def __str__(self) -> str:
        if self.parameter is None:
            return self.name
        number = str(self.parameter) if isinstance(self.parameter, Quantile) else f"{self.parameter:.9g}"
        resolved = "" if self.threshold is None else f"@{self.threshold:.9g}"
        return f"{self.name}={number}{resolved}"

    @property
    def definition(self) -> MapDefinition:
        """Its entry in MAPS."""
        return MAPS[self.name]

    def settings(self, *, alpha: float | None, beta: float | None, window: int | None) -> Settings:
        """What is given, and the map's defaults for the rest."""
        least, largest = self.definition.bounds
        return {
            "alpha": least if alpha is None else alpha,
            "beta": largest if beta is None else beta,
            "window": self.definition.window if window is None else window,
        }

    @property
    def needs(self) -> Literal["", "tokens", "samples"]:
        """Of what all data must be read before it can weigh; empty where it can."""
        open_ = self.threshold is None and (
            self.definition.of_data == "samples" or isinstance(self.parameter, Quantile)
        )
        return self.definition.of_data if open_ else ""

    @property
    def number(self) -> float:
        """What `compute` takes. ConfigError where the data must be read first."""
        if self.needs:
            raise ConfigError(
                f"map {self} depends on the scores of all {self.needs}, which must be read first: cal-train, with "
                f"--delta_source cached, and cal-inspect do; give {self}@X, where X is what they say that it is"
            )
        if self.threshold is not None:
            return self.threshold
        return 0.0 if self.parameter is None else float(self.parameter)  # type: ignore[arg-type]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `clamp`, `softmax=0.5`, `threshold=q0.6`, `top_samples=0.7@0.031`, as `str` writes it.

        ConfigError for a name, or a number, that is none of it.
        """
        name, separator, rest = str(text).strip().partition("=")
        if name not in MAPS:
            raise ConfigError(f"map {text}: expected one of {', '.join(map(_usage, MAPS))}")
        known: MapName = name  # type: ignore[assignment]
        definition = MAPS[known]
        if bool(separator) != bool(definition.parameter):
            raise ConfigError(f"map {text}: expected {_usage(known)}")
        if not separator:
            return cls(known)
        given, resolved, at = rest.partition("@")
        quantile = given.startswith("q") and definition.of_data == "tokens"
        try:
            value = float(given.removeprefix("q") if quantile else given)
            threshold = float(at) if resolved else None
        except ValueError as error:
            raise ConfigError(f"map {text}: {rest} is no number; expected {_usage(known)}") from error
        least, most = (0.0, 1.0) if quantile else definition.valid
        if not least < value < most or not math.isfinite(threshold or 0.0):
            raise ConfigError(f"map {text}: {definition.parameter} must be above {least:g} and below {most:g}")
        if resolved and not (quantile or definition.of_data == "samples"):
            raise ConfigError(f"map {text}: nothing follows the number of {_usage(known)}")
        return cls(known, Quantile(value) if quantile else value, threshold)


def weigh(scores: Array, member: Array, run: Array, rule: Map, *, alpha: float, beta: float, window: int) -> Array:
    """Weights [B, L] of float32 scores [B, L]: clamp(map(s), alpha, beta), averaged over neighbours (CAL, Eq. 4).

    Args:
        scores: NaN where undefined.
        member: [B, L] bool, places that are tokens.
        run: [B, L] ints; tokens of a row with the same number are neighbours, in the order of their places.
        rule: the map.
        alpha: least weight, and that of a token whose score is undefined, which its neighbours' mean leaves out.
        beta: largest weight.
        window: odd number of places averaged, stride 1, as many as exist within the run.

    What it gives at places that are no tokens means nothing. Raises ConfigError for a map that needs all data first.
    """
    xp = array_namespace(scores)
    defined = member & ~xp.isnan(scores)
    mapped = rule.definition.compute(scores, defined, rule.number)
    if rule.definition.stretched:
        mapped = alpha + (beta - alpha) * mapped
    # Not NaN, of which sums make more.
    clamped = xp.where(defined, xp.clip(mapped, alpha, beta), 0.0)
    total, count = xp.zeros_like(clamped), xp.zeros_like(clamped)
    length = scores.shape[1]
    reach = min(window // 2, max(length - 1, 0))
    for shift in range(-reach, reach + 1):
        here, there = slice(max(0, -shift), length - max(0, shift)), slice(max(0, shift), length - max(0, -shift))
        counted = defined[:, there] & (run[:, there] == run[:, here])
        total[:, here] += xp.where(counted, clamped[:, there], 0.0)
        count[:, here] += xp.astype(counted, clamped.dtype)
    return xp.where(defined, total / xp.clip(count, 1.0, None), alpha)


def check_score(score: Score, rule: Map) -> None:
    """ConfigError for a map whose equation is of other scores."""
    meant = rule.definition.scores
    if meant and score not in meant:
        raise ConfigError(
            f"map {rule} is of score {' or '.join(meant)}, and not of {score} = {SCORES[score].equation}: "
            f"give --score {meant[0]}, or another map"
        )


def _usage(name: MapName) -> str:
    return f"{name}={MAPS[name].parameter}" if MAPS[name].parameter else name
