"""Writes the labelling sheet: random samples for people to mark those whose text contradicts the image (CAL, Fig. 1b).

sheet.csv and images/ go to the people; measured.csv, with the scores, stays with whoever asks.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cal_pipeline.inspect.progress import shown_progress
from cal_pipeline.inspect.tables.named_rows import named_rows
from cal_pipeline.inspect.tables.samples import Place, count_rows, image_folder_of, read_row, row_images, small_jpeg
from cal_pipeline.inspect.tables.statistics import computed_columns
from cal_schemas.annotated import rows_from_batch
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import ImageRef, Turn
from cal_schemas.storage.locations import Location

KEY_COLUMN, MARK_COLUMN = "key", "contradictory"
KEY_PREFIX = "k"
"""Before the sample_key: a spreadsheet would read some digests as numbers."""
MEASURED = "measured.csv"
SCORES = {"mean_delta": -1, "min_delta": -1, "share_negative": 1, "visual_dependence": -1}
"""What is scored, and whether a contradictory sample should have more (1) or less (-1) of it."""
SHEET = "sheet.csv"
_LONGEST_SIDE = 1024


def write_sheet(opened: AnnotatedDataset, folder: Path, arguments: argparse.Namespace) -> str:
    """Writes the sheet, its images and the scores; says how many rows there are."""
    (folder / "images").mkdir()
    with (
        # The mark in front tells a spreadsheet that this is UTF-8.
        (folder / SHEET).open("w", encoding="utf-8-sig", newline="") as sheet,
        (folder / MEASURED).open("w", encoding="utf-8", newline="") as measured,
        shown_progress("samples drawn", arguments.num_samples) as advance,
    ):
        sheet_rows, measured_rows = csv.writer(sheet), csv.writer(measured)
        sheet_rows.writerow(["number", KEY_COLUMN, "image", "question", "answer", MARK_COLUMN, "remark"])
        measured_rows.writerow([KEY_COLUMN, "sample_id", *SCORES])
        seen: set[str] = set()
        for place in _drawn(opened, arguments.ids_from, arguments.seed):
            if len(seen) == arguments.num_samples:
                break
            (batch,) = read_row(place).combine_chunks().to_batches()
            (row,) = rows_from_batch(batch)
            if row.sample_key in seen:  # An equal sample is on the sheet already.
                continue
            seen.add(row.sample_key)
            advance(1)
            number = len(seen)
            values = computed_columns(batch, SCORES, **arguments.weighting)
            image_folder = image_folder_of(opened, place.file, arguments.image_folder)
            names = _write_images(row.sample.images, image_folder, folder, number)
            texts = [_said(row.sample.messages or (), role) for role in ("user", "assistant")]
            key = KEY_PREFIX + row.sample_key
            sheet_rows.writerow([number, key, names, *map(guarded, texts), "", ""])
            measured_rows.writerow([key, guarded(row.sample.sample_id), *(f"{values[name][0]:.6g}" for name in SCORES)])
    return (
        f"{len(seen)} samples in {SHEET}, for people to write yes or no into {MARK_COLUMN!r}; keep {MEASURED} from "
        f"them, then: cal-inspect agreement {arguments.output / SHEET}"
    )


def _drawn(opened: AnnotatedDataset, ids_from: Path | None, seed: int) -> Iterator[Place]:
    """All rows that are ok and show an image, in random order."""
    ok, num_images = count_rows(opened)
    rows = np.flatnonzero(ok & (num_images > 0) & named_rows(opened, ids_from))
    if not len(rows):
        raise ConfigError(f"none of the {opened.num_rows} rows is ok and shows an image: there is nothing to mark")
    stops = np.cumsum(opened.rows)
    for row in np.random.default_rng(seed).permutation(rows).tolist():
        at = int(np.searchsorted(stops, row, side="right"))
        yield Place(file=opened.files[at], row=row - (int(stops[at - 1]) if at else 0), number=row)


def _write_images(images: Sequence[ImageRef], image_folder: Location | None, folder: Path, number: int) -> str:
    names = []
    for at, (_, image) in enumerate(row_images(images, image_folder), start=1):
        if isinstance(image, str):
            names.append(f"({image})")
            continue
        name = f"images/{number:04d}-{at}.jpg"
        (folder / name).write_bytes(small_jpeg(image, _LONGEST_SIDE))
        names.append(name)
    return " ".join(names)


def _said(messages: Sequence[Turn], role: str) -> str:
    return "\n---\n".join(turn.content.replace("<image>", "").strip() for turn in messages if turn.role == role)


def guarded(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
