import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.output import resume
from cal_pipeline.output.resume import Progress, check_published, compare_with_output, compare_with_plan, kept_rows
from cal_pipeline.output.store import LocalStore
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import Shard, limit_rows, read_samples, sample_rows
from cal_schemas.annotated import AnnotatedRow, annotated_schema
from cal_schemas.errors import ConfigError, FormatError
from cal_schemas.metadata import Carry
from cal_schemas.sample import Sample, sample_key
from cal_schemas.spec import MeasurementSpec
from cal_schemas.storage.locations import Location
from cal_schemas.token_columns import EXTRA_COLUMNS, TOKEN_COLUMNS
from cal_schemas.whole import open_shard
from cal_schemas.writer import ShardWriter
from damage import flip_a_byte, rewrite
from examples_of import MEASURED, measurement_spec, shard_metadata

SPEC = measurement_spec()
SCHEMA = annotated_schema(carry="paths")


def source(path: Path, count: int = 5) -> Path:
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": number, "conversations": talk}) + "\n" for number in range(count)))
    return path


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(output_dir=tmp_path / "out")
    store.prepare()
    return store


@pytest.fixture
def plan(tmp_path: Path) -> list[Shard]:
    """Three shards of 2, 2 and 1 rows."""
    return plan_shards([str(source(tmp_path / "a.jsonl"))], rows_per_shard=2)


def measured(sample: Sample, **changed: Any) -> AnnotatedRow:
    values = {
        "sample": sample,
        "sample_key": sample_key(sample),
        "measured": MEASURED,
        "num_tokens": 6,
    }
    return AnnotatedRow(**{**values, **changed})


def finish(
    store: LocalStore, shards: Sequence[Shard], *, spec: MeasurementSpec = SPEC, schema: pa.Schema = SCHEMA,
    carry: Carry = "paths", failed: dict[int, str] | None = None, filters: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """What cal-precompute leaves for these shards; `failed` gives the statuses of some rows."""
    for shard in shards:
        metadata = shard_metadata(spec=spec, source=shard.source, carry=carry, filters=filters)
        with store.staging(shard.name) as partial:
            with ShardWriter(partial, schema, metadata) as writer:
                for number, sample in enumerate(read_samples(shard)):
                    status = (failed or {}).get(number, "ok")
                    row = AnnotatedRow(sample=sample, sample_key=sample_key(sample), status=status, error="why") if (
                        status != "ok"
                    ) else measured(sample)  # fmt: skip
                    writer.write(row)
            store.commit(partial, shard.name)


def compare(store: LocalStore, plan: Sequence[Shard], **changed: Any) -> Progress:
    values = {"spec": SPEC, "schema": SCHEMA, "carry": "paths", **changed}
    return compare_with_output(plan, store=store, **values)


def test_without_output_everything_is_pending(store: LocalStore, plan: list[Shard]) -> None:
    assert compare(store, plan) == Progress(done=(), pending=tuple(plan))
    absent = LocalStore(output_dir=store.output_dir / "absent")
    assert compare(absent, plan) == Progress(done=(), pending=tuple(plan))


def test_a_finished_shard_is_done_and_the_rest_is_pending_in_plan_order(store: LocalStore, plan: list[Shard]) -> None:
    finish(store, [plan[1]])
    assert compare(store, plan) == Progress(done=(plan[1],), pending=(plan[0], plan[2]))
    finish(store, [plan[2], plan[0]])
    assert compare(store, plan) == Progress(done=tuple(plan), pending=())


def test_a_half_written_shard_in_staging_is_not_done(store: LocalStore, plan: list[Shard]) -> None:
    (store.internal / "staging" / f"{plan[0].name}.parquet").write_bytes(b"half")
    assert compare(store, plan).done == ()


def test_a_subset_of_rows_under_the_old_metadata_is_not_taken_for_the_shard(
    store: LocalStore, plan: list[Shard]
) -> None:
    finish(store, plan)
    file = store.output_dir / f"{plan[1].name}.parquet"
    rewrite(file, pq.read_table(file).slice(1, 1))
    said = rf"{file} has 1 rows, and its source gives 2: rows were taken out.*Remove it to measure it again"
    with pytest.raises(ConfigError, match=said):
        compare(store, plan)
    with pytest.raises(ConfigError, match=said):
        check_published(plan[1], spec=SPEC, schema=SCHEMA, carry="paths", store=store)
    file.unlink()
    assert compare(store, plan).pending == (plan[1],)


def test_a_damaged_page_is_not_copied_when_rows_are_redone(store: LocalStore, plan: list[Shard]) -> None:
    finish(store, plan[:1], failed={1: "image_error"})
    file = flip_a_byte(store.output_dir / f"{plan[0].name}.parquet")
    with pytest.raises(FormatError, match=f"^{file} is damaged: "):
        list(kept_rows(file, frozenset({"image_error"})))


def test_another_measurement_is_refused_with_every_differing_field_and_both_values(
    store: LocalStore, plan: list[Shard]
) -> None:
    finish(store, plan[:1])
    with pytest.raises(ConfigError) as error:
        compare(store, plan, spec=measurement_spec(dtype="bfloat16", weights_digest="z"))
    assert str(error.value).startswith(
        f"{store.path(plan[0].name)} holds another measurement (dtype: 'float32' there, 'bfloat16' now; "
        "weights_digest: 'w' there, 'z' now); choose another --output_dir"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 1), ("mtime_ns", 1), ("num_rows", 1), ("row_start", 1), ("row_stop", 1), ("etag", "e")],
)
def test_a_changed_source_is_refused_with_both_values(
    store: LocalStore, plan: list[Shard], field: str, value: int | str
) -> None:
    finish(store, plan[:1])
    now = replace(plan[0], source=replace(plan[0].source, **{field: value}))
    with pytest.raises(ConfigError) as error:
        compare(store, [now])
    assert str(error.value).startswith(
        f"{plan[0].source.uri} has changed since the shard {store.path(plan[0].name)} was measured from it "
        f"({field} was {getattr(plan[0].source, field)}, is {value}): remove that shard to measure it again"
    )


