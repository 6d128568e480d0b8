"""Reads a row as it is shown: its images, its conversation, and its tokens with deltas and weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cal_pipeline.inspect.tables.samples import (
    Place,
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
from cal_schemas.storage.locations import Location


class ShownSample:
    """A row with all that is shown of it, where its samples can still be found.

    Args:
        opened: what the row is in.
        place: where.
        tokenizer: see `pieces_of_measurement`.
        image_folder: where image paths start, if not where they did.
        weighting: alpha, beta, window and pool.
    """

    def __init__(
        self,
        opened: AnnotatedDataset,
        place: Place,
        *,
        tokenizer: str | None,
        image_folder: Location | None,
        **weighting: object,
    ) -> None:
        table = read_row(place)
        self.sample_id, key, self._status, self._error = (
            table[name][0].as_py() for name in ("sample_id", "sample_key", "status", "error")
        )
        self.heading = f"{self.sample_id}  (row {place.row} of {place.file}, key {key})"
        pieces = pieces_of_measurement(opened, tokenizer) if self._status == STATUS_OK else None
        folder = image_folder_of(opened, place.file, image_folder)
        messages: Sequence[Turn] | None = None
        self.images: list[tuple[str, Image.Image | str]] = []
        self.missing = ""
        """Why words and images cannot be shown: they are in the source of a sidecar, and that is gone."""
        try:
            (row,) = numbered_rows(opened, [place.number], folder)
        except ConfigError as error:
            self.missing = str(error)
        else:
            table, messages = table_of([row]), row.sample.messages or ()
            self.images = list(row_images(row.sample.images, folder))
        self.tokens = shown_tokens(table, pieces, **weighting) if pieces else []
        turns = np.array([token.turn for token in self.tokens], int)
        if messages is None:  # One turn for each answer that was measured.
            messages = [Turn(role="assistant", content="?")] * turns.max(initial=0)
        self.turns = conversation(messages, turns)

    def numbers(self) -> str:
        """Its tokens in one line, or why it has none."""
        if not self.tokens:
            return f"{self._status}: {self._error}"
        deltas = np.array([token.delta for token in self.tokens])
        defined = deltas[~np.isnan(deltas)]
        figures = "all undefined" if not len(defined) else (
            f"mean {defined.mean():.2f}, min {defined.min():.2f}, max {defined.max():.2f}, "
            f"{(defined < 0).mean():.0%} negative"
        )  # fmt: skip
        note = f"; {self._error}" if self._error else ""
        return f"{len(deltas)} tokens, {len(deltas) - len(defined)} undefined; delta {figures}{note}"
