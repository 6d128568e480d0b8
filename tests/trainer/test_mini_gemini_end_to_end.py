"""Mini-Gemini through the programs: files, cal-precompute, cal-train with each source of deltas, cal-inspect."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cal_pipeline.inspect import cli as inspect_cli
from cal_trainer import cli
from cal_trainer.training import train
from conftest import Family
from tiny_data import write_llava_json
from tiny_models import sample_image

BIN = Path(sys.executable).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]


def run(program: str, *flags: object) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    argv = [str(BIN / program), *map(str, flags)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(directory: Path, annotated: Path, output: Path, source: str) -> list[float]:
    argv = [
        "--model_name_or_path", str(directory), "--data_path", str(annotated), "--delta_source", source,
        "--normalization", "step", "--image_aspect_ratio", "pad", "--learning_rate", "0", "--max_steps", "2",
        "--trainable", "projector", "patch_info_mining", "language_model", "--gradient_checkpointing", "true",
        "--per_device_train_batch_size", "4", "--output_dir", str(output), "--logging_steps", "1", "--use_cpu",
        "--cache_dir", str(annotated.parent / "cache"), "--disable_tqdm", "true", "--save_strategy", "no",
    ]  # fmt: skip
    trainer = train(*cli.parse(argv))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", ["mini_gemini", "mini_gemini_gemma", "mini_gemini_hd"])
def test_measured_trained_and_looked_at(name: str, family: Callable[[str], Family], tmp_path: Path) -> None:
    directory = family(name).directory
    data, images = write_llava_json(tmp_path, count=12)
    annotated = tmp_path / "annotated"
    run(
        "cal-precompute", "--model_name_or_path", directory, "--dtype", "float32", "--data_path", data,
        "--image_folder", images, "--output_dir", annotated, "--gpus_per_worker", 0, "--image_aspect_ratio", "pad",
    )  # fmt: skip
    rows = [row for file in sorted(annotated.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert [row["status"] for row in rows] == ["ok"] * 12
    assert max(abs(delta) for row in rows for delta in row["delta_logits"]) > 0.1
    assert "ok" in run("cal-inspect", "summary", annotated)
    shown = f"#{next(number for number, row in enumerate(rows) if len(row['images']) == 1)}"
    looks = {
        "attention": [annotated, "--sample", shown, "--device", "cpu"],
        "patch-words": [annotated, "--sample", shown, "--device", "cpu"],
        "show": [annotated, shown],
        "page": [annotated],
    }
    for look, flags in looks.items():
        target = tmp_path / (f"{look}.png" if "--sample" in flags else f"{look}.html")
        assert inspect_cli.run([look, *map(str, flags), "--output", str(target)]) == 0
        assert target.stat().st_size > 1000
    found = {
        source: losses(directory, annotated, tmp_path / source, source) for source in ("cached", "online", "uniform")
    }
    assert found["online"] == pytest.approx(found["cached"], abs=1e-5)
    assert found["uniform"] != pytest.approx(found["cached"], abs=1e-4)
    processor = AutoProcessor.from_pretrained(tmp_path / "cached")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "cached")
    content = [{"type": "image"}, {"type": "text", "text": "What is in the image?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[sample_image(3, (48, 40))], text=[text], return_tensors="pt")
    with torch.no_grad():
        generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > inputs["input_ids"].shape[1]
