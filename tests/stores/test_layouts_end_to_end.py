"""Folders of images and saved data sets, measured by real workers and trained from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from conftest import Family
from tiny_models import sample_image

PROGRAMS = Path(sys.executable).parent


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(PROGRAMS / command[0]), *command[1:]], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.full
def test_images_beside_their_metadata_and_saved_rows_are_measured_and_trained_alike(
    tmp_path: Path, llava: Family
) -> None:
    rows = []
    for number in range(8):
        split = "train" if number < 6 else "test"
        folder = tmp_path / "pets" / split
        folder.mkdir(parents=True, exist_ok=True)
        sample_image(number, (24, 20)).save(folder / f"{number % 6}.png")
        with (folder / "metadata.jsonl").open("a") as lines:
            lines.write(json.dumps({"file_name": f"{number % 6}.png", "text": f"a cat of {number} words"}) + "\n")
        rows.append({"image": str(folder / f"{number % 6}.png"), "text": f"a cat of {number} words"})
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    datasets.disable_progress_bars()
    datasets.DatasetDict({"train": data.select(range(6)), "test": data.select((6, 7))}).save_to_disk(tmp_path / "saved")
    model = ["--model_name_or_path", str(llava.directory)]
    run(tmp_path, "cal-precompute", *model, "--dtype", "float32", "--gpus_per_worker", "0", "--data_path", "pets",
        "saved", "--output_dir", "out", "--carry", "embedded")  # fmt: skip
    measured = {}
    for source in ("pets", "saved"):
        read = [row for path in sorted((tmp_path / "out").rglob("*.parquet"))
                for row in pq.read_table(path).to_pylist() if row["source"] == source]  # fmt: skip
        assert [row["status"] for row in read] == ["ok"] * 8
        measured[source] = {row["messages"][1]["content"]: row["delta_logits"] for row in read}
    for words, deltas in measured["pets"].items():
        assert deltas == pytest.approx(measured["saved"][words], abs=1e-4, nan_ok=True)
    run(tmp_path, "cal-precompute", "--verify", "--output_dir", "out")
    # Each row's image is found below the folder of its own metadata.
    train = ["cal-train", *model, "--max_steps", "2", "--per_device_train_batch_size", "4", "--learning_rate", "1e-3",
             "--use_cpu"]  # fmt: skip
    run(tmp_path, *train, "--data_path", "out", "--output_dir", "model")
    run(tmp_path, *train, "--data_path", "out", "--source_path", "pets", "--output_dir", "joined")
