"""Decides which samples share a batch: the order of an epoch from lengths, modalities and seed alone.

An epoch is cut into steps of world_size * accumulation_steps * batch_size indices. Inside a step the i-th run of
batch_size indices is micro-batch i // world_size of rank i % world_size, which is how accelerate deals batches out.
Steps are filled with DUMMY, so that every rank has the same number of batches and no sample is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback

from cal_trainer.config import GroupBy
from cal_trainer.data.dataset import DUMMY
from cal_trainer.data.mixing import Stratum, draw

_CHUNK = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShape:
    """The sizes by which an optimizer step is dealt out."""

    batch_size: int
    """Of one rank's micro-batch."""
    accumulation_steps: int = 1
    """Micro-batches of one rank."""
    world_size: int = 1
    """Ranks."""
    num_workers: int = 0
    """Of each rank's DataLoader."""

    @property
    def size(self) -> int:
        """Samples of a step."""
        return self.batch_size * self.accumulation_steps * self.world_size


def epoch_order(
    lengths: np.ndarray,
    has_image: np.ndarray,
    *,
    group_by: GroupBy,
    step_size: int,
    seed: int,
    epoch: int,
    strata: Sequence[Sequence[Stratum]] | None = None,
) -> np.ndarray:
    """Indices of one epoch, DUMMY included.

    Args:
        lengths: [N] tokens of every sample; any unit will do.
        has_image: [N] bool.
        group_by: `none` is a random permutation. `length`: every step is a random draw, sorted by falling length, so
            that its batches hold samples of similar length. `modality_length`: as `length`, and every step draws
            from one modality alone, as in LLaVA's recipes; what is left of each modality is a step of its own.
        step_size: samples of one optimizer step, over ranks and accumulation.
        seed: of the run.
        epoch: each has an order of its own.
        strata: of `pools_of`, what each epoch draws; None takes every index once.

    Returns [M] int64 with M a multiple of step_size: every index once, at most step_size - 1 DUMMY (per modality), at
    the end of their step. With grouping the step with the longest sample comes first: memory peaks at once or never.
    """
    rng = np.random.default_rng([seed, epoch])
    if strata is None:
        drawn = [rng.permutation(pool) for pool in pools_of(has_image, group_by)]
    else:
        drawn = [draw(of_pool, seed=[seed, at], epoch=epoch) for at, of_pool in enumerate(strata)]
    steps = np.concatenate([_steps(rows, step_size) for rows in drawn])
    if group_by == "none":
        return steps.reshape(-1)
    if group_by == "modality_length":
        steps = rng.permutation(steps)
    # DUMMY reads the last entry: shorter than anything, so that padding rows sort to the end.
    known = np.append(lengths, -1)
    steps = np.take_along_axis(steps, np.argsort(-known[steps], axis=1, kind="stable"), axis=1)
    if len(steps):
        longest = int(known[steps[:, 0]].argmax())
        steps[[0, longest]] = steps[[longest, 0]]
    return steps.reshape(-1)


def pools_of(has_image: np.ndarray, group_by: GroupBy) -> list[np.ndarray]:
    """Indices that may share a step: all, or those of each modality."""
    if group_by == "modality_length":
        return [np.flatnonzero(has_image), np.flatnonzero(~has_image)]
    return [np.arange(len(has_image))]


def _steps(indices: np.ndarray, step_size: int) -> np.ndarray:
    """[steps, step_size], the last one filled with DUMMY."""
    num_padding = -len(indices) % step_size
    return np.append(indices, np.full(num_padding, DUMMY, np.int64)).astype(np.int64).reshape(-1, step_size)


class EpochSampler(Sampler[int]):
    """`epoch_order` as a sampler of a map-style dataset; of the global epoch, which accelerate deals out to ranks.

    Args:
        lengths: [N], as `epoch_order` takes them.
        has_image: [N] bool.
        group_by: which samples share a batch.
        step_size: samples of one optimizer step, over ranks and accumulation.
        seed: of the run; the same on all ranks.
        strata: as `epoch_order` takes them.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        has_image: np.ndarray,
        *,
        group_by: GroupBy,
        step_size: int,
        seed: int,
        strata: Sequence[Sequence[Stratum]] | None = None,
    ) -> None:
        if strata is None:
            sizes = [len(pool) for pool in pools_of(has_image, group_by)]
        else:
            sizes = [sum(stratum.count for stratum in of_pool) for of_pool in strata]
        self._order = partial(
            epoch_order, lengths, has_image, group_by=group_by, step_size=step_size, seed=seed, strata=strata
        )
        self._step_size, self.steps_per_epoch = step_size, sum(-(-size // step_size) for size in sizes)
        self.epoch = 0

    def __len__(self) -> int:
        """Indices of an epoch, DUMMY included: the same for all epochs."""
        return self.steps_per_epoch * self._step_size

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = self._order(epoch=self.epoch)
        for start in range(0, len(order), _CHUNK):
            yield from order[start : start + _CHUNK].tolist()


class InOrder(Sampler[int]):
    """Every index once and in order, then DUMMY until ranks have equal batches: nothing is evaluated twice.

    Args:
        num_rows: of the evaluation data.
        step_size: rows that all ranks take at once.
    """

    def __init__(self, num_rows: int, step_size: int) -> None:
        self._num_rows, self._num_padding = num_rows, -num_rows % step_size

    def __len__(self) -> int:
        return self._num_rows + self._num_padding

    def __iter__(self) -> Iterator[int]:
        yield from range(self._num_rows)
        yield from [DUMMY] * self._num_padding


class _StepSampler(Protocol):
    steps_per_epoch: int

    def set_epoch(self, epoch: int) -> None: ...


class SetSamplerEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler its epoch: accelerate's own `set_epoch` does not reach it in a resumed run of several ranks."""

    def __init__(self, sampler: _StepSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the epoch's iterator is made."""
        self._sampler.set_epoch(state.global_step // self._sampler.steps_per_epoch)
