"""A source's own columns of every type and name, in conditions, frames and groups."""

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.inspect import load_annotated, sample_frame
from cal_pipeline.inspect.cli import EXIT_DONE, EXIT_REFUSED, run
from cal_pipeline.inspect.commands.plot import count_groups
from cal_pipeline.inspect.page.plots import score_figure
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.errors import ConfigError
from cal_schemas.opened import open_annotated
from inspect_data import Directories, write

ROWS = 24
HUGE = 2**53
"""Beside it a float knows even numbers only."""


def every(make: Any, kind: pa.DataType | None = None) -> pa.Array:
    """A column with a null in every fifth row, from 4 on."""
    return pa.array([None if row % 5 == 4 else make(row) for row in range(ROWS)], kind)


CARRIED: dict[str, pa.Array] = {
    "price": every(lambda row: Decimal(row) / 10, pa.decimal128(10, 2)),
    "number": every(lambda row: Decimal(HUGE + row), pa.decimal128(38, 0)),
    "when": every(lambda row: dt.datetime(2024, 1, 1 + row), pa.timestamp("us")),
    "zoned": every(lambda row: dt.datetime(2024, 1, 1 + row, tzinfo=dt.UTC), pa.timestamp("ns", "Europe/Berlin")),
    "day": every(lambda row: dt.date(2024, 1, 1 + row)),
    "took": every(lambda row: dt.timedelta(milliseconds=500 * row), pa.duration("ms")),
    "hour": every(lambda row: dt.time(row), pa.time64("ns")),
    "hash": every(lambda row: HUGE + row),
    "byte": every(lambda row: 10 * row, pa.uint8()),
    "big": every(lambda row: 2**63 + row, pa.uint64()),
    "half": every(lambda row: row * 10.0, pa.float16()),
    "flag": every(lambda row: row % 2 == 0),
    "kind": every(lambda row: "cat" if row < 10 else "dog").dictionary_encode(),
    "blob": every(lambda row: b"x", pa.large_binary()),
    "nothing": pa.nulls(ROWS),
    "a.b": pa.array(range(ROWS)),
    "a": pa.array([{"b": -1}] * ROWS),
    "": pa.array(["odd" if row % 2 else "even" for row in range(ROWS)]),
    "turn": pa.array(["first"] * ROWS),
    "tokens": pa.array(range(1000, 1000 + ROWS)),
    "mean_delta": pa.array(["mine"] * ROWS),
    "source_tokens": pa.array(["a name that is taken"] * ROWS),
}


