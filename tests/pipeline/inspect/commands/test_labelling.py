import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cal_pipeline.inspect import load_annotated, sample_frame, token_frame
from cal_pipeline.inspect.cli import EXIT_DONE, EXIT_REFUSED, run
from cal_pipeline.inspect.tables.labelling_sheet import MEASURED, SHEET, guarded
from cal_schemas.spec import IGNORE_INDEX
from inspect_data import Directories


@pytest.fixture
def sheet(directories: Directories, tmp_path: Path) -> Path:
    output = tmp_path / "sheet"
    given = ["export", directories.normal, "--to", "labelling-sheet", "--num_samples", 12, "--output", output]
    assert run([str(part) for part in given]) == EXIT_DONE
    return output / SHEET


def rows_of(sheet: Path) -> list[dict[str, str]]:
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def save(
    sheet: Path, rows: list[dict[str, str]], *, encoding: str = "utf-8", delimiter: str = ",", head: str = ""
) -> None:
    with sheet.open("w", encoding=encoding, newline="") as file:
        file.write(head)
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def marked(sheet: Path, yes: str = "yes", no: str = "no") -> list[dict[str, str]]:
    """Rows whose mean delta is below the median are marked contradictory; then as a person leaves them."""
    with sheet.with_name(MEASURED).open() as file:
        score = {row["key"]: float(row["mean_delta"]) for row in csv.DictReader(file)}
    middle = sorted(score.values())[len(score) // 2]
    return [{**row, "contradictory": yes if score[row["key"]] < middle else no} for row in rows_of(sheet)]


def agreed(sheet: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capsys.readouterr()
    code = run(["agreement", str(sheet), *more, "--json"])
    out, err = capsys.readouterr()
    assert code == EXIT_DONE, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_sheet_has_images_and_words_and_no_scores(sheet: Path, directories: Directories) -> None:
    rows = rows_of(sheet)
    samples = sample_frame(load_annotated(directories.normal)).set_index("sample_key")
    assert len({row["key"] for row in rows}) == len(rows) == 12
    for row in rows:
        own = samples.loc[row["key"].removeprefix("k")]
        assert own["status"] == "ok"
        assert own["images"] == len(row["image"].split()) == 1
        assert (sheet.parent / row["image"]).read_bytes().startswith(b"\xff\xd8")
        assert row["answer"].startswith("A red cat")
        assert row["contradictory"] == ""
    assert "delta" not in ",".join(rows[0])
    assert sheet.read_bytes().startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize(
    ("yes", "no", "options"),
    [
        ("yes", "no", {}),
        ("X", "0", {"encoding": "utf-8-sig", "delimiter": ";"}),
        ("Wahr", "Falsch", {"encoding": "utf-16", "delimiter": "\t"}),
        ("TRUE", "FALSE", {"encoding": "cp1252", "delimiter": ";", "head": "sep=;\r\n"}),
        (" 1 ", "nein", {"encoding": "utf-8-sig"}),
    ],
)
def test_sheets_are_read_as_spreadsheets_save_them(
    yes: str, no: str, options: dict[str, Any], sheet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "remark": "na\u00efve"} for row in marked(sheet, yes, no)]
    save(sheet, rows[::-1], **options)
    found = agreed(sheet, capsys)
    assert found["marked"] == 12
    assert found["scores"]["mean_delta"]["auc"] == 1.0
    assert found["share_contradictory"] == pytest.approx(sum(row["contradictory"] == yes for row in rows) / 12)


def test_unmarked_and_unsure_rows_are_left_out_and_counted(sheet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = marked(sheet)
    kept = sorted(rows, key=lambda row: row["contradictory"])
    kept[0]["contradictory"], kept[1]["contradictory"] = "", "?"
    save(sheet, kept)
    found = agreed(sheet, capsys)
    assert (found["marked"], found["unmarked"], found["unsure"]) == (10, 1, 1)


def test_scores_come_from_the_shards_where_the_measured_file_is_lost(
    sheet: Path, directories: Directories, capsys: pytest.CaptureFixture[str]
) -> None:
    save(sheet, marked(sheet))
    beside = agreed(sheet, capsys)
    sheet.with_name(MEASURED).unlink()
    assert run(["agreement", str(sheet)]) == EXIT_REFUSED
    assert "--annotated" in capsys.readouterr().err
    of_shards = agreed(sheet, capsys, "--annotated", str(directories.normal))
    for name, score in beside["scores"].items():
        # The file has six digits of each row's score, whose mean may be near 0.
        assert of_shards["scores"][name] == pytest.approx(score, rel=1e-4, abs=2e-6)


def test_two_people_are_compared_and_the_majority_counts(sheet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = marked(sheet)
    save(sheet, rows)
    other = [{**row} for row in rows]
    other[0]["contradictory"] = "no" if rows[0]["contradictory"] == "yes" else "yes"
    save(sheet.with_name("second.csv"), other)
    found = agreed(sheet, capsys, str(sheet.with_name("second.csv")))
    assert found["ties"] == 1
    assert found["marked"] == 11
    assert 0.5 < found["kappa"] < 1


def test_one_sheet_is_not_two_people(sheet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(sheet, marked(sheet))
    assert run(["agreement", str(sheet), str(sheet)]) == EXIT_REFUSED
    assert "a sheet is named twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: [{**row, "contradictory": ""} for row in rows], "no row is marked"),
        (lambda rows: [{**row, "contradictory": "yes"} for row in rows], "agreement needs both"),
        (lambda rows: [{**row, "contradictory": "perhaps so"} for row in rows], "row 1 has the mark 'perhaps so'"),
        (lambda rows: [{**row, "key": f"k{number}"} for number, row in enumerate(rows)], "another data set"),
        (lambda rows: [{"key": row["key"]} for row in rows], "lacks the columns ['contradictory']"),
        (
            lambda rows: [*rows, {**rows[0], "contradictory": {"yes": "no", "no": "yes"}[rows[0]["contradictory"]]}],
            "yes in one row",
        ),
    ],
)
def test_sheets_that_say_nothing_are_refused(
    change: Any, reason: str, sheet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(sheet, change(marked(sheet)))
    capsys.readouterr()
    assert run(["agreement", str(sheet)]) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    for wrong in (b"", b"\x00\x01\x02"):
        sheet.write_bytes(wrong)
        assert run(["agreement", str(sheet)]) == EXIT_REFUSED


def test_no_text_is_a_formula() -> None:
    assert [guarded(text) for text in ("=1+1", "@x", "-3", "fine", "")] == ["'=1+1", "'@x", "'-3", "fine", ""]


@pytest.mark.parametrize("kind", ["normal", "paths"])
@pytest.mark.parametrize("target", ["messages-jsonl", pytest.param("hf-dataset", marks=pytest.mark.full)])
def test_exported_weights_stand_at_their_labels(
    target: str, kind: str, directories: Directories, tmp_path: Path
) -> None:
    output = tmp_path / "export"
    given = ["export", directories.by_name(kind), "--to", target, "--output", output, "--beta", "4",
             "--model_name_or_path", directories.family.directory]  # fmt: skip
    assert run([str(part) for part in given]) == EXIT_DONE
    frame = load_annotated(directories.by_name(kind))
    ok = frame[frame["status"] == "ok"]
    tokens = token_frame(frame, directories.family.directory, beta=4.0)
    if target == "hf-dataset":
        import datasets

        rows = list(datasets.load_from_disk(str(output)))
        assert [len(row["images"]) for row in rows] == ok["images"].map(len).tolist()
        assert all(image.size[0] > 30 for row in rows for image in row["images"])
    else:
        rows = [json.loads(line) for line in (output / "data.jsonl").read_text().splitlines()]
        for row in rows:
            for name in row["images"]:
                assert (output / name).read_bytes().startswith(b"\x89PNG")  # an absolute name stays as it is
    assert [row["sample_id"] for row in rows] == ok["sample_id"].tolist()
    for row, (index, measured) in zip(rows, ok.iterrows(), strict=True):
        labels, weights = np.array(row["labels"]), np.array(row["loss_weights"], np.float32)
        supervised = labels != IGNORE_INDEX
        assert len(labels) == len(weights) == len(row["input_ids"]) == measured["num_tokens"]
        assert labels[supervised].tolist() == measured["label_ids"].tolist()
        assert np.flatnonzero(supervised).tolist() == measured["label_positions"].tolist()
        np.testing.assert_array_equal(weights[supervised], tokens.loc[tokens["row"] == index, "weight"])
        assert not weights[~supervised].any()
        assert row["messages"] == list(measured["messages"])
    assert json.loads((output / "cal_export.json").read_text())["weighting"]["beta"] == 4.0


def test_a_lost_image_stops_the_export_and_leaves_nothing(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    given = ["export", directories.paths, "--to", "messages-jsonl", "--output", tmp_path / "export",
             "--model_name_or_path", directories.family.directory, "--image_folder", tmp_path / "none"]  # fmt: skip
    assert run([str(part) for part in given]) == EXIT_REFUSED
    assert "cannot be encoded now" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["none"]
