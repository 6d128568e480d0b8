"""Keeps a model in training the network that was measured, and one over the passes that online deltas contrast."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from cal_pipeline.measuring.contrast import label_logits
from cal_pipeline.models.precision import watched
from cal_schemas.errors import ConfigError

_log = logging.getLogger("cal-train")
_PASSES: Final = 3
"""Over one batch, so that noise that acts seldom is seen."""


def keep_norms_still(model: nn.Module) -> None:
    """Keeps norms with running statistics in eval mode, whatever the trainer does, and warns of it.

    In train mode they would take their statistics from the batch: a row's numbers would depend on its neighbours, the
    model would not be the one that deltas were measured on, and the second pass of online deltas would move them.
    """
    norms = [name for name, module in model.named_modules() if getattr(module, "running_mean", None) is not None]
    for name in norms:
        # Before every forward: the trainer calls `train()` in every step, and checkpointing runs forwards again.
        model.get_submodule(name).register_forward_pre_hook(_still)
    if norms:
        _log.warning(
            "%d norms with running statistics (%s, …) keep those: they stay in eval mode", len(norms), norms[0]
        )


@torch.no_grad()
def validate_determinism(model: Any, inputs: Mapping[str, Tensor], labels: Tensor) -> None:
    """ConfigError where passes of the model in train mode over one batch differ by more than rounding."""
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        first, precision = watched(model, lambda: label_logits(model, inputs, labels))
        others = [label_logits(model, inputs, labels) for _ in range(_PASSES - 1)]
    chosen = ~first.isnan()
    size = max(precision.size(other[chosen] - first[chosen]) for other in others)
    if not size <= precision.tolerance(first[chosen]):
        raise ConfigError(
            "online deltas need the same network in both passes, and two passes of "
            f"{type(model).__name__} in train mode over one batch differ by {size:.3g}: set what is random in it "
            "(dropout, drop path, noise) to 0 in its config, or use --delta_source cached"
        )


def _still(module: nn.Module, args: object) -> None:
    module.eval()
