"""Both programs as a user runs them, then the checkpoint through `from_pretrained`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from cal_schemas.opened import open_annotated
from cal_schemas.whole import read_plan
from conftest import Family
from fault_job import PATIENCE_S
from tiny_data import write_parquet
from tiny_models import sample_image

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow


def run(program: str, *flags: object) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [str(BIN / program), *map(str, flags)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_precompute_then_train_then_generate(llava: Family, tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_parquet(tmp_path / "data" / f"{name}.parquet", count=8, seed=10 * number)
    run(
        "cal-precompute", "--model_name_or_path", llava.directory, "--dtype", "float32",
        "--data_path", tmp_path / "data", "--output_dir", tmp_path / "annotated", "--gpus_per_worker", 0,
    )  # fmt: skip
    assert read_plan(tmp_path / "annotated") == {"a.parquet": 8, "b.parquet": 8}
    assert open_annotated(tmp_path / "annotated").completeness.problem is None
    printed = run(
        "cal-train", "--model_name_or_path", llava.directory, "--data_path", tmp_path / "annotated",
        "--eval_path", tmp_path / "annotated", "--eval_strategy", "epoch", "--delta_source", "cached",
        "--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "cache", "--per_device_train_batch_size", 2,
        "--gradient_accumulation_steps", 2, "--learning_rate", "1e-3", "--num_train_epochs", 1, "--use_cpu",
        "--logging_steps", 1, "--drift_every", 2, "--save_steps", 2, "--disable_tqdm", "true",
    )  # fmt: skip
    for metric in ("mean_weight", "share_at_alpha", "unweighted_loss", "eval_loss", "drift_spearman"):
        assert metric in printed, metric
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    inputs = processor(images=sample_image(3, (48, 40)), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > inputs["input_ids"].shape[1]
