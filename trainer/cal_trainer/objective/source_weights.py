"""Makes deltas into weights; tokens of sources whose deltas are left aside weigh a number (`--uniform_sources`)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.data.collator import StepBatch
from cal_trainer.data.sources import Sources
from cal_trainer.objective.weighting import Weighting


class SourceWeights:
    """The weighting of rows by their source; where sources have weights, a batch must say those of its rows."""

    def __init__(self, weighting: Weighting, sources: Sources) -> None:
        self._weighting, self._any = weighting, bool(sources.weights)
        self._of_source = torch.tensor([sources.weights.get(name, torch.nan) for name in sources.names])

    def __call__(self, deltas: Tensor, batch: StepBatch) -> Tensor:
        """Weights [B, T] of deltas [B, T]."""
        if not self._any:
            return self._weighting(deltas, batch.labels)
        assert batch.sources is not None, "the batch does not say the sources of its rows"
        self._of_source = self._of_source.to(deltas.device)
        of_row = self._of_source[batch.sources][:, None]
        own = ~of_row.isnan()
        # Other rows' weights may depend on them (`batch_share`); pool `released` takes no hole.
        given = deltas if self._weighting.takes_all_tokens else deltas.masked_fill(own, torch.nan)
        supervised = F.pad(batch.labels[:, 1:] != IGNORE_INDEX, (1, 0))
        return torch.where(own & supervised, of_row, self._weighting(given, batch.labels))
