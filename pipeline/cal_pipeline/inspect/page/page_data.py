"""Gathers what a page shows as plain JSON values: facts, a histogram, and a card for each drawn sample."""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.page.shading import AGAINST, FOR
from cal_pipeline.inspect.tables.answers import irregular_answers
from cal_pipeline.inspect.tables.flat import LIST_COLUMNS, FlatTokens
from cal_pipeline.inspect.tables.named_rows import named_rows
from cal_pipeline.inspect.tables.reading import read_batches
from cal_pipeline.inspect.tables.samples import conversation, row_images, table_of
from cal_pipeline.inspect.tables.summary import measured_with
from cal_pipeline.inspect.tables.token_text import Pieces
from cal_pipeline.output.row_reader import NumberedRow, numbered_rows
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import IMAGE_MARK, ImageRef, Turn
from cal_schemas.storage.locations import Location

Pick = Literal["random", "first", "lowest", "highest"]
MAX_THUMBNAIL_BYTES = 32 * 1024
"""Of one image in the page, before base64."""
NUM_BINS = 60


def page_data(
    dataset: AnnotatedDataset,
    summary: Mapping[str, Any],
    pieces: Pieces | None,
    options: argparse.Namespace,
    *,
    title: str,
) -> dict[str, Any]:
    """Everything the page's script needs; `summary` is `summarise`'s, `pieces` may be None where no row has tokens.

    `options` are the flags of `cal-inspect page`.

    Reads the columns of numbers once more, for the histogram and the choice of rows, and only the chosen rows whole.
    """
    counts, means = _scan(dataset)
    chosen = choose(means, named_rows(dataset, options.ids_from), options.pick, options.samples, options.seed)
    rows = list(numbered_rows(dataset, chosen, options.image_folder))
    edges = _edges(counts, options)
    top = counts.quantile(0.995) if counts.defined else 0.0
    return {
        "title": title,
        "rows": dataset.num_rows,
        "alpha": options.alpha,
        "beta": options.beta,
        "window": options.window,
        "colours": {"for": FOR, "against": AGAINST},
        "sliderMax": float(np.ceil(max(10.0, options.beta, top))),
        "facts": facts(summary, options),
        "settings": measured_with(summary),
        "histogram": {"edges": [round(float(edge), 6) for edge in edges], "counts": counts.histogram(edges).tolist()},
        "turns": [{"name": name, "mean": values["mean"]} for name, values in summary["turns"].items()],
        "samples": samples_data(rows, pieces, options),
    }


def _scan(dataset: AnnotatedDataset) -> tuple[DeltaCounts, np.ndarray]:
    """Counts of all deltas, and the mean delta of every row [R] float32, NaN where none is defined."""
    counts, means = DeltaCounts(), [np.empty(0, np.float32)]
    for batch in read_batches(dataset, LIST_COLUMNS):
        flat = FlatTokens.of(batch.data)
        counts.add(flat.deltas)
        means.append(flat.mean(flat.deltas).astype(np.float32))
    return counts, np.concatenate(means)


def choose(means: np.ndarray, named: np.ndarray, pick: Pick, count: int, seed: int) -> np.ndarray:
    """Row numbers, ascending, of those `named` [R] bool: `lowest` and `highest` of those with a mean delta."""
    rows = np.flatnonzero(named)
    if pick == "random":
        chosen = np.random.default_rng(seed).permutation(rows)[:count]
    elif pick == "first":
        chosen = rows[:count]
    else:
        defined = rows[~np.isnan(means[rows])]
        order = np.argsort(means[defined] * (1 if pick == "lowest" else -1), kind="stable")
        chosen = defined[order][:count]
    return np.sort(chosen)


def _edges(counts: DeltaCounts, options: argparse.Namespace) -> np.ndarray:
    """Of equal bins, with 0 between two of them."""
    low = min(-1.0, counts.quantile(0.005)) if counts.defined else -1.0
    high = max(options.beta + 1.0, counts.quantile(0.995)) if counts.defined else options.beta + 1.0
    width = float(np.ceil(high) - np.floor(low)) / NUM_BINS
    return np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width


