"""Decides what workers compute on, and validates what is asked of it."""

from __future__ import annotations

import logging

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
