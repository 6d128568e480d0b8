"""Holds what the weighting flags say as one value."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from cal_schemas.choices import check_choice
from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.config import Normalization
from cal_trainer.objective.weights import Pool, check_weighting, token_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighting:
    """Makes deltas into weights, and says what the weighted sum is divided by.

    `step`: the summed weights of the whole optimizer step, over micro-batches and ranks. `sample`: inside a sample,
    then the mean over the step's samples with a positive sum (CAL, Eq. 5). `micro_batch`: the released code.
    """

    alpha: float = 1.0
    beta: float = 5.0
    window: int = 3
    pool: Pool = "span"
    normalization: Normalization = "step"

    def __post_init__(self) -> None:
        check_weighting(alpha=self.alpha, beta=self.beta, window=self.window, pool=self.pool)
        check_choice("normalization", self.normalization, Normalization)

    def __call__(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """Weights [B, T] of deltas [B, T], 0 at position 0, which nothing predicts."""
        weights = token_weights(deltas, labels, alpha=self.alpha, beta=self.beta, window=self.window, pool=self.pool)
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
        return self.normalization != "micro_batch" and not self.takes_all_tokens


UNIFORM = Weighting(alpha=1.0, beta=1.0, window=1)