@pytest.fixture(scope="module")
def odd(directories: Directories, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    first = 0
    for path in open_annotated(directories.normal).files:
        table = pq.read_table(path)
        for name, column in CARRIED.items():
            table = table.append_column(name, column.slice(first, len(table)))
        write(folder / path.name, table)
        first += len(table)
    assert first == ROWS
    return folder


def rows(odd: Path, condition: str) -> list[int]:
    return [value - 1000 for value in load_annotated(odd, columns=["tokens"], filter=condition)["tokens"]]


FILLED = [row for row in range(ROWS) if row % 5 != 4]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("price > 1.85", [row for row in FILLED if row >= 19]),
        ("price in (0.1, 0.3)", [1, 3]),
        (f"number == {HUGE + 1}", [1]),
        ("\"when\" >= '2024-01-21' and \"when\" < '2024-01-23T00:00:00'", [20, 21]),
        ("\"when\" between '2024-01-21' and '2024-01-22'", [20, 21]),
        ("day == '2024-01-03'", [2]),
        ("day in ('2024-01-03', '2024-01-04')", [2, 3]),
        ("zoned == '2024-01-03T01:00:00'", [2]),
        ("zoned == '2024-01-03T00:00:00+00:00'", [2]),
        ("took == 0.5", [1]),
        ("hour > 22 * 3600", [23]),
        (f"hash == {HUGE + 1}", [1]),
        (f"hash in ({HUGE + 1}, 7.5)", [1]),
        ("mod(hash, 10) = 3", [row for row in FILLED if (HUGE + row) % 10 == 3]),
        (f"hash IS DISTINCT FROM {HUGE}", list(range(1, ROWS))),
        ("hash IS NULL", [4, 9, 14, 19]),
        ("byte - 20 < 0", [0, 1]),
        ("byte * 2 > 300", [row for row in FILLED if row > 15]),
        ("mod(big, 7) = 2", [row for row in FILLED if (2**63 + row) % 7 == 2]),
        ("half * 1000 > 65600", [row for row in FILLED if row > 6]),
        ("flag", [row for row in FILLED if row % 2 == 0]),
        ("flag == False", [row for row in FILLED if row % 2]),
        ("flag is true", [row for row in FILLED if row % 2 == 0]),
        ("kind == 'cat' and contains(kind, 'a')", [row for row in FILLED if row < 10]),
        ("nothing is null", list(range(ROWS))),
        ('"a.b" == 7', [7]),
        ("-big < 0", FILLED),
        ("big - 1" + "0" * 19 + " < 0", FILLED),
        ("source_turn == 'first' and source_mean_delta == 'mine'", list(range(ROWS))),
        ("source_source_tokens == 1003", [3]),
        ("starts_with(source_tokens, 'a name')", list(range(ROWS))),
        ("source_mean_delta == '\"a.b\"'", []),
        ("1 < 2 and True", list(range(ROWS))),
        ("not True", []),
    ],
)
def test_a_condition_compares_every_type_by_its_value(odd: Path, condition: str, expected: list[int]) -> None:
    assert rows(odd, condition) == expected


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("mean_delta < 1" + "0" * 400, "leaves the whole numbers of 128 bits"),
        ("mean_delta + 1" + "0" * 400 + " > 0", "leaves the whole numbers of 128 bits"),
        ("hash * 1000000 > hash", "Overflow in multiplication of INT64"),
        ("big * big * big > hash", "multiply by 1.0 first for floats"),
        ("\"\" == 'odd'", "zero-length"),
        ("mod(hash, 0) == 0", "divides by zero"),
        ('"when" > 2024', "compares a time with a number"),
        ("\"when\" == '2024'", "needs a time such as '2024-05-31'"),
        ("\"when\" == '2024-13-01'", "instead of '2024-13-01'"),
        ("day == 'today'", "needs a time"),
        ("\"when\" == '2024-01-01T00:00:00+01:00'", "a time that has a zone"),
        ('"when" == zoned', "compares a time that has a zone with one that has none"),
        ('"when" + 1 > 0', "is a time, where a number is needed"),
        ("hash in ('1')", "compares a number with text"),
        ("kind in ('cat', 1)", "compares text with a number"),
        ("flag == 1", "compares a truth value with a number"),
        ("blob == 'x'", "no column 'blob'"),
        ("turn == 'first'", "did you mean source_turn?"),
        ("NULL + 1 == 1", "write IS NULL"),
    ],
)
def test_what_would_select_wrongly_or_nothing_is_refused_in_one_line(
    odd: Path, condition: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["filter", str(odd), condition]) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


