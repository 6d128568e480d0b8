"""Reads a row as it is shown: its images, its conversation, and its tokens with scores and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cal_pipeline.inspect.tables.flat import noun, number_form
from cal_pipeline.inspect.tables.samples import (
    Place,
    ShownToken,
    Utterance,
    conversation,
    image_folder_of,
    read_row,
    row_images,
    shown_tokens,
    table_of,
)
from cal_pipeline.inspect.tables.token_text import pieces_of_measurement
from cal_pipeline.output.row_reader import numbered_rows
from cal_schemas.errors import STATUS_OK, ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import Turn
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score
from cal_schemas.storage.locations import Location


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownSample:
    """A row with all that is shown of it."""

    sample_id: str
    heading: str
    status: str
    error: str | None
    turns: Sequence[Utterance]
    tokens: Sequence[ShownToken]
    """Supervised ones; none where the row has no deltas."""
    images: Sequence[tuple[str, Image.Image | str]]
    """Names and images, or why there is none."""
    score: Score = DEFAULT_SCORE
    """Of the tokens."""
    missing: str = ""
    """Why words and images cannot be shown: the source of a sidecar is gone, or a frame has them by other names."""

    def numbers(self) -> str:
        """Its tokens in one line, or why it has none."""
        if not self.tokens:
            return f"{self.status}: {self.error}"
        scores = np.array([token.score for token in self.tokens])
        defined = scores[~np.isnan(scores)]
        form = number_form(self.score)
        negative = f", {(defined < 0).mean():.0%} negative" if SCORES[self.score].signed else ""
        figures = "all undefined" if not len(defined) else (
            f"mean {defined.mean():{form}}, min {defined.min():{form}}, max {defined.max():{form}}{negative}"
        )  # fmt: skip
        note = f"; {self.error}" if self.error else ""
        return f"{len(scores)} tokens, {len(scores) - len(defined)} undefined; {noun(self.score)} {figures}{note}"


def shown_sample(
    opened: AnnotatedDataset,
    place: Place,
    *,
    tokenizer: str | None,
    image_folder: Location | None,
    score: Score = DEFAULT_SCORE,
    **weighting: object,
) -> ShownSample:
    """The row at a place, with its sample where that can still be found.

    `tokenizer` as `pieces_of_measurement` takes it; `image_folder` is where image paths start, if not where they did;
    `weighting` is map, alpha, beta, window and pool.
    """
    table = read_row(place)
    sample_id, key, status, error = (table[name][0].as_py() for name in ("sample_id", "sample_key", "status", "error"))
    pieces = pieces_of_measurement(opened, tokenizer) if status == STATUS_OK else None
    folder = image_folder_of(opened, place.file, image_folder)
    messages: Sequence[Turn] | None = None
    images: list[tuple[str, Image.Image | str]] = []
    missing = ""
    try:
        (row,) = numbered_rows(opened, [place.number], folder, SCORES[score].cached)
    except ConfigError as reason:
        missing = str(reason)
    else:
        table, messages = table_of([row]), row.sample.messages or ()
        images = list(row_images(row.sample.images, folder))
    tokens = shown_tokens(table, pieces, score=score, **weighting) if pieces else []
    heading = f"{sample_id}  (row {place.row} of {place.file}, key {key})"
    return ShownSample(
        sample_id=sample_id, heading=heading, status=status, error=error, turns=turns_of(messages, tokens),
        tokens=tokens, images=images, score=score, missing=missing,
    )  # fmt: skip


def turns_of(messages: Sequence[Turn] | None, tokens: Sequence[ShownToken]) -> list[Utterance]:
    """The conversation with its tokens; without messages one turn for each answer that was measured."""
    turns = np.array([token.turn for token in tokens], int)
    if messages is None:
        messages = [Turn(role="assistant", content="?")] * turns.max(initial=0)
    return conversation(messages, turns)
