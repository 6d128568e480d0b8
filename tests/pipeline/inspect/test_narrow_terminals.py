"""Tables in a terminal of 80 columns: whole numbers, whatever else is cut or folded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.inspect.cli import EXIT_DONE, run
from cal_pipeline.inspect.commands.summary import print_summary
from cal_schemas.opened import open_annotated
from inspect_data import Directories, write


def grown(value: Any) -> Any:
    """The same figures as of a large data set with wide deltas."""
    if isinstance(value, dict):
        return {name: grown(item) for name, item in value.items()}
    return 1_234_567_890 if isinstance(value, int) else -123.456 if isinstance(value, float) else value


def test_a_summary_of_a_billion_tokens_is_whole_in_80_columns(
    directories: Directories, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["summary", str(directories.normal), "--json"]) == EXIT_DONE
    summary = json.loads(capsys.readouterr().out)
    deltas = grown(summary["delta"]) | {name: 0.123 for name in summary["delta"] if name.startswith("share")}
    turns = {str(turn): deltas for turn in range(1, 21)}
    samples = {
        name: dict.fromkeys(values, 0.123) if name.startswith("share") else grown(values)
        for name, values in summary["samples"].items()
    }
    monkeypatch.setenv("COLUMNS", "80")
    print_summary({**summary, "delta": deltas, "turns": turns, "samples": samples})
    tables, _ = capsys.readouterr().out.split("\nreference ")
    tables = tables[tables.index("delta in logits") :]
    assert max(map(len, tables.splitlines())) <= 80
    assert "\u2026" not in tables
    assert tables.count("1,234,567,890") == 21
    assert tables.count("-123.46") == 21 * (4 + 7) + sum(not name.startswith("share") for name in samples) * 7


def test_numbers_stay_whole_beside_long_words_and_ids(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path, *_) = open_annotated(directories.normal).files
    table = pq.read_table(path)
    ids = pa.array(["a_long_name_without_a_blank_" * 4] * len(table))
    table = table.set_column(table.schema.get_field_index("sample_id"), table.schema.field("sample_id"), ids)
    at = table.schema.get_field_index("delta_logits")
    wide = pa.array(
        [[-123.456 for _ in deltas] for deltas in table["delta_logits"].to_pylist()], table.schema.types[at]
    )
    written = str(write(tmp_path / "a.parquet", table.set_column(at, table.schema.field(at), wide)))
    monkeypatch.setenv("COLUMNS", "80")
    model = str(directories.family.directory)
    for given in (["tokens", written, "--tokenizer", model, "--top", "3"], ["filter", written, "tokens > 0"]):
        assert run(given) == EXIT_DONE
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 80
        assert "\u2026" not in out
        if given[0] == "tokens":
            assert len(re.findall(r"^ *-123\.46 ", out, re.MULTILINE)) > 6
