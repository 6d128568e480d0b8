"""Sorts deltas by kind of word: a row per token, a table per kind, a histogram.

Reads what `cal-precompute` wrote of the world of shapes; needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from cal_pipeline.inspect.tables.statistics import auc

KINDS = ("correlated", "irrelevant", "contradictory")
COLOURS = {"correlated": "tab:green", "irrelevant": "tab:gray", "contradictory": "tab:red"}
ALPHA, BETA = 1.0, 5.0  # the clamp of the method's weights, in logits


class Decoder(Protocol):
    """What is asked of a tokenizer."""

    all_special_ids: list[int]

    def decode(self, token_ids: list[int], /) -> str: ...


def words_of_tokens(label_ids: Sequence[int], caption: str, tokenizer: Decoder) -> list[int | None]:
    """Index of the whitespace word of `caption` that each supervised token [S] belongs to.

    None for a token of no word: eos, and pieces that are punctuation or blank only. Raises ValueError where the
    tokens do not spell the caption: then the row's deltas are of another text.
    """
    text_ids = [int(label) for label in label_ids if int(label) not in tokenizer.all_special_ids]
    spelled = tokenizer.decode(text_ids)
    if spelled.strip() != caption.strip():
        raise ValueError(f"the supervised tokens spell {spelled!r}, the row's caption is {caption!r}")
    words: list[int | None] = []
    seen: list[int] = []
    text = ""
    for label in map(int, label_ids):
        if label in tokenizer.all_special_ids:
            words.append(None)
            continue
        # Decoded from the start each time: a token alone may lose its space or hold part of a character.
        num_before = len(text)
        seen.append(label)
        text = tokenizer.decode(seen)
        piece = text[num_before:]
        word = len(text.split()) - 1
        words.append(word if any(character.isalnum() for character in piece) else None)
    return words


def token_frame(frame: pd.DataFrame, tokenizer: Decoder) -> pd.DataFrame:
    """One row per supervised token that belongs to a word: `row`, `kind`, `word`, `delta`.

    Takes the annotated columns `label_ids`, `delta_logits`, `word_kinds`, `messages`. Entry i of `delta_logits` is of
    label i; an undefined one (null) leaves its token out, and a row without deltas has none.
    """
    records = []
    for row, labels, deltas, kinds, messages in zip(
        frame.index, frame["label_ids"], frame["delta_logits"], frame["word_kinds"], frame["messages"], strict=True
    ):
        if labels is None or len(labels) == 0:
            continue
        caption = messages[-1]["content"]
        texts = caption.split()
        if len(texts) != len(kinds):
            raise ValueError(f"row {row}: {len(kinds)} word kinds for the {len(texts)} words of {caption!r}")
        for word, delta in zip(words_of_tokens(labels, caption, tokenizer), deltas, strict=True):
            if word is not None and delta is not None and np.isfinite(delta):
                records.append((row, kinds[word], texts[word].strip(".,").lower(), float(delta)))
    return pd.DataFrame(records, columns=["row", "kind", "word", "delta"])


def mean_weights(samples: Sequence[Mapping[str, Any]], frame: pd.DataFrame, tokenizer: Decoder) -> pd.Series:
    """Mean weight of the tokens of each kind in the data of a page, as `read_page_data` gives its samples.

    `frame` holds the annotated rows that the page was made from; the world's ids are unique.
    """
    rows = frame.set_index("sample_id")
    records = []
    for sample in samples:
        row = rows.loc[sample["id"]]
        word_indices = words_of_tokens(row["label_ids"], row["messages"][-1]["content"], tokenizer)
        for word, weight in zip(word_indices, sample["weights"], strict=True):
            if word is not None:
                records.append((row["word_kinds"][word], weight))
    return pd.DataFrame(records, columns=["kind", "weight"]).groupby("kind")["weight"].mean().reindex(list(KINDS))


def table(tokens: pd.DataFrame) -> pd.DataFrame:
    """Per kind: count, mean, 10/50/90 % quantiles of delta, share below BETA, and `auc`.

    `auc` is the chance that a correlated token's delta is above one of this kind (ties count half); NaN in the row
    of the correlated tokens themselves, and where a kind has no token.
    """
    by_kind = tokens.groupby("kind")["delta"]
    summary = pd.DataFrame(
        {
            "count": by_kind.size(),
            "mean": by_kind.mean(),
            "q10": by_kind.quantile(0.1),
            "q50": by_kind.quantile(0.5),
            "q90": by_kind.quantile(0.9),
            "share_below_beta": (tokens["delta"] < BETA).groupby(tokens["kind"]).mean(),
        }
    ).reindex(list(KINDS))
    summary["count"] = summary["count"].fillna(0).astype(int)
    high = tokens.loc[tokens["kind"] == "correlated", "delta"].to_numpy()
    summary["auc"] = [
        float("nan") if kind == "correlated" else auc(high, tokens.loc[tokens["kind"] == kind, "delta"].to_numpy())
        for kind in KINDS
    ]
    return summary


def histogram(tokens: pd.DataFrame, path: Path) -> None:
    """Save a PNG of the deltas' distribution by kind, each of area 1, with ALPHA and BETA marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # The outermost 0.2 % would squeeze everything else; they are counted in the end bins.
    low, high = tokens["delta"].quantile([0.002, 0.998]) if len(tokens) else (-1.0, 1.0)
    bins = np.linspace(min(low, 0.0) - 0.5, max(high, BETA) + 0.5, 70)
    for kind in KINDS:
        deltas = tokens.loc[tokens["kind"] == kind, "delta"].clip(bins[0], bins[-1])
        if len(deltas):
            axes.hist(
                deltas, bins=list(bins), density=True, alpha=0.55, color=COLOURS[kind], label=f"{kind} ({len(deltas)})"
            )
    for value, name in ((ALPHA, "alpha"), (BETA, "beta")):
        axes.axvline(value, color="black", linestyle="--", linewidth=1)
        axes.annotate(f" {name} = {value:g}", (value, 0.97), xycoords=("data", "axes fraction"), va="top", fontsize=9)
    axes.set_xlabel("delta: logit with image minus logit without (logits)")
    axes.set_ylabel("density")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=130)
