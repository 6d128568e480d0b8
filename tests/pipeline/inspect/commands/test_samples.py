"""One row a sample, and the rows that a file of ids names."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.inspect import load_annotated, sample_frame
from cal_pipeline.inspect.cli import EXIT_DONE, EXIT_REFUSED, run
from cal_pipeline.inspect.commands.page import read_page_data
from cal_schemas.opened import open_annotated
from inspect_data import Directories, write


@pytest.mark.parametrize("kind", ["normal", "sidecar"])
def test_the_table_holds_what_sample_frame_computes_and_where_each_row_is_from(
    kind: str, directories: Directories, tmp_path: Path
) -> None:
    folder = directories.by_name(kind)
    assert run(["samples", str(folder), "--output", str(tmp_path / "s.parquet"), "--beta", "3"]) == EXIT_DONE
    found = pd.read_parquet(tmp_path / "s.parquet")
    expected = sample_frame(load_annotated(folder), beta=3.0).drop(columns="template_inputs", errors="ignore")
    assert set(found) - set(expected) <= {"source", "template_inputs"}
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_dtype=False)
    assert set(found["source"]) == {str(directories.images.parent / "data.json")}


def test_csv_has_the_same_rows_and_nothing_where_nothing_is_defined(directories: Directories, tmp_path: Path) -> None:
    for name in ("s.parquet", "s.csv"):
        assert run(["samples", str(directories.normal), "--output", str(tmp_path / name)]) == EXIT_DONE
    parquet, text = pd.read_parquet(tmp_path / "s.parquet"), pd.read_csv(tmp_path / "s.csv")
    assert text["mean_delta"].isna().tolist() == (parquet["status"] != "ok").tolist()
    pd.testing.assert_series_equal(text["mean_weight"], parquet["mean_weight"])
    with (tmp_path / "s.csv").open() as file:
        assert {row["mean_delta"] for row in csv.DictReader(file) if row["status"] != "ok"} == {""}


def test_no_table_is_written_among_the_shards(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(directories.normal, tmp_path / "annotated"))
    shard = min(folder.glob("*.parquet"))
    before = shard.read_bytes()
    for name in ("scores.parquet", shard.name):
        assert run(["samples", str(folder), "--output", str(folder / name)]) == EXIT_REFUSED
        assert "would take it for a shard" in capsys.readouterr().err
    assert run(["samples", str(shard), "--output", str(shard)]) == EXIT_REFUSED
    assert run(["samples", str(folder), "--output", str(folder / "scores.csv")]) == EXIT_DONE
    assert shard.read_bytes() == before
    assert run(["summary", str(folder)]) == EXIT_DONE


def test_a_table_that_cannot_be_finished_leaves_nothing(directories: Directories, tmp_path: Path) -> None:
    assert run(["samples", str(directories.truncated), "--output", str(tmp_path / "s.parquet")]) == EXIT_REFUSED
    assert not list(tmp_path.iterdir())


@pytest.fixture
def chosen(directories: Directories) -> pd.DataFrame:
    """Five rows that are ok and show an image."""
    frame = load_annotated(directories.normal)
    return frame[(frame["status"] == "ok") & frame["images"].map(len).astype(bool)].drop_duplicates("sample_key")[:5]


@pytest.mark.parametrize("name", ["ids.txt", "keys.txt", "ids.csv", "ids.parquet", "windows.csv"])
def test_every_kind_of_list_names_the_same_rows(
    name: str, chosen: pd.DataFrame, directories: Directories, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name.endswith(".txt"):
        path.write_text("\n".join(chosen["sample_key" if "keys" in name else "sample_id"]) + "\n")
    elif name == "windows.csv":
        path.write_bytes(chosen[["sample_key", "status"]].to_csv(sep=";", index=False).encode("utf-16"))
    else:
        ids = chosen[["sample_id", "sample_key"]]
        ids.to_csv(path, index=False) if name.endswith(".csv") else ids.to_parquet(path)
    assert run(["samples", str(directories.normal), "--output", str(tmp_path / "s.csv"), "--ids_from", str(path)]) == 0
    found = pd.read_csv(tmp_path / "s.csv")
    frame = load_annotated(directories.normal)
    column = "sample_id" if name == "ids.txt" else "sample_key"
    assert found["sample_key"].tolist() == frame[frame[column].isin(chosen[column])]["sample_key"].tolist()


def test_ids_choose_rows_wherever_rows_are_chosen(
    chosen: pd.DataFrame, directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--ids_from", str(tmp_path / "chosen.csv")]
    chosen[["sample_id", "sample_key"]].to_csv(tmp_path / "chosen.csv", index=False)
    keys = set(chosen["sample_key"])
    normal, model = str(directories.normal), str(directories.family.directory)
    assert run(["filter", normal, "tokens > 0", *named, "--output", str(tmp_path / "kept")]) == EXIT_DONE
    kept = load_annotated(tmp_path / "kept")
    assert set(kept["sample_key"]) == keys
    assert run(["filter", normal, "TRUE", *named, "--drop", "--output", str(tmp_path / "left")]) == EXIT_DONE
    assert len(load_annotated(tmp_path / "left")) == 24 - len(kept)
    assert json.loads(pq.read_metadata(next((tmp_path / "left").glob("*.parquet"))).metadata[b"cal.shard"])[
        "filters"
    ] == ["((TRUE) AND named by chosen.csv) IS NOT TRUE"]
    page = str(tmp_path / "page.html")
    assert run(["page", normal, *named, "--output", page, "--tokenizer", model]) == EXIT_DONE
    ids = sorted(kept["sample_id"])
    assert sorted(sample["id"] for sample in read_page_data(Path(page))["samples"]) == ids
    sheet = str(tmp_path / "sheet")
    assert run(["export", normal, "--to", "labelling-sheet", *named, "--output", sheet]) == EXIT_DONE
    assert {f"k{key}" for key in keys} == set(pd.read_csv(Path(sheet) / "sheet.csv")["key"])
    flags = ["--model_name_or_path", model, "--image_folder", str(directories.images)]
    out = str(tmp_path / "out")
    assert run(["export", normal, "--to", "messages-jsonl", *named, "--output", out, *flags]) == EXIT_DONE
    rows = [json.loads(line) for line in (Path(out) / "data.jsonl").read_text().splitlines()]
    assert [row["sample_key"] for row in rows] == kept["sample_key"].tolist()
    capsys.readouterr()
    assert run(["audit", normal, *named, "--fraction", "1", "--swap", "0", "--device", "cpu", *flags]) in (0, 1)
    assert f"measuring {len(kept)} of them again" in capsys.readouterr().out


def test_a_null_in_a_list_of_ids_is_not_the_sample_called_none(
    directories: Directories, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path, *_) = open_annotated(directories.normal).files
    table = pq.read_table(path)
    ids = pa.array(["None", *table["sample_id"].to_pylist()[1:]])
    at = table.schema.get_field_index("sample_id")
    shard = str(write(tmp_path / "a.parquet", table.set_column(at, table.schema.field(at), ids)))
    pq.write_table(pa.table({"sample_id": pa.array([None, ids[1].as_py()])}), tmp_path / "ids.parquet")
    named = ["--ids_from", str(tmp_path / "ids.parquet"), "--output", str(tmp_path / "s.parquet")]
    assert run(["samples", shard, *named]) == EXIT_DONE
    assert pq.read_table(tmp_path / "s.parquet")["sample_id"].to_pylist() == [ids[1].as_py()]
    assert "no row has 1 of its 2 names: None" in caplog.text


def test_names_that_no_row_has_are_said_and_none_at_all_refused(
    directories: Directories, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids").write_text("id-0\nnobody\n")
    (tmp_path / "none").write_text("nobody\n")
    (tmp_path / "other.csv").write_text("name,score\na,1\n")
    command = ["filter", str(directories.normal), "TRUE", "--ids_from"]
    assert run([*command, str(tmp_path / "ids")]) == EXIT_DONE
    assert "no row has 1 of its 2 names: nobody" in caplog.text
    for name, reason in {
        "none": "no row has one of its 1 names (nobody)",
        "other.csv": "it has neither of the columns sample_id, sample_key, but ['name', 'score']",
        "absent": "no such file",
    }.items():
        assert run([*command, str(tmp_path / name)]) == EXIT_REFUSED
        assert reason in capsys.readouterr().err


def test_the_summary_has_the_quantiles_of_that_table(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--alpha", "0.5", "--window", "1"]
    assert run(["samples", str(directories.normal), "--output", str(tmp_path / "s.parquet"), *flags]) == EXIT_DONE
    capsys.readouterr()
    assert run(["summary", str(directories.normal), "--json", *flags]) == EXIT_DONE
    told = json.loads(capsys.readouterr().out)["samples"]
    table = pd.read_parquet(tmp_path / "s.parquet")
    for name in ("mean_delta", "min_delta", "share_negative", "mean_weight"):
        for share in (0.01, 0.1, 0.5, 0.99):
            assert told[name][f"q{share * 100:.0f}"] == pytest.approx(table[name].quantile(share), rel=1e-6)
