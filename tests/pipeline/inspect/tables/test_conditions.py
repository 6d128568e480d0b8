"""Conditions: DuckDB's SQL over the columns of a batch; what the language before read otherwise is refused."""

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_pipeline.inspect.tables.conditions import RowTest
from cal_schemas.errors import ConfigError

BATCH = pa.record_batch(
    {
        "delta": pa.array([0.1, -1.0, 3.0, np.nan]),
        "single": pa.array([0.1, -1.0, None, np.inf], pa.float32()),
        "count": pa.array([3, 5, 0, 9]),
        "status": pa.array(["ok", "ok", "too_long", "ok"]),
        "error": pa.array([None, "note", "long", None], pa.string()),
        "flag": pa.array([True, None, False, True]),
        "a column": pa.array([1, 2, 3, 4]),
        "a.b": pa.array([1, 2, 3, 4]),
        "Twin": pa.array([1, 2, 3, 4]),
        "twin": pa.array([4, 3, 2, 1]),
        "order": pa.array([1, 2, 3, 4]),
        "at": pa.array([1, 2, 3, 4]),
        "user": pa.array([1, 2, 3, 4]),
        'say "so"': pa.array([1, 2, 3, 4]),
        "\u00e4\u00f6": pa.array([1, 2, 3, 4]),
        "": pa.array([1, 2, 3, 4]),
        "bytes": pa.array([b"a", b"b", b"c", b"d"]),
    },
    schema=pa.schema(
        [
            ("delta", pa.float64()),
            ("single", pa.float32()),
            pa.field("count", pa.int64(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            ("error", pa.string()),
            ("flag", pa.bool_()),
            *((name, pa.int64()) for name in ("a column", "a.b", "Twin", "twin", "order", "at", "user", 'say "so"')),
            ("\u00e4\u00f6", pa.int64()),
            ("", pa.int64()),
            ("bytes", pa.binary()),
        ]
    ),
)


def rows(text: str) -> list[int]:
    return np.flatnonzero(RowTest(text, BATCH.schema)(BATCH)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("delta < 0.2", [0, 1]),
        ("delta > 0.2", [2]),
        ("(delta < 0.2) IS NOT TRUE", [2, 3]),
        ("(delta < 0.2) IS NOT TRUE AND (count > 3)", [3]),
        ("-2 < delta and delta <= 0.1 and count != 5", [0]),
        ("delta BETWEEN -2 AND 0.1", [0, 1]),
        ("status == 'ok' or count = 0", [0, 1, 2, 3]),
        ("status in ('too_long', 'image_error')", [2]),
        ("status not in ('ok',)", [2]),
        ("not count > 3", [0, 2]),
        ("error IS NULL", [0, 3]),
        ("error is not null and contains(error, 'on')", [2]),
        ("error IS DISTINCT FROM 'note'", [0, 2, 3]),
        ("error <> 'note'", [2]),
        ("status LIKE 'too%' or ends_with(status, 'ng')", [2]),
        ("starts_with(status, 'too') or error ILIKE 'NOTE'", [1, 2]),
        ("regexp_matches(error, '^[a-n]o')", [1, 2]),
        ("error = E'it\\'s \\\\ so'", []),
        ("delta is null", [3]),
        ("delta - delta = 0", [0, 1, 2]),
        ("single > 5", [3]),
        ("single - single > -1", [0, 1]),
        ("single = 0.1", [0]),
        ("single in (0.1, 7)", [0]),
        ("single + 0 = 0.1", []),
        ("abs(delta) * 2 + 1 >= 3", [1, 2]),
        ("mod(count + 1, 2) = 0", [0, 1, 3]),
        ("mod(-count, 3) = -2", [1]),
        ("count / count = 1", [0, 1, 3]),
        ("5 / count > 1", [0, 2]),
        ("count / 2 = 1.5", [0]),
        ("3000000000 * 3 > count", [0, 1, 2, 3]),
        ("coalesce(delta, 7) > 5", [3]),
        ("flag", [0, 3]),
        ("flag IS FALSE", [2]),
        ("flag == False", [2]),
        ('"a column" > 3', [3]),
        ('"a.b" = 2', [1]),
        ("Twin = 1 and twin = 4", [0]),
        ("Twin = twin", []),
        ('"order" = 3 and user = 3', [2]),
        ('"say ""so""" = 4', [3]),
        ("\u00e4\u00f6 = 2 or status = '\u00e4\u00f6'", [1]),
        ("True", [0, 1, 2, 3]),
        ("count > 1e9", []),
        ("count = 1_0 or count < 1.", [2]),
    ],
)
def test_conditions_mean_what_they_say(text: str, expected: list[int]) -> None:
    assert rows(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not delta < 0.2", "write (...) IS NOT TRUE"),
        ("error not in ('note')", "write (...) IS NOT TRUE"),
        ("not flag", "NOT is only for what has a value in every row, and this may lack one: write (...) IS NOT TRUE"),
        ("not contains(error, 'a')", "write (...) IS NOT TRUE"),
        ("error != 'note'", "write IS DISTINCT FROM"),
        ("delta != delta", "write IS DISTINCT FROM"),
        ("status == 'ok' and ~(count > 3)", "write (...) IS NOT TRUE"),
        ("~flag", "or (...) IS FALSE, which does not"),
        ("(delta < 0.2) & (count > 3)", "write AND"),
        ("(delta < 0.2) | (count > 3)", "write OR"),
        ("-2 < delta <= 0.1", "use AND"),
        ("flag == flag == flag", "use AND"),
        ("(delta < 0.2) == False", "join them with AND and OR"),
        ("(delta < 0.2) in (True, False)", "join them with AND and OR"),
        ("status in ['ok']", "write IN ('a', 'b')"),
        ("error == None", "write IS NULL"),
        ("error is not None", "write IS NULL or IS NOT NULL"),
        ("error = NULL", "write IS NULL"),
        ('status == "ok"', "a text stands in single quotes: 'ok'"),
        ('status == "error"', "is written without quotes; a text stands in single quotes: 'error'"),
        ("`a column` > 3", "stands in double quotes"),
        ("bytes = 1", "it holds lists, structs or bytes"),
        ("count > (", "it ends too early"),
        ("upper(status, count)", "upper takes 1"),
        ("exp(delta) > 1", "starts_with, ends_with, regexp_matches"),
        ("a.b = 1", 'a name with a dot is written "a.b"'),
        ("startswith(status, 'o')", "write starts_with"),
        ("endswith(status, 'o')", "write ends_with"),
        ("isnull(delta)", "write x IS NULL"),
        ("count % 2 == 0", "write mod(a, b)"),
        ("count --1 > 3", "no comments"),
        ("count > 3 # or not", "no comments"),
        ("count > 3 /* or not */", "no comments"),
        (r"error == 'a\nb'", "write E'...'"),
        ("error == 'it''s'", "write E'...'"),
        ("error == '''note'''", "write E'...'"),
        ("error == r'note'", "is not allowed"),
        ("error == 'no' 'te'", "is no condition"),
        ("flag + flag == 2", "is a truth value, where a number is needed"),
        ("flag == 1", "compares a truth value with a number"),
        ("count == '3'", "compares a number with text"),
        ("STATUS = 'ok'", "did you mean status?"),
        ("at >= 1", 'the column is written "at"'),
        ("count >= at", 'the column is written "at"'),
        ("order = 1", 'the column is written "order"'),
        ('"" = 1', "is no condition"),
    ],
)
def test_what_meant_something_else_before_is_refused_with_the_new_spelling(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rows(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["deltta < 0", "count", "not " * 2000 + "flag", "regexp_matches(error, '(')"],
)
def test_a_refused_condition_is_shown_without_what_was_raised_on_the_way(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rows(text)
    assert "".join(traceback.format_exception(caught.value)).count("Traceback") == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("deltta < 0", "did you mean delta"),
        ("count", "where a condition is needed"),
        ("count + 1", "where a condition is needed"),
        ("'ok'", "where a condition is needed"),
        ("flag and count", "where a condition is needed"),
        ("status < 3", "compares text with a number"),
        ("status + 'x' == 'okx'", "where a number is needed"),
        ("count ** 9 > 1", "is no function of conditions"),
        ("count.__class__ == 1", "no column 'count.__class__'"),
        ("count[0] == 1", "write IN"),
        ("__import__('os').system('true')", "is no function of conditions"),
        ("open('/etc/passwd') == 1", "is no function of conditions"),
        ("getenv('HOME') = 'x'", "getenv is no function of conditions"),
        ("current_setting('threads') = '1'", "is no function of conditions"),
        ("contains(read_text('/etc/passwd'), 'root')", "is no function of conditions"),
        ("nextval('x') = 1", "is no function of conditions"),
        ("repeat('x', 1000000000) = 'x'", "is no function of conditions"),
        ("main.abs(count) = 1", "is no function of conditions"),
        ("abs(distinct count) = 1", "is no function of conditions"),
        ("contains(status, string => 'x')", "is no function of conditions"),
        ("(lambda: 1)() == 1", "is no condition"),
        ("exists(select 1)", "is not allowed"),
        ("count in (select 1)", "is not allowed"),
        ("count = (select max(count) from batch)", "is not allowed"),
        ("count > 1) from read_csv('/etc/passwd') where (true", "and no query"),
        ("count > 1) from batch where (true", "and no query"),
        ("count > 1) union select (true", "and no query"),
        ("count > 1); drop table x; select (true", "one expression"),
        ("count > 1), (true", "and no query"),
        ("count > 1) order by (1", "and no query"),
        ("count > 1) limit (1", "and no query"),
        ("count > $1", "without parameters"),
        ("sum(count) over () > 1", "is not allowed"),
        ("count(*) > 1", "is no function of conditions"),
        ("columns(*) > 1", "is not allowed"),
        ("count::text = '3'", "is not allowed"),
        ("case when flag then flag end", "is not allowed"),
        ("rowid = 1", "no column 'rowid'"),
        ("exec('1') == 1", "is no function of conditions"),
        ("f'{count}' == '1'", "is not allowed"),
        ("(count := 3) == 3", ""),
        ("count if count else 1", "is no condition"),
        ("error == 1", "compares text with a number"),
        ("1 / 0 == 1", "divides by zero"),
        ("mod(count, 0) == 1", "divides by zero"),
        ("abs(count, 2) == 1", "takes 1 values, got 2"),
        ("count * 9223372036854775807 > count", "multiply by 1.0 first"),
        ("count > 1" + "0" * 40, "whole numbers of 128 bits"),
        ("count > 1e400", "floats of 64 bits"),
        ("regexp_matches(error, '(')", "missing )"),
        ("count <", "is no condition"),
        ("import os", "is no condition"),
        ("select 1", ""),
        ("", "is no condition"),
        ("(" * 3000 + "1" + ")" * 3000, "is no condition"),
        ("not " * 2400 + "flag", ""),
        ("x" * 20_000, "characters"),
        ("count\x00 > 3", "no column"),
        ("error = '\ud800'", "is no condition"),
    ],
)
def test_everything_else_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rows(text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


PARTS = [
    *("delta", "count", "status", "error", "flag", "twin", "Twin", "'ok'", '"a.b"', "1", "2.5", "-1", "1e3", "(", ")"),
    *(
        ",",
        "<",
        "<=",
        "=",
        "==",
        "!=",
        "<>",
        "+",
        "-",
        "*",
        "/",
        "and",
        "or",
        "not",
        "in",
        "is",
        "null",
        "true",
        "between",
    ),
    *(
        "like",
        "E'\\''",
        "''",
        "select",
        "from",
        ";",
        "abs(",
        "mod(",
        "coalesce(",
        "contains(",
        "::",
        "--",
        "%",
        "batch",
    ),
    *("c0", "read_csv(", "'x"),
]


@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PARTS), max_size=9).map(" ".join)))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        found: Any = rows(text)
    except ConfigError as error:
        found, said = (), str(error)
        assert len(said.splitlines()) == 1
    assert set(found) <= {0, 1, 2, 3}


