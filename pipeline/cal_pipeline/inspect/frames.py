"""Gives annotated shards as pandas frames: a row per sample, or a row per supervised token.

    frame = load_annotated("annotated/")
    samples = sample_frame(frame)
    tokens = token_frame(frame)
    show_words(frame.loc[17])                              # or frame.loc[17] alone: shaded in a notebook

R rows, N supervised tokens of all of them. docs/inspecting.md has every column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cal_pipeline.inspect.page.annotated_rows import AnnotatedFrame, AnnotatedRow, pieces_of, remember, show_words
from cal_pipeline.inspect.tables.answers import irregular_answers
from cal_pipeline.inspect.tables.conditions import RowTest
from cal_pipeline.inspect.tables.flat import FlatTokens, noun
from cal_pipeline.inspect.tables.reading import IMAGE_PATHS, column_of, open_paths, read_batches
from cal_pipeline.inspect.tables.statistics import sample_columns
from cal_pipeline.inspect.tables.stored_columns import addresses
from cal_schemas.errors import ConfigError
from cal_schemas.ragged import ragged_weighting
from cal_schemas.scores import DEFAULT_SCORE, Score
from cal_schemas.storage.locations import Location
from cal_schemas.storage.object_path import ObjectPath
from cal_schemas.weighting import Pool

__all__ = ["AnnotatedFrame", "AnnotatedRow", "load_annotated", "sample_frame", "show_words", "token_frame"]


def load_annotated(
    path: str | Path | Sequence[str | Path],
    *,
    columns: Sequence[str] | None = None,
    filter: str | pc.Expression | None = None,  # noqa: A002 - the word pandas and pyarrow use
    score: Score = DEFAULT_SCORE,
    map: str = "clamp",  # noqa: A002 - as the flag
) -> AnnotatedFrame:
    """Rows of annotated shards, in file order then row order; R rows, index 0 to R - 1.

    Args:
        path: a shard, a directory of them, or several of one measurement.
        columns: which columns; by default all, where `images` names the images but leaves their bytes out. Name
            `images` to have those too. Where shards of several image folders are read, every image has its `folder`.
        filter: which rows: a condition in DuckDB's SQL over the shards' columns and those of `sample_frame`
            (`"status = 'ok' AND mean_delta < 0.2"`), or a `pyarrow.compute` expression over the shards' own columns.
        score: of the columns of `sample_frame` in the condition (`filter="mean_kl < 0.1", score="kl"`).
        map: the same.

    List columns hold one NumPy array per row: `label_ids` and `label_positions` int32 [S], `delta_logits` float32 [S],
    NaN where undefined. Only rows that pass the filter are ever held, so a filter bounds memory. Raises ConfigError for
    unknown columns, naming those there are, and FormatError for what is no annotated shard.
    """
    if isinstance(path, pd.DataFrame) or not isinstance(path, str | Path | ObjectPath | Iterable):
        raise ConfigError(
            f'load_annotated takes a path, such as "annotated/", not what is of type {type(path).__name__}'
        )
    if not isinstance(filter, str | pc.Expression | None):
        raise ConfigError(
            f"filter= takes a condition, such as 'mean_delta < 0.2', or a pyarrow.compute expression, not what is of "
            f"type {type(filter).__name__}; a mask takes rows of what is loaded: frame[mask]"
        )
    opened = open_paths(path)
    names = opened.schema.names
    if unknown := [name for name in columns or () if name not in names]:
        raise ConfigError(f"no columns {unknown} in these shards; they have {names}")
    wanted = [IMAGE_PATHS if name == "images" else name for name in names] if columns is None else list(columns)
    test = RowTest(filter, opened.schema, score=score, map=map).over(opened) if isinstance(filter, str) else None
    needed = (
        test.columns if test else [name for name in names if filter is not None and name not in ("images", "messages")]
    )
    extra = [name for name in needed if name not in {column_of(item) for item in wanted}]
    tables: list[pa.Table] = []
    taken: list[tuple[Location, int]] = []
    for batch in read_batches(opened, [*wanted, *extra]):
        data = batch.data
        try:
            data = data if filter is None else data.filter(test(data) if test else filter)
        except (pa.ArrowException, TypeError) as error:
            raise ConfigError(f"filter {filter}: {' '.join(str(error).split())[:300]}") from None
        tables.append(pa.Table.from_batches([data.select([name for name in data.schema.names if name not in extra])]))
        taken.append((batch.file, data.num_rows))
    if not tables:
        tables = [pa.schema([opened.schema.field(column_of(name)) for name in wanted]).empty_table()]
    # Which columns may be null differs between shards of different versions.
    frame = AnnotatedFrame(pa.concat_tables(tables, promote_options="default").to_pandas())
    remember(frame, opened, taken)
    return frame if columns is None else frame[list(columns)]


def sample_frame(
    frame: pd.DataFrame,
    *,
    score: Score = DEFAULT_SCORE,
    map: str = "clamp",  # noqa: A002 - as the flag
    alpha: float | None = None,
    beta: float | None = None,
    window: int | None = None,
    pool: Pool = "span",
) -> pd.DataFrame:
    """One row per row of `frame`, same index: what its tokens say together; R rows.

    Columns: those of `frame` that hold one value a row (`sample_id`, `status`, `num_tokens`, a source's own columns),
    then `images`, `tokens`, `undefined`, `turns` (int), and over the tokens with a defined delta `mean_delta`,
    `min_delta`, `max_delta` (logits), `share_negative`, `share_below_alpha`, `share_above_beta`, `mean_weight` and
    `visual_dependence` (0 to 1); NaN where a row has no such token. `visual_dependence` is the mean of
    (clamp(delta, alpha, beta) - alpha) / (beta - alpha): which share of the weight that the image could add it adds;
    it is left out unless beta is finite and above alpha, and `images` where `frame` has none (a sidecar's). A
    column of `frame` with a computed one's name becomes `source_NAME`.

    Of another score these are its own, `mean_kl` in place of `mean_delta`. What compares scores with alpha and beta is
    left out unless the map is `clamp`. Raises ConfigError for weights that make no sense, a score whose
    columns `frame` lacks, and what is known in training only.
    """
    weighting = ragged_weighting(score=score, map=map, alpha=alpha, beta=beta, window=window, pool=pool)
    del weighting["score"]
    flat = _tokens_of(frame, score)
    turns = flat.turns(irregular_answers(frame))
    values = sample_columns(flat, turns, **weighting)
    listed = {"images", "messages", *(name for name in frame.columns if _is_nested(frame[name]))}
    own = frame[[name for name in frame.columns if name not in listed]]
    own = own.rename(columns={name: address for address, name in addresses(frame.columns, score).items()})
    if "images" in frame:
        own["images"] = [0 if images is None else len(images) for images in frame["images"]]
    return pd.DataFrame(own).assign(**values)  # A plain frame: its rows have no words to show.


def _tokens_of(frame: pd.DataFrame, score: Score) -> FlatTokens:
    if not isinstance(frame, pd.DataFrame):
        raise ConfigError(
            f"a pandas DataFrame is needed, such as frame.loc[[0]], not what is of type {type(frame).__name__}"
        )
    return FlatTokens.of(frame, score)


def _is_nested(column: pd.Series) -> bool:
    if isinstance(column.dtype, pd.ArrowDtype):
        return bool(pa.types.is_nested(column.dtype.pyarrow_dtype))
    if column.dtype != object:
        return False
    return any(isinstance(value, np.ndarray | list | dict | tuple) for value in column.dropna().head(1))


def token_frame(
    frame: pd.DataFrame,
    tokenizer: Any = None,
    *,
    score: Score = DEFAULT_SCORE,
    map: str = "clamp",  # noqa: A002 - as the flag
    alpha: float | None = None,
    beta: float | None = None,
    window: int | None = None,
    pool: Pool = "span",
) -> pd.DataFrame:
    r"""One row per supervised token of every row of `frame`, in order; N rows, index 0 to N - 1.

    Args:
        frame: with `label_ids`, `label_positions`, `delta_logits`, from `load_annotated` or `pandas.read_parquet`.
        tokenizer: that of the measurement: a directory, a hub id, a tokenizer.json, or a fast tokenizer. Frames of
            `load_annotated` find the reference's where it is still at the place that was recorded, or by its hub id.
        score: what is weighed; `frame` needs its columns.
        map: of scores to weights; a map that depends on all data needs its number, `threshold=q0.6@X`.
        alpha: see cal_trainer.objective.weights.token_weights, whose weights these are, to the bit; by default the
            map's, as beta and window.
        beta: the same.
        window: the same.
        pool: `span` or `joined`; `released` needs what no cache holds (ConfigError).

    Columns: `row` (index of the sample in `frame`), `sample_id` (category), `turn` (int32, which answer, from 1),
    `position` (int32, in the reference's encoding), `token_id` (int32), `token` (category: its text, leading space
    included, `\xE2` for a byte that is part of a character), `delta` (float32 logits, NaN where undefined; of another
    score its name and values), `weight` (float32). Rows without tokens (status not ok) have none. Raises ConfigError as
    `sample_frame`, for a tokenizer whose digest is not that of the measurement, which a frame of `load_annotated` knows
    (`attrs`) and `pandas.read_parquet` does not, and where no tokenizer is given or found.
    """
    weighting = ragged_weighting(score=score, map=map, alpha=alpha, beta=beta, window=window, pool=pool)
    del weighting["score"]
    flat = _tokens_of(frame, score)
    pieces = pieces_of(frame.attrs, tokenizer)
    codes, texts = pieces.texts(flat.label_ids)
    columns: dict[str, Any] = {"row": frame.index.to_numpy()[flat.row]}
    if "sample_id" in frame:
        ids, names = pd.factorize(frame["sample_id"])
        columns["sample_id"] = pd.Categorical.from_codes(ids[flat.row], pd.Index(names))
    return pd.DataFrame(
        {
            **columns,
            "turn": flat.turns(irregular_answers(frame)),
            "position": flat.positions,
            "token_id": flat.label_ids,
            "token": pd.Categorical.from_codes(codes, pd.Index(texts, dtype="str")),
            noun(score): flat.scores,
            "weight": flat.weights(**weighting),
        }
    )
