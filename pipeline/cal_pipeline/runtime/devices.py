"""Decides what workers compute on, and validates what is asked of it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cal_pipeline.models.quantization import check_quantization
from cal_pipeline.runtime.cluster import named_cluster
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_schemas.errors import ConfigError

_log = logging.getLogger("cal-precompute")


def validate_device(config: PrecomputeConfig, gpus: float) -> None:
    """Raises ConfigError for what a worker cannot do, which each would find out only as it starts."""
    known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    # A slash names a kernel of the hub.
    if config.attn_implementation not in known and "/" not in config.attn_implementation:
        raise ConfigError(
            f"--attn_implementation {config.attn_implementation}: expected one of {', '.join(sorted(known))}"
        )
    if not gpus and config.attn_implementation.startswith("flash_attention"):
        raise ConfigError(
            f"--attn_implementation {config.attn_implementation} needs a GPU, and workers have none "
            "(--gpus_per_worker 0): use sdpa or eager"
        )
    if not named_cluster(config.ray_address):  # Its nodes have packages of their own.
        check_quantization(config.quantization, "cuda" if gpus else "cpu")


def gpus_per_worker(config: PrecomputeConfig) -> float:
    """Returns --gpus_per_worker or what this machine suggests; ConfigError for more than there are."""
    wanted = config.gpus_per_worker
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted is None:
        wanted = float(min(1, there))
        _log.info("--gpus_per_worker %g, because this machine has %s GPU", wanted, "a" if wanted else "no")
    elif wanted > there and not named_cluster(config.ray_address):
        raise ConfigError(
            f"--gpus_per_worker {wanted:g}, but torch sees {there} GPUs on this machine: lower it (0 runs on the CPU), "
            "or name a cluster with --ray_address"
        )
    if wanted and not named_cluster(config.ray_address):
        room = int(there / wanted + 1e-9) if wanted >= 1 else int(1 / wanted + 1e-9) * there
        if config.num_workers > room:
            _log.warning(
                "--num_workers %d at --gpus_per_worker %g: this machine has %d GPUs, which hold %d; these do the work "
                "of all, the others wait for a place", config.num_workers, wanted, there, room,
            )  # fmt: skip
    return wanted


def warn_of_crowding(model: torch.nn.Module, config: PrecomputeConfig, gpus: float) -> None:
    """Warns where the weights of the workers that share a memory, of this machine or of a GPU, are larger than it.

    model: on the meta device.
    """
    if (
        named_cluster(config.ray_address)
        or config.quantization != "none"
        or hasattr(model.config, "quantization_config")
    ):
        return
    weights = sum(tensor.numel() for tensor in model.parameters()) * getattr(torch, config.dtype).itemsize
    if gpus:
        sharing = min(config.num_workers, int(1 / gpus + 1e-9)) if gpus < 1 else 1
        memory, where = torch.cuda.get_device_properties(0).total_memory * max(1, int(gpus)), f"{gpus:g} GPU"
    else:
        sharing, memory, where = config.num_workers, _memory_of_machine(), "this machine"
    if sharing * weights > memory:
        _log.warning(
            "%d times %.1f GB of weights (%s) are more than the %.1f GB of memory of %s: workers will fail to start "
            "or be ended; %d fit", sharing, weights / 1e9, config.dtype, memory / 1e9, where, memory // weights,
        )  # fmt: skip


def _memory_of_machine() -> int:
    """In bytes, as far as this process may use it."""
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(there, int(allowed)) if allowed.isdecimal() else there