def test_long_arithmetic_is_evaluated_once() -> None:
    assert rows("delta" + " + 1 - 1" * 40 + " > 0.05") == rows("delta > 0.05") == [0, 2]
    assert rows("- " * 60 + "delta > 0.05") == [0, 2]
    assert rows("abs(" * 60 + "delta" + ") + 0" * 60 + " is null") == [3]


def test_conditions_are_not_compared_however_deep() -> None:
    with pytest.raises(ConfigError, match="a comparison of comparisons"):
        rows("(" * 40 + "flag" + " between flag and flag)" * 40)


NUMBERS = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False, width=64))


@given(st.lists(st.one_of(st.none(), st.floats(width=64)), min_size=1, max_size=5), NUMBERS)
def test_a_comparison_is_that_of_64_bit_floats_and_takes_no_undefined_value(
    values: list[float | None], constant: float
) -> None:
    batch = pa.record_batch({"value": pa.array(values, pa.float64())})
    compared = {"<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__", "=": "__eq__"}
    for sign, method in compared.items():
        expected = [value is not None and getattr(value, method)(float(constant)) for value in values]
        assert RowTest(f"value {sign} {constant!r}", batch.schema)(batch).to_pylist() == expected, sign


@given(st.text(max_size=8), st.text(max_size=8))
def test_a_text_is_compared_as_it_is(one: str, other: str) -> None:
    escaped = other.replace("\\", "\\\\").replace("'", "\\'")
    batch = pa.record_batch({"value": pa.array([one, other])})
    try:
        passed = RowTest(f"value = E'{escaped}'", batch.schema)(batch).to_pylist()
    except ConfigError:
        assert "\x00" in other
        return
    assert passed == [one == other, True]


def test_a_condition_writes_no_file_starts_no_thread_and_reads_no_variable(tmp_path: Path) -> None:
    code = (
        "import os, pyarrow as pa\n"
        "from cal_pipeline.inspect.tables.conditions import RowTest\n"
        "batch = pa.record_batch({'x': pa.array([1, 2])})\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "assert RowTest('x > 1', batch.schema)(batch).to_pylist() == [False, True]\n"
        "assert len(os.listdir('/proc/self/task')) == before\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
