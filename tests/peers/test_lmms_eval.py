"""lmms-eval asks a checkpoint of ours what it was trained on, and scores its answers as the task says."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import reference
import world
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from demo import HELD_OUT_SEED
from examples_of import conversation
from peers.exported import ROOT, in_peer

ASKED = 12
EVALUATION = ROOT / "examples" / "evaluation"
SLOTS = (world.COLOURS, world.SHAPES, world.SIZES, world.SIDES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model, trained until it says something of an image, not until that is right."""
    folder = tmp_path_factory.mktemp("model")
    samples = world.generate(400, seed=1, wrong_share=0.0)
    texts = [turn["content"] for sample in samples for turn in sample.messages]
    reference.build_reference(folder / "start", [*texts, *world.QUESTIONS], seed=0)
    reference.train_reference(folder / "start", folder / "model", samples, seed=0, num_steps=80)
    return folder / "model"


def answers(model: Path, samples: Sequence[world.WorldSample]) -> Iterator[str]:
    """Greedy answers to the tokens that training puts before an answer."""
    encoder = Encoder(load_processor(model))
    loaded = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    for sample in samples:
        image = Image.open(io.BytesIO(sample.image_png))
        encoded = encoder(conversation(f"<image>\n{sample.question}", sample.caption), [image])
        start = int((encoded.labels != -100).nonzero()[0])
        prompt = encoded.sequence_inputs["input_ids"][None, :start]
        said = loaded.generate(input_ids=prompt, **encoded.image_inputs, max_new_tokens=40, do_sample=False)
        yield encoder.processor.tokenizer.decode(said[0, start:], skip_special_tokens=True).strip()


def test_the_score_is_that_of_greedy_answers_to_the_prompts_of_training(model: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, EVALUATION / "held_out.py", "--num_images", str(ASKED)], cwd=tmp_path, check=True)
    said = in_peer(
        "lmms-eval", "python", "-m", "lmms_eval", "--model", "llava_hf", "--device", "cpu", "--model_args",
        f"pretrained={model},device_map=cpu,dtype=float32,attn_implementation=sdpa", "--tasks", "shapes",
        "--include_path", EVALUATION, "--batch_size", 1, "--output_path", tmp_path / "out", "--log_samples",
        cwd=tmp_path,
    )  # fmt: skip
    assert said.endswith("exit status 0"), said[-4000:]

    samples = world.generate(ASKED, seed=HELD_OUT_SEED, wrong_share=0.0, prefix="held-out")
    expected = list(answers(model, samples))
    (log,) = tmp_path.glob("out/**/*samples_shapes.jsonl")
    logged = sorted(map(json.loads, log.read_text().splitlines()), key=lambda line: line["doc_id"])
    assert [line["filtered_resps"] for line in logged] == expected

    shares, counts = [], []
    for sample, answer in zip(samples, expected, strict=True):
        assert isinstance(sample.scene, world.Scene)
        shown = (sample.scene.colour, sample.scene.shape, sample.scene.size, sample.scene.side)
        words = answer.lower().replace(".", "").split()
        right = [word == true for word in words for slot, true in zip(SLOTS, shown, strict=True) if word in slot]
        counts.append(len(right))
        shares.append(sum(right) / len(right) if right else 0.0)
    (results,) = tmp_path.glob("out/**/*results.json")
    found = json.loads(results.read_text())["results"]["shapes"]
    assert found["words_said,none"] == pytest.approx(sum(counts) / ASKED)
    assert found["true_share,none"] == pytest.approx(sum(shares) / ASKED)
    assert 0 < sum(shares) < ASKED  # Neither all wrong nor all right.
