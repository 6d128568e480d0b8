"""`cal-train` on shards that are incomplete or damaged: one line, and no model trained on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_trainer import cli
from conftest import Family
from damage import flip_a_byte, plan
from fault_job import PATIENCE_S
from tiny_data import write_llava_json
from trained import command

PROGRAM = Path(sys.executable).parent / "cal-train"


@pytest.fixture
def output(llava: Family, tmp_path: Path) -> Path:
    source, images = write_llava_json(tmp_path / "raw", 20)
    shards = plan_shards([str(source)], [str(images)], rows_per_shard=5)
    return plan(annotate(tmp_path / "shards", shards, llava.encoder, llava.model), shards)


def train(llava: Family, output: Path, *flags: object) -> tuple[int, str]:
    """In a process of its own."""
    done = subprocess.run(
        [str(PROGRAM), *command(llava, output, output.parent / "trained", "--max_steps", 2, *flags)],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def test_an_incomplete_directory_trains_only_with_partial_and_says_what_is_missing(
    llava: Family, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, second, *_ = sorted(output.glob("*.parquet"))
    first.unlink()
    second.unlink()
    said = f"{output} is not whole: 2 of 4 planned shards with 10 of 20 rows are not there ({first}, {second})"
    code, err = train(llava, output)
    (line,) = [line for line in err.splitlines() if "is not whole" in line]
    assert code == 2
    assert line.startswith("cal-train: ")
    assert said in line
    assert line.endswith("To train on what is there: --partial")
    assert not (output.parent / "trained" / "model.safetensors").exists()
    assert cli.run(command(llava, output, output.parent / "trained", "--max_steps", 2, "--partial")) == 0
    assert said in caplog.text
    assert " of 20 planned rows of " in caplog.text


def test_an_incomplete_directory_to_evaluate_on_is_refused_too(
    llava: Family, output: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    held_out = Path(shutil.copytree(output, tmp_path / "held out"))
    min(held_out.glob("*.parquet")).unlink()
    flags = ("--eval_path", held_out, "--eval_strategy", "epoch")
    assert cli.run(command(llava, output, tmp_path / "trained", *flags)) == 2
    assert f"{held_out} is not whole: 1 of 4 planned shards" in capfd.readouterr().err


STREAMED = pytest.param(("--streaming",), marks=pytest.mark.full)
BOUNDED = pytest.param(("--alpha", "q0.1", "--streaming"), marks=pytest.mark.full)


@pytest.mark.parametrize("flags", [(), STREAMED, BOUNDED])
def test_a_flipped_byte_ends_the_program_in_one_line_that_names_the_shard(
    llava: Family, output: Path, flags: tuple[str, ...]
) -> None:
    damaged = flip_a_byte(min(output.glob("*.parquet")))
    code, err = train(llava, output, "--max_steps", 20, *flags)
    assert code == 2, err
    lines = err.splitlines()
    assert lines[-1].startswith(f"cal-train: {damaged} is damaged: ")
    # Nor does a library say it in its own words.
    assert len([line for line in lines if "damaged" in line or "CRC" in line or "Error" in line]) == 1, err
