"""Finds single rows of annotated shards by id, and puts their words in the order of the conversation."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from cal_pipeline.inspect.tables.answers import irregular_answers, said_by_answer
from cal_pipeline.inspect.tables.flat import FlatTokens
from cal_pipeline.inspect.tables.reading import IMAGE_PATHS, read_batches
from cal_pipeline.inspect.tables.token_text import Pieces
from cal_pipeline.output.row_reader import NumberedRow, numbered_rows, source_samples
from cal_pipeline.sources.images import decode_image, read_image_file
from cal_schemas.annotated import annotated_schema, rows_to_table
from cal_schemas.errors import STATUS_OK, ConfigError, FormatError, ImageError, ShardError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import ImageRef, Turn
from cal_schemas.scores import DEFAULT_SCORE, Score
from cal_schemas.storage.locations import Location, location
from cal_schemas.token_columns import EXTRA_COLUMNS
from cal_schemas.whole import open_shard, validate_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a row is."""

    file: Location
    row: int
    number: int
    """Among the rows of all files, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownToken:
    """One supervised token as people read it."""

    text: str
    """Joined in order these are the answer; see `Pieces.spelled`."""
    score: float
    """A delta in logits, or another score; NaN where undefined."""
    weight: float
    turn: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One turn of a conversation."""

    role: str
    text: str
    tokens: range
    """Which of the row's supervised tokens it holds; none where only its text is known."""


def find_samples(opened: AnnotatedDataset, wanted: str) -> list[Place]:
    """Rows with this `sample_id` or `sample_key`, or row number N of all for `#N`; ConfigError when there is none."""
    places = []
    number = 0
    by_number = int(wanted[1:]) if re.fullmatch(r"#[0-9]{1,18}", wanted) else None
    for batch in read_batches(opened, ["sample_id", "sample_key"]):
        rows = batch.data.num_rows
        if by_number is not None and number <= by_number < number + rows:
            at = by_number - number
            return [Place(file=batch.file, row=batch.row + at, number=by_number)]
        ids, keys = (np.asarray(batch.data.column(name)) for name in ("sample_id", "sample_key"))
        places += [
            Place(file=batch.file, row=batch.row + int(at), number=number + int(at))
            for at in np.flatnonzero((ids == wanted) | (keys == wanted))
        ]
        number += rows
    if not places and by_number is not None and number:
        raise ConfigError(f"no row {wanted}: there are #0 to #{number - 1}, and no sample_id is {wanted!r}")
    if not places:
        raise ConfigError(
            f"no row has the sample_id or sample_key {wanted!r} (looked at {opened.num_rows} rows); "
            "#0 is the first row, and cal-inspect filter --ids lists ids"
        )
    return places


