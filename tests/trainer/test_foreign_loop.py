"""A plain torch loop on the cache takes the steps that `cal-train` takes."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_trainer import cli
from cal_trainer.training import train
from conftest import Family
from tiny_data import write_llava_json

LOOP = Path(__file__).parents[2] / "examples" / "foreign_loop.py"
LEARNING_RATE = "1e-3"


@pytest.fixture(scope="module")
def annotated(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows, one of them text-only: one batch of the loop, so that the order in an epoch changes nothing."""
    folder = tmp_path_factory.mktemp("foreign_loop")
    data, images = write_llava_json(folder, 8)
    return annotate(folder / "annotated", plan_shards([str(data)], [str(images)]), llava.encoder, llava.model)


@pytest.fixture
def loop(
    llava: Family, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[float]:
    """Losses of the loop, which was run as a program."""
    words = [LOOP, llava.directory, annotated, tmp_path / "loop", LEARNING_RATE]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    runpy.run_path(str(LOOP), run_name="__main__")
    return [float(found) for found in re.findall(r"^loss (\S+)$", capsys.readouterr().out, re.MULTILINE)]


def losses_of_cal_train(llava: Family, annotated: Path, folder: Path) -> list[float]:
    argv = [
        "--model_name_or_path", str(llava.directory), "--data_path", str(annotated), "--trainable", "all",
        "--output_dir", str(folder / "trainer"), "--cache_dir", str(folder / "cache"),
        "--learning_rate", LEARNING_RATE, "--lr_scheduler_type", "constant", "--max_grad_norm", "0",
        "--num_train_epochs", "3", "--per_device_train_batch_size", "8", "--logging_steps", "1",
        "--use_cpu", "--save_strategy", "no", "--disable_tqdm", "true",
    ]  # fmt: skip
    history = train(*cli.parse(argv)).state.log_history
    return [entry["loss"] for entry in history if "loss" in entry]


def test_the_loop_takes_the_steps_of_cal_train_and_saves_a_model(
    loop: list[float], llava: Family, annotated: Path, tmp_path: Path
) -> None:
    trainer = losses_of_cal_train(llava, annotated, tmp_path)
    assert len(loop) == 3
    assert loop[2] < loop[1] < loop[0]
    assert loop[0] == pytest.approx(trainer[0], abs=1e-5)
    # Adam divides by gradients that are nearly zero, where rounding counts.
    assert loop[1:] == pytest.approx(trainer[1:], abs=1e-3)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "loop").num_parameters() > 0
