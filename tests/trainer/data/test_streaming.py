import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_schemas import writer
from cal_schemas.errors import ConfigError
from cal_trainer.data.collator import ExampleCollator
from cal_trainer.data.dataset import DUMMY, AnnotatedExamples
from cal_trainer.data.dummy import dummy_sample
from cal_trainer.data.lanes import lane_sizes
from cal_trainer.data.sampling import StepShape
from cal_trainer.data.streaming import RowGroups, StreamedExamples, StreamSampler
from conftest import Family
from tiny_data import MAX_IMAGE_PIXELS, write_llava_json


@pytest.fixture(scope="module")
def directory(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 rows in 3 shards of row groups of at most 4 rows; 22 are ok."""
    folder = tmp_path_factory.mktemp("streamed")
    source, images = write_llava_json(folder / "raw", 30)
    shards = plan_shards([str(source)], [str(images)], rows_per_shard=11)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MAX_ROW_GROUP_ROWS", 4)
        annotate(folder / "out", shards, llava.encoder, llava.model)
    return folder / "out"


@pytest.fixture
def examples(llava: Family, directory: Path) -> StreamedExamples:
    return StreamedExamples(directory, llava.encoder, max_image_pixels=MAX_IMAGE_PIXELS, shuffle_rows=6)


def sampler_of(examples: Any, seed: int = 0, counts: list[int] | None = None, **changed: Any) -> StreamSampler:
    return StreamSampler(examples, StepShape(**{"batch_size": 2, **changed}), seed=seed, counts=counts)


def test_rows_are_those_of_the_mapped_dataset(
    examples: StreamedExamples, directory: Path, llava: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mapped = AnnotatedExamples(directory, llava.encoder, cache_dir=tmp_path, max_image_pixels=MAX_IMAGE_PIXELS)
    assert len(examples) == len(mapped) == 22
    assert examples.skipped == mapped.skipped
    for index in (*range(22), DUMMY):
        one, other = examples[index], mapped[index]
        torch.testing.assert_close(one.encoded.labels, other.encoded.labels)
        torch.testing.assert_close(one.deltas, other.deltas, equal_nan=True, rtol=0, atol=0)
        for key, value in other.encoded.image_inputs.items():
            torch.testing.assert_close(one.encoded.image_inputs[key], value)
    with pytest.raises(IndexError):
        examples[22]


def test_a_directory_from_before_template_inputs_gives_the_same_rows(
    llava: Family, directory: Path, examples: StreamedExamples, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for file in directory.glob("*.parquet"):
        table = pq.read_table(file)
        assert "template_inputs" in table.column_names
        pq.write_table(table.drop_columns(["template_inputs"]), old / file.name)
    mapped = AnnotatedExamples(old, llava.encoder, cache_dir=tmp_path / "cache")
    streamed = StreamedExamples(old, llava.encoder)
    for number in (0, len(examples) - 1):
        for read in (mapped, streamed):
            assert torch.equal(read[number].encoded.labels, examples[number].encoded.labels)
            torch.testing.assert_close(read[number].deltas, examples[number].deltas, equal_nan=True)


def test_statuses_are_scanned_only_where_statistics_do_not_say_ok(
    llava: Family, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counting(self: Any, number: int, **options: Any) -> Any:
        assert options["columns"] == ["status"]
        read.append(number)
        return original(self, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counting)
    opened = StreamedExamples(directory, llava.encoder)
    assert 0 < len(read) < len(opened.groups.number)
    assert len(opened) == 22


def test_skipped_rows_are_logged(llava: Family, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        StreamedExamples(directory, llava.encoder)
    assert "8 of 30 rows are skipped" in caplog.text


class Plan:
    """Row groups of a dataset that nobody reads."""

    def __init__(self, sizes: list[int], shuffle_rows: int, groups_of_sources: list[list[int]] | None = None) -> None:
        self.groups_of_sources = [np.array(groups) for groups in groups_of_sources or []]
        zeros = np.zeros(len(sizes), np.int64)
        self.groups = RowGroups(shard=zeros, number=zeros, starts=np.append(0, np.cumsum(sizes)).astype(np.int64))
        self.shuffle_rows = shuffle_rows

    def __len__(self) -> int:
        return int(self.groups.starts[-1])


def of_ranks(sampler: StreamSampler, batch_size: int, world_size: int) -> list[list[list[int]]]:
    """Batches of every rank as accelerate deals them out."""
    return [
        list(BatchSamplerShard(BatchSampler(sampler, batch_size, False), world_size, rank))
        for rank in range(world_size)
    ]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    st.integers(1, 12),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3)),
    st.integers(0, 3),
)
def test_every_row_comes_once_over_ranks_and_workers(
    sizes: list[int], shuffle_rows: int, shape: tuple[int, int, int, int], epoch: int
) -> None:
    batch_size, accumulation, world_size, workers = shape
    plan = Plan(sizes, shuffle_rows)
    sampler = sampler_of(
        plan, batch_size=batch_size, accumulation_steps=accumulation, world_size=world_size, num_workers=workers
    )
    sampler.set_epoch(epoch)
    assert len(list(sampler)) == len(sampler)
    ranks = of_ranks(sampler, batch_size, world_size)
    assert {len(batches) for batches in ranks} == {len(sampler) // batch_size // world_size}
    assert len(ranks[0]) % accumulation == 0
    seen = [index for batches in ranks for batch in batches for index in batch if index != DUMMY]
    assert sorted(seen) == list(range(sum(sizes)))
    # Padding rows only fill the last step.
    step = batch_size * accumulation * world_size
    assert DUMMY not in list(sampler)[: len(sampler) - step]


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 5))
def test_lanes_hold_the_rows_of_their_batches(num_rows: int, num_lanes: int, batch_size: int) -> None:
    expected = [0] * num_lanes
    for row in range(num_rows):
        expected[row // batch_size % num_lanes] += 1
    assert lane_sizes(num_rows, num_lanes, batch_size).tolist() == expected


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=8),
    st.tuples(st.integers(1, 25), st.integers(1, 25)),
    st.integers(1, 12),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3)),
)
def test_every_epoch_of_a_mix_has_its_counts_and_goes_on_in_each_source(
    sizes: list[int], counts: tuple[int, int], shuffle_rows: int, shape: tuple[int, int, int, int]
) -> None:
    batch_size, accumulation, world_size, workers = shape
    cut = len(sizes) // 2
    plan = Plan(sizes, shuffle_rows, [list(range(cut)), list(range(cut, len(sizes)))])
    first_of_second = sum(sizes[:cut])
    sampler = sampler_of(
        plan, counts=list(counts), batch_size=batch_size, accumulation_steps=accumulation, world_size=world_size,
        num_workers=workers,
    )  # fmt: skip
    step = batch_size * accumulation * world_size
    times = np.zeros(sum(sizes), int)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == sampler.steps_per_epoch * step
        assert DUMMY not in order[: len(order) - step]
        rows = np.array([index for index in order if index != DUMMY])
        assert ((rows < first_of_second).sum(), (rows >= first_of_second).sum()) == counts
        times += np.bincount(rows, minlength=len(times))
        for of_source in (times[:first_of_second], times[first_of_second:]):
            assert of_source.max() - of_source.min() <= 1


def test_lanes_of_a_mix_have_its_shares_and_read_what_lies_together() -> None:
    plan = Plan([10] * 40, 20, [list(range(10)), list(range(10, 40))])
    sampler = sampler_of(plan, counts=[200, 200], batch_size=4, world_size=2, num_workers=2)
    order = np.array(list(sampler)).reshape(-1, 4)
    for lane in range(4):
        rows = order[lane::4].reshape(-1)
        assert abs(int((rows < 100).sum()) - 50) <= 2
        # 50 rows of each source, ten of it shuffled at a time: five or six row groups of either one behind the other.
        for of_source in (rows[rows < 100], rows[rows >= 100]):
            groups = of_source // 10
            assert 5 <= len(set(groups.tolist())) <= 7
            assert all(len(set(groups[at : at + 10].tolist())) <= 3 for at in range(0, 40, 10))


def test_a_worker_that_mixes_reads_a_row_group_once(examples: StreamedExamples) -> None:
    # Two of the files are one source, the third another; the sampler takes turns between them.
    examples._source_of, examples.source_names = np.array([0, 0, 1]), ("a", "b")
    sizes = examples.rows_of_sources
    assert sum(sizes) == 22
    assert min(sizes) > 4
    sampler = sampler_of(examples, counts=sizes)
    examples.hold_for(2)
    rows = [index for index in sampler if index != DUMMY]
    assert sorted(rows) == list(range(22))
    assert {examples[index].source for index in rows} == {0, 1}
    assert examples.num_reads == int((np.diff(examples.groups.starts) > 0).sum())


def test_each_worker_of_each_rank_reads_row_groups_of_its_own(examples: StreamedExamples) -> None:
    world_size, workers = 2, 2
    sampler = sampler_of(examples, world_size=world_size, num_workers=workers)
    num_reads = 0
    for batches in of_ranks(sampler, 2, world_size):
        for worker in range(workers):
            held = pickle.loads(pickle.dumps(examples))
            for batch in batches[worker::workers]:
                for index in batch:
                    held[index]
            num_reads += held.num_reads
    with_rows = int((np.diff(examples.groups.starts) > 0).sum())
    assert with_rows <= num_reads <= with_rows + world_size * workers - 1


def test_rows_are_shuffled_and_each_epoch_otherwise(examples: StreamedExamples) -> None:
    sampler = sampler_of(examples)
    first = list(sampler)
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first != sorted(first)
    assert list(sampler_of(examples, seed=1)) != first
    # Neighbours of one block come from more than one row group, in mixed order.
    groups = np.searchsorted(examples.groups.starts, first[:6], side="right")
    assert (np.diff(groups) < 0).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_goes_on_where_it_stopped(examples: StreamedExamples, llava: Family, workers: int) -> None:
    sampler = sampler_of(examples, num_workers=workers)
    sampler.set_epoch(1)
    collator = ExampleCollator(encoder=llava.encoder, dummy=dummy_sample(llava.encoder))

    def batches(batch_sampler: Any) -> list[dict[str, torch.Tensor]]:
        return list(DataLoader(examples, batch_sampler=batch_sampler, collate_fn=collator, num_workers=workers))

    whole = batches(BatchSampler(sampler, 2, False))
    resumed = batches(SkipBatchSampler(BatchSampler(sampler, 2, False), skip_batches=5))
    assert len(resumed) == len(whole) - 5 > 0
    for one, other in zip(whole[5:], resumed, strict=True):
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], equal_nan=True, rtol=0, atol=0)


def test_skipped_batches_are_not_read(examples: StreamedExamples) -> None:
    batches = list(SkipBatchSampler(BatchSampler(sampler_of(examples), 2, False), skip_batches=10))
    assert len(batches) == 1
    for index in batches[0]:
        examples[index]
    assert examples.num_reads <= 2


def test_what_cannot_be_streamed_says_why(llava: Family, directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shuffle_rows must be positive"):
        StreamedExamples(directory, llava.encoder, shuffle_rows=0)
    source, images = write_llava_json(tmp_path / "raw", 3)
    sidecar = annotate(
        tmp_path / "out", plan_shards([str(source)], [str(images)]), llava.encoder, llava.model, carry="none"
    )
    with pytest.raises(ConfigError, match="is a sidecar"):
        StreamedExamples(sidecar, llava.encoder)
