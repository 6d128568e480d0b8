"""What the weighting flags say, as one value, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cal_schemas.errors import ConfigError
from cal_trainer.objective.delta_source import DeltaSource
from cal_trainer.objective.weights import Pool, check_weighting, token_weights

Normalization = Literal["step", "sample", "micro_batch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighting:
    """How deltas become weights, and what the weighted sum is divided by.

    `step`: the summed weights of the whole optimizer step, over micro-batches and ranks. `sample`: inside a sample,
    then the mean over the step's samples with a positive sum (CAL, Eq. 5). `micro_batch`: the released code.
    """

    alpha: float = 1.0
    beta: float = 5.0
    window: int = 3
    pool: Pool = "span"
    normalization: Normalization = "step"

    def __post_init__(self) -> None:
        check_weighting(alpha=self.alpha, beta=self.beta, window=self.window)

    def __call__(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """Weights [B, T] of deltas [B, T]."""
        return token_weights(deltas, labels, alpha=self.alpha, beta=self.beta, window=self.window, pool=self.pool)

    @property
    def independent_of_the_split(self) -> bool:
        """Whether loss and gradient are those of the whole step, however it is cut into micro-batches and ranks."""
        return self.normalization != "micro_batch" and self.pool != "released"


UNIFORM = Weighting(alpha=1.0, beta=1.0, window=1)


def check_combination(source: DeltaSource, weighting: Weighting, accumulation_steps: int) -> None:
    """ConfigError for what cannot be computed, with the reason."""
    if weighting.pool == "released" and not source.needs_forward:
        raise ConfigError(
            "pool 'released' averages the deltas of unsupervised tokens too, which a cache does not hold: "
            "use it with --delta_source online, or pool span or joined"
        )
    if source.needs_forward and accumulation_steps > 1:
        if weighting.normalization == "step":
            raise ConfigError(
                "normalization 'step' divides by the weights of all micro-batches of the step, and with online deltas "
                "those of the later ones are not known in time: use normalization micro_batch or sample, or "
                "--gradient_accumulation_steps 1"
            )
        if weighting.normalization == "sample" and weighting.alpha == 0:
            raise ConfigError("normalization 'sample' counts samples with a positive sum of weights, which with online "
                              "deltas and alpha = 0 is not known before the step's last micro-batch")  # fmt: skip
