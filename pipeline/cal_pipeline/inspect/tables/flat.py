"""Flattens the list columns of many rows into arrays, from which every figure of tokens is computed without a loop.

R rows, N supervised tokens of all of them together, in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cal_schemas.annotated import REQUIRED_TOKEN_COLUMNS
from cal_schemas.errors import ConfigError, FormatError
from cal_schemas.sample import IMAGE_MARK
from cal_schemas.weighting import Pool, check_weighting

LIST_COLUMNS = tuple(REQUIRED_TOKEN_COLUMNS)
ANSWER_COLUMNS = ("messages", "template_inputs")
"""What tells which spans belong to which answer, where a shard has it."""
_TELLING = "supervised|tool_calls"
"""In `template_inputs`: some answer is not learned, or has no words."""
Answers: TypeAlias = Sequence[tuple[str, bool]]
"""What every answer of a conversation says, and whether it is learned."""


@dataclass(frozen=True, kw_only=True)
class FlatTokens:
    """Supervised tokens of R rows, one after the other."""

    lengths: np.ndarray
    """[R] int64, supervised tokens of each row."""
    label_ids: np.ndarray
    """[N] int32."""
    positions: np.ndarray
    """[N] int32, in the reference's encoding of the row."""
    deltas: np.ndarray
    """[N] float32 in logits, NaN where undefined."""

    @cached_property
    def row(self) -> np.ndarray:
        """[N] int64, number of the row (0 to R - 1) that each token belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def starts(self) -> np.ndarray:
        """[N] bool: the first token of a contiguous supervised span."""
        starts = np.ones(len(self.positions), dtype=bool)
        np.not_equal(self.positions[1:], self.positions[:-1] + 1, out=starts[1:])
        starts[(np.cumsum(self.lengths) - self.lengths)[self.lengths > 0]] = True
        return starts

    @cached_property
    def span(self) -> np.ndarray:
        """[N] int64, number of the contiguous supervised span inside its row, from 0."""
        span = np.cumsum(self.starts) - 1
        first = np.cumsum(self.lengths) - self.lengths
        filled = self.lengths > 0
        before = np.zeros(len(self.lengths), np.int64)
        before[filled] = span[first[filled]]
        numbered: np.ndarray = span - before[self.row]
        return numbered

    @classmethod
    def from_arrow(cls, table: pa.Table | pa.RecordBatch) -> FlatTokens:
        """Of the columns LIST_COLUMNS of a table or batch."""
        return cls._checked([_flat_arrow(table.column(name)) for name in LIST_COLUMNS])

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> FlatTokens:
        """Of the columns LIST_COLUMNS of a frame, as `load_annotated` or `pandas.read_parquet` (any backend) gives it.

        Raises ConfigError naming columns that are not there.
        """
        if missing := [name for name in LIST_COLUMNS if name not in frame.columns]:
            raise ConfigError(f"the frame lacks the columns {missing}; it has {list(frame.columns)}")
        return cls._checked([_flat_frame(frame[name]) for name in LIST_COLUMNS])

    @classmethod
    def _checked(cls, columns: Sequence[tuple[np.ndarray, np.ndarray]]) -> FlatTokens:
        (lengths, ids), (other, positions), (third, deltas) = columns
        if not (np.array_equal(lengths, other) and np.array_equal(lengths, third)):
            unequal = int(np.flatnonzero((lengths != other) | (lengths != third))[0])
            raise FormatError(
                f"row {unequal} has {lengths[unequal]} label_ids, {other[unequal]} label_positions and "
                f"{third[unequal]} delta_logits: an annotated row has equally many of each"
            )
        return cls(
            lengths=lengths,
            label_ids=ids.astype(np.int32, copy=False),
            positions=positions.astype(np.int32, copy=False),
            deltas=deltas.astype(np.float32, copy=False),
        )

    def weights(self, *, alpha: float = 1.0, beta: float = 5.0, window: int = 3, pool: Pool = "span") -> np.ndarray:
        """[N] float32: exactly what `cal_trainer.token_weights` gives each token of its row (CAL, Eq. 4).

        Raises ConfigError for bounds or a window that make no sense, and for `released`, which needs deltas of
        unsupervised tokens too.
        """
        check_weighting(alpha=alpha, beta=beta, window=window)
        if pool == "released":
            raise ConfigError("pool 'released' reads deltas of unsupervised tokens, which no cache holds")
        run = np.cumsum(self.starts) if pool == "span" else self.row
        # The same float32 operations in the same order as the trainer's, so that results are equal to the bit.
        with np.errstate(invalid="ignore"):
            clamped = np.clip(self.deltas, np.float32(alpha), np.float32(beta))
        defined = ~np.isnan(clamped)
        values = np.where(defined, clamped, np.float32(0))
        total = np.zeros_like(values)
        count = np.zeros_like(values)
        half = min(window // 2, max(int(self.lengths.max(initial=0)) - 1, 0))
        for shift in range(-half, half + 1):
            mine, theirs = _overlap(len(values), shift)
            counted = defined[theirs] & (run[theirs] == run[mine])
            total[mine] += np.where(counted, values[theirs], np.float32(0))
            count[mine] += counted
        pooled: np.ndarray = total / np.maximum(count, np.float32(1))
        return np.where(defined, pooled, np.float32(alpha))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """[R] float64: mean of values [N] over a row's tokens with a defined delta, NaN where it has none."""
        defined = ~np.isnan(self.deltas)
        parts = (None, values[defined])
        count, total = (np.bincount(self.row[defined], weights=part, minlength=len(self.lengths)) for part in parts)
        with np.errstate(invalid="ignore"):
            return np.asarray(total / count)

    def turns(self, answers: Mapping[int, Answers] | None = None) -> np.ndarray:
        """[N] int32: which answer of the conversation a token belongs to, from 1.

        An answer is a contiguous supervised span, except in the rows of `answers` (`irregular_answers` finds them):
        there answers that are not learned are counted too, and the spans beside an image inside an answer together.
        """
        turns = (self.span + 1).astype(np.int32)
        stops = np.cumsum(self.lengths)
        for row, said in (answers or {}).items():
            own = slice(stops[row] - self.lengths[row], stops[row])
            if self.lengths[row]:
                turns[own] = _turn_of_span(said, int(self.span[own][-1]) + 1)[self.span[own]]
        return turns


