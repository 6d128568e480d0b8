"""Gathers what a page shows as plain JSON values: facts, a histogram, and a card for each drawn sample."""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cal_pipeline.inspect.page.audit_result import swap_words
from cal_pipeline.inspect.page.chosen_rows import ChosenRows, Order
from cal_pipeline.inspect.page.page_tables import TOP_TOKENS, page_tables
from cal_pipeline.inspect.page.shading import AGAINST, FOR
from cal_pipeline.inspect.tables.answers import irregular_answers
from cal_pipeline.inspect.tables.flat import FlatTokens
from cal_pipeline.inspect.tables.measured_batches import count_all
from cal_pipeline.inspect.tables.named_rows import named_rows
from cal_pipeline.inspect.tables.row_groups import RowGroups
from cal_pipeline.inspect.tables.samples import conversation, row_images, table_of
from cal_pipeline.inspect.tables.statistics import sample_columns
from cal_pipeline.inspect.tables.summary import SummaryCounts, measured_with
from cal_pipeline.inspect.tables.token_statistics import TokenStatistics
from cal_pipeline.inspect.tables.token_text import Pieces, pieces_of_measurement
from cal_pipeline.output.row_reader import NumberedRow, numbered_rows
from cal_schemas.counted import counted
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import IMAGE_MARK, ImageRef, Turn
from cal_schemas.storage.locations import Location

MAX_THUMBNAIL_BYTES = 32 * 1024
"""Of one image in the page, before base64."""
NUM_BINS = 60
NUMBERS = ("tokens", "mean_delta", "min_delta", "max_delta", "share_negative")
"""Of SAMPLE_COLUMNS, those that do not depend on alpha, beta and window."""


def page_data(
    dataset: AnnotatedDataset, options: argparse.Namespace, *, title: str, audit: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Everything the page's script needs; `options` are the flags of `cal-inspect page`, `audit` is `find_audit`'s.

    Reads the numbers of all rows once, and then only the chosen rows whole. Raises ConfigError where the tokenizer that
    spells them is not found.
    """
    weighting = {"alpha": options.alpha, "beta": options.beta, "window": options.window, "pool": "span"}
    totals = SummaryCounts(dataset, alpha=options.alpha, beta=options.beta)
    groups, tokens = RowGroups(dataset), TokenStatistics(TOP_TOKENS)
    chosen = ChosenRows(named_rows(dataset, options.ids_from), options.pick, options.samples, options.seed)
    count_all(dataset, [totals, groups, tokens, chosen], **weighting)
    summary = totals.values()
    pieces = pieces_of_measurement(dataset, options.tokenizer) if summary["tokens"] else None
    why = chosen.why()
    rows = list(numbered_rows(dataset, list(why), options.image_folder))
    edges = _edges(totals.deltas, options)
    return {
        "title": title,
        "rows": dataset.num_rows,
        "alpha": options.alpha,
        "beta": options.beta,
        "window": options.window,
        "colours": {"for": FOR, "against": AGAINST},
        "sliderMax": float(
            np.ceil(max(10.0, options.beta, totals.deltas.quantile(0.995) if summary["tokens"] else 0.0))
        ),
        "facts": facts(summary, options),
        "audit": swap_words(audit),
        "settings": measured_with(summary),
        "histogram": {
            "edges": [round(float(edge), 6) for edge in edges],
            "counts": totals.deltas.histogram(edges).tolist(),
        },
        "tables": page_tables(summary, groups.by_status, groups.by_source, tokens, pieces),
        "leading": _leading(chosen, why),
        "filter": {
            "annotated": [str(place) for place in options.annotated],
            "ids_from": None if options.ids_from is None else str(options.ids_from),
            "source": "source" in dataset.schema.names,
        },
        "samples": samples_data(rows, why, pieces, options, source_of_rows(dataset, list(why))),
    }


def source_of_rows(dataset: AnnotatedDataset, rows: Sequence[int]) -> list[str]:
    """What the shards of these rows were measured from."""
    files = np.searchsorted(np.cumsum(dataset.rows), rows, side="right")
    return [dataset.metadata[file].source.data_path for file in files]


def _leading(chosen: ChosenRows, why: Mapping[int, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Of the orders that go through the whole data set: how many of the first rows are here, and up to which delta."""
    orders: Mapping[str, tuple[Order, int]] = {"min": ("word", 1), "mean": ("lowest", 1), "-mean": ("highest", -1)}
    found = {}
    for name, (order, sign) in orders.items():
        count = chosen.leading(order, why)
        last = chosen.limit(order, count)
        found[name] = {"count": count, "last": None if last is None else sign * last}
    return found


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

    named = [("rows", f"{summary['rows']:,} in {counted(summary['files'], 'file')}")]
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
    rows: Sequence[NumberedRow],
    why: Mapping[int, Sequence[str]],
    pieces: Pieces | None,
    options: argparse.Namespace,
    sources: Sequence[str],
) -> list[dict[str, Any]]:
    """One card for each row; `weights` are those of the page's first alpha, beta and window, span pooling.

    `numbers` are SAMPLE_COLUMNS that do not depend on these, as exact as conditions of `cal-inspect filter` have them.
    """
    table = table_of(rows)
    flat = FlatTokens.of(table)
    weights = flat.weights(alpha=options.alpha, beta=options.beta, window=options.window)
    turns = flat.turns(irregular_answers(table))
    values = sample_columns(flat, turns, alpha=options.alpha, beta=options.beta, window=options.window, pool="span")
    cards = []
    stop = 0
    for at, (row, length) in enumerate(zip(rows, flat.lengths.tolist(), strict=True)):
        own = slice(stop, stop := stop + length)
        ids = flat.label_ids[own].tolist()
        assert pieces is not None or not ids
        special = [place for place, token in enumerate(ids) if pieces is not None and pieces.is_special(token)]
        cards.append(
            {
                "id": row.sample.sample_id,
                "key": row.annotated.sample_key,
                "row": row.number,
                "why": why[row.number],
                "source": row.annotated.source or sources[at],
                "numbers": {name: None if np.isnan(values[name][at]) else values[name][at].item() for name in NUMBERS},
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
