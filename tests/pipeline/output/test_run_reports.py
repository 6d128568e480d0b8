import json
from pathlib import Path

import pytest

from cal_pipeline.output.run_reports import FILTER_NAME, reported_model


def report(folder: Path, name: str, text: str) -> None:
    path = folder / ".cal" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def model(name: object) -> str:
    return json.dumps({"config": {"model_name_or_path": name}})


def test_the_newest_run_that_names_a_model_counts(tmp_path: Path) -> None:
    report(tmp_path, "reports/run-1.json", model("older"))
    report(tmp_path, "reports/run-2.json", model("newer"))
    report(tmp_path, "reports/run-3.json", "{")
    report(tmp_path, "reports/run-4.json", model(None))
    assert reported_model([tmp_path]) == "newer"
    assert reported_model([tmp_path / "sub" / "a.parquet"]) == "newer"


@pytest.mark.parametrize("name", ["reports/other.json", "report.json"])
def test_what_is_no_report_of_a_run_names_no_model(tmp_path: Path, name: str) -> None:
    report(tmp_path, name, model("x"))
    assert reported_model([tmp_path]) is None


def test_a_filtered_directory_repeats_what_its_input_says(tmp_path: Path) -> None:
    report(tmp_path, FILTER_NAME, model("reference"))
    assert reported_model([tmp_path / "a.parquet"]) == "reference"