def test_an_edited_and_a_touched_file_are_refused_on_resume(store: LocalStore, plan: list[Shard]) -> None:
    finish(store, plan[:1])
    path = Path(plan[0].source.uri)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(ConfigError, match=rf"mtime_ns was {stat.st_mtime_ns}, is {stat.st_mtime_ns + 1}"):
        compare(store, plan_shards([str(path)], rows_per_shard=2))
    source(path, count=6)
    with pytest.raises(ConfigError, match=rf"size was {stat.st_size}, is {path.stat().st_size}") as error:
        compare(store, plan_shards([str(path)], rows_per_shard=2))
    assert "touch -d" not in str(error.value)


def test_a_copy_that_lost_its_time_is_told_the_command_that_gives_it_back(store: LocalStore, plan: list[Shard]) -> None:
    finish(store, plan)
    path = Path(plan[0].source.uri)
    os.utime(path)
    with pytest.raises(ConfigError) as error:
        compare(store, plan_shards([str(path)], rows_per_shard=2))
    command = str(error.value).partition("wants its time back: ")[2]
    subprocess.run(shlex.split(command), check=True)
    assert compare(store, plan_shards([str(path)], rows_per_shard=2)).pending == ()


def test_the_same_data_under_another_path_is_done(store: LocalStore, plan: list[Shard], tmp_path: Path) -> None:
    finish(store, plan)
    (tmp_path / "moved").mkdir()
    moved = Path(plan[0].source.uri).rename(tmp_path / "moved/a.jsonl")
    assert compare(store, plan_shards([str(moved)], rows_per_shard=2)).pending == ()


def test_a_shard_outside_the_plan_is_refused_with_its_rows(
    store: LocalStore, plan: list[Shard], tmp_path: Path
) -> None:
    finish(store, plan)
    path = str(tmp_path / "a.jsonl")
    for other in (plan_shards([path], rows_per_shard=3), limit_rows(plan, 2)):
        with pytest.raises(ConfigError, match=r"is not part of this run's plan \(rows [02]-[24] of .*a\.jsonl\)"):
            compare(store, other)


def test_at_the_end_of_a_run_shards_of_its_data_split_otherwise_count_and_those_of_more_data_do_not(
    store: LocalStore, plan: list[Shard], tmp_path: Path
) -> None:
    finish(store, [*plan, *plan_shards([str(source(tmp_path / "b.jsonl"))], rows_per_shard=2)])
    names = {shard.name for shard in plan}
    assert compare_with_plan(plan, store) == (names, [])
    (other, _) = plan_shards([str(tmp_path / "a.jsonl")], rows_per_shard=3)
    finish(store, [other])
    assert compare_with_plan(plan, store) == (names, [store.path(other.name)])


