"""LLaMA-Factory's v1 trainer on our weights, or a row that it may not have."""

from __future__ import annotations

import json
import re
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
