"""Tells the answers of a conversation, and which answer each contiguous supervised span belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cal_schemas.annotated import annotated_schema
from cal_schemas.sample import IMAGE_MARK

_SCHEMA = annotated_schema(carry="paths")
ANSWER_COLUMNS = {name: _SCHEMA.field(name).type for name in ("messages", "template_inputs")}
"""What tells which spans belong to which answer, where a shard has it."""
_TELLING = "supervised|tool_calls"
"""In `template_inputs`: some answer is not learned, or has no words."""
Answers: TypeAlias = Sequence[tuple[str, bool]]
"""What every answer of a conversation says, and whether it is learned."""


def irregular_answers(columns: pa.Table | pa.RecordBatch | pd.DataFrame) -> dict[int, Answers]:
    """Rows whose answers show images or are not all learned, with their answers: what `FlatTokens.turns` must know.

    Looks at the columns ANSWER_COLUMNS as far as they are there.
    """
    names = columns.columns if isinstance(columns, pd.DataFrame) else columns.schema.names
    if "messages" not in names:
        return {}
    messages, inputs = (
        flat_array(columns[name], kind) if name in names else pa.nulls(len(columns["messages"]), kind)
        for name, kind in ANSWER_COLUMNS.items()
    )
    turns = messages.flatten()
    marked = pc.and_(pc.equal(turns.field("role"), "assistant"), pc.match_substring(turns.field("content"), IMAGE_MARK))
    irregular = np.asarray(pc.fill_null(pc.match_substring_regex(inputs, _TELLING), False)).copy()
    irregular[np.asarray(pc.list_parent_indices(messages))[np.asarray(pc.fill_null(marked, False))]] = True
    return {int(row): answers_of(messages[int(row)].as_py(), inputs[int(row)].as_py())
            for row in np.flatnonzero(irregular)}  # fmt: skip


def flat_array(column: pa.Array | pa.ChunkedArray | pd.Series, kind: pa.DataType) -> pa.Array:
    """A column of Arrow or pandas as one array; `kind` is that of a pandas column of Python or NumPy objects."""
    if isinstance(column, pd.Series):
        own = column if isinstance(column.dtype, pd.ArrowDtype) else list(column)
        column = pa.array(own, kind, from_pandas=True)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def answers_of(messages: Sequence[Mapping[str, Any]], template_inputs: Any = None) -> Answers:
    """What every answer of a conversation says, and whether it is learned."""
    given = json.loads(template_inputs).get("turns") if isinstance(template_inputs, str) else None
    pairs = zip(messages, given or [{} for _ in messages], strict=True)
    return [
        (said, inputs.get("supervised", True))
        for turn, inputs in pairs
        if (said := said_by_answer(turn["role"], turn["content"], inputs))
    ]


def said_by_answer(role: str, content: str, extra: Mapping[str, Any]) -> str:
    """An assistant's words, or that it calls a tool; empty where a turn is no answer: not its, or says nothing."""
    if role != "assistant":
        return ""
    return content if content.strip() else "(a call)" if extra.get("tool_calls") else ""


def turn_of_span(answers: Answers, num_spans: int) -> np.ndarray:
    """[num_spans] int32; where answers and spans cannot be brought together each span counts as a learned answer."""
    numbers = np.array([number for number, (_, learned) in enumerate(answers, 1) if learned], np.int32)
    parts = [content.split(IMAGE_MARK) for content, learned in answers if learned]
    # Whether blanks beside an image, and the end token behind a last one, are spans of their own is the template's.
    for spans in (
        [sum(bool(part.strip()) for part in item) for item in parts],
        [sum(bool(part.strip()) for part in item[:-1]) + 1 for item in parts],
        [sum(bool(part) for part in item) for item in parts],
        [sum(bool(part) for part in item[:-1]) + 1 for item in parts],
    ):
        if sum(spans) == num_spans:
            return np.repeat(numbers, spans)
    # A cut end leaves fewer spans than learned answers; spans beyond them count on.
    return np.append(numbers, np.arange(1, num_spans + 1, dtype=np.int32) + max(numbers, default=0))[:num_spans]
