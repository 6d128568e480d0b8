"""Files, `cal-precompute`, pandas and `cal-train` for every family whose processor can be built without torchvision."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cal_pipeline.models.loading import load_processor
from cal_trainer import cli
from families import page
from families.processors import ATTENTION, BUILDERS, TEMPLATES
from families.table import AT_MODEL_LEVEL
from tiny_models import sample_image

pytestmark = [pytest.mark.full, pytest.mark.slow]
PRECOMPUTE = Path(sys.executable).parent / "cal-precompute"


def write_data(folder: Path, name: str) -> tuple[Path, list[str]]:
    """LLaVA JSON with images beside it; returns its path and the status expected of every row."""
    folder.mkdir()

    def image_file(number: int, size: tuple[int, int]) -> str:
        sample_image(number, size).save(folder / f"{number}.png")
        return f"{number}.png"

    def row(image: object, *turns: str) -> dict[str, object]:
        said = [{"from": ("human", "gpt")[n % 2], "value": words} for n, words in enumerate(turns)]
        return {"image": image, "conversations": said} if image else {"conversations": said}

    one_turn = name in ("paligemma", "paligemma2", "blip_2")
    one_image = name == "blip_2"
    rows = [
        row(image_file(0, (60, 40)), "<image>\nWhat is this?", "A red cat on the table."),
        row(image_file(1, (40, 90)), "<image>\nDescribe it.", "A small dog sits next to a large white cat."),
        row(image_file(2, (64, 64)), "What is\n<image>", "The car on the left is dark grey."),
        row(None, "How are you?", "Fine, and the bus is behind the tree."),
        row([image_file(3, (50, 50)), image_file(4, (90, 30))], "<image>\n<image>\nAnd these?", "Two yellow lines."),
        row(image_file(5, (60, 40)), "<image>\nRead the sign.", "It says stop.", "Sure?", "Yes, it does."),
    ]
    statuses = ["ok", "ok", "ok", *["encode_error" if one_image else "ok"] * 2, "encode_error" if one_turn else "ok"]
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json", statuses


@pytest.mark.parametrize("name", BUILDERS)
def test_files_to_deltas_to_a_trained_checkpoint(name: str, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "annotated"
    BUILDERS[name](model)
    data, statuses = write_data(tmp_path / "data", name)
    shared = [
        "--model_name_or_path", model, "--attn_implementation", ATTENTION.get(name, "sdpa"), "--dtype", "float32",
        "--template", TEMPLATES.get(name, "auto"), "--image_folder", data.parent,
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        list(map(str, [PRECOMPUTE, *shared, "--data_path", data, "--output_dir", out, "--gpus_per_worker", 0])),
        env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]

    frame = pd.read_parquet(out)
    assert frame["status"].tolist() == statuses, frame["error"].tolist()
    measured = frame[frame["status"] == "ok"]
    tokenizer = load_processor(model).tokenizer
    assert "A red cat on the table." in tokenizer.decode(measured["label_ids"].iloc[0])
    deltas = np.concatenate(measured["delta_logits"].map(lambda values: np.asarray(values, float)).tolist())
    assert float(np.nanstd(deltas)) > 0.1
    assert [len(ids) for ids in measured["label_ids"]] == [len(values) for values in measured["delta_logits"]]

    losses = {}
    size = 1 if name == "mllama" else 2
    for source in ("cached", "online"):
        trained = tmp_path / source
        flags = [
            *shared, "--data_path", out, "--output_dir", trained, "--cache_dir", tmp_path / "cache", "--delta_source",
            source, "--learning_rate", 0, "--max_steps", 2, "--logging_steps", 1, "--use_cpu", "--disable_tqdm", "true",
            "--per_device_train_batch_size", size, "--report_to", "none",
        ]  # fmt: skip
        assert cli.run(list(map(str, flags))) == 0
        history = json.loads((trained / "trainer_state.json").read_text())["log_history"]
        losses[source] = [entry["loss"] for entry in history if "loss" in entry]
        assert (trained / "model.safetensors").is_file()
    assert len(losses["cached"]) == 2
    assert all(math.isfinite(loss) for loss in losses["cached"])
    assert losses["online"] == pytest.approx(losses["cached"], abs=1e-4)
    page.record(name, end_to_end="yes")


def test_the_page_says_why_the_others_were_not_run() -> None:
    for name in AT_MODEL_LEVEL:
        page.record(name, end_to_end="refused: its processor" if name == "instructblip" else "no: needs torchvision")
