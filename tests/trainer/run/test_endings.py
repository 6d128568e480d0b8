"""However a run of cal-train ends before its last step, it says so, and nothing half done is taken for a result."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError
from cal_trainer import cli
from cal_trainer.run.checkpoints import find_checkpoint
from cal_trainer.run.endings import Terminated
from cal_trainer.training import train
from conftest import Family
from fault_job import PATIENCE_S, wait_for
from tiny_data import write_llava_json
from trained import command, losses

BIN = Path(sys.executable).parent
LAUNCH = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, llava: Family) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    data, images = write_llava_json(folder, 24)
    return annotate(folder / "out", plan_shards([str(data)], [str(images)]), llava.encoder, llava.model)


def start(argv: list[str], log: Path, launch: list[str] | None = None) -> subprocess.Popen[str]:
    """In a process group of its own; what it logs of steps goes to a file."""
    program = [str(BIN / part) if number == 0 else part for number, part in enumerate(launch or [])]
    with log.open("w") as steps:
        return subprocess.Popen(
            [*program, str(BIN / "cal-train"), *argv], stdout=steps, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )  # fmt: skip


def terminated_in_training(
    llava: Family, annotated: Path, output: Path, *flags: object, launch: list[str] | None = None, times: int = 1
) -> tuple[int, list[str]]:
    """Exit code and the program's own lines of a run that was told to terminate after its first step."""
    log = output.with_suffix(".log")
    process = start(command(llava, annotated, output, "--max_steps", 3000, *flags), log, launch)
    wait_for(lambda: "'loss'" in log.read_text(), "the first step", still=lambda: process.poll() is None)
    for _ in range(times):
        os.killpg(process.pid, signal.SIGTERM)  # As schedulers do: loader processes get it too.
        time.sleep(0.003)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert launch or "Traceback" not in err, err
    return process.returncode, [line for line in err.splitlines() if line.startswith("cal-train: ")]


@pytest.mark.parametrize(
    ("workers", "times"), [pytest.param(0, 1, marks=pytest.mark.full), (2, 4)], ids=["once", "with loaders, repeated"]
)
def test_sigterm_is_one_line_with_the_way_on(
    workers: int, times: int, llava: Family, annotated: Path, tmp_path: Path
) -> None:
    flags = ("--save_strategy", "no", "--dataloader_num_workers", workers)
    code, lines = terminated_in_training(llava, annotated, tmp_path / "out", *flags, times=times)
    assert code == 128 + signal.SIGTERM
    assert lines == ["cal-train: terminated; nothing was saved to go on from: the same command begins anew"]


def test_a_run_that_is_ended_before_it_looks_at_its_output_says_nothing_of_checkpoints(
    saved: Path, llava: Family, annotated: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "parse", lambda _: signal.raise_signal(signal.SIGTERM))
    argv = command(llava, annotated, saved, "--resume_from_checkpoint", "last")
    assert cli.run(argv) == 128 + signal.SIGTERM
    assert capfd.readouterr().err == "cal-train: terminated; nothing had begun: the same command starts again\n"


@pytest.mark.parametrize("launch", [None, pytest.param(LAUNCH, marks=pytest.mark.full)], ids=["alone", "two ranks"])
def test_with_jit_checkpoints_sigterm_saves_a_step_from_which_the_run_goes_on_as_if_never_ended(
    launch: list[str] | None, llava: Family, annotated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = ("--enable_jit_checkpoint", "true", "--save_strategy", "no", "--lr_scheduler_type", "constant")
    flags = (*flags, "--dataloader_num_workers", 2)
    flags = (*flags, "--per_device_train_batch_size", 1 if launch else 2)
    code, lines = terminated_in_training(llava, annotated, out, *flags, launch=launch)
    (checkpoint,) = out.glob("checkpoint-*")
    assert code == (1 if launch else 128 + signal.SIGTERM)  # accelerate's own, for whatever its processes exit with
    assert lines == [f"cal-train: terminated; --resume_from_checkpoint last goes on from {checkpoint}"]
    steps = int(checkpoint.name[11:])
    assert f"| steps taken | {steps} of 3000: stopped early |" in (out / "README.md").read_text()
    if launch:
        return
    more = ("--max_steps", steps + 2, "--lr_scheduler_type", "constant")
    assert cli.run(command(llava, annotated, tmp_path / "whole", *more)) == 0
    assert cli.run(command(llava, annotated, out, *more, "--resume_from_checkpoint", "last")) == 0
    assert losses(out) == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)