def count_rows(dataset: AnnotatedDataset) -> tuple[np.ndarray, np.ndarray]:
    """(ok [R] bool, images [R] int64) of every row, from the source where the shards do not say; reads no pixels."""
    ok, images = [np.empty(0, bool)], [np.empty(0, np.int64)]
    for batch in read_batches(dataset, ["status", IMAGE_PATHS]):
        ok.append(np.array(batch.data.column("status").to_pylist()) == STATUS_OK)
        if "images" in batch.data.schema.names:
            images.append(batch.data.column("images").value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    if "images" not in dataset.schema.names:
        for path, metadata in zip(dataset.files, dataset.metadata, strict=True):
            images.append(np.fromiter((len(sample.images) for sample in source_samples(path, metadata)), np.int64))
    return np.concatenate(ok), np.concatenate(images)


def sample_with_image(opened: AnnotatedDataset, wanted: str, image_folder: Location | None) -> NumberedRow:
    """The first row that `find_samples` gives; ConfigError where it has another number of images than one."""
    row = next(numbered_rows(opened, [find_samples(opened, wanted)[0].number], image_folder))
    if len(row.sample.images) != 1:
        raise ConfigError(f"{row.sample.sample_id} has {len(row.sample.images)} images; this is for samples with one")
    return row


def read_row(place: Place) -> pa.Table:
    """The row as a table of one; FormatError when its row group cannot be read, or it holds NaN or infinity."""
    row = place.row
    with open_shard(place.file) as file:
        for number in range(file.num_row_groups):
            size = file.metadata.row_group(number).num_rows
            if row < size:
                table = file.read_row_group(number).slice(row, 1)
                for batch in table.to_batches():
                    validate_numbers(batch, place.file, place.row)
                return table
            row -= size
    raise FormatError(f"{place.file} has no row {place.row}")


def stored_images(files: Sequence[Location], key: str) -> list[dict[str, Any]] | None:
    """Paths and bytes of the first row with this `sample_key`, which tells what its images are; None without one.

    Reads keys until it is found, and one row group.
    """
    for file in files:
        with open_shard(file) as shard:
            row = pc.index(shard.read(columns=["sample_key"]).column(0), key).as_py()
        if row >= 0:
            images: list[dict[str, Any]] | None = read_row(Place(file=file, row=row, number=row))["images"][0].as_py()
            return images
    return None


def table_of(rows: Sequence[NumberedRow]) -> pa.Table:
    """Rows with the messages that they were measured from, also where their files do not hold them."""
    schema = annotated_schema(carry="paths", extra_columns=tuple(EXTRA_COLUMNS))
    return rows_to_table([row.annotated for row in rows], schema, "paths")


def shown_tokens(
    row: pa.Table | pd.DataFrame, pieces: Pieces, *, score: Score = DEFAULT_SCORE, **weighting: Any
) -> list[ShownToken]:
    """Tokens of a table of one row."""
    flat = FlatTokens.of(row, score)
    turns = flat.turns(irregular_answers(row))
    values = zip(pieces.spelled(flat.label_ids.tolist()), flat.scores, flat.weights(**weighting), turns, strict=True)
    return [
        ShownToken(text=text, score=float(value), weight=float(weight), turn=int(turn))
        for text, value, weight, turn in values
    ]


def conversation(messages: Sequence[Turn], turns: np.ndarray) -> list[Utterance]:
    """The conversation in order: turns by their text, and measured answers by their tokens.

    `turns` [S] is the number of the answer, from 1, that each supervised token belongs to. Every token is in exactly
    one utterance, also where a row holds no messages.
    """
    said: list[Utterance] = []
    answer = shown = 0
    for turn in messages:
        answer += bool(said_by_answer(turn.role, turn.content, turn.extra))
        start, shown = shown, int(np.searchsorted(turns, answer, side="right"))
        said.append(Utterance(role=turn.role, text=turn.content, tokens=range(start, shown)))
    if shown < len(turns):
        said.append(Utterance(role="assistant", text="", tokens=range(shown, len(turns))))
    return said


def row_images(images: Sequence[ImageRef], folder: Location | None) -> Iterator[tuple[str, Image.Image | str]]:
    """(path or number, image as RGB, or why there is none) of every image of a row."""
    for number, image in enumerate(images):
        name = image.path or f"{number} ({len(image.data or b''):,} bytes, no path)"
        try:
            yield name, decode_image(read_image_file(image, folder))
        except (ImageError, ShardError) as error:
            yield name, str(error)


def image_folder_of(opened: AnnotatedDataset, file: Location, given: Location | None) -> Location | None:
    """Where a shard's image paths start: the folder given, or the one it was measured with."""
    if given is not None:
        if not given.is_dir():
            raise ConfigError(f"--image_folder {given}: no such directory")
        return given
    measured = opened.metadata[opened.files.index(file)].source.image_folder
    return None if measured is None else location(measured)


def small_jpeg(image: Image.Image, longest_side: int) -> bytes:
    """The image scaled down to a longest side and encoded anew: nothing of the original file goes along."""
    small = image.copy()
    small.thumbnail((longest_side, longest_side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=88)
    return file.getvalue()
