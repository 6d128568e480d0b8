"""Defines the scores of a token, which weights are made of: by columns of two passes, or of the model in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from array_api_compat import array_namespace

from cal_schemas.errors import ConfigError
from cal_schemas.token_columns import EXTRA_COLUMNS, ExtraColumn

Score = Literal[
    "delta_logit", "delta_logprob", "ratio", "kl", "kl_reverse", "js", "entropy", "anchored_entropy", "probability",
    "nll", "excess_loss",
]  # fmt: skip
DEFAULT_SCORE: Final = "delta_logit"
OWN_NLL: Final = "nll"
"""What the model in training gives beside the columns of a measurement: -ln p(t_j), in nats."""
Columns = Mapping[str, Any]
"""Arrays of one shape [..., L], numpy or torch, by column name: the last axis is the tokens of a sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreDefinition:
    """How a score is computed."""

    equation: str
    """In the symbols of docs/method.md, section 1; p is the model in training."""
    columns: tuple[str, ...]
    """What it reads; NaN where one of them is."""
    compute: Callable[[Columns], Any]
    unit: Literal["logits", "nats", ""]
    signed: bool = False
    """True where the image speaks for the token above 0, and against it below."""

    @property
    def cached(self) -> tuple[str, ...]:
        """Those that annotated shards hold."""
        return tuple(name for name in self.columns if name != OWN_NLL)

    @property
    def of_training(self) -> bool:
        """True when the model in training has a part in it, whatever was measured."""
        return OWN_NLL in self.columns

    @property
    def extra(self) -> tuple[ExtraColumn, ...]:
        """What `cal-precompute --extra_columns` must name for its cached columns."""
        return tuple(kind for kind, names in EXTRA_COLUMNS.items() if not set(names).isdisjoint(self.cached))


def _exp(values: Any) -> Any:
    return array_namespace(values).exp(values)


def _at_most(values: Any, largest: float) -> Any:
    return array_namespace(values).clip(values, None, largest)


def _column(
    equation: str, name: str, unit: Literal["logits", "nats"] = "nats", *, signed: bool = False
) -> ScoreDefinition:
    return ScoreDefinition(
        equation=equation, columns=(name,), compute=lambda columns: columns[name], unit=unit, signed=signed
    )


def within_sample(values: Any, defined: Any) -> Any:
    """Values [..., L], 0 at the least and 1 at the largest of those that are defined; all 0 where they are equal."""
    xp = array_namespace(values)
    least = xp.min(xp.where(defined, values, math.inf), axis=-1, keepdims=True)
    spread = xp.max(xp.where(defined, values, -math.inf), axis=-1, keepdims=True) - least
    # What is no number stays none.
    return xp.where(spread == 0, 0.0, (values - least) / xp.where(spread == 0, 1.0, spread))


def _anchored_entropy(js: Any, with_image: Any, without: Any) -> Any:
    xp = array_namespace(js)
    change = xp.abs(without - with_image)
    defined = ~(xp.isnan(js) | xp.isnan(change))
    seen, changed, open_ = (within_sample(values, defined) for values in (js, change, with_image))
    anchored: Any = (1.0 - (1.0 - seen) ** _ANCHORED * (1.0 - changed) ** (1.0 - _ANCHORED)) * open_
    return xp.where(defined, anchored, math.nan)


_ANCHORED: Final = 0.7
_LARGEST_EXPONENT: Final = 80.0
"""Beyond e^88 float32 is infinite."""
_WITH, _WITHOUT = EXTRA_COLUMNS["logprobs"]
_ENTROPIES, _JS = EXTRA_COLUMNS["entropy"], EXTRA_COLUMNS["kl"][2]
SCORES: Final[Mapping[Score, ScoreDefinition]] = {
    "delta_logit": _column("o~_j - o_j", "delta_logits", "logits", signed=True),
    "delta_logprob": ScoreDefinition(
        equation="ln P~(t_j) - ln P(t_j)",
        columns=(_WITH, _WITHOUT),
        compute=lambda columns: columns[_WITH] - columns[_WITHOUT],
        unit="nats",
        signed=True,
    ),
    "ratio": ScoreDefinition(
        equation="P~(t_j) / P(t_j)",
        columns=(_WITH, _WITHOUT),
        compute=lambda columns: _exp(_at_most(columns[_WITH] - columns[_WITHOUT], _LARGEST_EXPONENT)),
        unit="",
    ),
    "kl": _column("KL(P~ || P)", "kl_with_without"),
    "kl_reverse": _column("KL(P || P~)", "kl_without_with"),
    "js": _column("JS(P~, P)", "js_with_without"),
    "entropy": _column("- sum_v P~(v) ln P~(v)", "entropy_with_image"),
    "anchored_entropy": ScoreDefinition(
        equation="(1 - (1 - JS^)^0.7 (1 - |H - H~|^)^0.3) H~^, x^ = (x - min x) / (max x - min x) of the sample",
        columns=(_JS, *_ENTROPIES),
        compute=lambda columns: _anchored_entropy(columns[_JS], *(columns[name] for name in _ENTROPIES)),
        unit="",
    ),
    "probability": ScoreDefinition(
        equation="p(t_j)", columns=(OWN_NLL,), compute=lambda columns: _exp(-columns[OWN_NLL]), unit=""
    ),
    "nll": _column("- ln p(t_j)", OWN_NLL),
    "excess_loss": ScoreDefinition(
        equation="ln P~(t_j) - ln p(t_j)",
        columns=(OWN_NLL, _WITH),
        compute=lambda columns: columns[OWN_NLL] + columns[_WITH],
        unit="nats",
    ),
}
"""Of every token. What `anchored_entropy` calls ^ is over the sample's tokens."""


def validate_columns(names: Collection[str], score: Score, where: str) -> None:
    """ConfigError, with the way out, where the columns `names` of `where` are not all that the score reads."""
    definition = SCORES[score]
    if missing := [name for name in definition.cached if name not in names]:
        raise ConfigError(
            f"score {score} = {definition.equation} reads {', '.join(missing)}, which {where} does not hold: measure "
            f"it with cal-precompute --extra_columns {','.join(definition.extra)}"
        )