@pytest.mark.full
def test_the_one_process_of_a_launch_for_several_is_refused(llava: Family, annotated: Path, tmp_path: Path) -> None:
    launch = [*LAUNCH[:2], "--cpu", *LAUNCH[3:]]
    process = start(command(llava, annotated, tmp_path / "out", "--max_steps", 1), tmp_path / "log", launch)
    _, err = process.communicate(timeout=PATIENCE_S)
    (line,) = [line for line in err.splitlines() if line.startswith("cal-train: ")]
    assert "started this one alone: it starts several with --multi_gpu" in line
    assert process.returncode == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def saved(llava: Family, annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with two checkpoints."""
    folder = tmp_path_factory.mktemp("saved") / "out"
    assert cli.run(command(llava, annotated, folder, "--max_steps", 4, "--save_steps", 2)) == 0
    return folder


@pytest.mark.parametrize("logging_steps", [1, 100])
def test_a_loss_that_is_no_number_ends_the_run_and_nothing_is_saved_over_the_last_good_checkpoint(
    logging_steps: int, saved: Path, llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(saved, tmp_path / "out"))
    weights = [out / "checkpoint-4" / "model.safetensors", out / "model.safetensors"]
    good = [file.read_bytes() for file in weights]
    flags = ("--max_steps", 4, "--save_steps", 4, "--save_total_limit", 1, "--logging_steps", logging_steps)
    assert cli.run(command(llava, annotated, out, *flags, "--learning_rate", "1e30")) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cal-train: ")]
    assert len(lines) == 1
    assert ("loss is nan" if logging_steps == 1 else "trained tensors hold NaN or infinity") in lines[0]
    assert lines[0].endswith(f"--stop_on_nan false trains on. Saved before: {out / 'checkpoint-4'}")
    assert [file.read_bytes() for file in weights] == good


def test_nan_is_trained_on_where_that_is_asked_for(llava: Family, annotated: Path, tmp_path: Path) -> None:
    flags = ("--max_steps", 3, "--learning_rate", "1e30", "--stop_on_nan", "false")
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags)) == 0
    assert math.isnan(losses(tmp_path / "out")[-1])


@pytest.mark.parametrize(
    "name",
    ["trainer_state.json", "cal_train_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
     "tokenizer.json", "config.json"],
)  # fmt: skip
@pytest.mark.parametrize("kept", [0, 0.5, 0.999])
def test_a_checkpoint_with_a_truncated_file_is_passed_over_by_name(
    name: str, kept: float, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = Path(shutil.copytree(saved, tmp_path / "out"))
    file = out / "checkpoint-4" / name
    os.truncate(file, int(file.stat().st_size * kept))
    assert find_checkpoint("last", out) == out / "checkpoint-2"
    assert f"checkpoint-4 is passed over: cut off: {name}" in caplog.text
    with pytest.raises(ConfigError, match=f"checkpoint-4 is incomplete: cut off: {name}"):
        find_checkpoint(str(out / "checkpoint-4"), out)


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("trainer_state.json", "trainer_state.json"), ("cal_train_state.json", "cal_train_state.json"),
     ("model.safetensors", "the model"), ("config.json", "the model's config"), ("optimizer.pt", "the optimizer"),
     ("scheduler.pt", "the schedule"), ("rng_state.pth", "the state of random numbers")],
)  # fmt: skip
def test_a_checkpoint_without_a_file_that_going_on_needs_is_passed_over_by_name(
    name: str, lacking: str, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = Path(shutil.copytree(saved, tmp_path / "out"))
    (out / "checkpoint-4" / name).unlink()
    assert find_checkpoint(True, out) == out / "checkpoint-2"
    assert f"checkpoint-4 is passed over: it lacks {lacking} (" in caplog.text


def test_a_checkpoint_whose_parts_have_no_index_is_passed_over_by_name(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Path(shutil.copytree(saved, tmp_path / "out")) / "checkpoint-4"
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00001.safetensors")
    assert find_checkpoint("last", tmp_path / "out") == tmp_path / "out" / "checkpoint-2"
    assert "it lacks model.safetensors.index.json" in caplog.text


def test_a_checkpoint_that_is_cut_off_where_an_older_one_was_is_no_mix_of_both(
    saved: Path, llava: Family, annotated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = Path(shutil.copytree(saved, tmp_path / "out"))
    (out / "checkpoint-4" / "optimizer.pt").unlink()
    (out / "checkpoint-4" / "optimizer.pt").mkdir()  # What cannot be written to ends the run in the midst of saving.
    argv = command(llava, annotated, out, "--max_steps", 4, "--save_steps", 4, "--learning_rate", "2e-3")
    with pytest.raises(RuntimeError, match="Is a directory"):
        cli.run(argv)
    assert find_checkpoint("last", out) == out / "checkpoint-2"
    assert "checkpoint-4 is passed over: it lacks trainer_state.json" in caplog.text


def test_a_checkpoint_without_a_part_of_its_weights_is_passed_over_by_name(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = Path(shutil.copytree(saved, tmp_path / "out"))
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (out / "checkpoint-4" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_checkpoint("last", out) == out / "checkpoint-2"
    assert "it lacks model-00002-of-00002.safetensors" in caplog.text


class Terminate(TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)


def test_a_jit_checkpoint_is_kept_beside_the_best_one(llava: Family, annotated: Path, tmp_path: Path) -> None:
    flags = ("--max_steps", 6, "--enable_jit_checkpoint", "true", "--learning_rate", "1e-1", "--save_total_limit", 1)
    flags = (*flags, "--load_best_model_at_end", "true", "--eval_strategy", "steps", "--save_strategy", "steps")
    flags = (*flags, "--eval_steps", 1, "--save_steps", 1, "--eval_path", annotated)
    with pytest.raises(Terminated):
        train(*cli.parse(command(llava, annotated, tmp_path / "out", *flags)), callbacks=[Terminate()])
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    newest = find_checkpoint("last", tmp_path / "out")
    assert newest == tmp_path / "out" / f"checkpoint-{state['global_step']}"
    assert str(newest) != state["best_model_checkpoint"], "the best one is the last: this shows nothing"


@pytest.mark.fault
def test_a_full_disk_of_the_arrow_copy_is_named(
    small_disk: Path, llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,size=24k", small_disk], check=True)
    assert cli.run(command(llava, annotated, tmp_path / "out", "--max_steps", 1, "--cache_dir", small_disk)) == 3
    assert f"cal-train: [Errno 28] No space left on device: '{small_disk}'. Make room; " in capfd.readouterr().err


@pytest.mark.fault
@pytest.mark.parametrize(
    ("share", "of"),
    [(0.5, "checkpoint-2/model.safetensors"), (1.5, "checkpoint-2/model.safetensors"), (1.2, "checkpoint-2")],
    ids=["weights", "optimizer", "second checkpoint"],
)
def test_a_full_disk_is_one_line_and_an_exit_code_of_its_own(
    share: float, of: str, saved: Path, small_disk: Path, llava: Family, annotated: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, top = small_disk / "out", saved / of
    room = share * (top.stat().st_size if top.is_file() else sum(file.stat().st_size for file in top.iterdir()))
    subprocess.run(["mount", "-o", f"remount,size={room // 1000:.0f}k", small_disk], check=True)
    assert cli.run(command(llava, annotated, out, "--max_steps", 4, "--save_steps", 2)) == 3
    err = capfd.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("cal-train: ")]
    assert "Traceback" not in err
    assert "no space left on device" in line.lower()
    goes_on = top.is_dir()
    assert line.endswith(f"goes on from {out / 'checkpoint-2'}" if goes_on else "the same command begins anew")
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    if goes_on:
        resume = ("--max_steps", 4, "--save_steps", 2, "--resume_from_checkpoint", "last")
        assert cli.run(command(llava, annotated, out, *resume)) == 0
        assert losses(out) == pytest.approx(losses(saved), abs=1e-6)
