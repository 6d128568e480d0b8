"""The order of an epoch, over generated lengths and modalities."""

from pathlib import Path

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainerControl, TrainerState, TrainingArguments

from cal_trainer.config import GroupBy
from cal_trainer.data.dataset import DUMMY
from cal_trainer.data.sampling import EpochSampler, InOrder, SetSamplerEpoch, StepShape, epoch_order

GROUPINGS: tuple[GroupBy, ...] = ("none", "length", "modality_length")
SAMPLES = st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=60)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))


def arrays(samples: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    lengths, has_image = zip(*samples, strict=True)
    return np.array(lengths), np.array(has_image)


def order_of(samples: list[tuple[int, bool]], group_by: GroupBy, step_size: int, epoch: int = 0) -> np.ndarray:
    return epoch_order(*arrays(samples), group_by=group_by, step_size=step_size, seed=3, epoch=epoch)


@given(SAMPLES, st.sampled_from(GROUPINGS), st.integers(1, 12))
def test_every_index_comes_once_and_padding_rows_only_fill(
    samples: list[tuple[int, bool]], group_by: GroupBy, step_size: int
) -> None:
    order = order_of(samples, group_by, step_size)
    assert sorted(order[order != DUMMY].tolist()) == list(range(len(samples)))
    assert len(order) % step_size == 0
    with_image = sum(flag for _, flag in samples)
    pools = [with_image, len(samples) - with_image] if group_by == "modality_length" else [len(samples)]
    assert (order == DUMMY).sum() == sum(-size % step_size for size in pools)
    for step in order.reshape(-1, step_size):
        padding = step == DUMMY
        assert not padding.all()
        assert not (padding[:-1] & ~padding[1:]).any(), "padding rows are at the end of their step"


@given(SAMPLES, st.integers(1, 12))
def test_every_step_is_of_one_modality(samples: list[tuple[int, bool]], step_size: int) -> None:
    _, has_image = arrays(samples)
    for step in order_of(samples, "modality_length", step_size).reshape(-1, step_size):
        assert len(set(has_image[step[step != DUMMY]].tolist())) == 1


@pytest.mark.parametrize("seed", range(5))
def test_steps_of_both_modalities_come_in_random_order(seed: int) -> None:
    has_image = np.arange(400) % 2 == 0
    order = epoch_order(np.full(400, 7), has_image, group_by="modality_length", step_size=4, seed=seed, epoch=0)
    of_steps = has_image[order.reshape(-1, 4)[:, 0]]
    assert of_steps.sum() == 50
    # A hundred tosses of a coin: 49.5 changes of side, give or take 5.
    assert 30 < (np.diff(of_steps)).sum() < 70


@given(SAMPLES, st.sampled_from(GROUPINGS[1:]), st.integers(1, 12))
def test_steps_are_sorted_by_length_and_the_longest_sample_comes_first(
    samples: list[tuple[int, bool]], group_by: GroupBy, step_size: int
) -> None:
    lengths, _ = arrays(samples)
    order = order_of(samples, group_by, step_size)
    assert lengths[order[0]] == lengths.max()
    for step in order.reshape(-1, step_size):
        of_step = lengths[step[step != DUMMY]]
        assert (np.diff(of_step) <= 0).all()


@given(SAMPLES, st.sampled_from(GROUPINGS), st.integers(1, 12), st.integers(0, 5))
def test_the_order_is_one_of_seed_and_epoch(
    samples: list[tuple[int, bool]], group_by: GroupBy, step_size: int, epoch: int
) -> None:
    one, two = (order_of(samples, group_by, step_size, epoch) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_epochs_and_seeds_differ() -> None:
    lengths, has_image = np.arange(100), np.arange(100) % 3 == 0
    orders = {
        tuple(epoch_order(lengths, has_image, group_by=group_by, step_size=8, seed=seed, epoch=epoch))
        for group_by in GROUPINGS
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 12


@given(SAMPLES, st.sampled_from(GROUPINGS), SIZES)
def test_accelerate_gives_ranks_equal_batches_and_no_sample_twice(
    samples: list[tuple[int, bool]], group_by: GroupBy, sizes: tuple[int, int, int]
) -> None:
    batch_size, accumulation, world_size = sizes
    lengths, has_image = arrays(samples)
    shape = StepShape(batch_size=batch_size, accumulation_steps=accumulation, world_size=world_size)
    sampler = EpochSampler(lengths, has_image, group_by=group_by, step_size=shape.size, seed=0)
    assert len(list(sampler)) == len(sampler)
    ranks = [
        list(BatchSamplerShard(BatchSampler(sampler, batch_size, False), world_size, rank))
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {len(sampler) // (batch_size * world_size)}
    assert len(ranks[0]) % accumulation == 0
    seen = [index for batches in ranks for batch in batches for index in batch if index != DUMMY]
    assert sorted(seen) == list(range(len(samples)))
    if group_by != "modality_length":
        return
    for step in range(len(ranks[0]) // accumulation):
        of_step = [
            i for rank in ranks for batch in rank[step * accumulation : (step + 1) * accumulation] for i in batch
        ]
        assert len({bool(has_image[i]) for i in of_step if i != DUMMY}) == 1


@pytest.mark.parametrize("group_by", GROUPINGS)
def test_set_epoch_decides_what_the_next_iteration_gives(group_by: GroupBy) -> None:
    sampler = EpochSampler(np.arange(20), np.arange(20) % 2 == 0, group_by=group_by, step_size=4, seed=5)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == first != second


@pytest.mark.parametrize("group_by", GROUPINGS)
def test_no_samples_are_no_steps(group_by: GroupBy) -> None:
    nothing = np.zeros(0, np.int64)
    sampler = EpochSampler(nothing, nothing.astype(bool), group_by=group_by, step_size=4, seed=0)
    assert list(sampler) == []
    assert sampler.steps_per_epoch == 0


def test_padding_rows_are_shorter_than_any_sample() -> None:
    order = epoch_order(np.zeros(5), np.zeros(5, bool), group_by="length", step_size=4, seed=0, epoch=0)
    assert order[5:].tolist() == [DUMMY] * 3


def test_evaluation_takes_every_row_once_in_order_and_fills_the_last_step() -> None:
    assert list(InOrder(5, 4)) == [0, 1, 2, 3, 4, DUMMY, DUMMY, DUMMY]
    assert list(InOrder(4, 2)) == [0, 1, 2, 3]
    assert len(InOrder(5, 4)) == 8
    assert len(InOrder(4, 2)) == 4


def test_a_step_is_the_micro_batches_of_all_ranks() -> None:
    assert StepShape(batch_size=5).size == 5
    assert StepShape(batch_size=5, accumulation_steps=2, world_size=3).size == 30


@pytest.mark.parametrize("rank", [0, 1])
def test_a_resumed_rank_goes_on_in_the_order_of_its_epoch(rank: int, tmp_path: Path) -> None:
    sampler = EpochSampler(np.arange(21), np.arange(21) % 3 == 0, group_by="modality_length", step_size=4, seed=0)
    assert sampler.steps_per_epoch == 6
    loader = prepare_data_loader(
        DataLoader(range(21), batch_size=2, sampler=sampler),  # type: ignore[arg-type]
        num_processes=2,
        process_index=rank,
        put_on_device=False,
    )
    sampler.set_epoch(1)
    whole = list(BatchSamplerShard(BatchSampler(sampler, 2, False), 2, rank))
    sampler.set_epoch(0)
    # As Trainer does for global step 8 of a run with 6 steps an epoch.
    callback = SetSamplerEpoch(sampler)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    callback.on_epoch_begin(arguments, TrainerState(global_step=8), TrainerControl())
    resumed = skip_first_batches(loader, 2)
    resumed.set_epoch(1)
    assert list(resumed.batch_sampler) == whole[2:]
