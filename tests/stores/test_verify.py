"""`--verify` finds what a shard may not be, `--clean` removes what is no shard; local and in an object store."""

from __future__ import annotations

import errno
import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cal_pipeline import cli
from cal_pipeline.output.row_reader import source_samples
from cal_pipeline.output.store import Store, open_store
from cal_pipeline.output.verify import verify
from cal_pipeline.output.verify_shard import check_shard
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import Shard, read_samples
from cal_schemas.annotated import AnnotatedRow, annotated_schema
from cal_schemas.metadata import ShardMetadata, read_shard_metadata
from cal_schemas.sample import sample_key
from cal_schemas.storage import factory
from cal_schemas.storage.locations import Location, location
from cal_schemas.storage.object_path import ObjectPath
from cal_schemas.writer import ShardWriter
from examples_of import MEASURED, measurement_spec
from ill_files import ill_files

SCHEMA = annotated_schema(carry="paths")


def source(folder: Path, count: int = 10) -> Path:
    rows = [
        {"id": n, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": f"answer {n % 8}"}]}
        for n in range(count)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


def write(store: Store, shard: Shard, **changed: Any) -> None:
    metadata = ShardMetadata(spec=measurement_spec(), source=shard.source, carry="paths", tokens_per_batch=64)
    with store.staging(shard.name) as partial:
        with ShardWriter(partial, SCHEMA, metadata) as writer:
            for number, sample in enumerate(read_samples(shard)):
                values: dict[str, Any] = {"measured": MEASURED, "num_tokens": 6}
                if number == 1:
                    values = {"status": "too_long", "error": "3000 tokens"}
                writer.write(AnnotatedRow(sample=sample, sample_key=sample_key(sample), **values | changed))
        assert store.commit(partial, shard.name)


def finished(folder: Path, output: Location) -> list[Shard]:
    """Three shards of 4, 4 and 2 rows, with their plan."""
    shards = plan_shards([str(source(folder))], rows_per_shard=4)
    store = open_store(str(output), "run")
    store.prepare()
    for shard in shards:
        write(store, shard)
    plan = [{"name": shard.name, "source": {"num_rows": shard.num_rows}} for shard in shards]
    (store.internal / "plan.json").write_text(json.dumps(plan))
    return shards


@pytest.fixture
def output(tmp_path: Path) -> Path:
    finished(tmp_path, tmp_path / "out")
    return tmp_path / "out"


def shard_files(output: Path) -> list[Path]:
    return sorted(output.glob("*.parquet"))


def rewrite(path: Path, change: Any) -> None:
    """The file with its table changed, its metadata kept."""
    table = pq.read_table(path)
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


def problems(output: Location) -> str:
    verification = verify(output)
    return "\n".join([*verification.problems, *(f"{s.name}: {p}" for s in verification.shards for p in s.problems)])


def test_a_whole_output_is_well_and_its_duplicates_are_named(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--verify", "--output_dir", str(output)]) == 0
    text = capsys.readouterr().out
    assert "3 shards with 10 rows: all is well" in text
    assert "rows by status: ok 7, too_long 3" in text
    # Rows 8 and 9 of the source repeat rows 0 and 1.
    assert "4 rows share their sample_key with another (2 keys)" in text
    assert "data-r000000000-000000004.parquet:0, data-r000000008-000000010.parquet:0" in text


@pytest.mark.parametrize("flag", ["--verify", "--clean"])
def test_neither_imports_what_measures(output: Path, flag: str) -> None:
    program = (
        "import sys; from cal_pipeline import cli; code = cli.run(sys.argv[1:]); "
        "sys.exit(code or bool({'torch', 'transformers', 'ray'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", program, flag, "--output_dir", str(output)], check=True, timeout=120)


def test_a_whole_command_or_its_yaml_takes_the_flag_too(output: Path, tmp_path: Path) -> None:
    flags = ["--model_name_or_path", "no/model", "--data_path", "nowhere", "--output_dir", str(output)]
    assert cli.run([*flags, "--verify"]) == 0
    assert cli.run([*flags, "--verify=true"]) == 0
    assert cli.run([*flags, "--verify", "false", "--clean", "false"]) == 2  # Such a run needs a model.
    (tmp_path / "run.yaml").write_text(f"model_name_or_path: m\ndata_path: [x]\noutput_dir: {output}\n")
    assert cli.run(["--config", str(tmp_path / "run.yaml"), "--verify", "--clean"]) == 0
    (tmp_path / "verify.yaml").write_text(f"model_name_or_path: m\noutput_dir: {output}\nverify: true\n")
    assert cli.run(["--config", str(tmp_path / "verify.yaml")]) == 0
    assert cli.run(["--verify"]) == 2
    assert cli.run(["--verify", "--output_dir", str(tmp_path / "absent")]) == 2


def set_column(name: str, values: Any) -> Any:
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        kind = table.schema.field(name).type
        return table.set_column(at, pa.field(name, kind), pa.array(values, kind))

    return change


NAN, INF = float("nan"), float("inf")
LISTS = [[7, 8], [], [7, 8], [7, 8]]
WRONG: dict[str, tuple[Any, str]] = {
    "NaN": (set_column("delta_logits", [[1, NAN], [], [1, 2], [1, 2]]), "1 rows have NaN or infinity in delta"),
    "infinity": (set_column("delta_logits", [[1, INF], [], [1, 2], [1, 2]]), "1 rows have NaN or infinity in"),
    "lengths": (set_column("label_positions", [[1], [], [1, 2], [1, 2]]), "lists of different lengths (label_ids,"),
    "null id": (set_column("label_ids", [[7, None], *LISTS[1:]]), "1 rows have null in label_ids"),
    "null list": (set_column("label_ids", [None, *LISTS[1:]]), "1 rows have no label_ids"),
    "ok, no labels": (
        lambda table: set_column("label_ids", [[]] * 4)(
            set_column("label_positions", [[]] * 4)(set_column("delta_logits", [[]] * 4)(table))
        ),
        "3 rows are ok and have no labels",
    ),
    "status": (set_column("status", ["ok", "ok", "image_error", "ok"]), "1 rows are not ok and have labels"),
    "silent": (set_column("error", [None] * 4), "1 rows are not ok and do not say why"),
    "key": (set_column("sample_key", ["x", *["0" * 32] * 3]), "1 rows have a sample_key that is no digest"),
    "fewer rows": (lambda table: table.slice(1), "3 rows, but its source gave 4"),
    "more rows": (lambda table: pa.concat_tables([table, table]), "8 rows, but its source gave 4"),
    "lacks": (lambda table: table.drop_columns(["delta_logits"]), "lacks the columns delta_logits"),
    "columns": (lambda table: table.append_column("x", pa.array([1] * 4)), "other columns than data-r000000000"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_a_shard_may_not_be_is_found(what: str, output: Path) -> None:
    change, message = WRONG[what]
    rewrite(shard_files(output)[1], change)
    assert message in problems(output)
    assert cli.run(["--verify", "--output_dir", str(output)]) == 1


def test_damaged_pages_foreign_files_and_other_measurements_are_found(output: Path, tmp_path: Path) -> None:
    one, two, three = shard_files(output)
    content = bytearray(one.read_bytes())
    content[100:400] = b"\xff" * 300
    one.write_bytes(content)
    pq.write_table(pa.table({"x": [1]}), output / "foreign.parquet")
    two.write_bytes(two.read_bytes()[:200])
    text = problems(output)
    assert "data-r000000000-000000004.parquet: broken after row 0" in text
    assert "foreign.parquet: " in text
    assert "not an annotated shard" in text
    assert f"{two.name}: " in text
    assert three.name not in text
    shutil.rmtree(output)
    shards = finished(tmp_path, output)
    table = pq.read_table(three)
    spec = measurement_spec(dtype="float16") if "dtype" not in measurement_spec.__code__.co_varnames else None
    other = ShardMetadata(
        spec=spec or measurement_spec(dtype="float16"), source=shards[2].source, carry="paths", tokens_per_batch=64
    )
    pq.write_table(table.replace_schema_metadata(other.to_parquet()), three)
    assert "another measurement than data-r000000000-000000004.parquet: dtype 'float16'" in problems(output)
    pairs = {**other.to_parquet(), "cal.fingerprint": "0" * 64}
    pq.write_table(table.replace_schema_metadata(pairs), three)
    assert "is not that of its measurement" in problems(output)


def test_a_shard_that_cannot_be_opened_for_a_while_is_not_called_broken(output: Path) -> None:
    file = shard_files(output)[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        check = check_shard(file, file.name)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (problem,) = check.problems
    assert problem.startswith("cannot be read after row 0: ")
    assert "Too many open files" in problem


def test_a_flipped_bit_that_readers_do_not_notice_is_found(output: Path) -> None:
    path = shard_files(output)[0]
    columns = pq.read_metadata(path).row_group(0)
    deltas = next(
        columns.column(number) for number in range(columns.num_columns)
        if columns.column(number).path_in_schema.startswith("delta_logits")
    )  # fmt: skip
    before = pq.read_table(path)
    content = bytearray(path.read_bytes())
    changes = []
    for back in range(1, 9):  # The page's last bytes are values.
        content[deltas.data_page_offset + deltas.total_compressed_size - back] ^= 1
        path.write_bytes(content)
        try:
            changes.append(not pq.read_table(path).equals(before))
        except OSError:  # Zstandard's own complaint.
            continue
        assert "CRC checksum verification failed" in problems(output)
    assert any(changes)


def test_a_plan_that_cannot_be_read_is_said_and_breaks_nothing(output: Path) -> None:
    for text in ("{half", "[1]", '[{"name": "x"}]'):
        (output / ".cal" / "plan.json").write_text(text)
        verification = verify(output)
        assert verification.ok
        assert any("no plan can be read" in note for note in verification.notes)


def test_a_filtered_shard_may_hold_fewer_rows_than_its_source(output: Path, tmp_path: Path) -> None:
    from cal_pipeline.inspect import cli

    kept = tmp_path / "kept"
    assert cli.run(["filter", str(output), "num_tokens > 0", "--output", str(kept)]) == 0
    verification = verify(kept)
    assert not any(shard.problems for shard in verification.shards)
    assert verification.ok


def test_missing_repeated_and_renamed_shards_are_found(output: Path) -> None:
    one, two, _ = shard_files(output)
    shutil.copy(one, output / "copy.parquet")
    assert "rows 0-4 of" in problems(output)
    assert "are in both copy.parquet and data-r000000000-000000004.parquet" in problems(output)
    (output / "copy.parquet").unlink()
    two.rename(output / "data-r000000104-000000108.parquet")
    assert "its name says row 104, its metadata 4: was it renamed?" in problems(output)
    assert "1 of 3 planned shards are not there (4 rows): data-r000000004-000000008.parquet" in problems(output)
    (output / "data-r000000104-000000108.parquet").unlink()
    (output / ".cal" / "plan.json").unlink()
    assert "data.jsonl has 10 rows, of which 6 are in the output" in problems(output)


def test_without_a_plan_the_sources_that_are_given_tell_what_is_missing_or_that_is_not_known(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.with_name("more.jsonl").write_text(data.read_text())
    (output / ".cal" / "plan.json").unlink()
    verifies = ["--verify", "--output_dir", str(output)]
    assert cli.run(verifies) == 0
    said = capsys.readouterr().out
    assert "3 shards with 10 rows: what is there is well; whether it is all cannot be known, as .cal/ holds no" in said
    assert "all is well" not in said
    assert cli.run([*verifies, "--data_path", str(data)]) == 0
    assert "3 shards with 10 rows: all is well" in capsys.readouterr().out
    assert cli.run([*verifies, "--data_path", str(tmp_path / "*.jsonl")]) == 1
    assert f"PROBLEM {tmp_path}/more.jsonl has 10 rows, of which 0 are in the output" in capsys.readouterr().out
    assert cli.run([*verifies, "--data_path", str(tmp_path / "absent")]) == 2
    shard_files(output)[1].unlink()
    assert cli.run([*verifies, "--data_path", str(data)]) == 1
    assert f"PROBLEM {data} has 10 rows, of which 6 are in the output" in capsys.readouterr().out


def test_a_source_that_changed_or_went_away_is_said(output: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    os.utime(data, ns=(1, 1))
    assert "data.jsonl has changed since it was measured" in problems(output)
    data.unlink()
    verification = verify(output)
    assert verification.ok
    assert any("cannot be read from here" in note for note in verification.notes)


@pytest.mark.full
def test_a_source_that_its_disk_does_not_hand_out_now_is_no_problem_of_an_output_that_has_a_plan(
    output: Path, tmp_path: Path
) -> None:
    (tmp_path / "ill").touch()
    environment = os.environ | ill_files("data.jsonl", tmp_path / "ill", errno.EACCES)
    command = [sys.executable, "-m", "cal_pipeline.cli", "--verify", "--output_dir", str(output)]

    def verified(*flags: str) -> tuple[int, str]:
        done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    code, said = verified()
    assert (code, "1 source cannot be read from here" in said, "PROBLEM" in said) == (0, True, False), said
    # What alone could tell whether all is there must be read.
    (output / ".cal" / "plan.json").unlink()
    code, said = verified("--data_path", str(tmp_path / "data.jsonl"))
    assert (code, "cannot be counted: " in said, "all is well" in said) == (1, True, False), said


@pytest.mark.parametrize(
    ("name", "link", "data_format"),
    [
        ("0123456789abcdef", "a.jsonl", "auto"),
        ("0123456789abcdef", "a.jsonl.zst", "auto"),
        ("0123456789abcdef", "a.jsonl.gz", "auto"),
        ("data.txt", None, "jsonl"),
        ("data.json", None, "jsonl"),
        ("data.txt.gz", None, "jsonl"),
    ],
)
def test_a_source_whose_name_does_not_tell_its_format_is_read_and_counted_as_it_was(
    tmp_path: Path, name: str, link: str | None, data_format: str
) -> None:
    plain = source(tmp_path).read_bytes()
    packed = {".zst": zstandard.compress, ".gz": gzip.compress}.get(Path(link or name).suffix, bytes)(plain)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / name).write_bytes(packed)
    data = tmp_path / "blobs" / name
    if link:
        data = tmp_path / link
        data.symlink_to(f"blobs/{name}")
    shards = plan_shards([str(data)], data_format=data_format, rows_per_shard=4)
    store = open_store(str(tmp_path / "out"), "run")
    store.prepare()
    for shard in shards:
        write(store, shard)
    verification = verify(tmp_path / "out")
    assert (verification.ok, sum(shard.rows for shard in verification.shards), len(verification.notes)) == (
        True,
        10,
        2,
    ), verification
    second = shard_files(tmp_path / "out")[1]
    samples = source_samples(second, read_shard_metadata(second))
    assert [sample.sample_id for sample in samples] == ["4", "5", "6", "7"]


def test_in_an_older_output_without_the_format_of_its_source_the_name_tells_it(output: Path) -> None:
    for path in shard_files(output):
        table = pq.read_table(path)
        shard = json.loads(table.schema.metadata[b"cal.shard"])
        assert shard["source"].pop("data_format") == "jsonl"
        pq.write_table(
            table.replace_schema_metadata({**table.schema.metadata, b"cal.shard": json.dumps(shard).encode()}), path
        )
    assert verify(output).ok
    shard_files(output)[2].unlink()
    assert any("data.jsonl has 10 rows, of which 8 are in the output" in note for note in verify(output).notes)


def test_clean_removes_leftovers_and_never_a_final_file(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in shard_files(output)}
    staging = output / ".cal" / "staging"
    (staging / "a.run-0.123").write_bytes(b"half")
    (output / ".cal" / "reports" / "run-1.json").write_text("{}")
    assert cli.run(["--clean", "--output_dir", str(output)]) == 0
    assert "1 leftover removed" in capsys.readouterr().out
    assert list(staging.iterdir()) == []
    assert (output / ".cal" / "reports" / "run-1.json").exists()
    assert {path: path.read_bytes() for path in shard_files(output)} == before


def test_clean_with_dry_run_is_refused_and_removes_nothing(output: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (output / ".cal" / "staging" / "a.run-0.123").write_bytes(b"half")
    assert cli.run(["--clean", "--dry_run", "--output_dir", str(output)]) == 2
    assert "--clean removes files, and --dry_run does nothing: give one of them" in capfd.readouterr().err
    assert (output / ".cal" / "staging" / "a.run-0.123").exists()


def test_clean_leaves_a_live_drivers_files_alone(output: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (output / ".cal" / "staging" / "a.run-0.123").write_bytes(b"on its way")
    beat = {"host": "elsewhere", "pid": 7, "started": "noon", "beat": time.time()}
    (output / ".cal" / "driver-elsewhere-7.json").write_text(json.dumps(beat))
    assert cli.run(["--clean", "--output_dir", str(output)]) == 2
    assert "a driver works on" in capfd.readouterr().err
    assert (output / ".cal" / "staging" / "a.run-0.123").exists()


def test_an_object_store_is_verified_and_cleaned_the_same_way(
    bucket: ObjectPath, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = bucket / "out"
    finished(tmp_path, output)
    begun = ("out/sub/x.parquet", "outside/y.parquet") if bucket.scheme == "s3" else ()
    for key in begun:
        factory.backend("s3")._client.create_multipart_upload(Bucket=bucket.bucket, Key=key)  # type: ignore[attr-defined]
    assert cli.run(["--verify", "--output_dir", str(output)]) == 0
    assert "3 shards with 10 rows: all is well" in capsys.readouterr().out
    assert cli.run(["--clean", "--output_dir", str(output)]) == 0
    assert (f"unfinished upload of {output}/sub/x.parquet" in capsys.readouterr().out) == bool(begun)
    assert [key for key, _ in bucket.unfinished_uploads()] == [*begun[1:]]
    broken = next(item for item in output.files() if item.suffix == ".parquet")
    local = tmp_path / "local.parquet"
    local.write_bytes(broken.read_bytes())
    rewrite(local, lambda table: table.slice(1))
    broken.upload(local, if_absent=False)
    assert "3 rows, but its source gave 4" in problems(location(str(output)))
    assert cli.run(["--verify", "--output_dir", str(output)]) == 1
