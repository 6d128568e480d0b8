"""Frames whose rows know what measured them, and show their words in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sized
from copy import deepcopy
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, Literal, Self

import pandas as pd

from cal_pipeline.inspect.page.shaded_words import ShadedWords, shown_values
from cal_pipeline.inspect.page.shading import Shading
from cal_pipeline.inspect.tables.flat import LIST_COLUMNS
from cal_pipeline.inspect.tables.samples import stored_images
from cal_pipeline.inspect.tables.token_text import (
    Pieces,
    Reference,
    as_pieces,
    pieces_of_digest,
    pieces_of_reference,
)
from cal_schemas.errors import CalError, ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.ragged import ragged_weighting
from cal_schemas.scores import DEFAULT_SCORE, Score
from cal_schemas.storage.locations import Location, location

_MEASURED_WITH = "cal.measured_with"
"""In a frame's `attrs`: `Reference` and where image paths start, as plain values, which Parquet keeps, too.

Where they start in several places, each image of the frame has its own as `folder`.
"""
_STORED_IN = "cal.stored_in"
"""The shards, where they are local and hold images: a frame leaves those out, and a row that is shown reads its own.

Each with where its image paths start: equal words and paths have equal keys, also where the folders are two.
"""


class AnnotatedRow(pd.Series):
    """A row or a column of a frame of `load_annotated`: a notebook shows a sample's row with its words shaded."""

    @property
    def _constructor(self) -> type[AnnotatedRow]:
        return AnnotatedRow

    @property
    def _constructor_expanddim(self) -> type[AnnotatedFrame]:
        return AnnotatedFrame

    def _repr_html_(self) -> str | None:
        if not any(name in self.index for name in LIST_COLUMNS) or _without_lists(self):
            return None  # Of columns, of all rows (`frame.dtypes`, `frame.count()`), or exploded: pandas' own is right.
        try:
            return show_words(self)._repr_html_()
        except CalError as error:
            return f"<pre>{html.escape(repr(self))}</pre><p>words are not shown: {html.escape(str(error))}</p>"


class AnnotatedFrame(pd.DataFrame):
    """A frame of `load_annotated`: a DataFrame whose rows show their words in a notebook."""

    @property
    def _constructor(self) -> type[AnnotatedFrame]:
        return AnnotatedFrame

    @property
    def _constructor_sliced(self) -> type[AnnotatedRow]:
        return AnnotatedRow

    def __finalize__(self, other: Any, method: str | None = None, **kwargs: Any) -> Self:
        """As pandas, but what is joined to tokens need not know what measured these: nothing else may say so."""
        super().__finalize__(other, method, **kwargs)  # type: ignore[misc] # The stubs leave it out.
        holders = [item for item in getattr(other, "input_objs", ()) if _holds_tokens(item)]
        known = [item.attrs.get(_MEASURED_WITH) for item in holders]
        if known and known[0] is not None and known.count(known[0]) == len(known):
            self.attrs[_MEASURED_WITH] = deepcopy(known[0])
            # Of one measurement and one image folder, equal keys are equal images, whichever directory has them.
            if stored := {file: at for item in holders for file, at in item.attrs.get(_STORED_IN, {}).items()}:
                self.attrs[_STORED_IN] = stored
        return self


def _holds_tokens(data: pd.DataFrame | pd.Series) -> bool:
    names = data.columns if isinstance(data, pd.DataFrame) else [data.name]
    return any(name in names for name in LIST_COLUMNS)


def remember(frame: AnnotatedFrame, opened: AnnotatedDataset, taken: Iterable[tuple[Location, int]]) -> None:
    """Writes into the frame's `attrs`, which go along with what pandas makes of it, whose ids these are.

    `taken` has the frame's rows in order: shards, and how many rows of each. Where image paths start in several
    places, every image of the frame gets its own as `folder`.
    """
    folder_of = {file: item.source.image_folder for file, item in zip(opened.files, opened.metadata, strict=True)}
    folders = {*folder_of.values()}
    if len(folders) > 1 and "images" in frame:
        of_rows = [folder_of[file] for file, rows in taken for _ in range(rows)]
        for images, own in zip(frame["images"], of_rows, strict=True):
            for image in () if images is None else images:
                image["folder"] = own
    folder = folders.pop() if len(folders) == 1 else None
    frame.attrs[_MEASURED_WITH] = {**asdict(Reference.of(opened)), "image_folder": folder}
    files = {str(file.resolve()): own for file, own in folder_of.items() if isinstance(file, Path)}
    if len(files) == len(opened.files) and any(item.carry in ("images", "embedded") for item in opened.metadata):
        frame.attrs[_STORED_IN] = files


