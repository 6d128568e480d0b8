"""Incomplete, damaged and doctored shards, as whoever looks at them meets them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotated_data import annotate
from cal_pipeline.inspect import load_annotated
from cal_pipeline.inspect.cli import EXIT_DONE, EXIT_REFUSED, SUBCOMMANDS, run
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.opened import open_annotated
from conftest import Family
from damage import flip_a_byte, put_in, rewrite, whole_output
from tiny_data import write_llava_json

READERS = {
    "summary": ["summary", "OUT"],
    "tokens": ["tokens", "OUT", "--tokenizer", "MODEL"],
    "plot": ["plot", "OUT", "--output", "TMP/plot.png"],
    "show": ["show", "OUT", "#10", "--tokenizer", "MODEL", "--output", "TMP/show.html"],
    "filter": ["filter", "OUT", "mean_delta < 100", "--output", "TMP/filtered"],
    "compare": ["compare", "OUT", "WHOLE"],
    "export": ["export", "OUT", "--to", "messages-jsonl", "--model_name_or_path", "MODEL", "--output", "TMP/exported"],
    "samples": ["samples", "OUT", "--output", "TMP/scores.parquet"],
    "page": ["page", "OUT", "--tokenizer", "MODEL", "--output", "TMP/page.html"],
    "push": ["push", "OUT", "--repo_id", "a/b", "--images", "embed", "--partial", "--dry_run", "TMP/card"],
}


@pytest.fixture(scope="module")
def whole(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_output(tmp_path_factory.mktemp("whole"), llava)


@pytest.fixture
def output(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def arguments(name: str, llava: Family, output: Path, whole: Path) -> list[str]:
    words = {"OUT": output, "MODEL": llava.directory, "WHOLE": whole, "TMP": output.parent}
    given = []
    for argument in READERS[name]:
        first, _, rest = argument.partition("/")
        given.append(f"{words[first]}{'/' if rest else ''}{rest}" if first in words else argument)
    return given


@pytest.mark.parametrize("name", READERS)
def test_every_subcommand_says_in_one_line_that_shards_are_missing(
    name: str,
    llava: Family,
    output: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone = min(output.glob("*.parquet"))
    gone.unlink()
    run(arguments(name, llava, output, whole))
    lines = [line for line in caplog.messages if "not whole" in line]
    (line,) = lines
    assert f"is not whole: 1 of 3 planned shards with 10 of 30 rows are not there ({gone})" in line


@pytest.mark.parametrize("name", READERS)
def test_every_subcommand_refuses_a_damaged_shard_in_one_line_that_names_it(
    name: str, llava: Family, output: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = flip_a_byte(sorted(output.glob("*.parquet"))[1])
    assert run(arguments(name, llava, output, whole)) == EXIT_REFUSED
    lines = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    (line,) = lines
    assert line.startswith(f"cal-inspect: {file} is damaged: ")
    assert not (output.parent / "filtered").exists() or not list((output.parent / "filtered").rglob("*.parquet"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", READERS)
def test_every_subcommand_refuses_nan_and_infinity_by_file_and_row(
    name: str, value: float, llava: Family, output: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sorted(output.glob("*.parquet"))[1]
    put_in(file, value, 0)
    assert run(arguments(name, llava, output, whole)) == EXIT_REFUSED
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{file}: row 0" in line, line


def test_a_row_whose_deltas_were_cut_is_named(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sorted(output.glob("*.parquet"))[1]
    table = pq.read_table(file)
    rows = table["delta_logits"].to_pylist()
    number = next(number for number, deltas in enumerate(rows) if number and deltas)
    rows[number] = rows[number][1:]
    at = table.schema.get_field_index("delta_logits")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(rows, table.schema.field(at).type)), file)
    assert run(["summary", str(output)]) == EXIT_REFUSED
    assert f"{file}: row {number} has" in capsys.readouterr().err


def test_filter_copies_no_nan_whatever_the_condition_reads(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sorted(output.glob("*.parquet"))[1]
    put_in(file, float("nan"), 0)
    assert run(["filter", str(output), "TRUE", "--output", str(tmp_path / "copied")]) == EXIT_REFUSED
    assert f"{file}: row 0" in capsys.readouterr().err
    assert not list((tmp_path / "copied").rglob("*.parquet"))


def test_all_that_read_shards_were_tried() -> None:
    # Audit, attention and patch-words run a model; they open shards as the others do. The sheet is its own input.
    assert set(SUBCOMMANDS) - set(READERS) == {"agreement", "audit", "attention", "patch-words"}


def test_a_summary_in_json_holds_what_is_missing(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["summary", str(output), "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["not_whole"] is None
    min(output.glob("*.parquet")).unlink()
    assert run(["summary", str(output), "--json"]) == EXIT_DONE
    assert "1 of 3 planned shards" in json.loads(capsys.readouterr().out)["not_whole"]


def test_load_annotated_says_what_is_missing_and_refuses_what_is_damaged(
    output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    min(output.glob("*.parquet")).unlink()
    assert len(load_annotated(output)) == 20
    assert "1 of 3 planned shards with 10 of 30 rows are not there" in caplog.text


def test_what_a_filter_makes_of_an_incomplete_directory_is_known_to_be_incomplete(
    output: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["filter", str(output), "status = 'ok'", "--output", str(tmp_path / "all")]) == EXIT_DONE
    assert "ready for cal-train" in capsys.readouterr().out
    assert open_annotated(tmp_path / "all").completeness.problem is None
    gone = min(output.glob("*.parquet"))
    gone.unlink()
    assert run(["filter", str(output), "status <> 'ok'", "--drop", "--output", str(tmp_path / "part")]) == EXIT_DONE
    said = capsys.readouterr().out
    assert "ready for cal-train" not in said
    assert "no more whole than its input (cal-train --partial takes it)" in said
    assert open_annotated(tmp_path / "part").completeness.missing == {tmp_path / "part" / gone.name: 10}
    # And of several inputs each keeps its own.
    both = tmp_path / "both"
    assert run(["filter", str(output), str(tmp_path / "all"), "TRUE", "--output", str(both)]) == EXIT_DONE
    assert open_annotated(both).completeness.missing == {both / "out" / gone.name: 10}
    # A file that is lost later is missed as well.
    next((tmp_path / "all").glob("*.parquet")).unlink()
    assert len(open_annotated(tmp_path / "all").completeness.missing) == 1


def test_a_filter_says_in_its_files_that_rows_were_gone_before(output: Path, tmp_path: Path) -> None:
    file = min(output.glob("*.parquet"))
    rewrite(file, pq.read_table(file).slice(0, 6))
    assert run(["filter", str(output), "TRUE", "--output", str(tmp_path / "all")]) == EXIT_DONE
    filters = [item.filters for item in open_annotated(tmp_path / "all").metadata]
    assert filters == [("6 of 10 rows, by another program; TRUE",), ("TRUE",), ("TRUE",)]


def test_a_sidecars_samples_are_not_read_from_the_wrong_rows_of_its_source(
    llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, images = write_llava_json(tmp_path / "raw", 10)
    shards = plan_shards([str(source)], [str(images)])
    output = annotate(tmp_path / "out", shards, llava.encoder, llava.model, carry="none")
    (file,) = output.glob("*.parquet")
    table = pq.read_table(file)
    rewrite(file, table.filter(np.arange(10) > 2))
    flags = ["--tokenizer", str(llava.directory), "--output", str(tmp_path / "show.html")]
    assert run(["show", str(output), "#1", *flags]) == EXIT_REFUSED
    assert f"{file} has 7 rows, its source gave 10" in capsys.readouterr().err