def _overlap(length: int, shift: int) -> tuple[slice, slice]:
    """Tokens that have a neighbour `shift` places on, and those neighbours."""
    if abs(shift) >= length:
        return slice(0, 0), slice(0, 0)
    inner, outer = slice(0, length - abs(shift)), slice(abs(shift), length)
    return (inner, outer) if shift >= 0 else (outer, inner)


def _turn_of_span(answers: Answers, num_spans: int) -> np.ndarray:
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


def irregular_answers(columns: pa.Table | pa.RecordBatch | pd.DataFrame) -> dict[int, Answers]:
    """Rows whose answers show images or are not all learned, with their answers: what `FlatTokens.turns` must know.

    Looks at the columns ANSWER_COLUMNS as far as they are there.
    """
    names = columns.columns if isinstance(columns, pd.DataFrame) else columns.schema.names
    if "messages" not in names:
        return {}
    messages: Any = columns["messages"]
    inputs: Any = columns["template_inputs"] if "template_inputs" in names else None
    if isinstance(columns, pd.DataFrame):
        pairs = list(zip(messages, [None] * len(messages) if inputs is None else inputs, strict=True))
        rows = [row for row, (turns, given) in enumerate(pairs) if _is_irregular(turns, given)]
        return {row: answers_of(*pairs[row]) for row in rows}
    irregular = _mentions_image(messages)
    if inputs is not None:
        irregular |= np.asarray(pc.fill_null(pc.match_substring_regex(inputs, _TELLING), False))
    return {
        int(row): answers_of(messages[int(row)].as_py(), None if inputs is None else inputs[int(row)].as_py())
        for row in np.flatnonzero(irregular)
    }


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


def _is_irregular(turns: Any, template_inputs: Any) -> bool:
    return isinstance(turns, Sequence | np.ndarray) and (
        (isinstance(template_inputs, str) and re.search(_TELLING, template_inputs) is not None)
        or any(turn["role"] == "assistant" and IMAGE_MARK in turn["content"] for turn in turns)
    )


def _mentions_image(messages: pa.Array | pa.ChunkedArray) -> np.ndarray:
    mentions = np.zeros(len(messages), dtype=bool)
    start = 0
    for chunk in messages.chunks if isinstance(messages, pa.ChunkedArray) else [messages]:
        turns = chunk.flatten()
        marked = pc.and_(
            pc.equal(turns.field("role"), "assistant"), pc.match_substring(turns.field("content"), IMAGE_MARK)
        )
        rows = np.asarray(pc.list_parent_indices(chunk))
        mentions[start + rows[np.asarray(pc.fill_null(marked, False))]] = True
        start += len(chunk)
    return mentions


def _flat_arrow(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    lengths = [chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) for chunk in chunks]
    # Nulls of floats become NaN, which is what an undefined delta is to numpy.
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    return np.concatenate([np.empty(0, np.int64), *lengths]), _concatenated(values)


def _flat_frame(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(column.dtype, pd.ArrowDtype):
        return _flat_arrow(pa.chunked_array(column.array.__arrow_array__()))
    values = [_values(value) for value in column]
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    return lengths, _concatenated(values)


def _values(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value
    return np.asarray([] if value is None or value is pd.NA or isinstance(value, float) else value, np.float64)


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    parts = [part for part in parts if len(part)]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