def test_at_the_end_of_a_run_shards_that_are_gone_are_missed(store: LocalStore, plan: list[Shard]) -> None:
    finish(store, plan)
    Path(str(store.path(plan[0].name))).unlink()
    assert compare_with_plan(plan, store) == ({shard.name for shard in plan[1:]}, [])
    shutil.rmtree(store.output_dir)
    assert compare_with_plan(plan, store) == (set(), [])
    assert not store.output_dir.exists()


def test_a_sampled_output_is_not_continued_by_another_sample_or_the_whole(store: LocalStore, plan: list[Shard]) -> None:
    half = sample_rows(plan, 0.5, seed=1)
    finish(store, half[:1])
    assert compare(store, half).done == (half[0],)
    with pytest.raises(ConfigError, match=r"measure 1 \(seed 0\): a subset"):
        compare(store, plan)
    with pytest.raises(ConfigError, match=r"measure 0\.5 \(seed 2\): a subset"):
        compare(store, [replace(shard, source=replace(shard.source, sample_seed=2)) for shard in half])


def test_shards_of_versions_whose_images_could_not_be_null_are_done(store: LocalStore, plan: list[Shard]) -> None:
    old = pa.schema([field.with_nullable(field.nullable and field.name != "images") for field in SCHEMA])
    assert not old.equals(SCHEMA)
    finish(store, plan[:1], schema=old)
    finish(store, plan[1:2])
    assert compare(store, plan) == Progress(done=tuple(plan[:2]), pending=(plan[2],))


def test_other_columns_are_refused_with_those_alone_that_differ(store: LocalStore, plan: list[Shard]) -> None:
    finish(store, plan[:1])
    with pytest.raises(ConfigError) as error:
        compare(store, plan, schema=annotated_schema(carry="paths", pass_through=[pa.field("score", pa.int8())]))
    assert str(error.value) == (
        f"{store.path(plan[0].name)} has other columns than this run would write: score (none there, int8 now); look "
        "at --extra_columns and the columns of all sources in --data_path; choose another --output_dir, or remove the "
        "old shards"
    )


def test_another_carry_is_refused_with_both_values_even_with_the_same_columns(
    store: LocalStore, plan: list[Shard]
) -> None:
    finish(store, plan[:1])
    with pytest.raises(
        ConfigError, match="was written with --carry paths, this run has images; give --carry paths, choose"
    ):
        compare(store, plan, carry="images")


@pytest.mark.parametrize("data", [b"", b"no parquet"])
def test_a_foreign_file_in_the_output_is_refused_by_name(store: LocalStore, plan: list[Shard], data: bytes) -> None:
    (store.output_dir / "mine.parquet").write_bytes(data)
    with pytest.raises(FormatError, match=r"mine\.parquet: not a readable Parquet file"):
        compare(store, plan)


@pytest.mark.parametrize("kind", ["directory", "link to nothing"])
def test_what_is_no_file_under_the_name_of_a_pending_shard_is_refused(
    store: LocalStore, plan: list[Shard], kind: str
) -> None:
    path = store.path(plan[1].name)
    if kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(ConfigError) as error:
        compare(store, plan)
    assert str(error.value) == (
        f"{path} is a {kind}, and the shard {path} cannot be written: remove it, or choose another --output_dir"
    )


def test_a_file_in_the_place_of_a_shard_s_folder_is_refused(store: LocalStore, plan: list[Shard]) -> None:
    (store.output_dir / "sub").write_text("")
    with pytest.raises(ConfigError, match=r"out/sub is a file, and the shard .*/sub/a\.parquet cannot be written"):
        compare(store, [replace(plan[0], name="sub/a")])


def test_a_link_to_a_finished_shard_is_that_shard(store: LocalStore, plan: list[Shard], tmp_path: Path) -> None:
    finish(store, plan[:1])
    path = store.path(plan[0].name)
    path.symlink_to(path.rename(tmp_path / "elsewhere.parquet"))
    assert compare(store, plan).done == (plan[0],)


def test_a_part_of_a_shard_is_not_taken_for_the_whole(store: LocalStore, plan: list[Shard]) -> None:
    finish(store, plan[:1], filters=("mean > 1", "status == 'ok'"))
    with pytest.raises(
        ConfigError, match=r"a part of its shard's rows \(cal-inspect filter: mean > 1; status == 'ok'\)"
    ):
        compare(store, plan)


