import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cal_pipeline.inspect import load_annotated, sample_frame
from cal_pipeline.inspect.cli import EXIT_DONE, EXIT_REFUSED, run
from cal_pipeline.inspect.tables.conditions import RowTest
from cal_pipeline.output.resume import Progress, compare_with_output
from cal_pipeline.output.row_reader import numbered_rows
from cal_pipeline.output.store import LocalStore
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError
from cal_schemas.opened import open_annotated
from cal_trainer.data.dataset import AnnotatedExamples
from inspect_data import Directories
from tiny_data import MAX_IMAGE_PIXELS

CONDITION = "share_negative > 0.4 and tokens > 8"


def encodings(path: Path) -> dict[str, set[str]]:
    footer = pq.read_metadata(path)
    columns = [footer.row_group(0).column(number) for number in range(footer.num_columns)]
    return {column.path_in_schema: set(column.encodings) - {"RLE"} for column in columns}


@pytest.mark.parametrize("drop", [False, True])
def test_a_filtered_directory_holds_exactly_these_rows_and_trains(
    drop: bool, directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "kept"
    options = ["--drop"] if drop else []
    assert run(["filter", str(directories.normal), CONDITION, "--output", str(output), *options]) == EXIT_DONE
    whole = load_annotated(directories.normal, columns=open_annotated(directories.normal).schema.names)
    samples = sample_frame(whole)
    passed = (samples["share_negative"] > 0.4) & (samples["tokens"] > 8)
    expected = whole[~passed if drop else passed].reset_index(drop=True)
    assert 0 < len(expected) < len(whole)
    opened = open_annotated(output)
    found = load_annotated(output, columns=opened.schema.names)
    assert found.to_dict("list").keys() == expected.to_dict("list").keys()
    for name in found.columns:
        # num_tokens has nulls in one and none in the other
        ours, theirs = (part[name].astype(float) if name == "num_tokens" else part[name] for part in (found, expected))
        assert list(map(str, ours)) == list(map(str, theirs)), name
    out = capsys.readouterr().out
    assert ["rows", str(len(whole)), str(len(expected))] in [line.split()[:3] for line in out.splitlines()]
    original = open_annotated(directories.normal)
    assert opened.spec == original.spec
    assert opened.schema.equals(original.schema)
    condition = f"({CONDITION}) IS NOT TRUE" if drop else CONDITION
    assert {item.filters for item in opened.metadata} == {(condition,)}
    assert encodings(opened.files[0]) == encodings(original.files[0])
    examples = AnnotatedExamples(
        output, directories.family.encoder, max_image_pixels=MAX_IMAGE_PIXELS, cache_dir=tmp_path / "cache"
    )
    assert len(examples) == (expected["status"] == "ok").sum()
    assert examples[0].deltas.isfinite().any()


@pytest.mark.parametrize(
    ("condition", "said"),
    [("status = 'ok'", "ready"), ("TRUE", "ok"), ("status <> 'ok'", "none of them ok: nothing to train on")],
)
def test_the_last_line_says_how_many_rows_can_be_trained_on(
    condition: str, said: str, directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "kept"
    assert run(["filter", str(directories.normal), condition, "--output", str(output)]) == EXIT_DONE
    statuses = load_annotated(output)["status"]
    ok = sum(statuses == "ok")
    expected = {"ready": "ready for cal-train", "ok": f"{ok} of them ok, ready for cal-train"}.get(said, said)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{output}: {len(statuses)} row{'s' * (len(statuses) != 1)}, {expected}"


def test_measuring_into_a_filtered_directory_is_refused(directories: Directories, tmp_path: Path) -> None:
    opened = open_annotated(directories.normal)
    data = directories.images.parent / "data.json"
    shards = plan_shards([str(data)], [str(directories.images)], rows_per_shard=10)

    def resume(output: Path) -> Progress:
        store = LocalStore(output_dir=output)
        return compare_with_output(shards, spec=opened.spec, schema=opened.schema, carry="images", store=store)

    assert len(resume(directories.normal).done) == len(shards)
    # Refused even where the condition left no row out: the file says that it was filtered.
    assert run(["filter", str(directories.normal), "tokens >= 0", "--output", str(tmp_path / "all")]) == EXIT_DONE
    with pytest.raises(ConfigError, match=r"cal-inspect filter: tokens >= 0.*choose another --output_dir"):
        resume(tmp_path / "all")


def test_filtering_twice_says_both_conditions(directories: Directories, tmp_path: Path) -> None:
    assert run(["filter", str(directories.normal), "status == 'ok'", "--output", str(tmp_path / "a")]) == EXIT_DONE
    assert run(["filter", str(tmp_path / "a"), "tokens > 8", "--output", str(tmp_path / "b")]) == EXIT_DONE
    assert {item.filters for item in open_annotated(tmp_path / "b").metadata} == {("status == 'ok'", "tokens > 8")}


def test_ids_as_text_and_as_a_table(directories: Directories, tmp_path: Path) -> None:
    condition = "status != 'ok'"
    frame = load_annotated(directories.normal, filter=condition)
    for name in ("bad.txt", "bad.csv"):
        assert run(["filter", str(directories.normal), condition, "--ids", str(tmp_path / name)]) == EXIT_DONE
    assert (tmp_path / "bad.txt").read_text().splitlines() == frame["sample_id"].tolist()
    with (tmp_path / "bad.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["sample_key"] for row in rows] == frame["sample_key"].tolist()
    for row in rows:
        table = pq.read_table(row["file"], columns=["sample_id"])
        assert table.column("sample_id")[int(row["row"])].as_py() == row["sample_id"]


@pytest.mark.parametrize(
    ("condition", "output", "reason"),
    [
        ("tokens > 1000", "new", "no row is left"),
        ("meen_delta < 0", "new", "did you mean mean_delta"),
        ("tokens > 1", "{normal}", "holds Parquet files already"),
        ("tokens > 1", "{normal}/below", "would be its input next time"),
        ("tokens > 1", "{file}", "is a file"),
    ],
)
def test_refusals_write_nothing(
    condition: str, output: str, reason: str, directories: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = sorted(directories.normal.rglob("*"))
    file = before[-1] if before[-1].is_file() else next(path for path in before if path.is_file())
    target = output.format(normal=directories.normal, file=file)
    assert run(["filter", str(directories.normal), condition, "--output", target]) == EXIT_REFUSED
    assert reason in capsys.readouterr().err
    assert sorted(directories.normal.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_a_sidecars_filter_warns_that_its_source_is_whole(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "kept")
    assert run(["filter", str(directories.sidecar), "tokens > 8", "--output", output]) == EXIT_DONE
    assert "its source still has all rows" in capsys.readouterr().err


def test_a_filtered_sidecars_rows_find_their_own_samples(directories: Directories, tmp_path: Path) -> None:
    for condition in ("tokens > 30", "status != 'ok' or max_delta == 0"):
        output = tmp_path / str(len(condition))
        assert run(["filter", str(directories.sidecar), condition, "--output", str(output)]) == EXIT_DONE
        opened = open_annotated(output)
        rows = list(numbered_rows(opened, range(opened.num_rows)))
        assert 3 < len(rows) < 24
        assert all(row.key_matches for row in rows)


def test_a_filtered_directory_still_knows_its_reference(directories: Directories, tmp_path: Path) -> None:
    shutil.copytree(directories.normal, tmp_path / "whole")
    report = tmp_path / "whole" / ".cal" / "reports" / "run-20260101-000000-aaaaaa.json"
    report.parent.mkdir(exist_ok=True)
    report.write_text(json.dumps({"config": {"model_name_or_path": str(directories.family.directory)}}))
    assert run(["filter", str(tmp_path / "whole"), "tokens > 8", "--output", str(tmp_path / "kept")]) == EXIT_DONE
    assert run(["tokens", str(tmp_path / "kept")]) == EXIT_DONE


@pytest.mark.parametrize(
    ("condition", "column", "share"),
    [
        ("mean_delta < quantile(mean_delta, 0.25)", "mean_delta", 0.25),
        ("mean_delta < quantile(mean_delta, 0)", "mean_delta", 0),
        ("share_negative > quantile(share_negative, 0.5)", "share_negative", 0.5),
        ("tokens >= quantile(tokens, 0.9)", "tokens", 0.9),
        ("num_tokens > quantile(num_tokens, 1 / 3) + 0 * quantile(mean_weight, 1.0)", "num_tokens", 1 / 3),
    ],
)
def test_quantiles_in_a_condition_are_of_all_samples_that_have_the_value(
    condition: str, column: str, share: float, directories: Directories
) -> None:
    samples = sample_frame(load_annotated(directories.normal))
    border = np.quantile(samples[column].dropna().to_numpy(float), share)
    compared = {"<": samples[column] < border, ">": samples[column] > border, ">=": samples[column] >= border}
    expected = samples[compared[condition.split()[1]]]
    found = load_annotated(directories.normal, filter=condition)
    assert found["sample_key"].tolist() == expected["sample_key"].tolist()
    assert len(found) < len(samples)


def test_quantiles_are_those_of_all_files_whatever_the_batches(directories: Directories) -> None:
    condition = "max_delta - min_delta > quantile(max_delta - min_delta, 0.5)"
    opened = open_annotated(directories.normal)
    test = RowTest(condition, opened.schema).over(opened)
    samples = sample_frame(load_annotated(directories.normal))
    spread = samples["max_delta"] - samples["min_delta"]
    for size in (1, 1024):
        found = [passed for batch in opened.batches(batch_size=size) for passed in test(batch).to_pylist()]
        assert found == (spread > spread.median()).tolist()


def test_a_quantile_of_nothing_takes_no_row(directories: Directories) -> None:
    assert load_annotated(directories.failed, filter="mean_delta <= quantile(mean_delta, 1)").empty


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("mean_delta < quantile(mean_delta)", "got 1 values"),
        ("mean_delta < quantile(mean_delta, 10)", "'10' is no share from 0 to 1"),
        ("mean_delta < quantile(mean_delta, mean_delta)", "'mean_delta' is no share"),
        ("mean_delta < quantile(0.3, 0.5)", "'0.3' is no such number"),
        ("mean_delta < quantile(status, 0.5)", "'status' is no such number"),
        ("mean_delta < quantile(quantile(mean_delta, 0.1), 0.5)", "is no such number"),
        ("mean_delta < quantile(1 + quantile(mean_delta, 0.1), 0.5)", "is no such number"),
        ("quantile(mean_delta, 0.5)", "is a number, where a condition is needed"),
        ("mean_delta < quantile(mean_delta, '0.5')", "is no share"),
    ],
)
def test_a_quantile_that_says_nothing_is_refused(condition: str, reason: str, directories: Directories) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        load_annotated(directories.normal, filter=condition)


def test_the_names_that_are_listed_say_which_a_sidecar_lacks(
    directories: Directories, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(["filter", str(directories.sidecar), "--columns"])
    assert ", images (not of a sidecar)\n" in capsys.readouterr().out
    assert run(["filter", str(directories.sidecar), "images = 1"]) == 2
    assert "no column 'images'" in capsys.readouterr().err
    assert "images" not in sample_frame(load_annotated(directories.sidecar))
