"""Does what is missing of one world and seed, and scores its students and measurements; torch stays in here."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor
from transformers.utils import logging

import accuracy
import words
import worlds
from artifacts import HELD_OUT, ArtifactCache
from commands import kept_encodings
from condition import SIZES, Measurement, Run, Scored, Unit


def work(unit: Unit) -> Iterator[Scored]:
    """Does one item after the other, and yields each with its scores."""
    cache = ArtifactCache(unit.world, unit.seed, unit.scratch, unit.ray_address)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with kept_encodings():
        for item in unit.todo:
            yield item, _scores_of_run(cache, item) if isinstance(item, Run) else _scores_of_measurement(cache, item)


def _scores_of_run(cache: ArtifactCache, run: Run) -> dict[str, Any]:
    student = cache.student(run)
    scores: dict[str, Any] = dict(score_model(cache, student, with_text=run.text_share > 0))
    if run.drift:
        scores["drift_log"] = drift_of(student)
    if student.name.startswith("student-"):  # the others are needed again
        shutil.rmtree(student)
    return scores


def _scores_of_measurement(cache: ArtifactCache, measurement: Measurement) -> dict[str, Any]:
    measured, models = cache.measured(measurement), cache.references(measurement)
    tokens = deltas_of(measured, cache.start())
    scores: dict[str, Any] = dict(judge_deltas(tokens))
    scores["swap_auc"] = cache.swap_control(measurement)
    accuracies = [score_model(cache, model)["accuracy"] for model in models]
    scores["reference_accuracy"] = sum(accuracies) / len(accuracies)
    if measurement.dtype != "float32":
        exact = deltas_of(cache.measured(replace(measurement, dtype="float32")), cache.start())
        scores["clamp_flips"] = clamp_flips(exact, tokens)
    return scores


def score_model(cache: ArtifactCache, directory: Path, *, with_text: bool = False) -> dict[str, float]:
    """On clean held-out images: `accuracy` and `nll` of the words that are true of them; `text_nll` without any."""
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(directory)
    score = accuracy.examine(model, _exam(cache.world, cache.seed, cache.start()))
    scores = {"accuracy": score.accuracy, "nll": score.nll}
    if with_text:
        texts = worlds.texts(cache.world, SIZES.held_out_texts, seed=HELD_OUT + cache.seed)
        scores["text_nll"] = _text_nll(model, processor, texts)
    return scores


@functools.lru_cache(maxsize=2)
def _exam(name: str, seed: int, start: Path) -> accuracy.Exam:
    samples = worlds.draw(name, SIZES.held_out, seed=HELD_OUT + seed, held_out=True)
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
