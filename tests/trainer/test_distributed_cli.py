"""`cal-train` itself in two processes: resumed, evaluated and sharded as in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import distributed_cli
from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_trainer import cli
from cal_trainer.run.sharding import layers_to_shard
from conftest import Family
from tiny_data import write_llava_json
from trained import command, losses

TIMEOUT_S = 400
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def folder(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that was trained, once: in two processes under `two`, alone under `one`."""
    top = tmp_path_factory.mktemp("ranks")
    data, images = write_llava_json(top, 24)
    # 16 rows are ok; 11 to evaluate on, which two ranks of four rows each cannot divide.
    annotate(top / "train", plan_shards([str(data)], [str(images)]), llava.encoder, llava.model)
    fewer = json.loads(data.read_text())[:4] + json.loads(data.read_text())[16:]
    (top / "held_out.json").write_text(json.dumps(fewer[:11]))
    annotate(top / "eval", plan_shards([str(top / "held_out.json")], [str(images)]), llava.encoder, llava.model)
    steps = ("--max_steps", 6, "--save_steps", 4, "--adam_epsilon", "1e-3")
    held_out = ("--eval_path", top / "eval", "--eval_strategy", "steps", "--eval_steps", 3)
    held_out = (*held_out, "--per_device_eval_batch_size", 4)

    mix = ("--data_path", top / "train", top / "eval", "--mix", "train=0.3", "eval=0.7", "--uniform_sources", "eval=2")
    mix = (*mix, "--max_steps", 8)
    mixed = (*mix, "--group_by", "length")

    def run(name: str, *flags: object) -> list[str]:
        return command(llava, top / "train", top / name, *steps, *flags)

    def go_on(name: str) -> tuple[object, ...]:
        return "--resume_from_checkpoint", top / name / "checkpoint-4"

    runs = [
        run("two", *held_out),
        run("two_resumed", *held_out, *go_on("two")),
        run("streamed", "--streaming"),
        run("streamed_resumed", "--streaming", *go_on("streamed")),
        run("mixed", *mixed),
        run("mixed_resumed", *mixed, *go_on("mixed")),
        run("streamed_mixed", *mix, "--streaming"),
        run("streamed_mixed_resumed", *mix, "--streaming", *go_on("streamed_mixed")),
        run("adapters", "--lora_r", 4),
        run("quantised", "--lora_r", 4, "--quantization", "4bit"),
        run("sharded", "--fsdp"),
        run("sharded_resumed", "--fsdp", *go_on("sharded")),
        run("sharded_sgd", "--fsdp", "--optim", "sgd"),
        run("sharded_sgd_resumed", "--fsdp", "--optim", "sgd", *go_on("sharded_sgd")),
    ]
    listed = top / "runs.json"
    listed.write_text(json.dumps(runs))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, distributed_cli.__file__, str(listed)], capture_output=True, text=True, timeout=TIMEOUT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}, check=False,
    )  # fmt: skip
    for rank in range(2):
        written = top / f"runs.json.{rank}"
        assert written.exists(), done.stderr[-6000:]
        assert json.loads(written.read_text()) == [0] * len(runs), done.stderr[-6000:]
    assert cli.run(run("one", *held_out, "--per_device_train_batch_size", 4)) == 0
    assert cli.run(run("one_mixed", *mixed, "--per_device_train_batch_size", 4)) == 0
    assert cli.run(run("one_adapters", "--lora_r", 4, "--per_device_train_batch_size", 4)) == 0
    quantised = ("--lora_r", 4, "--quantization", "4bit", "--per_device_train_batch_size", 4)
    assert cli.run(run("one_quantised", *quantised)) == 0
    return top


def evaluations(output: Path) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


@pytest.mark.parametrize("name", ["two", "streamed", "mixed", "streamed_mixed", "sharded", "sharded_sgd"])
def test_two_ranks_resume_with_the_losses_of_a_run_that_never_stopped(folder: Path, name: str) -> None:
    whole = losses(folder / name)
    assert len(whole) == (8 if "mixed" in name else 6)
    assert losses(folder / f"{name}_resumed") == pytest.approx(whole, abs=1e-6)


def test_two_ranks_evaluate_no_row_twice(folder: Path) -> None:
    assert len(evaluations(folder / "one")) == 2
    assert evaluations(folder / "two") == pytest.approx(evaluations(folder / "one"), abs=1e-4)


def test_two_ranks_log_what_one_process_logs(folder: Path) -> None:
    assert losses(folder / "two") == pytest.approx(losses(folder / "one"), abs=1e-4)
    histories = [
        json.loads((folder / name / "trainer_state.json").read_text())["log_history"] for name in ("one", "two")
    ]
    for one, two in zip(*histories, strict=True):
        for key in {"mean_weight", "share_at_alpha", "unweighted_loss", "weighted_loss"} & set(one):
            assert two[key] == pytest.approx(one[key], abs=1e-4), key


def test_two_ranks_draw_the_mix_of_one_process_and_log_its_sources(folder: Path) -> None:
    one, two = (
        [entry for entry in json.loads((folder / name / "trainer_state.json").read_text())["log_history"]
         if "loss" in entry] for name in ("one_mixed", "mixed")
    )  # fmt: skip
    assert sum("source/eval/mean_weight" in entry for entry in one) > 6
    for of_one, of_two in zip(one, two, strict=True):
        assert of_one.keys() == of_two.keys()
        for key in {key for key in of_one if key.startswith("source/")} | {"loss", "mean_weight"}:
            assert of_two[key] == pytest.approx(of_one[key], abs=1e-4), key


def test_sharded_training_saves_the_model_that_one_process_trains(folder: Path) -> None:
    assert losses(folder / "sharded") == pytest.approx(losses(folder / "one"), abs=1e-4)
    models = [AutoModelForImageTextToText.from_pretrained(folder / name) for name in ("sharded", "one")]
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("what", ["adapters", "quantised"])
def test_two_ranks_train_the_adapters_that_one_process_trains(folder: Path, what: str) -> None:
    two, one = (load_file(folder / name / "adapter_model.safetensors") for name in (what, f"one_{what}"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_layers_to_shard_are_those_that_the_model_holds(llava: Family) -> None:
    assert {"LlamaDecoderLayer", "CLIPEncoderLayer"} <= set(layers_to_shard(llava.model, None))
