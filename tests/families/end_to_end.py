"""Files, `cal-precompute` with its worker in this process, pandas, and `cal-train`, cached and online."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cal_pipeline.arguments import parse_config
from cal_pipeline.cli import validate_paths
from cal_pipeline.models.loading import load_processor
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.runtime.plan import make_plan
from cal_pipeline.runtime.worker import Worker
from cal_trainer import cli
from families.family import Family
from tiny_models import sample_image


def write_data(folder: Path, family: Family) -> tuple[Path, list[str]]:
    """LLaVA JSON with images beside it; returns its path and the status expected of every row."""
    folder.mkdir()

    def image_file(number: int, size: tuple[int, int]) -> str:
        sample_image(number, size).save(folder / f"{number}.png")
        return f"{number}.png"

    def row(image: object, *turns: str) -> dict[str, object]:
        said = [{"from": ("human", "gpt")[n % 2], "value": words} for n, words in enumerate(turns)]
        return {"image": image, "conversations": said} if image else {"conversations": said}

    rows = [
        row(image_file(0, (60, 40)), "<image>\nWhat is this?", "A red cat on the table."),
        row(image_file(1, (40, 90)), "<image>\nDescribe it.", "A small dog sits next to a large white cat."),
        row(image_file(2, (64, 64)), "What is\n<image>", "The car on the left is dark grey."),
        row(None, "How are you?", "Fine, and the bus is behind the tree."),
        row([image_file(3, (50, 50)), image_file(4, (90, 30))], "<image>\n<image>\nAnd these?", "Two yellow lines."),
        row(image_file(5, (60, 40)), "<image>\nRead the sign.", "It says stop.", "Sure?", "Yes, it does."),
    ]
    others = ["encode_error" if family.one_image else "ok"] * 2
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json", ["ok", "ok", "ok", *others, "encode_error" if family.one_turn else "ok"]


def shared_flags(family: Family, model: Path, data: Path) -> list[object]:
    """What both programs are told."""
    return [
        "--model_name_or_path", model, "--attn_implementation", family.attention, "--dtype", "float32",
        "--template", family.template, "--image_folder", data.parent,
    ]  # fmt: skip


def precompute(flags: Sequence[object]) -> None:
    """`cal-precompute` with its plan carried out by one worker in this process instead of by Ray's."""
    config = parse_config(PrecomputeConfig, list(map(str, flags)), program="cal-precompute", description="")
    plan = make_plan(config, validate_paths(config))
    plan.settings.store.prepare()
    worker = Worker(plan.settings)
    outcomes = [worker.run(shard) for shard in plan.progress.pending]
    assert [(outcome.kind, outcome.message) for outcome in outcomes] == [("done", "")] * len(outcomes)


def check_annotated(out: Path, model: Path, statuses: Sequence[str]) -> None:
    """Every row has its status, its own words for labels, and deltas that an image moves."""
    frame = pd.read_parquet(out)
    assert frame["status"].tolist() == list(statuses), frame["error"].tolist()
    measured = frame[frame["status"] == "ok"]
    tokenizer = load_processor(model).tokenizer
    assert "A red cat on the table." in tokenizer.decode(measured["label_ids"].iloc[0])
    deltas = np.concatenate(measured["delta_logits"].map(lambda values: np.asarray(values, float)).tolist())
    assert float(np.nanstd(deltas)) > 0.1
    assert [len(ids) for ids in measured["label_ids"]] == [len(values) for values in measured["delta_logits"]]


def check_training(family: Family, shared: Sequence[object], out: Path, folder: Path) -> None:
    """Two steps by `cal-train`, cached and online: the same finite losses, and a checkpoint each."""
    losses = {}
    for source in ("cached", "online"):
        trained = folder / source
        flags = [
            *shared, "--data_path", out, "--output_dir", trained, "--cache_dir", folder / "cache", "--delta_source",
            source, "--learning_rate", 0, "--max_steps", 2, "--logging_steps", 1, "--use_cpu", "--disable_tqdm", "true",
            "--per_device_train_batch_size", family.rows_of_a_step, "--report_to", "none",
            "--trainable", *(part for part in family.parts if part != "vision_tower"),
        ]  # fmt: skip
        assert cli.run(list(map(str, flags))) == 0
        history = json.loads((trained / "trainer_state.json").read_text())["log_history"]
        losses[source] = [entry["loss"] for entry in history if "loss" in entry]
        assert (trained / "model.safetensors").is_file()
    assert len(losses["cached"]) == 2
    assert all(math.isfinite(loss) for loss in losses["cached"])
    assert losses["online"] == pytest.approx(losses["cached"], abs=1e-4)


def check_files_to_checkpoint(family: Family, model: Path, folder: Path) -> None:
    """All of it, from the family's checkpoint in `model`."""
    data, statuses = write_data(folder / "data", family)
    shared, out = shared_flags(family, model, data), folder / "annotated"
    precompute([*shared, "--data_path", data, "--output_dir", out, "--gpus_per_worker", 0])
    check_annotated(out, model, statuses)
    check_training(family, shared, out, folder)
