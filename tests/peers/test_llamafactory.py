"""LLaMA-Factory's v1 trainer on our weights, or a row that it may not have."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from peers.exported import ROOT, Exported, in_peer

RATE = 0.01


def sft(exported: Exported, rows: list[dict[str, Any]], folder: Path, **options: object) -> str:
    """Runs it on a file beside the export's, in whose folder the images lie."""
    data = exported.data.with_name(f"{folder.name}.jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": str(exported.model), "train_dataset": str(data), "output_dir": str(folder / "out"),
        "micro_batch_size": 4, "max_steps": 2, "learning_rate": RATE, "bf16": False, "batching_workers": 0,
        "enable_activation_checkpointing": False, "max_grad_norm": 1e9, **options,
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))  # YAML too.
    program = ROOT / "examples" / "llamafactory_v1.py"
    return in_peer("llamafactory", "python", program, folder / "config.yaml", cwd=folder)


@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_the_loss_of_a_step_is_the_weighted_mean_over_its_micro_batches(
    exported: Exported, tmp_path: Path, micro_batch_size: int
) -> None:
    rows = exported.rows[:8]
    said = sft(exported, rows, tmp_path, micro_batch_size=micro_batch_size, global_batch_size=8)
    assert said.endswith("exit status 0"), said[-4000:]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(exported.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    expected = []
    for _ in range(2):
        loss = exported.mean_by_hand(model, rows)
        assert abs(loss.item() - exported.mean_by_hand(model, rows, uniform=True).item()) > 0.01
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    found = [float(value) for value in re.findall(r"step: \d+, loss: ([\d.]+)", said)]
    assert found == pytest.approx(expected, abs=1e-3)  # Printed with four decimals.


def test_a_row_of_another_tokenizer_and_one_that_would_be_cut_are_refused(exported: Exported, tmp_path: Path) -> None:
    row = exported.rows[0]
    other = {**row, "labels": [label if label < 0 or label > 1000 else label + 1 for label in row["labels"]]}
    said = sft(exported, [*exported.rows[1:4], other], tmp_path)
    assert "exit status 0" not in said
    assert "row-0: its label ids spell" in said
    said = sft(exported, exported.rows[:4], tmp_path, cutoff_len=20)
    assert "exit status 0" not in said
    assert "tokens, and cutoff_len is 20" in said


def test_label_ids_that_decode_to_nothing_are_refused(exported: Exported, tmp_path: Path) -> None:
    row = exported.rows[0]
    beyond = [label if label < 0 else 100_000 for label in row["labels"]]
    said = sft(exported, [{**row, "labels": beyond, "template_inputs": "{}"}], tmp_path, micro_batch_size=1)
    assert "exit status 0" not in said
    assert "row-0: its label ids spell '' in this model's tokenizer, no part of its answers" in said, said[-4000:]


def test_context_parallelism_is_refused(exported: Exported, tmp_path: Path) -> None:
    said = sft(exported, exported.rows[:4], tmp_path, dist_config={"name": "fsdp2", "cp_size": 2})
    assert "exit status 0" not in said
    assert "dist_config cp_size 2: LLaMA-Factory then takes a loss of its own" in said, said[-4000:]


def test_images_that_were_padded_to_be_measured_are_refused(padded: Exported, tmp_path: Path) -> None:
    said = sft(padded, padded.rows[:4], tmp_path)
    assert "exit status 0" not in said
    assert "measured with --image_aspect_ratio pad, and images here are native" in said, said[-4000:]


def test_images_measured_with_other_settings_are_named(coarse: Exported, tmp_path: Path) -> None:
    said = sft(coarse, coarse.rows[:4], tmp_path)
    assert (
        "measured with --processor_kwargs {'max_pixels': 3136}, and this model's image processor has {'size': " in said
    )
    assert "exit status 0" not in said  # The tokens of the export have no room for the patches here.


def test_data_away_from_its_export_is_refused(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    alone = replace(exported, data=tmp_path / "weights" / "data.jsonl")
    said = sft(alone, exported.rows[:4], tmp_path)
    assert "exit status 0" not in said
    assert "with cal_export.json, which says how its images were measured, beside it" in said, said[-4000:]
