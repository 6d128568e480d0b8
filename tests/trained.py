"""Command lines of cal-train on a tiny model, and what such a run logged."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Family


def command(llava: Family, annotated: Path, output: Path, *flags: object) -> list[str]:
    defaults: dict[str, object] = {
        "--model_name_or_path": llava.directory, "--data_path": annotated, "--output_dir": output,
        "--cache_dir": annotated.parent / "cache", "--use_cpu": "true", "--per_device_train_batch_size": 2,
        "--logging_steps": 1, "--disable_tqdm": "true", "--learning_rate": "1e-3",
    }  # fmt: skip
    kept = [str(part) for pair in defaults.items() if pair[0] not in flags for part in pair]
    return [*kept, *map(str, flags)]


def losses(output: Path) -> list[float]:
    state = json.loads((output / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]
