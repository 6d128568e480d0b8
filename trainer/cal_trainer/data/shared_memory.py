"""Checks for room in /dev/shm, without which torch loses a batch of a loader worker and waits for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor
from torch.utils.data import get_worker_info
from transformers import TrainingArguments

from cal_schemas.errors import ConfigError

_SHM: Final = Path("/dev/shm")
_TORCH_PREFETCH: Final = 2
_WAY_OUT: Final = (
    "give the container more (docker run --shm-size 8g), lower --dataloader_num_workers, or set it to 0, which reads "
    "in the training process"
)


def batch_bytes(batch: Mapping[str, Any]) -> int:
    """Counts the bytes of all tensors of a batch."""
    sizes = (value.nbytes if isinstance(value, Tensor) else batch_bytes(value) for value in batch.values())
    return sum(sizes)


def validate_shared_memory(largest_row: Mapping[str, Any], arguments: TrainingArguments, *, evaluates: bool) -> None:
    """ConfigError unless the batches that all workers of this machine read ahead fit into /dev/shm.

    largest_row: a batch of one of the largest rows, by which all are judged.
    """
    workers, ahead = arguments.dataloader_num_workers, arguments.dataloader_prefetch_factor or _TORCH_PREFETCH
    if not workers or not _SHM.is_dir():
        return
    rows = arguments.per_device_train_batch_size + (arguments.per_device_eval_batch_size if evaluates else 0)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = batch_bytes(largest_row) * rows * (workers * ahead + 1) * ranks
    if (free := shutil.disk_usage(_SHM).free) < needed:
        raise ConfigError(
            f"--dataloader_num_workers {workers} hand over their batches in {_SHM}, which has {_mb(free)} free; "
            f"{ranks * workers} workers that read {ahead} batches of {rows} rows ahead need about {_mb(needed)}: "
            f"{_WAY_OUT}"
        )


def validate_batch_memory(batch: Mapping[str, Any]) -> None:
    """In a loader worker: ConfigError unless the batch fits into /dev/shm now. Other rows, or programs, are larger."""
    if get_worker_info() is None or not _SHM.is_dir():
        return
    if (free := shutil.disk_usage(_SHM).free) < (needed := batch_bytes(batch)):
        raise ConfigError(f"a batch of {_mb(needed)} does not fit into {_SHM}, which has {_mb(free)} free: {_WAY_OUT}")


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
