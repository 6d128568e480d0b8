"""Holds what the weighting flags say as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor
from torch.nn import functional as F

from cal_schemas.choices import check_choice
from cal_schemas.maps import Map
from cal_schemas.spec import IGNORE_INDEX
from cal_schemas.weighting import Normalization
from cal_trainer.objective.weights import Pool, check_weighting, token_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighting:
    """Makes scores into weights, and says what the weighted sum is divided by.

    `step`: the summed weights of the whole optimizer step, over micro-batches and ranks. `sample`: inside a sample,
    then the mean over the step's samples with a positive sum (CAL, Eq. 5). `micro_batch`: the released code. `count`:
    the step's supervised tokens, whatever they weigh.
    """

    alpha: float = cast(float, None)
    """Least weight; None, here and below, is the default of the map."""
    beta: float = cast(float, None)
    """Largest weight."""
    window: int = cast(int, None)
    """Tokens averaged."""
    pool: Pool = "span"
    normalization: Normalization = "step"
    map: str = "clamp"
    """As `Map.parse` reads it."""

    def __post_init__(self) -> None:
        rule = Map.parse(self.map)
        settings = rule.settings(alpha=self.alpha, beta=self.beta, window=self.window)
        for name, value in settings.items():
            object.__setattr__(self, name, value)
        check_weighting(**settings, pool=self.pool, rule=rule)
        check_choice("normalization", self.normalization, Normalization)

    def __call__(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """Weights [B, T] of scores [B, T], 0 at position 0, which nothing predicts."""
        weights = token_weights(
            deltas, labels, alpha=self.alpha, beta=self.beta, window=self.window, pool=self.pool, map=self.map
        )
        return F.pad(weights[:, 1:], (1, 0))

    @property
    def takes_all_tokens(self) -> bool:
        """True when it averages over the deltas of unsupervised tokens too."""
        return self.pool == "released"

    def measured_labels(self, labels: Tensor) -> Tensor:
        """[B, T]: of every token whose delta it takes; for an unsupervised one token id 0, as in the released code."""
        return labels.where(labels != IGNORE_INDEX, 0) if self.takes_all_tokens else labels

    @property
    def independent_of_the_split(self) -> bool:
        """True when loss and gradient are those of the step, however it is cut into micro-batches and ranks."""
        of_batch = self.takes_all_tokens or Map.parse(self.map).definition.of_batch
        return self.normalization != "micro_batch" and not of_batch


UNIFORM = Weighting(alpha=1.0, beta=1.0, window=1)
