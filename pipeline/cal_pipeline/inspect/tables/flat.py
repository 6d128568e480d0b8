"""Flattens the list columns of many rows into arrays, from which every figure of tokens is computed without a loop.

R rows, N supervised tokens of all of them together, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa

from cal_pipeline.inspect.tables.answers import Answers, flat_array, turn_of_span
from cal_schemas.errors import ConfigError, FormatError
from cal_schemas.maps import Map
from cal_schemas.ragged import ragged_scores, ragged_weighting, ragged_weights
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score, validate_columns
from cal_schemas.token_columns import REQUIRED_TOKEN_COLUMNS, TOKEN_COLUMNS
from cal_schemas.weighting import Pool

LIST_COLUMNS = tuple(REQUIRED_TOKEN_COLUMNS)


def token_columns(score: Score) -> tuple[str, ...]:
    """What `FlatTokens.of` reads."""
    return (*LIST_COLUMNS, *(name for name in SCORES[score].cached if name not in LIST_COLUMNS))


def noun(score: Score) -> str:
    """What the score is called in tables and columns: `delta`, or its own name."""
    return "delta" if score == DEFAULT_SCORE else score


def number_form(score: Score) -> str:
    """How its values are printed: deltas have two decimals, other scores may all be small."""
    return ".2f" if score == DEFAULT_SCORE else "#.3g"


def with_unit(score: Score) -> str:
    """The same with its unit, if it has one."""
    return f"{noun(score)}, {unit}" if (unit := SCORES[score].unit) else noun(score)


@dataclass(frozen=True, kw_only=True)
class FlatTokens:
    """Supervised tokens of R rows, one after the other."""

    lengths: np.ndarray
    """[R] int64, supervised tokens of each row."""
    label_ids: np.ndarray
    """[N] int32."""
    positions: np.ndarray
    """[N] int32, in the reference's encoding of the row."""
    scores: np.ndarray
    """[N] float32, NaN where undefined: deltas, in logits, or what another score makes of the columns."""
    score: Score = DEFAULT_SCORE
    """What `scores` are."""

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

    def take(self, rows: np.ndarray) -> FlatTokens:
        """Tokens of the rows of these numbers, in their order."""
        at = places(self.lengths, rows)
        return FlatTokens(
            lengths=self.lengths[rows],
            label_ids=self.label_ids[at],
            positions=self.positions[at],
            scores=self.scores[at],
            score=self.score,
        )

    @classmethod
    def of(cls, columns: pa.Table | pa.RecordBatch | pd.DataFrame, score: Score = DEFAULT_SCORE) -> FlatTokens:
        """Of the `token_columns`, also of a frame of `load_annotated` or `pandas.read_parquet` (any backend).

        Raises ConfigError naming columns that are not there or hold no lists of numbers, FormatError for a row with
        unequally many of each.
        """
        names = list(columns.columns) if isinstance(columns, pd.DataFrame) else columns.schema.names
        if missing := [name for name in LIST_COLUMNS if name not in names]:
            raise ConfigError(f"the frame lacks the columns {missing}, which load_annotated's have; it has {names}")
        validate_columns(names, score, "the frame")
        flat = {
            name: _flat(name, columns[name], pa.from_numpy_dtype(TOKEN_COLUMNS[name])) for name in token_columns(score)
        }
        lengths = flat["label_ids"][0]
        if any(not np.array_equal(lengths, own) for own, _ in flat.values()):
            unequal = int(np.flatnonzero(np.any([lengths != own for own, _ in flat.values()], axis=0))[0])
            raise FormatError(
                f"row {unequal} has {' and '.join(f'{own[unequal]} {name}' for name, (own, _) in flat.items())}: an "
                "annotated row has equally many of each"
            )
        values = {name: own.astype(TOKEN_COLUMNS[name], copy=False) for name, (_, own) in flat.items()}
        return cls(
            lengths=lengths,
            label_ids=values["label_ids"],
            positions=values["label_positions"],
            scores=ragged_scores(score, values, lengths),
            score=score,
        )

    def weights(
        self,
        *,
        alpha: float | None = None,
        beta: float | None = None,
        window: int | None = None,
        pool: Pool = "span",
        map: Map | str = "clamp",  # noqa: A002 - as the flag
    ) -> np.ndarray:
        """[N] float32: exactly what `cal_trainer.token_weights` gives each token of its row (CAL, Eq. 4).

        Arguments as there. Raises ConfigError for those that make no sense, and for what only training knows.
        """
        weighting = ragged_weighting(score=self.score, map=map, alpha=alpha, beta=beta, window=window, pool=pool)
        run = np.cumsum(self.starts) if pool == "span" else self.row
        settings = {name: weighting[name] for name in ("alpha", "beta", "window")}
        return ragged_weights(self.scores, self.lengths, run, weighting["map"], **settings)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """[R] float64: mean of values [N] over a row's tokens with a defined score, NaN where it has none."""
        defined, rows, count = self._defined
        total = np.bincount(rows, weights=values[defined], minlength=len(count))
        with np.errstate(invalid="ignore"):
            return np.asarray(total / count)

    @cached_property
    def _defined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which tokens have a score [N], the rows of those, and how many each row has [R]."""
        defined = ~np.isnan(self.scores)
        rows = self.row[defined]
        return defined, rows, np.bincount(rows, minlength=len(self.lengths))

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
                turns[own] = turn_of_span(said, int(self.span[own][-1]) + 1)[self.span[own]]
        return turns


def places(lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[tokens of the rows] int64: where the tokens of these rows stand, of rows that have `lengths` [R] tokens."""
    own = lengths[rows]
    starts = (np.cumsum(lengths) - lengths)[rows]
    return np.asarray(np.repeat(starts - (np.cumsum(own) - own), own) + np.arange(own.sum()))


def _flat(
    name: str, column: pa.Array | pa.ChunkedArray | pd.Series, item: pa.DataType
) -> tuple[np.ndarray, np.ndarray]:
    try:
        listed = flat_array(column, pa.list_(item))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:  # Of texts, as a CSV file has lists, or exploded.
        raise ConfigError(
            f"the column {name} holds no lists of numbers ({error}): give it as load_annotated has it; Parquet keeps "
            "lists, CSV does not"
        ) from error
    lengths = listed.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    # Nulls of floats become NaN, which is what an undefined delta is to numpy.
    return lengths, listed.flatten().to_numpy(zero_copy_only=False)
