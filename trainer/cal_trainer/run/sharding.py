"""Tells FSDP what it must know of a model, restores what torch cannot, and keeps DeepSpeed away where it must be."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.integrations import deepspeed
from transformers.trainer import SCHEDULER_NAME

from cal_schemas.errors import ConfigError


def name_layers_to_shard(model: Any, accelerator: Any, *, fsdp: bool) -> None:
    """FSDP wraps whole layers, by class; left to itself accelerate takes names of which a model lacks some.

    fsdp: whether the flag is given; a launcher may ask for it, too. Raises ConfigError when nothing would be sharded.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None and (fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"):
        raise ConfigError(
            "FSDP shards over several processes with a GPU each; accelerate found "
            f"{accelerator.distributed_type} and would train without sharding"
        )
    if plugin is not None and "transformer" in str(plugin.auto_wrap_policy):
        plugin.transformer_cls_names_to_wrap = layers_to_shard(model, plugin.transformer_cls_names_to_wrap)


def layers_to_shard(model: Any, wanted: Sequence[str] | None) -> list[str]:
    """Classes of the layers that FSDP wraps: those named, or what the model and its parts may not split.

    Raises ConfigError when the model has no layer of a class that was named, or none is known.
    """
    there = {type(module).__name__ for module in model.modules()}
    known = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()} & there
    listed = ", ".join(sorted(known)) or "none known"
    if missing := [name for name in wanted or () if name not in there]:
        raise ConfigError(f"transformer_layer_cls_to_wrap names {missing[0]}, which {type(model).__name__} does not "
                          f"hold; its layers are {listed}")  # fmt: skip
    if not (wanted or known):
        raise ConfigError(f"{type(model).__name__} does not say which of its layers FSDP may wrap: name their classes "
                          "with transformer_layer_cls_to_wrap")  # fmt: skip
    return list(wanted or sorted(known))


def has_state(optimizer: Any) -> bool:
    """False for plain SGD, the one optimizer that remembers nothing; torch fails to load that into a sharded model."""
    kind = type(getattr(optimizer, "optimizer", optimizer))
    return not issubclass(kind, torch.optim.SGD) or any(group["momentum"] for group in optimizer.param_groups)


def load_schedule(scheduler: Any, optimizer: Any, checkpoint: str) -> None:
    """Restores the learning rates alone, which are all that plain SGD goes on with."""
    scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
    for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


@contextmanager
def without_deepspeed() -> Iterator[None]:
    """Within it models are built as without DeepSpeed, whose ZeRO-3 would shard what has no weights yet."""
    kept, deepspeed._hf_deepspeed_config_weak_ref = deepspeed._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept
