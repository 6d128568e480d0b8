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
from cal_pipeline.inspect.tables.flat import FlatTokens, noun, number_form
from cal_pipeline.inspect.tables.measured_batches import count_all
from cal_pipeline.inspect.tables.named_rows import named_rows
from cal_pipeline.inspect.tables.row_groups import RowGroups
from cal_pipeline.inspect.tables.samples import conversation, row_images, table_of
from cal_pipeline.inspect.tables.statistics import bounds_scores, sample_columns
from cal_pipeline.inspect.tables.summary import SummaryCounts, measured_with
from cal_pipeline.inspect.tables.token_statistics import TokenStatistics
from cal_pipeline.inspect.tables.token_text import Pieces, pieces_of_measurement
from cal_pipeline.output.row_reader import NumberedRow, numbered_rows
from cal_schemas.counted import counted
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import IMAGE_MARK, ImageRef, Turn
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score
from cal_schemas.storage.locations import Location

MAX_THUMBNAIL_BYTES = 32 * 1024
"""Of one image in the page, before base64."""
NUM_BINS = 60


def page_data(
    dataset: AnnotatedDataset,
    options: argparse.Namespace,
    weighting: Mapping[str, Any],
    *,
    title: str,
    audit: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything the page's script needs; `options` are the flags of `cal-inspect page`, `audit` is `find_audit`'s.

    `weighting` is `weighting_of` the options.

    Reads the numbers of all rows once, and then only the chosen rows whole. Raises ConfigError where the tokenizer that
    spells them is not found.
    """
    score: Score = weighting["score"]
    totals = SummaryCounts(dataset, **{name: weighting[name] for name in ("alpha", "beta", "score", "map")})
    groups, tokens = RowGroups(dataset), TokenStatistics(TOP_TOKENS)
    chosen = ChosenRows(named_rows(dataset, options.ids_from), options.pick, options.samples, options.seed)
    count_all(dataset, [totals, groups, tokens, chosen], **weighting)
    summary = totals.values()
    pieces = pieces_of_measurement(dataset, options.tokenizer) if summary["tokens"] else None
    why = chosen.why()
    rows = list(numbered_rows(dataset, list(why), options.image_folder, SCORES[score].cached))
    of_clamp = bounds_scores(weighting["map"])
    edges = _edges(totals.scores, weighting["beta"] if of_clamp else None)
    samples = samples_data(rows, why, pieces, options, weighting, source_of_rows(dataset, list(why)))
    weights = [weight for sample in samples for weight in sample["weights"]]
    return {
        "title": title,
        "rows": dataset.num_rows,
        "score": said_of(score),
        "map": str(weighting["map"]),
        "live": of_clamp,
        "alpha": weighting["alpha"],
        # What weighs most where nothing bounds it.
        "beta": weighting["beta"] if np.isfinite(weighting["beta"]) else max([weighting["alpha"] + 1.0, *weights]),
        "window": weighting["window"],
        "full": None if of_clamp else _largest(totals.scores),
        "colours": {"for": FOR, "against": AGAINST},
        "sliderMax": _slider_end(totals.scores, weighting["beta"]) if of_clamp else None,
        "facts": facts(summary, weighting),
        "audit": swap_words(audit),
        "settings": measured_with(summary),
        "histogram": {
            "edges": [round(float(edge), 6) for edge in edges],
            "counts": totals.scores.histogram(edges).tolist(),
        },
        "tables": page_tables(summary, groups.by_status, groups.by_source, tokens, pieces),
        "leading": _leading(chosen, why),
        "filter": {
            "annotated": [str(place) for place in options.annotated],
            "ids_from": None if options.ids_from is None else str(options.ids_from),
            "source": "source" in dataset.schema.names,
        },
        "samples": samples,
    }


def said_of(score: Score) -> dict[str, Any]:
    """What the page calls the score and says of it."""
    definition, name = SCORES[score], noun(score)
    lead = (
        "Delta is what the image adds to a token: its logit with the image minus its logit without. "
        if score == DEFAULT_SCORE
        else f"{name} = {definition.equation}{f' ({definition.unit})' if definition.unit else ''}. "
    )
    return {
        "name": score,
        "noun": name,
        "plural": "deltas" if score == DEFAULT_SCORE else name,
        "unit": definition.unit,
        "signed": definition.signed,
        "lead": lead + ("Below 0 the image speaks against the word." if definition.signed else ""),
    }


def _largest(counts: DeltaCounts) -> float:
    """What has full strength where no bound says: 99.5 % of the scores are no further from 0."""
    return max(map(abs, counts.quantiles([0.005, 0.995]))) or 1.0 if counts.defined else 1.0


def _slider_end(counts: DeltaCounts, beta: float) -> float:
    return float(np.ceil(max(10.0, beta, counts.quantile(0.995) if counts.defined else 0.0)))


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


def _edges(counts: DeltaCounts, beta: float | None) -> np.ndarray:
    """Of equal bins, with 0 between two of them; `beta` is None where it bounds something else."""
    low, high = counts.quantiles([0.005, 0.995]) if counts.defined else (0.0, 0.0)
    if beta is None:
        low, high = min(0.0, low), max(0.0, high)
        width = (high - low or 1.0) / NUM_BINS
    else:
        low, high = min(-1.0, low), max(beta + 1.0, high)
        width = float(np.ceil(high) - np.floor(low)) / NUM_BINS
    return np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width


def facts(summary: Mapping[str, Any], weighting: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of every fact in the page's head."""
    name = noun(summary["score"])
    of_all, plural = summary[name], "deltas" if name == "delta" else name

    def formatted(name: str, form: str = number_form(summary["score"])) -> str:
        return "-" if of_all[name] is None else format(of_all[name], form)

    named = [("rows", f"{summary['rows']:,} in {counted(summary['files'], 'file')}")]
    named += [(f"status {name}", f"{count:,}") for name, count in summary["statuses"].items()]
    if summary["images"] is not None:
        named += [("images", f"{summary['images']:,}"), ("text-only rows", f"{summary['text_only_rows']:,}")]
    named += [
        ("supervised tokens", f"{summary['tokens']:,}"),
        *([(f"undefined {plural}", f"{summary['undefined']:,}")] if summary["undefined"] else []),
        (f"mean {name}", formatted("mean")),
        ("10%, 50%, 90% quantile", ", ".join(formatted(name) for name in ("q10", "q50", "q90"))),
        (f"{plural} below 0", formatted("share_negative", ".1%")),
    ]
    if bounds_scores(weighting["map"]):
        named += [
            (f"{plural} below {weighting['alpha']:g}", formatted("share_below_alpha", ".1%")),
            (f"{plural} below {weighting['beta']:g}", formatted("share_below_beta", ".1%")),
        ]
    return named


def samples_data(
    rows: Sequence[NumberedRow],
    why: Mapping[int, Sequence[str]],
    pieces: Pieces | None,
    options: argparse.Namespace,
    weighting: Mapping[str, Any],
    sources: Sequence[str],
) -> list[dict[str, Any]]:
    """One card for each row; `weights` are those of the page's first alpha, beta and window, span pooling.

    `numbers` are sample columns that do not depend on these, as exact as conditions of `cal-inspect filter` have them.
    """
    table = table_of(rows)
    of_weights = {name: value for name, value in weighting.items() if name != "score"}
    flat = FlatTokens.of(table, weighting["score"])
    weights = flat.weights(**of_weights)
    turns = flat.turns(irregular_answers(table))
    values = sample_columns(flat, turns, **of_weights)
    name = noun(flat.score)
    numbers = ("tokens", f"mean_{name}", f"min_{name}", f"max_{name}", "share_negative")
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
                "numbers": {name: None if np.isnan(values[name][at]) else values[name][at].item() for name in numbers},
                "status": row.annotated.status,
                "error": row.annotated.error,
                "images": [thumbnail(image, row.image_folder, options.thumbnail_px) for image in row.sample.images],
                "tokens": [] if pieces is None else pieces.spelled(ids),
                "special": special,
                "scores": [None if np.isnan(score) else round(float(score), 5) for score in flat.scores[own]],
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
