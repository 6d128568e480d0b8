"""The demo's world, measured: its page tells the kinds of words apart, and its reference knows its images."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoTokenizer

from annotated_data import annotate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.commands.page import read_page_data
from cal_pipeline.models.loading import load_processor, load_reference, weights_digest
from cal_pipeline.sources.planning import plan_shards

sys.path.append(str(Path(__file__).parent.parent / "examples" / "shapes"))
import reference
import words
import world

pytestmark = pytest.mark.full


def test_the_demo_s_page_and_swap_control(tmp_path: Path) -> None:
    clean = world.generate(3000, seed=1000, wrong_share=0.0, prefix="train")
    dirty = world.generate(600, seed=0, wrong_share=0.3)
    shards = world.write_parquet_shards(dirty, tmp_path / "world", num_shards=2)
    texts = [turn["content"] for sample in clean for turn in sample.messages]
    start, trained = tmp_path / "start", tmp_path / "reference"
    reference.build_reference(start, [*texts, *world.QUESTIONS], seed=0)
    reference.train_reference(start, trained, clean, seed=0, num_steps=400)
    path = tmp_path / "annotated"
    annotate(
        path, plan_shards([str(shards[0].parent)]), Encoder(load_processor(trained)),
        load_reference(trained, dtype="float32"), weights_digest=weights_digest(trained),
    )  # fmt: skip
    model = ["--model_name_or_path", str(trained)]
    assert run(["audit", str(path), "--fraction", "0.1", "--json", str(tmp_path / "audit.json"), *model]) == 0
    assert json.loads((tmp_path / "audit.json").read_text())["swap"]["auc"] > 0.8
    assert run(["page", str(path), "--output", str(tmp_path / "report.html"), "--tokenizer", str(trained)]) == 0
    frame = pd.read_parquet(path)
    if "word_kinds" not in frame:  # the test's writer carries no columns of the source
        kinds = pd.DataFrame({"sample_id": [s.sample_id for s in dirty], "word_kinds": [s.word_kinds for s in dirty]})
        frame = frame.merge(kinds, on="sample_id")
    weights = words.mean_weights(
        read_page_data(tmp_path / "report.html")["samples"], frame, AutoTokenizer.from_pretrained(trained)
    )
    assert weights["correlated"] > weights["irrelevant"] > weights["contradictory"]
