import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.inspect import load_annotated, token_frame
from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.tables.joining import matching_rows, read_rows
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.output.row_reader import by_path
from cal_schemas.annotated import rows_from_batch, sample_columns
from cal_schemas.sample import Sample, sample_key
from inspect_data import Directories, cut, write


def changed(source: Path, target: Path, **columns: Any) -> Path:
    """Shards with columns rewritten by functions of the row; rows of each file in reverse order."""
    target.mkdir()
    for path in sorted(source.glob("*.parquet")):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for name, function in columns.items():
            at = table.schema.get_field_index(name)
            values = pa.array([function(row) for row in rows], table.schema.field(at).type)
            table = table.set_column(at, table.schema.field(at), values)
        write(target / path.name, table.take(list(range(len(rows)))[::-1]))
    return target


def compared(one: Path, other: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["compare", str(one), str(other), "--json", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_measurement_equals_itself_in_any_order(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compared(directories.normal, changed(directories.normal, tmp_path / "reversed"), capsys)
    frame = load_annotated(directories.normal)
    assert found["joined"] == len(frame)
    assert found["both_ok"] == (frame["status"] == "ok").sum()
    assert found["correlation"] == pytest.approx(1.0)
    assert found["max_difference"] == found["share_moved"] == found["other_labels"] == 0
    assert found["spec_differences"] == {}


def test_figures_by_numpy(directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = changed(
        directories.normal,
        tmp_path / "b",
        delta_logits=lambda row: [delta * 0.9 + 0.2 for delta in row["delta_logits"]],
    )
    found = compared(directories.normal, other, capsys, "--window", "1", "--output", str(tmp_path / "scatter.png"))
    a = token_frame(load_annotated(directories.normal), directories.family.directory)["delta"].to_numpy(np.float64)
    b = (a * 0.9 + 0.2).astype(np.float32).astype(np.float64)
    assert found["tokens"] == len(a)
    assert found["correlation"] == pytest.approx(1.0, abs=1e-6)
    assert found["mean_difference"] == pytest.approx((a - b).mean(), abs=1e-6)
    assert found["mean_absolute_difference"] == pytest.approx(np.abs(a - b).mean(), abs=1e-6)
    assert found["max_difference"] == pytest.approx(np.abs(a - b).max(), abs=1e-5)
    moved = np.abs(np.clip(a, 1, 5) - np.clip(b, 1, 5)) > 0.05
    assert found["share_moved"] == pytest.approx(moved.mean(), abs=2 / len(a))
    assert 0 < moved.mean() < 1
    assert (tmp_path / "scatter.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("weighting", [{}, {"alpha": 0.5, "beta": 2.0, "window": 5, "pool": "joined"}])
def test_the_weights_that_moved_are_those_of_training(
    weighting: dict[str, Any], directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def other_deltas(row: dict[str, Any]) -> list[float]:
        return [delta * 0.5 + at % 3 for at, delta in enumerate(row["delta_logits"])]

    other = changed(directories.normal, tmp_path / "b", delta_logits=other_deltas)
    flags = [part for name, value in weighting.items() for part in (f"--{name}", str(value))]
    frame = load_annotated(directories.normal)
    tokenizer = directories.family.directory
    weights = token_frame(frame, tokenizer, **weighting)["weight"]
    frame["delta_logits"] = [np.array(other_deltas(row), np.float32) for row in frame.to_dict("records")]
    moved = (weights - token_frame(frame, tokenizer, **weighting)["weight"]).abs() > 0.05
    assert compared(directories.normal, other, capsys, *flags)["share_moved"] == moved.mean()
    assert 0 < moved.mean() < 1


def test_rows_with_other_label_ids_are_named_and_left_out(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def other_ids(row: dict[str, Any]) -> list[int]:
        ids: list[int] = row["label_ids"]
        return [ids[0] + 1, *ids[1:]] if ids and row["sample_id"] == "id-0" else ids

    found = compared(directories.normal, changed(directories.normal, tmp_path / "b", label_ids=other_ids), capsys)
    frame = load_annotated(directories.normal, filter="status == 'ok' and sample_id == 'id-0'")
    assert found["other_labels"] == len(frame) > 0
    assert found["examples"] == ["id-0"] * len(frame)
    assert (
        found["tokens"] == load_annotated(directories.normal, filter="sample_id != 'id-0'")["label_ids"].map(len).sum()
    )


def test_undefined_deltas_and_missing_rows_are_counted(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = cut(directories.normal, tmp_path / "part", lambda row: row["images"])
    other = changed(
        part, tmp_path / "b", delta_logits=lambda row: [None, *row["delta_logits"][1:]] if row["delta_logits"] else []
    )
    found = compared(directories.normal, other, capsys)
    rows = load_annotated(part)
    assert found["rows_b"] == found["joined"] == len(rows) < found["rows_a"]
    assert found["undefined_in_one"] == (rows["status"] == "ok").sum()
    assert found["max_difference"] == 0


def test_equal_samples_are_joined_one_to_one(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = changed(directories.normal, tmp_path / "same", sample_key=lambda row: "k" * 32)
    found = compared(same, same, capsys)
    assert found["joined"] == found["rows_a"]
    assert found["max_difference"] == 0
    assert found["correlation"] == pytest.approx(1.0)


def test_text_only_rows_have_no_correlation(directories: Directories, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(directories.text_only, directories.text_only, capsys)["correlation"] is None
    assert run(["compare", str(directories.text_only), str(directories.text_only)]) == 0
    assert "undefined (no spread)" in capsys.readouterr().out


def test_where_no_key_is_in_both_the_reason_is_one_that_can_be(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rekeyed(name: str, make: Callable[[Sample], Sample]) -> Path:
        """Of rows with an image, as they would be measured from other words, or from their embedded images."""
        folder = cut(directories.normal, tmp_path / f"{name}-cut", lambda row: row["status"] == "ok" and row["images"])
        samples = {}
        for path in folder.glob("*.parquet"):
            for batch in pq.read_table(path).to_batches():
                samples |= {row.sample_key: make(row.sample) for row in rows_from_batch(batch)}
        return changed(
            folder,
            tmp_path / name,
            messages=lambda row: sample_columns(samples[row["sample_key"]], embed=True)["messages"],
            sample_key=lambda row: sample_key(samples[row["sample_key"]]),
        )

    def worded(sample: Sample) -> Sample:
        first, *others = sample.messages or ()
        return replace(sample, messages=(replace(first, content=f"Now, {first.content}"), *others))

    embedded, other_words = rekeyed("embedded", lambda sample: sample), rekeyed("other", worded)
    paths = rekeyed("paths", lambda sample: by_path(worded(sample)))
    for one, other, reason in (
        (embedded, other_words, "both were measured from embedded images, so the words or the images differ"),
        (directories.paths, paths, "both were measured from image paths, so the words or the paths differ"),
        (paths, other_words, "B was measured from embedded images, A from paths: measure both from the same source"),
        (cut(directories.sidecar, tmp_path / "some", lambda row: row["status"] == "ok"), embedded, "words or images"),
    ):
        assert run(["compare", str(one), str(other)]) == 2
        assert f"no sample_key is in both; {reason}" in capsys.readouterr().err


def test_where_only_text_is_in_both_it_is_said_why(
    directories: Directories, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batches = [batch for path in directories.normal.glob("*.parquet") for batch in pq.read_table(path).to_batches()]
    samples = {row.sample_key: row.sample for batch in batches for row in rows_from_batch(batch)}
    embedded = changed(
        directories.normal, tmp_path / "embedded", sample_key=lambda row: sample_key(samples[row["sample_key"]])
    )
    assert run(["compare", str(directories.paths), str(embedded)]) == 0
    assert "some rows are in A or B alone: B was measured from embedded images, A from" in caplog.text
    caplog.clear()
    assert run(["compare", str(embedded), str(embedded)]) == 0
    assert not caplog.text


def test_the_kth_row_with_a_key_is_joined_to_the_kth(directories: Directories, tmp_path: Path) -> None:
    def key(row: dict[str, Any]) -> str:
        return "same" if row["images"] else str(row["sample_key"])

    one = changed(directories.normal, tmp_path / "a", sample_key=key)
    other = cut(one, tmp_path / "b", lambda row: row["status"] == "ok")
    matches = matching_rows(*(open_paths(path) for path in (one, other)))
    keys, theirs = (load_annotated(path, columns=["sample_key"])["sample_key"] for path in (one, other))
    both = pd.DataFrame({"key": keys, "k": keys.groupby(keys).cumcount()}).merge(
        pd.DataFrame({"key": theirs, "k": theirs.groupby(theirs).cumcount(), "row": range(len(theirs))}), "left"
    )
    assert matches.tolist() == both["row"].fillna(-1).astype(int).tolist()
    assert 0 < (matches >= 0).sum() < len(matches)


def test_what_is_held_of_a_side_is_four_bytes_a_token(directories: Directories) -> None:
    opened = open_paths(directories.normal)
    rows, frame = read_rows(opened, "delta_logit"), load_annotated(directories.normal)
    expected = np.concatenate(frame["delta_logits"].to_list())
    np.testing.assert_array_equal(rows.scores, expected)
    assert rows.scores.nbytes == 4 * len(expected)
    assert rows.lengths.nbytes + rows.digests.nbytes + rows.ok.nbytes <= 17 * len(frame)


def test_label_ids_in_another_order_are_other_label_ids(directories: Directories, tmp_path: Path) -> None:
    other = changed(directories.normal, tmp_path / "b", label_ids=lambda row: row["label_ids"][::-1])
    a, b = (open_paths(path) for path in (directories.normal, other))
    ours, theirs = read_rows(a, "delta_logit"), read_rows(b, "delta_logit")
    ids = load_annotated(directories.normal)["label_ids"]
    palindromes = np.array([list(row) == list(row[::-1]) for row in ids])
    np.testing.assert_array_equal(ours.digests == theirs.digests[matching_rows(a, b)], palindromes)
    assert not palindromes.all()