def facts(summary: Mapping[str, Any], options: argparse.Namespace) -> list[tuple[str, str]]:
    """Name and value of every fact in the page's head."""
    delta = summary["delta"]

    def formatted(name: str, form: str) -> str:
        return "-" if delta[name] is None else format(delta[name], form)

    named = [("rows", f"{summary['rows']:,} in {flags.counted(summary['files'], 'file')}")]
    named += [(f"status {name}", f"{count:,}") for name, count in summary["statuses"].items()]
    if summary["images"] is not None:
        named += [("images", f"{summary['images']:,}"), ("text-only rows", f"{summary['text_only_rows']:,}")]
    named += [
        ("supervised tokens", f"{summary['tokens']:,}"),
        *([("undefined deltas", f"{summary['undefined']:,}")] if summary["undefined"] else []),
        ("mean delta", formatted("mean", ".2f")),
        ("10%, 50%, 90% quantile", ", ".join(formatted(name, ".2f") for name in ("q10", "q50", "q90"))),
        ("deltas below 0", formatted("share_negative", ".1%")),
        (f"deltas below {options.alpha:g}", formatted("share_below_alpha", ".1%")),
        (f"deltas below {options.beta:g}", formatted("share_below_beta", ".1%")),
    ]
    return named


def samples_data(
    rows: Sequence[NumberedRow], pieces: Pieces | None, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One card for each row; `weights` are those of the page's first alpha, beta and window, span pooling."""
    table = table_of(rows)
    flat = FlatTokens.of(table)
    weights = flat.weights(alpha=options.alpha, beta=options.beta, window=options.window)
    turns = flat.turns(irregular_answers(table))
    cards = []
    stop = 0
    for row, length in zip(rows, flat.lengths.tolist(), strict=True):
        own = slice(stop, stop := stop + length)
        ids = flat.label_ids[own].tolist()
        assert pieces is not None or not ids
        special = [at for at, token in enumerate(ids) if pieces is not None and pieces.is_special(token)]
        cards.append(
            {
                "id": row.sample.sample_id,
                "row": row.number,
                "status": row.annotated.status,
                "error": row.annotated.error,
                "images": [thumbnail(image, row.image_folder, options.thumbnail_px) for image in row.sample.images],
                "tokens": [] if pieces is None else pieces.spelled(ids),
                "special": special,
                "deltas": [None if np.isnan(delta) else round(float(delta), 5) for delta in flat.deltas[own]],
                "weights": [round(float(weight), 5) for weight in weights[own]],
                "spans": np.flatnonzero(flat.starts[own]).tolist(),
                "turns": turn_parts(row.sample.messages or (), turns[own]),
            }
        )
    return cards


def turn_parts(messages: Sequence[Turn], turns: np.ndarray) -> list[dict[str, Any]]:
    """A `conversation`, turns with their text and measured answers as a range of tokens."""
    return [
        {"role": said.role, "from": said.tokens.start, "to": said.tokens.stop}
        if said.tokens
        else {"role": said.role, "text": said.text.replace(IMAGE_MARK, "[image]")}
        for said in conversation(messages, turns)
    ]


def thumbnail(image: ImageRef, image_folder: Location | None, side_px: int) -> dict[str, str]:
    """`{"uri": data URI}` of a small JPEG or PNG made anew, or `{"problem": why there is none}`.

    At most MAX_THUMBNAIL_BYTES and `side_px` on its longer side, less where the bytes demand it.
    """
    ((_, decoded),) = row_images([image], image_folder)
    if isinstance(decoded, str):
        return {"problem": decoded}
    while True:
        decoded.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
        for kind, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": 85}), ("JPEG", {"quality": 60})):
            # PNG is exact and small for drawings; a photograph is a JPEG.
            file = io.BytesIO()
            decoded.save(file, kind, **options)
            limit = MAX_THUMBNAIL_BYTES // 2 if kind == "PNG" else MAX_THUMBNAIL_BYTES
            if file.tell() <= limit:
                data = base64.b64encode(file.getvalue()).decode()
                return {"uri": f"data:image/{kind.lower()};base64,{data}"}
        side_px //= 2
