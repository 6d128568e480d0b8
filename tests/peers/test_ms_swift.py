"""ms-swift's own command line trains on our weights through the plugin, or says which row it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from peers.exported import ROOT, Exported, in_peer

RATE = 0.01


def sft(exported: Exported, folder: Path, rows: list[dict[str, Any]], *flags: object, plugin_flags: bool = True) -> str:
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copy(exported.about, folder)
    plugin = ROOT / "examples" / "ms_swift_plugin.py"
    flags = (
        "--model", exported.model, "--model_type", "qwen2_5_vl", "--template", "qwen2_5_vl", "--dataset", data,
        "--external_plugins", plugin, *(["--remove_unused_columns", "false"] if plugin_flags else []),
        "--output_dir", folder / "out", "--add_version", "false", "--max_steps", 2, "--logging_steps", 1,
        "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--train_dataloader_shuffle", "false",
        "--dataset_shuffle", "false", "--tuner_type", "full", "--freeze_vit", "false", "--freeze_aligner", "false",
        "--optim", "sgd", "--learning_rate", RATE, "--lr_scheduler_type", "constant", "--weight_decay", 0,
        "--max_grad_norm", 0, "--torch_dtype", "float32", "--use_cpu", "true", "--attn_impl", "sdpa",
        "--save_strategy", "no", "--report_to", "none", *flags,
    )  # fmt: skip
    images, cache = str(exported.data.parent), str(folder / "modelscope")
    return in_peer("ms-swift", "swift", "sft", *flags, cwd=folder, ROOT_IMAGE_DIR=images, MODELSCOPE_CACHE=cache)


def logged(folder: Path, name: str) -> list[float]:
    """Values of the run's own log; none where the run ended before its first."""
    lines = [line for file in folder.glob("out/logging.jsonl") for line in file.read_text().splitlines()]
    return [line[name] for line in map(json.loads, lines) if name in line]


def test_the_loss_of_each_step_is_the_weighted_mean_over_its_micro_batches(exported: Exported, tmp_path: Path) -> None:
    rows = exported.rows[:8]
    said = sft(exported, tmp_path, rows, "--val_dataset", tmp_path / "data.jsonl", "--eval_strategy", "steps",
               "--eval_steps", 2, "--per_device_eval_batch_size", 8)  # fmt: skip
    assert said.endswith("exit status 0"), said[-4000:]

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(exported.model, dtype=torch.float32)
    expected = []
    for step in (rows[:4], rows[4:]):
        loss = exported.mean_by_hand(model, step)
        expected.append(loss.item())
        assert abs(loss.item() - exported.mean_by_hand(model, step, uniform=True).item()) > 0.01
        model.zero_grad()
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=RATE).step()
    assert logged(tmp_path, "loss") == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        assert logged(tmp_path, "eval_loss") == pytest.approx(
            [exported.mean_by_hand(model, rows, uniform=True).item()], rel=1e-5
        )


def test_a_row_that_it_tokenizes_by_segments_ends_the_run_and_its_jinja_backend_takes_it(
    exported: Exported, tmp_path: Path
) -> None:
    rows = [*exported.rows[:3], exported.rows[8]]  # The first is looked at before the loader's worker meets the last.
    (tmp_path / "segments").mkdir()
    said = sft(exported, tmp_path / "segments", rows)
    assert "exit status 0" not in said
    assert "breaks: ms-swift's template makes other tokens than were measured" in said
    assert "--template_backend jinja" in said
    assert not logged(tmp_path / "segments", "loss")

    (tmp_path / "whole").mkdir()
    said = sft(exported, tmp_path / "whole", rows, "--template_backend", "jinja",
               "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 4)  # fmt: skip
    # Of a single row ms-swift cuts out the positions that are supervised.
    assert said.endswith("exit status 0"), said[-4000:]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(exported.model, dtype=torch.float32)
    with torch.no_grad():
        expected = exported.mean_by_hand(model, rows).item()
    assert logged(tmp_path / "whole", "loss")[0] == pytest.approx(expected, rel=1e-5)


def test_weights_that_ms_swift_takes_off_the_rows_are_missed(exported: Exported, tmp_path: Path) -> None:
    said = sft(exported, tmp_path, exported.rows, plugin_flags=False)
    assert "exit status 0" not in said
    assert "no loss_weights: give --remove_unused_columns false" in said


@pytest.mark.parametrize("flag", [("--label_smoothing_factor", "0.1"), ("--enable_dft_loss", "true")])
def test_flags_that_replace_the_weighted_loss_end_the_run(
    exported: Exported, tmp_path: Path, flag: tuple[str, str]
) -> None:
    said = sft(exported, tmp_path, exported.rows[:4], *flag)
    assert "exit status 0" not in said
    assert "--label_smoothing_factor and --enable_dft_loss replace the weighted loss" in said, said[-4000:]
    assert not logged(tmp_path, "loss")


def test_images_that_were_padded_to_be_measured_end_the_run(padded: Exported, tmp_path: Path) -> None:
    said = sft(padded, tmp_path, padded.rows[:4])
    assert "exit status 0" not in said
    assert "measured with --image_aspect_ratio pad, and ms-swift's images are native" in said, said[-4000:]
    assert not logged(tmp_path, "loss")


def test_images_of_another_resolution_are_named_and_their_weights_stand_at_the_same_words(
    coarse: Exported, exported: Exported, tmp_path: Path
) -> None:
    rows = coarse.rows[:4]
    said = sft(coarse, tmp_path, rows, "--max_steps", 1)
    assert said.endswith("exit status 0"), said[-4000:]
    assert 'measured with --processor_kwargs {"max_pixels": 3136}' in said
    assert "its images take 6 tokens here and 2 in the export" in said
    here = []
    for fine, row in zip(exported.rows[:4], rows, strict=True):
        assert len(fine["labels"]) > len(row["labels"])
        weights = iter([weight for weight, label in zip(row["loss_weights"], row["labels"], strict=True) if label >= 0])
        here.append({**fine, "loss_weights": [next(weights) if label >= 0 else 0.0 for label in fine["labels"]]})
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(exported.model, dtype=torch.float32)
    with torch.no_grad():
        expected, other = (exported.mean_by_hand(model, some).item() for some in (here, exported.rows[:4]))
    assert abs(expected - other) > 1e-3
    assert logged(tmp_path, "loss") == pytest.approx([expected], rel=1e-5)


def test_data_away_from_its_export_and_images_of_another_folder_are_refused(exported: Exported, tmp_path: Path) -> None:
    shutil.copy(exported.data, tmp_path / "data.jsonl")
    program = (
        "import sys; from pathlib import Path; import ms_swift_plugin as plugin\n"
        "for name in sys.argv[1:]:\n"
        "    try: plugin.check_measurement(Path(name)); print('taken')\n"
        "    except SystemExit as refusal: print(refusal)"
    )
    data = (tmp_path / "data.jsonl", exported.data, exported.data.parent)
    elsewhere, there = (
        in_peer("ms-swift", "python", "-c", program, *data, cwd=tmp_path, ROOT_IMAGE_DIR=str(root),
                PYTHONPATH=str(ROOT / "examples"), MODELSCOPE_CACHE=str(tmp_path / "modelscope"))
        for root in (tmp_path, exported.data.parent)
    )  # fmt: skip
    for said in (elsewhere, there):
        assert f"{data[0]}: no cal_export.json in {tmp_path}" in said, said[-4000:]
    assert elsewhere.count(f"give ROOT_IMAGE_DIR={exported.data.parent}") == 2
    assert there.count("taken") == 2
