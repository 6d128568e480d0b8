"""The Python of docs/training.md runs as it is written."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from annotated_data import annotate
from cal_pipeline.models.loading import load_processor, load_reference
from cal_pipeline.models.precision import is_quantized
from cal_pipeline.sources.planning import plan_shards
from cal_trainer import cli
from conftest import Family
from fault_job import PATIENCE_S
from tiny_data import write_llava_json
from trained import command

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
MERGE, STOP_EARLY, WEIGH = re.findall(
    r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def folder(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With all that the page names."""
    top = tmp_path_factory.mktemp("page")
    shutil.copytree(llava.directory, top / "model")
    data, images = write_llava_json(top, 24)
    annotate(top / "annotated", plan_shards([str(data)], [str(images)]), llava.encoder, llava.model)
    (top / "held_out.json").write_text(json.dumps(json.loads(data.read_text())[16:]))
    return top


def printed(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env={**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.full
def test_training_in_python_stops_early_and_the_card_says_so(folder: Path) -> None:
    (said,) = re.findall(r"^(\d+) of (\d+) steps; best [\d.]+$", printed(STOP_EARLY, folder), re.MULTILINE)
    steps, of = map(int, said)
    assert steps < of == 40
    assert f"| steps taken | {steps} of 40: stopped early |" in (folder / "out" / "README.md").read_text()


def test_weights_without_a_trainer_are_those_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    exec(WEIGH, {})
    assert capsys.readouterr().out == "tensor([[1., 4., 1., 5.]])\n"


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="pip install 'cal-vlm[quantized]'")
def test_adapters_on_quantised_weights_merge_into_a_model_that_loads(llava: Family, folder: Path) -> None:
    qlora = ("--quantization", "4bit", "--lora_r", 4, "--max_steps", 2)
    shutil.rmtree(folder / "out", ignore_errors=True)
    assert cli.run(command(llava, folder / "annotated", folder / "out", *qlora)) == 0
    printed(MERGE, folder)
    merged = load_reference(folder / "merged", device="cpu")
    assert not is_quantized(merged)
    assert not (folder / "merged" / "adapter_config.json").exists()
    load_processor(folder / "merged")