def show_words(
    sample: pd.Series | Mapping[str, Any],
    tokenizer: Any = None,
    *,
    by: Literal["score", "weight"] = "score",
    score: Score = DEFAULT_SCORE,
    map: str = "clamp",  # noqa: A002 - as the flag
    alpha: float | None = None,
    beta: float | None = None,
    window: int | None = None,
) -> ShadedWords:
    """The words of one sample: shaded in a notebook, with a number behind each where they are printed.

    Args:
        sample: a row of a frame (`frame.loc[i]`), or its values by column, as `datasets` gives them.
        tokenizer: as `token_frame` takes it.
        by: `score`, full at beta and at minus beta (under another map than clamp at the largest of the sample), or
            `weight`, from none at alpha to full at beta.
        score: what is shown and weighed; the row needs its columns.
        map: of scores to weights.
        alpha: of the weights, with span pooling; the map's by default, as beta and window.
        beta: the same.
        window: the same.

    Images stand beside the words where the row has their bytes, a frame of `load_annotated` left them in local shards,
    or their files are found. Raises ConfigError for what is
    no row of annotated shards, and as `token_frame`.
    """
    if not isinstance(sample, pd.Series | Mapping):
        raise ConfigError(
            f"show_words takes one row, such as frame.loc[0], not what is of type {type(sample).__name__}"
        )
    if by not in ("score", "weight"):
        raise ConfigError(f"by is 'score' or 'weight', got {by!r}")
    values = {str(name): value for name, value in sample.items()}
    if missing := [name for name in LIST_COLUMNS if name not in values]:
        raise ConfigError(
            f"the sample lacks {missing}, which a row of load_annotated has (frame.loc[0]); it has {[*values]}"
        )
    for name in _without_lists(values):
        raise ConfigError(
            f"{name} of this row is {short_repr(values[name])}, not a list: give show_words a row as load_annotated "
            "has it (frame.loc[0]); Parquet keeps lists, CSV does not"
        )
    weighting = ragged_weighting(score=score, map=map, alpha=alpha, beta=beta, window=window)
    attrs = sample.attrs if isinstance(sample, pd.Series) else {}
    # A sample that failed has no tokens, and needs no tokenizer.
    ids = values["label_ids"]
    pieces = pieces_of(attrs, tokenizer) if isinstance(ids, Sized) and len(ids) else None
    folder = attrs.get(_MEASURED_WITH, {}).get("image_folder")
    values |= _left_out(values, attrs)
    shown = shown_values(values, pieces, None if folder is None else location(folder), **weighting)
    return ShadedWords(shown, Shading.of(by, shown.tokens, **weighting))


def _without_lists(row: pd.Series | Mapping[str, Any]) -> list[str]:
    """Names what holds tokens in a sample's row, and here neither lists nor null."""
    held = {name: row[name] for name in LIST_COLUMNS if name in row}
    return [name for name, value in held.items() if not (pd.api.types.is_list_like(value) or pd.isna(value))]


def _left_out(values: Mapping[str, Any], attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """The column `images` with the bytes that the row's frame left in its shards; nothing where they cannot be had."""
    images, key = values.get("images"), values.get("sample_key")
    named = [item for item in images if isinstance(item, Mapping)] if isinstance(images, Iterable) else []
    if all("bytes" in item for item in named):
        return {}
    folders = {item["folder"] for item in named if "folder" in item}
    files = [Path(file) for file, folder in attrs.get(_STORED_IN, {}).items() if not folders or folder in folders]
    try:
        stored = stored_images(files, str(key))
    except CalError:  # The place of the image says what reads it, and that says why it cannot be read.
        stored = None
    return {} if stored is None else {"images": [{**own, **found} for own, found in zip(named, stored, strict=False)]}


def pieces_of(attrs: Mapping[Any, Any], tokenizer: Any) -> Pieces:
    """The tokenizer that is given, or else the one of what measured these rows, where they know it."""
    if (known := attrs.get(_MEASURED_WITH)) is None:
        if tokenizer is None:
            raise ConfigError(
                "which tokenizer spells these ids? Give tokenizer= with the directory of the reference; only rows of "
                "load_annotated know what measured them"
            )
        return as_pieces(tokenizer)
    reference = Reference(**{item.name: known[item.name] for item in fields(Reference)})
    if tokenizer is None or (isinstance(tokenizer, str) and not Path(tokenizer).exists()):
        return _found(reference, tokenizer)
    named = str(tokenizer) if isinstance(tokenizer, str | Path) else f"this {type(tokenizer).__name__}"
    return pieces_of_digest(tokenizer, reference.tokenizer_digest, named, reference.model_id)


@lru_cache(maxsize=4)
def _found(reference: Reference, tokenizer: str | None) -> Pieces:
    """Read once for all rows that are shown: what is found has the digest that the reference names."""
    return pieces_of_reference(reference, tokenizer, "tokenizer=")
