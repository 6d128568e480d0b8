import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.sources import parquet as parquet_source
from cal_pipeline.sources.formats import RowRange
from cal_pipeline.sources.rows import sample_from_json
from cal_schemas.errors import ConfigError
from cal_schemas.sample import Sample

PAGE = Path(__file__).parents[3] / "docs" / "data-format.md"
_LINE = re.compile(
    r"^\| [^|]+ \| (row|turn|question|part) \| `(\w+)` \| `(\{.*\})` \| (read|refused|same|listed)\b.* \|$"
)


def lines() -> list[tuple[str, str, dict[str, Any], str]]:
    """(what the key is of, key, an example, what becomes of it) of every line of the page's table."""
    lines = [match.groups() for line in PAGE.read_text(encoding="utf-8").splitlines() if (match := _LINE.match(line))]
    return [(of, key, json.loads(example), becomes) for of, key, example, becomes in lines]


LINES = lines()
NAMES = [f"{of}-{key}-{number}" for number, (of, key, _, _) in enumerate(LINES)]


def row_with(of: str, example: dict[str, Any]) -> dict[str, Any]:
    """A row that has the example's keys where they belong."""
    question, answer = {"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}
    row: dict[str, Any] = {"id": "x", "image": "a.png", "messages": [question, answer]}
    if of == "row":
        own = {"conversations", "messages", "prompt", "completion", "instruction", "output", "query", "response"}
        return ({"id": "x", "image": "a.png"} if own & example.keys() else row) | example
    if of == "part":
        words = {"type": "text", "text": "What?"}
        return {"id": "x", "messages": [{"role": "user", "content": [example, words]}, answer]}
    replaced = question if of == "question" else answer
    changed = example if "from" in example else replaced | example
    row["messages"] = [changed if turn is replaced else turn for turn in row["messages"]]
    return row


def read(row: dict[str, Any]) -> Sample:
    return sample_from_json(row, "s/0")


def test_the_table_has_a_line_for_every_layout() -> None:
    assert len(LINES) > 60
    text = PAGE.read_text(encoding="utf-8")
    for layout in (
        "LLaVA",
        "LLaMA-Factory ShareGPT",
        "LLaMA-Factory Alpaca",
        "ms-swift",
        "axolotl",
        "OpenAI chat",
        "TRL",
    ):
        assert re.search(rf"^\| [^|]*{layout}[^|]* \| (row|turn|part) ", text, re.MULTILINE), layout


@pytest.mark.parametrize(("of", "key", "example", "becomes"), LINES, ids=NAMES)
def test_what_the_table_says_becomes_of_a_key_is_what_becomes_of_it(
    of: str, key: str, example: dict[str, Any], becomes: str
) -> None:
    sample = read(row_with(of, example))
    without = read(row_with(of, {name: value for name, value in example.items() if name != key}))
    if becomes == "refused":
        assert sample.messages is None
        assert key in (sample.problem or "")
        return
    assert sample.problem is None
    listed = any(name in (key, f"{key} (of a turn)") for name in sample.unread)
    assert listed == (becomes == "listed")
    assert (sample != without) == (becomes == "read")


@pytest.mark.parametrize(("of", "key", "example", "becomes"), LINES, ids=NAMES)
def test_parquet_follows_the_same_table(
    tmp_path: Path, of: str, key: str, example: dict[str, Any], becomes: str
) -> None:
    row = row_with(of, example)
    if of == "part":  # A struct has the same fields in every element, and text beside parts no type.
        row["messages"][1] = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    if becomes == "refused":
        # By its type at planning, or as the row's problem.
        try:
            problem = next(parquet_source.read_rows(path, RowRange(row_start=0, row_stop=1), "s")).problem or ""
        except ConfigError as error:
            problem = str(error)
        assert key in problem
        return
    (sample,) = parquet_source.read_rows(path, RowRange(row_start=0, row_stop=1), "s")
    expected = read(row)
    assert sample.problem is None
    assert (sample.images, sample.messages, sample.tools) == (expected.images, expected.messages, expected.tools)
    assert set(sample.unread) == set(expected.unread)
