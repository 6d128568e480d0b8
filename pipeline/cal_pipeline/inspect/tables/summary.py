"""Summarises annotated shards: counts by status, quantiles of a score, the score by turn, bytes per token.

Reads one batch of rows after the other: memory does not grow with the rows. Everything is exact up to a million tokens;
quantiles of more are right to 1 part in 4096 (by turn 1 in 1024), all else stays exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.compute as pc

from cal_pipeline.inspect.tables.answers import ANSWER_COLUMNS
from cal_pipeline.inspect.tables.flat import noun
from cal_pipeline.inspect.tables.measured_batches import MeasuredBatch, count_all
from cal_pipeline.inspect.tables.reading import IMAGE_PATHS
from cal_pipeline.inspect.tables.statistics import bounds_scores
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.errors import STATUS_OK
from cal_schemas.maps import Map
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.ragged import ragged_weighting
from cal_schemas.scores import DEFAULT_SCORE, Score
from cal_schemas.storage.locations import read_footer
from cal_schemas.token_columns import TOKEN_COLUMNS

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
MAX_TURNS = 20
"""Later turns are counted together."""


class SummaryCounts:
    """What `summarise` counts; `values` gives it.

    Args:
        opened: the shards.
        alpha: of the weights, and under map clamp a border whose share is counted.
        beta: the same.
        score: what is counted.
        map: of the weights.
    """

    # Messages tell which spans belong to one answer; most rows never need them, but only they know.
    columns = ("status", "num_tokens", IMAGE_PATHS, *ANSWER_COLUMNS)

    def __init__(
        self,
        opened: AnnotatedDataset,
        *,
        alpha: float,
        beta: float,
        score: Score = DEFAULT_SCORE,
        map: Map | str = "clamp",  # noqa: A002 - as the flag
    ) -> None:
        self._opened, self._alpha, self._beta, self._score, self._map = opened, alpha, beta, score, map
        self._borders = (0.0, alpha, beta) if bounds_scores(map) else (0.0,)
        self.scores = DeltaCounts(below=self._borders)
        """Of all tokens."""
        self._by_turn: dict[int, DeltaCounts] = {}
        of_samples = (f"mean_{noun(score)}", f"min_{noun(score)}", "share_negative", "mean_weight")
        self._by_sample = {name: DeltaCounts() for name in of_samples}
        self._statuses: Counter[str] = Counter()
        self._images = self._text_only = self._encoded = 0

    def add(self, batch: MeasuredBatch) -> None:
        """Counts the rows of a batch."""
        data, flat = batch.data, batch.flat
        for item in pc.value_counts(data.column("status")).to_pylist():
            self._statuses[item["values"]] += item["counts"]
        ok = pc.equal(data.column("status"), STATUS_OK)
        self._encoded += pc.sum(pc.filter(data.column("num_tokens"), ok)).as_py() or 0
        if "images" in data.schema.names:
            counts = np.asarray(pc.list_value_length(data.column("images")))
            self._images += int(counts.sum())
            self._text_only += int(((counts == 0) & (flat.lengths > 0)).sum())
        for name, counted in self._by_sample.items():
            counted.add(batch.samples[name].astype(np.float32))
        turns = np.minimum(batch.turns, MAX_TURNS)
        self.scores.add(flat.scores)
        for turn in np.unique(turns):
            counted = self._by_turn.setdefault(int(turn), DeltaCounts(bits=18, below=self._borders))
            counted.add(flat.scores[turns == turn])

    def values(self) -> dict[str, Any]:
        """Plain values as `--json` prints them, null where nothing is defined."""
        opened, total = self._opened, self.scores
        tokens = total.defined + total.undefined
        carried = "images" in opened.schema.names
        return {
            "files": len(opened.files),
            "rows": opened.num_rows,
            "not_whole": opened.completeness.problem,
            "statuses": dict(sorted(self._statuses.items(), key=lambda item: (item[0] != STATUS_OK, -item[1]))),
            "images": self._images if carried else None,
            "text_only_rows": self._text_only if carried else None,
            "tokens": tokens,
            "encoded_tokens": self._encoded,
            "undefined": total.undefined,
            "score": self._score,
            "map": str(self._map),
            "alpha": self._alpha,
            "beta": None if self._beta == float("inf") else self._beta,
            noun(self._score): _described(total, self._borders),
            "turns": {
                f"{turn}{'+' if turn == MAX_TURNS else ''}": _described(counts, self._borders)
                for turn, counts in sorted(self._by_turn.items())
            },
            "samples": {name: _quantiles(counts) for name, counts in self._by_sample.items()},
            "bytes": bytes_on_disk(opened, tokens),
            "spec": asdict(opened.spec),
            "fingerprint": opened.spec.fingerprint(),
            "sources": sorted({item.source.data_path for item in opened.metadata}),
            "carry": sorted({item.carry for item in opened.metadata}),
        }


def summarise(opened: AnnotatedDataset, **weighting: Any) -> dict[str, Any]:
    """One pass over the rows; a dict of plain values as `--json` prints it, null where nothing is defined.

    `weighting` is score, map, alpha, beta, window and pool; CAL's where left out.
    """
    weighting = ragged_weighting(**weighting)
    counts = SummaryCounts(opened, **{name: weighting[name] for name in ("alpha", "beta", "score", "map")})
    count_all(opened, [counts], **weighting)
    return counts.values()


def _described(counts: DeltaCounts, borders: tuple[float, ...]) -> dict[str, Any]:
    shares = zip(("share_negative", "share_below_alpha", "share_below_beta"), borders, strict=False)
    values: dict[str, Any] = {
        "tokens": counts.defined,
        "mean": counts.mean,
        "std": counts.std,
        "min": counts.min,
        "max": counts.max,
        **{name: counts.share_below(border) for name, border in shares},
    }
    return {**{name: None if value != value else value for name, value in values.items()}, **_quantiles(counts)}


def _quantiles(counts: DeltaCounts) -> dict[str, float | None]:
    return {
        f"q{share:.0%}".rstrip("%"): None if value != value else value
        for share, value in zip(QUANTILES, counts.quantiles(QUANTILES), strict=True)
    }


def bytes_on_disk(opened: AnnotatedDataset, tokens: int) -> dict[str, Any]:
    """Compressed bytes of the token columns, of the images, and of the files, from the footers alone."""
    by_column: Counter[str] = Counter()
    for path in opened.files:
        footer = read_footer(path)
        for group in range(footer.num_row_groups):
            row_group = footer.row_group(group)
            for number in range(row_group.num_columns):
                column = row_group.column(number)
                by_column[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    of_tokens = sum(by_column[name] for name in TOKEN_COLUMNS)
    return {
        "files": sum(path.stat().st_size for path in opened.files),
        "images": by_column["images"],
        "token_columns": of_tokens,
        "per_token": of_tokens / tokens if tokens else None,
    }


def measured_with(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of everything that the deltas depend on, and where the rows are from."""
    spec = summary["spec"]
    label, inputs = spec["label"], spec["input"]
    quantized = f", {spec['quantization']} weights" if spec["quantization"] else ""
    contrast = [
        f"{name} {value}" for name, value in spec["contrast"].items() if name != "condition" and value is not None
    ]
    return [
        ("reference", spec["model_id"] + (f" at {spec['revision']}" if spec["revision"] else "")),
        ("weights", spec["weights_digest"]),
        ("precision", f"{spec['dtype']}{quantized}, {spec['attn_implementation']} attention"),
        ("saw the data", spec["reference_saw_data"]),
        ("without image", ", ".join([spec["contrast"]["condition"], *contrast])),
        ("template", f"{label['template']}, message normalization {label['message_normalization']}"
                     + (f", at {label['date']}" if label.get("date") else "")),
        ("tokenizer", label["tokenizer_digest"]),
        ("chat template", label["chat_template_digest"]),
        ("image input", f"{inputs['image_processor']} ({inputs['image_processor_backend']}), aspect ratio "
                        f"{inputs['image_aspect_ratio']}, digest {inputs['image_processor_digest']}"),
        ("length", f"at most {inputs['max_length']} tokens, truncation {inputs['truncation']}"),
        ("fingerprint", summary["fingerprint"]),
        ("carried", ", ".join(summary["carry"])),
        ("from", ", ".join(summary["sources"])),
    ]  # fmt: skip