@pytest.mark.parametrize("bounds", [("1", "inf"), ("2", "2")])
def test_visual_dependence_is_refused_without_a_finite_beta_above_alpha(
    bounds: tuple[str, str], directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--alpha", bounds[0], "--beta", bounds[1], "--output", str(tmp_path / "new")]
    for given in (
        ["filter", str(directories.normal), "visual_dependence > 0", "--drop"],
        ["export", str(directories.normal), "--to", "labelling-sheet"],
    ):
        assert run([*given, *flags]) == EXIT_REFUSED
        (line,) = capsys.readouterr().err.splitlines()
        assert "visual_dependence" in line
        assert f"a finite beta above alpha, got alpha {bounds[0]} and beta {bounds[1]}" in line
        assert not list(tmp_path.iterdir())
    # What does not ask for it goes on.
    assert run(["filter", str(directories.normal), "mean_weight > 0", *flags[:4]]) == EXIT_DONE
    frame = sample_frame(load_annotated(directories.normal), alpha=float(bounds[0]), beta=float(bounds[1]))
    assert "visual_dependence" not in frame
    assert frame["mean_weight"].notna().any()


def test_a_stored_column_with_a_computed_ones_name_goes_by_source_in_frames(odd: Path) -> None:
    frame = load_annotated(odd)
    samples = sample_frame(frame)
    assert samples["source_source_tokens"].tolist() == frame["tokens"].tolist() == list(range(1000, 1000 + ROWS))
    assert samples["tokens"].tolist() == [len(ids) for ids in frame["label_ids"]]
    assert set(samples["source_mean_delta"]) == {"mine"}
    assert samples["mean_delta"].dtype == "float64"
    assert set(samples["source_turn"]) == {"first"}
    assert "turn" not in samples
    assert samples["a.b"].tolist() == list(range(ROWS))
    assert not samples.columns.duplicated().any()
    # A frame of part of the columns, and one of pandas' own reader.
    assert sample_frame(pd.read_parquet(odd)).columns.tolist() == samples.columns.tolist()


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("turn", {"turn 1", "turn 2"}),
        ("source_turn", {"first"}),
        ("source_mean_delta", {"mine"}),
        ("", {"odd", "even"}),
        ("kind", {"cat", "dog", "(null)"}),
        ("flag", {"True", "False", "(null)"}),
    ],
)
def test_a_plot_is_by_what_was_computed_or_by_the_stored_column(odd: Path, by: str, groups: set[str]) -> None:
    assert set(count_groups(open_annotated(odd), by)) == groups


def test_a_plot_can_be_by_every_column_with_one_value_a_row(odd: Path) -> None:
    opened = open_annotated(odd)
    whole = count_groups(opened, None)["all tokens"][0].defined
    for name in CARRIED:
        if name not in ("a", "blob", "turn", "tokens", "mean_delta"):
            assert sum(counts.defined for counts, _ in count_groups(opened, name).values()) == whole, name
    with pytest.raises(ConfigError, match=r"--by blob: there are source, turn, .*source_source_tokens"):
        count_groups(opened, "blob")


def test_the_other_subcommands_take_odd_columns(
    odd: Path, directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(directories.family.directory)
    for given in (
        ["summary", str(odd), "--json"],
        ["tokens", str(odd), "--tokenizer", model],
        ["show", str(odd), "#1", "--tokenizer", model],
        ["compare", str(odd), str(directories.normal), "--json"],
        ["page", str(odd), "--tokenizer", model, "--output", str(tmp_path / "page.html")],
        ["export", str(odd), "--to", "labelling-sheet", "--num_samples", "3", "--output", str(tmp_path / "sheet")],
        ["filter", str(odd), '"a.b" < 12', "--output", str(tmp_path / "kept"), "--ids", str(tmp_path / "kept.csv")],
    ):
        assert run(given) == EXIT_DONE, capsys.readouterr().err
    out = capsys.readouterr().out
    assert json.loads(out[: out.index("\n}\n") + 2])["rows"] == ROWS
    kept = pq.read_table(tmp_path / "kept")
    for name, column in CARRIED.items():
        assert kept[name].to_pylist() == column[:12].to_pylist(), name


def test_every_group_is_in_the_legend_by_a_name_that_fits() -> None:
    counts = DeltaCounts()
    counts.add(np.array([0.5, 2.0], np.float32))
    figure = score_figure(dict.fromkeys(("_hidden", "a" * 5000, "$x^{"), (counts, counts)), alpha=1.0, beta=5.0)
    (legend,) = figure.legends
    labels = [text.get_text().strip() for text in legend.get_texts()]
    assert labels == ["_hidden (2 tokens)", "a" * 57 + "... (2 tokens)", "$x^{ (2 tokens)"]
