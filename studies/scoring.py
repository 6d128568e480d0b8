"""What is measured of a finished student and of a measurement; torch stays in here."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

import accuracy
import words
import worlds
from condition import SIZES, Run
from workshop import HELD_OUT, Workshop


def score_student(shop: Workshop, run: Run) -> dict[str, float]:
    """On clean held-out images: `accuracy` and `nll` of the words that are true of them; `text_nll` without any."""
    return score_model(shop, shop.student(run), with_text=run.text_share > 0)


def score_model(shop: Workshop, directory: Path, *, with_text: bool = False) -> dict[str, float]:
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(directory)
    found = accuracy.examine(model, _exam(shop.world, shop.seed, shop.start()))
    scores = {"accuracy": found.accuracy, "nll": found.nll}
    if with_text:
        texts = worlds.texts(shop.world, SIZES.held_out_texts, seed=HELD_OUT + shop.seed)
        scores["text_nll"] = _text_nll(model, processor, texts)
    return scores


@functools.lru_cache(maxsize=2)
def _exam(name: str, seed: int, start: Path) -> accuracy.Exam:
    samples = worlds.draw(name, SIZES.held_out, seed=HELD_OUT + seed)
    return accuracy.make_exam(AutoProcessor.from_pretrained(start), samples)


@torch.no_grad()
def _text_nll(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, texts: Sequence[list[dict[str, str]]]
) -> float:
    """Mean nll of the answers' tokens, in nats."""
    tokenizer = processor.tokenizer
    total = count = 0.0
    for messages in texts:
        prompt = processor.apply_chat_template(messages[:1], add_generation_prompt=True)
        ids = tokenizer(processor.apply_chat_template(messages), return_tensors="pt")["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, start - 1 : -1]
        total += float(functional.cross_entropy(logits, ids[0, start:], reduction="sum"))
        count += ids.shape[1] - start
    return total / count


def drift_of(student: Path) -> list[tuple[int, float, float]]:
    """(step, rank correlation, clamp flips) of every measurement of drift."""
    history = json.loads((student / "trainer_state.json").read_text())["log_history"]
    return [
        (entry["step"], entry["drift_spearman"], entry["drift_clamp_flips"])
        for entry in history
        if "drift_spearman" in entry
    ]


def deltas_of(measured: Sequence[Path], start: Path) -> pd.DataFrame:
    """One row per token that belongs to a word (`words.token_frame`)."""
    columns = ["label_ids", "delta_logits", "word_kinds", "messages"]
    files = [file for directory in measured for file in sorted(directory.glob("*.parquet"))]
    frame = pd.concat([pq.read_table(file, columns=columns).to_pandas() for file in files])
    return words.token_frame(frame.reset_index(drop=True), AutoProcessor.from_pretrained(start).tokenizer)


def judge_deltas(tokens: pd.DataFrame) -> dict[str, float]:
    """How well the deltas tell the kinds of words apart, and their scale."""
    table = words.table(tokens)
    return {
        "auc_irrelevant": float(table["auc"]["irrelevant"]),
        "auc_contradictory": float(table["auc"]["contradictory"]),
        **{f"mean_{kind}": float(table["mean"][kind]) for kind in words.KINDS},
        "q90": float(tokens["delta"].quantile(0.9)),
    }


def clamp_flips(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """Share of tokens whose delta, clamped as by default, differs by more than 0.05, as the drift log counts them."""
    default = Run(world="shapes", seed=0, noise=0.0, weights="uniform")
    bounds = (float(default.alpha), float(default.beta))
    clamped = [frame["delta"].to_numpy().clip(*bounds) for frame in (one, other)]
    return float((np.abs(clamped[0] - clamped[1]) > 0.05).mean())
