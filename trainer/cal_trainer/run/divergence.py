"""Stops a run whose loss or weights are no numbers any more, before they are saved over good ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cal_schemas.errors import DivergedError

_LOSSES = ("loss", "train_loss")


def validate_losses(logs: Mapping[str, float], step: int) -> None:
    """DivergedError for a logged loss that is no number; all ranks log the same one."""
    for name in _LOSSES:
        if not math.isfinite(value := logs.get(name, 0.0)):
            raise DivergedError(_message(f"{name} is {value:g}", step))


def nonfinite_weights(model: Any) -> Tensor:
    """[] float32: how many trained tensors of this rank hold NaN or infinity; of a sharded model its own shards."""
    found = torch.zeros((), device=next(model.parameters()).device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            found += 1.0 - local.detach().isfinite().all().float()
    return found


def validate_weights(num_nonfinite: Tensor, step: int) -> None:
    """DivergedError unless the count, over all ranks, is 0."""
    if num_nonfinite > 0:
        raise DivergedError(_message(f"{int(num_nonfinite)} trained tensors hold NaN or infinity", step))


def _message(what: str, step: int) -> str:
    return (
        f"{what} after step {step}, of which nothing was saved: give a lower --learning_rate, more --warmup_steps or "
        "another precision; --stop_on_nan false trains on"
    )