def test_a_shard_that_another_driver_published_is_held_to_the_same(store: LocalStore, plan: list[Shard]) -> None:
    shard = plan[0]

    def check(published: Shard = shard, **changed: Any) -> None:
        check_published(published, store=store, **{"spec": SPEC, "schema": SCHEMA, "carry": "paths", **changed})

    store.path(shard.name).mkdir()
    with pytest.raises(ConfigError, match="is a directory, and the shard"):
        check()
    store.path(shard.name).rmdir()
    finish(store, [shard])
    check()
    with pytest.raises(ConfigError, match=r"holds another measurement \(dtype: 'float32' there, 'bfloat16' now\)"):
        check(spec=measurement_spec(dtype="bfloat16"))
    with pytest.raises(ConfigError, match=r"has changed since .*size was"):
        check(replace(shard, source=replace(shard.source, size=1)))
    with pytest.raises(ConfigError, match="was written with --carry paths, this run has images"):
        check(carry="images")


def test_only_shards_that_hold_a_wanted_status_are_redone(store: LocalStore, plan: list[Shard]) -> None:
    finish(store, plan[:1])
    finish(store, plan[1:2], failed={1: "image_error"})
    finish(store, plan[2:], failed={0: "too_long"})
    progress = compare(store, plan)
    assert progress.done_with(frozenset({"image_error"})) == (plan[1],)
    assert progress.done_with(frozenset({"image_error", "too_long"})) == (plan[1], plan[2])
    assert progress.done_with(frozenset({"non_finite"})) == progress.done_with(frozenset()) == ()


def test_rows_by_status_are_those_of_the_file_and_all_ok_is_known_from_the_footer(
    store: LocalStore, plan: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(store, plan[:1])
    finish(store, plan[1:2], failed={1: "image_error"})
    mixed, rows = plan[1].name, plan[1].num_rows
    assert compare(store, plan).statuses == {
        plan[0].name: {"ok": plan[0].num_rows}, mixed: {"ok": rows - 1, "image_error": 1},
    }  # fmt: skip
    opened: list[Location] = []

    def opening(path: Location) -> AbstractContextManager[pq.ParquetFile]:
        opened.append(path)
        return open_shard(path)

    monkeypatch.setattr(resume, "open_shard", opening)
    compare(store, plan)
    assert opened == [store.path(mixed)]


@pytest.mark.parametrize("extra", [(), ("logits",), ("logits", "logprobs"), tuple(EXTRA_COLUMNS)])
def test_rows_of_other_statuses_are_kept_as_they_were_measured(tmp_path: Path, extra: Any) -> None:
    sample = Sample(sample_id="x", images=(), messages=None)
    names = [name for kind in extra for name in EXTRA_COLUMNS[kind]]
    values = {name: np.array([2.5 - number, np.nan], np.float32) for number, name in enumerate(names)}
    written = [
        measured(sample, error="a note", measured=replace(MEASURED, **values)),
        AnnotatedRow(sample=sample, sample_key="k1", status="image_error", error="gone"),
        AnnotatedRow(sample=sample, sample_key="k2", status="too_long", error="long", num_tokens=9),
    ]
    schema = annotated_schema(carry="none", extra_columns=extra)
    with ShardWriter(tmp_path / "a.parquet", schema, shard_metadata(carry="none")) as writer:
        for row in written:
            writer.write(row)
    kept = list(kept_rows(tmp_path / "a.parquet", frozenset({"image_error"})))
    assert [row is None for row in kept] == [False, True, False]
    for number in (0, 2):
        row = kept[number]
        for field in ("sample_key", "status", "error", "num_tokens"):
            assert getattr(row, field) == getattr(written[number], field)
    assert (kept[0].measured is None, kept[2].measured) == (False, None)
    for field in TOKEN_COLUMNS:
        before, after = (getattr(row.measured, field) for row in (written[0], kept[0]))
        np.testing.assert_array_equal(after, before)
        assert after.dtype == before.dtype


def test_a_kept_row_written_again_gives_the_same_table(tmp_path: Path, store: LocalStore, plan: list[Shard]) -> None:
    finish(store, plan[:1], failed={0: "image_error"})
    path = store.path(plan[0].name)
    _, kept = kept_rows(path, frozenset({"image_error"}))
    assert kept is not None
    with ShardWriter(tmp_path / "again.parquet", SCHEMA, shard_metadata(carry="paths")) as writer:
        writer.write(kept)
    assert pq.read_table(tmp_path / "again.parquet").equals(pq.read_table(path).slice(1))
