"""`cal-train` as a user meets it: what is refused, and an interrupted run that goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoProcessor, TrainingArguments

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError
from cal_trainer import cli, training
from cal_trainer.config import TrainConfig
from cal_trainer.run.validation import validate_optimizer
from conftest import Family
from fault_job import PATIENCE_S, wait_for
from tiny_data import write_llava_json, write_parquet
from tiny_models import sample_image, train_tokenizer
from trained import command, losses

PROGRAM = Path(sys.executable).parent / "cal-train"


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, llava: Family) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    data, images = write_llava_json(folder, 24)
    return annotate(folder / "out", plan_shards([str(data)], [str(images)]), llava.encoder, llava.model)


ANNOTATED = "the annotated shards"
REFUSED: dict[str, tuple[list[object], str]] = {
    "nothing": (["--data_path", "/nowhere"], "no annotated shards"),
    "released with cached": (["--preset", "released"], "use --delta_source online"),
    "preset contradicted": (["--preset", "cal", "--pool", "joined"], "means --pool span, got --pool joined"),
    "contrast without online": (["--contrast", "mask"], "--contrast is of online deltas"),
    "ratio without online": (["--patch_mask_ratio", 0.5], "--patch_mask_ratio is of online deltas"),
    "ratio of another contrast": (
        ["--delta_source", "online", "--contrast", "mask", "--patch_mask_ratio", 0.5],
        "has no effect on --contrast mask",
    ),
    "blur without sigma": (["--delta_source", "online", "--contrast", "gaussian_blur"], "needs --blur_sigma"),
    "released pool with drop": (["--delta_source", "online", "--pool", "released"], "give --contrast mask"),
    "released preset with blur": (
        ["--delta_source", "online", "--preset", "released", "--contrast", "gaussian_blur", "--blur_sigma", 1],
        "means --contrast mask, got --contrast gaussian_blur",
    ),
    "step with online": (
        ["--delta_source", "online", "--normalization", "step", "--gradient_accumulation_steps", 2],
        "are not known in time",
    ),
    "even window": (["--window", 2], "window must be odd"),
    "bounds": (["--alpha", 3, "--beta", 2], "0 <= alpha <= beta"),
    "map unknown": (["--map", "clip"], "expected one of clamp, inverse"),
    "map of another score": (["--map", "pgpo=0.4"], "is of score kl or kl_reverse or js, and not of delta_logit"),
    "columns missing": (["--preset", "vppo"], "cal-precompute --extra_columns kl"),
    "preset's score contradicted": (["--preset", "vppo", "--score", "js"], "means --score kl, got --score js"),
    "preset's map contradicted": (["--preset", "vppo", "--map", "softmax=1"], "means --map top_share=0.4, got --map"),
    "quantile of a mask": (["--map", "top_share=0.4", "--alpha", "q0.5"], "map top_share=0.4 bounds weights"),
    "quantile in training": (["--score", "nll", "--alpha", "q0.5"], "score nll changes with the model in training"),
    "threshold online": (["--delta_source", "online", "--map", "threshold=q0.5"], "not known before the training"),
    "threshold in training": (["--score", "nll", "--map", "threshold=q0.5"], "changes with the model in training"),
    "excess without a reference": (["--delta_source", "online", "--score", "excess_loss"], "needs cached deltas"),
    "drift of a mask": (["--map", "top_share=0.4", "--drift_every", 2], "--score delta_logit and --map clamp"),
    "accumulated own loss": (
        ["--preset", "rho1", "--gradient_accumulation_steps", 2],
        "of the model in training, those of the later ones are not known in time",
    ),
    "unknown part": (["--trainable", "heart"], "heart"),
    "multiplier": (["--lr_multipliers", "vision_tower=fast"], "vision_tower=fast"),
    "drift without cache": (["--delta_source", "uniform", "--drift_every", 2], "--drift_every compares"),
    "no checkpoint": (["--resume_from_checkpoint", "last"], "no checkpoint in --output_dir"),
    "wrong flag": (["--delta_sauce", "cached"], "did you mean --delta_source?"),
    "other template": (["--template", "vicuna_v1"], "template"),
    "no evaluation": (["--eval_strategy", "epoch"], "give both, or neither"),
    "never evaluated": (["--eval_path", ANNOTATED], "give both, or neither"),
    "alpha without LoRA": (["--lora_alpha", "8"], "give --lora_r too"),
    "smoothing": (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor has no effect"),
    "dropout without LoRA": (["--lora_dropout", "0.1"], "give --lora_r too"),
    "adapters below zero": (["--lora_r", -1], "LoRA takes r >= 1"),
    "adapters that drop, online": (
        ["--delta_source", "online", "--lora_r", 2, "--lora_dropout", "0.1"],
        "online deltas need the same network in both passes",
    ),
    "adapters of nothing": (["--lora_r", 2, "--trainable", "projector"], "name language_model in --trainable"),
    "evaluation without data": (["--do_eval"], "--do_eval has no effect"),
    "no training": (["--do_train", "false"], "To evaluate alone: --learning_rate 0 --max_steps 1"),
    "prediction": (["--do_predict"], "--do_predict has no effect"),
    "split batches": (["--accelerator_config", '{"split_batches": true}'], "in another order"),
    "accumulation elsewhere": (
        ["--accelerator_config", '{"gradient_accumulation_kwargs": {"num_steps": 2}}'],
        "give --gradient_accumulation_steps instead",
    ),
    "output among the data": (["--output_dir", ANNOTATED], "is --data_path too"),
    "file that is not there": (["--accelerator_config", "/nowhere.json"], "No such file or directory: '/nowhere.json'"),
    "multiplier of what is frozen": (["--lr_multipliers", "vision_tower=0.1"], "nothing of it trains"),
    "columns": (["--remove_unused_columns", "true"], "take the deltas out"),
    "batch of nothing": (["--per_device_train_batch_size", 0], "must be at least 1, got 0"),
    "no accumulation": (["--gradient_accumulation_steps", 0], "must be at least 1, got 0"),
    "workers below zero": (["--dataloader_num_workers", -1], "must be at least 0, got -1"),
    "rate": (["--learning_rate", "nan"], "--learning_rate must be a number from 0 on, got nan"),
    "no step": (["--max_steps", 0], "nothing would be trained"),
    "dropped rows": (["--dataloader_drop_last", "true"], "--dataloader_drop_last has no effect here: the last step"),
    "never saved": (["--save_strategy", "steps", "--save_steps", 0], "would never save"),
    "one process to shard over": (["--fsdp"], "and this is one"),
    "argument that no schedule has": (
        ["--lr_scheduler_kwargs", '{"min_lrr": 1}'],
        "unexpected keyword argument 'min_lrr'",
    ),
    "schedule without what it needs": (
        ["--lr_scheduler_type", "warmup_stable_decay"],
        "with --lr_scheduler_kwargs {}: ",
    ),
    "no place": (["--output_dir", ""], "--output_dir is empty"),
    "optimizer that is not there": (["--optim", "lomo"], "--optim lomo: You need to install"),
    "report to nobody": (["--report_to", "bogus"], "--report_to: invalid choice: 'bogus'; choose from none, all"),
    "upload by nobody": (["--push_to_hub", "--hub_token", "nobody's"], "--push_to_hub: "),
    "metric": (
        [
            "--eval_path",
            ANNOTATED,
            "--eval_strategy",
            "epoch",
            "--save_strategy",
            "best",
            "--metric_for_best_model",
            "accuracy",
        ],
        "evaluation gives eval_loss only",
    ),
    "evaluation at the start without data": (["--eval_on_start"], "--eval_on_start has no effect"),
    "output under a file": (["--output_dir", f"{__file__}/out"], "cannot be written to: Not a directory"),
    "output in a store": (["--output_dir", "s3://bucket/out"], "is a URL"),
    "evaluation images that are not there": (
        ["--eval_path", ANNOTATED, "--eval_strategy", "epoch", "--eval_image_folder", "/no/images"],
        "--eval_image_folder /no/images: no such directory",
    ),
    "source that is not there": (["--source_path", "/nowhere.json"], "--source_path /nowhere.json: no file there"),
    "bounds of a store": (["--alpha", "q0.5", "--data_path", "s3://no-such-bucket/x"], "s3://no-such-bucket/x"),
    "assemble half": (["--assemble", "vision=/nowhere"], "language"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_one_message_and_exit_2(
    what: str, llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(training, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    flags, message = REFUSED[what]
    flags = [annotated if flag == ANNOTATED else flag for flag in flags]
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags)) == 2
    err = capfd.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("cal-train: ")]
    assert len(lines) == 1, err
    assert message in lines[0]
    assert "Traceback" not in err


def test_a_whole_model_is_not_put_beside_the_adapters_of_an_earlier_run_which_would_be_loaded_in_its_place(
    llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.run(command(llava, annotated, out, "--max_steps", 1, "--lora_r", 2)) == 0
    assert cli.run(command(llava, annotated, out, "--max_steps", 1)) == 2
    assert f"--output_dir {out} holds adapters of an earlier run (adapter_config.json)" in capfd.readouterr().err
    assert not (out / "model.safetensors").exists()
    (out / "adapter_config.json").unlink()
    assert cli.run(command(llava, annotated, out, "--max_steps", 1)) == 2
    assert "holds adapters of an earlier run (checkpoint-1/adapter_config.json)" in capfd.readouterr().err


def test_arguments_that_an_optimizer_does_not_read_are_said_to_change_nothing(
    llava: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def arguments(optim: str) -> TrainingArguments:
        return TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to=[], optim=optim, optim_args="momentum=0.9"
        )

    validate_optimizer(arguments("sgd"), llava.model)
    assert not caplog.text
    validate_optimizer(arguments("adamw_torch"), llava.model)
    assert "--optim_args momentum=0.9 changes nothing of --optim adamw_torch" in caplog.text


def test_another_tokenizer_is_refused_with_the_way_out(
    llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(llava.directory, tmp_path / "model"))
    processor: Any = AutoProcessor.from_pretrained(other)
    tokenizer = train_tokenizer(bos="<s>", eos="</s>", pad="<pad>", special=["<image>", "<other>"], add_bos=True)
    processor.tokenizer = tokenizer
    processor.save_pretrained(other)
    assert cli.run(command(llava, annotated, tmp_path / "out", "--model_name_or_path", other)) == 2
    err = capfd.readouterr().err
    assert "tokenizer_digest" in err
    assert "cal-precompute" in err


def test_a_training_that_logs_json_writes_nothing_else_on_standard_error(
    llava: Family, annotated: Path, tmp_path: Path
) -> None:
    argv = command(llava, annotated, tmp_path / "out", "--max_steps", 2, "--logging_steps", 1, "--log_format", "json")
    done = subprocess.run([str(PROGRAM), *argv], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    measured = {line["message"]: line["metrics"] for line in lines if "metrics" in line}
    assert measured["step 1 of 2"].keys() >= {"loss", "learning_rate", "mean_weight"}
    assert measured["step 2 of 2"]["train_runtime"] > 0


@pytest.mark.full
def test_a_run_that_was_interrupted_and_resumed_gives_the_same_losses(
    llava: Family, annotated: Path, tmp_path: Path
) -> None:
    flags = ("--max_steps", 14, "--save_steps", 2, "--group_by", "length")
    assert cli.run(command(llava, annotated, tmp_path / "whole", *flags)) == 0
    whole = losses(tmp_path / "whole")
    assert len(whole) == 14
    process = subprocess.Popen(
        [str(PROGRAM), *command(llava, annotated, tmp_path / "cut", *flags)], stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for(
        lambda: list((tmp_path / "cut").glob("checkpoint-*/trainer_state.json")), "a checkpoint",
        still=lambda: process.poll() is None,
    )  # fmt: skip
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    if process.returncode != 0:  # it may have finished in the meantime; then resuming has nothing to do
        assert process.returncode == 130, err
        assert "--resume_from_checkpoint last goes on" in err
    assert cli.run(command(llava, annotated, tmp_path / "cut", *flags, "--resume_from_checkpoint", "last")) == 0
    assert losses(tmp_path / "cut") == pytest.approx(whole, abs=1e-5)


def test_a_finished_run_that_is_resumed_takes_no_step_more(
    llava: Family, annotated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # 16 rows, two a step: it ends inside an epoch, at a rate above 0.
    flags = ("--max_steps", 3, "--save_steps", 3, "--lr_scheduler_type", "constant")
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags)) == 0
    trained = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags, "--resume_from_checkpoint", "last")) == 0
    assert "nothing is left to train: step 3 of 3" in caplog.text
    assert len(losses(tmp_path / "out")) == 3
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == trained


def test_a_run_that_begins_anew_beside_old_checkpoints_says_so(
    llava: Family, annotated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--max_steps", 1, "--save_steps", 1)
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags)) == 0
    assert "of an earlier run" not in caplog.text
    for steps in (9, 10):
        (tmp_path / "out" / f"checkpoint-{steps}").mkdir()
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags)) == 0
    assert "holds checkpoint-10 of an earlier run" in caplog.text


def test_evaluation_images_that_are_gone_show_before_the_model_is_loaded(
    llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, images = write_llava_json(tmp_path, 4)
    plan = plan_shards([str(data)], [str(images)])
    held_out = annotate(tmp_path / "eval", plan, llava.encoder, llava.model, carry="paths")
    shutil.rmtree(images)
    monkeypatch.setattr(training, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    flags = ("--eval_path", held_out, "--eval_strategy", "epoch")
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags)) == 2
    assert "cannot be encoded now" in capfd.readouterr().err


def test_evaluation_takes_the_images_it_was_measured_with_whatever_training_takes(
    llava: Family, annotated: Path, tmp_path: Path
) -> None:
    data, images = write_llava_json(tmp_path, 4)
    plan = plan_shards([str(data)], [str(images)])
    held_out = annotate(tmp_path / "eval", plan, llava.encoder, llava.model, carry="paths")
    other = tmp_path / "other"
    other.mkdir()
    for number, image in enumerate(sorted(images.iterdir())):
        sample_image(100 + number).save(other / image.name)

    def eval_loss(name: str, *flags: object) -> float:
        always = ("--max_steps", 1, "--learning_rate", 0, "--eval_path", held_out, "--eval_strategy", "epoch")
        assert cli.run(command(llava, annotated, tmp_path / name, *always, *flags)) == 0
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        return next(float(entry["eval_loss"]) for entry in history if "eval_loss" in entry)

    as_measured = eval_loss("plain")
    assert eval_loss("trained on others", "--image_folder", other) == as_measured
    assert eval_loss("evaluated on others", "--eval_image_folder", other) != as_measured


def test_raw_data_is_evaluated_on_as_its_annotated_shards_are(llava: Family, annotated: Path, tmp_path: Path) -> None:
    rows = json.loads((annotated.parent / "data.json").read_text())
    statuses = pq.read_table(annotated, columns=["status"])["status"].to_pylist()
    data, images = tmp_path / "ok.json", annotated.parent / "images"
    data.write_text(json.dumps([row for row, status in zip(rows, statuses, strict=True) if status == "ok"]))

    def eval_loss(*flags: object) -> float:
        always = ("--max_steps", 1, "--learning_rate", 0, "--eval_strategy", "epoch", "--eval_path", *flags)
        assert cli.run(command(llava, annotated, tmp_path / "out", *always)) == 0
        history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
        return next(float(entry["eval_loss"]) for entry in history if "eval_loss" in entry)

    assert eval_loss(data, "--eval_image_folder", images) == pytest.approx(eval_loss(annotated), abs=1e-5)


def test_raw_data_that_cannot_be_evaluated_on_names_the_flags_of_evaluation(
    llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ("--eval_strategy", "epoch", "--eval_path", annotated.parent / "data.json")
    for more, said in (
        ((), "say with --eval_image_folder where they are"),
        (("--eval_image_folder", tmp_path), "with --eval_image_folder"),
    ):
        assert cli.run(command(llava, annotated, tmp_path / "out", *flags, *more)) == 2
        err = capfd.readouterr().err
        assert said in err
        assert "--source_path" not in err


def test_raw_data_in_place_of_a_measurement_says_which_flag_takes_it(
    llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parquet = write_parquet(tmp_path / "raw" / "shard.parquet", 4)
    for path in (annotated.parent / "data.json", parquet, parquet.parent):
        assert cli.run(command(llava, annotated, tmp_path / "out", "--data_path", path)) == 2
        err = capfd.readouterr().err
        assert f"--data_path {path} holds raw data (" in err
        assert f"train it as it is with --source_path {path} and --delta_source uniform or online" in err


def test_a_sidecar_to_evaluate_on_is_refused_with_the_way_out(
    llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, images = write_llava_json(tmp_path, 4)
    plan = plan_shards([str(data)], [str(images)])
    sidecar = annotate(tmp_path / "eval", plan, llava.encoder, llava.model, carry="none")
    flags = ("--eval_path", sidecar, "--eval_strategy", "epoch")
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags)) == 2
    err = capfd.readouterr().err
    assert f"--eval_path {sidecar} is a sidecar" in err
    assert "with cal-precompute --carry images or --carry paths" in err
    assert "--source_path" not in err


def test_lora_and_multipliers_train_and_save_through_the_program(
    llava: Family, annotated: Path, tmp_path: Path
) -> None:
    assert cli.run(command(llava, annotated, tmp_path / "lora", "--max_steps", 2, "--lora_r", 4)) == 0
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    flags = ("--max_steps", 2, "--trainable", "all", "--lr_multipliers", "vision_tower=0.1")
    assert cli.run(command(llava, annotated, tmp_path / "all", *flags)) == 0
    card = (tmp_path / "all" / "README.md").read_text()
    assert "vision_tower" in card
    assert "0.1" in card
    # The vision tower's parameters come first; what is logged is --learning_rate nevertheless.
    log = json.loads((tmp_path / "all" / "trainer_state.json").read_text())["log_history"]
    assert [entry["learning_rate"] for entry in log if "loss" in entry] == pytest.approx([1e-3, 5e-4])


def test_fresh_adapters_are_those_of_the_seed(llava: Family, annotated: Path, tmp_path: Path) -> None:
    def adapters(name: str, seed: int) -> bytes:
        flags = ("--lora_r", 4, "--learning_rate", 0, "--max_steps", 1, "--seed", seed)
        assert cli.run(command(llava, annotated, tmp_path / name, *flags)) == 0
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    torch.rand(3)  # Whatever this process drew before.
    assert adapters("once", 7) == adapters("again", 7)
    assert adapters("other", 8) != adapters("once more", 7)


def test_a_cross_fit_trains_and_its_card_names_both_references(
    llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shards = plan_shards([str(write_parquet(tmp_path / "other.parquet", 8))])
    half = annotate(tmp_path / "half", shards, llava.encoder, llava.model, model_id="second", weights_digest="other")
    flags = ("--data_path", annotated, half, "--alpha", 0, "--beta", "q0.9", "--max_steps", 2)
    assert cli.run(command(llava, annotated, tmp_path / "refused", *flags)) == 2
    assert "a cross-fit: --crossfit true" in capfd.readouterr().err
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags, "--crossfit", "true")) == 0
    assert "cross-fit of second and tiny" in (tmp_path / "out" / "README.md").read_text()


def test_a_cross_fit_of_no_shards_is_refused() -> None:
    with pytest.raises(ConfigError, match="--crossfit is about the references of annotated shards"):
        TrainConfig(model_name_or_path="m", source_path=["s"], delta_source="uniform", crossfit=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"streaming": True, "source_path": ["a"]}, "--streaming reads annotated shards in their own order"),
        ({"streaming": True, "group_by": "length"}, "--group_by length needs to know all rows"),
        ({"on_missing": "uniform"}, "give --source_path"),
        ({"image_folder": ["a", "b"]}, "2 --image_folder for one --data_path"),
        ({"contrast": "patch_mask", "patch_mask_ratio": 0.5}, "--contrast is of online deltas"),
        ({"data_path": []}, "--data_path is required"),
        ({"data_path": [], "source_path": ["a"]}, "--delta_source cached needs a measurement"),
        ({"data_path": [], "source_path": ["a"], "alpha": "q0.5"}, "--delta_source cached needs a measurement"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        TrainConfig(**{"model_name_or_path": "m", "data_path": ["d"], **options})


def test_from_python_one_path_may_stand_without_its_list() -> None:
    config = TrainConfig(model_name_or_path="m", data_path="annotated", trainable="all")  # type: ignore[arg-type]
    assert config == TrainConfig(model_name_or_path="m", data_path=["annotated"], trainable=["all"])


def test_bfloat16_without_a_gpu_is_refused_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers asks in its own module, we where it comes from; either finds none.
    for module in ("transformers.training_args", "cal_trainer.training_arguments"):
        monkeypatch.setattr(f"{module}.is_torch_bf16_gpu_available", lambda: False)
    flags = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", str(tmp_path), "--bf16"]
    with pytest.raises(ConfigError, match=r"^--bf16: torch sees no GPU here .*: leave it out, or add --use_cpu$"):
        cli.parse(flags)
    assert cli.parse([*flags, "--use_cpu"])[1].bf16


def test_memory_is_pinned_for_an_accelerator_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (False, True):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda there=there: there)
        flags = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", str(tmp_path)]
        assert cli.parse(flags)[1].dataloader_pin_memory is there


def test_a_folder_of_evaluation_images_without_evaluation_is_refused() -> None:
    with pytest.raises(ConfigError, match="give --eval_path too"):
        TrainConfig(model_name_or_path="m", data_path=["d"], eval_image_folder="images")


def test_evaluation_does_not_depend_on_the_batch_size(llava: Family, annotated: Path, tmp_path: Path) -> None:
    found = []
    for size in (1, 8):
        flags = ("--max_steps", 1, "--learning_rate", "0", "--eval_path", annotated, "--eval_strategy", "steps")
        flags = (*flags, "--eval_steps", 1, "--per_device_eval_batch_size", size)
        assert cli.run(command(llava, annotated, tmp_path / str(size), *flags)) == 0
        history = json.loads((tmp_path / str(size) / "trainer_state.json").read_text())["log_history"]
        found.append(next(entry["eval_loss"] for entry in history if "eval_loss" in entry))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_an_incomplete_checkpoint_is_passed_over_by_last_and_refused_by_name(
    llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ("--max_steps", 4, "--save_steps", 2)
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags)) == 0
    (tmp_path / "out" / "checkpoint-4" / "optimizer.pt").unlink()
    named = ("--resume_from_checkpoint", tmp_path / "out" / "checkpoint-4")
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags, *named)) == 2
    assert "is incomplete: it lacks the optimizer" in capfd.readouterr().err
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags, "--resume_from_checkpoint", "last")) == 0
    assert len(losses(tmp_path / "out")) == 4


def test_raw_data_without_its_images_is_refused_before_the_model_is_loaded(
    llava: Family, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, images = write_llava_json(tmp_path, 12)
    for image in images.iterdir():
        image.unlink()
    rows = [row for row in json.loads(data.read_text()) if "image" in row]
    data.write_text(json.dumps(rows))
    flags = ("--source_path", data, "--image_folder", images, "--delta_source", "uniform", "--max_steps", 1)
    kept = command(llava, tmp_path, tmp_path / "out", *flags)
    at = kept.index("--data_path")
    assert cli.run(kept[:at] + kept[at + 2 :]) == 2
    assert "none of the 8 images looked at can be read" in capfd.readouterr().err


def test_flags_of_deltas_are_said_to_have_no_effect_with_uniform_weights(
    llava: Family, annotated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--delta_source", "uniform", "--alpha", 0.5, "--pool", "joined", "--max_steps", 1)
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags)) == 0
    assert "every token weighs 1: no effect of --alpha, --pool" in caplog.text


@pytest.mark.parametrize("source", ["uniform", "online"])
def test_a_pad_token_that_the_model_was_not_resized_for_pads_nothing(
    llava: Family, tmp_path: Path, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Path(shutil.copytree(llava.directory, tmp_path / "model"))
    processor: Any = AutoProcessor.from_pretrained(model)
    processor.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    processor.save_pretrained(model)
    turns = [[{"from": "human", "value": "Where?"}, {"from": "gpt", "value": words}] for words in ("At a.", "There.")]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"id": str(at), "conversations": both} for at, both in enumerate(turns)]))
    flags: list[object] = ["--model_name_or_path", model, "--source_path", data, "--delta_source", source]
    flags += ["--cache_dir", tmp_path / "cache", "--max_steps", 1, "--output_dir", tmp_path / "out"]
    flags += ["--use_cpu", "true", "--dataloader_num_workers", 0, "--per_device_train_batch_size", 2]
    assert cli.run([str(part) for part in flags]) == 0
    assert "trains nothing" not in caplog.text


@pytest.mark.parametrize("source", ["uniform", "online"])
def test_a_token_beyond_the_embedding_makes_its_row_train_nothing(
    llava: Family, tmp_path: Path, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Path(shutil.copytree(llava.directory, tmp_path / "model"))
    processor: Any = AutoProcessor.from_pretrained(model)
    processor.tokenizer.add_tokens(["<box>"])
    processor.save_pretrained(model)
    turns = [[{"from": "human", "value": "Where?"}, {"from": "gpt", "value": f"At {what}."}] for what in ("<box>", "b")]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"id": str(at), "conversations": both} for at, both in enumerate(turns)]))
    flags: list[object] = ["--model_name_or_path", model, "--source_path", data, "--delta_source", source]
    flags += ["--cache_dir", tmp_path / "cache", "--max_steps", 1, "--output_dir", tmp_path / "out"]
    assert cli.run([str(part) for part in (*flags, "--use_cpu", "true", "--dataloader_num_workers", 0)]) == 0
    assert "0 trains nothing: encode_error: token id" in caplog.text
    assert "is beyond the model's" in caplog.text
    assert "1 trains nothing" not in caplog.text


def test_yaml_may_nest_a_mapping_and_write_infinity_its_own_way(llava: Family, annotated: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "run.yaml"
    recipe.write_text(
        "beta: .inf\nlr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs:\n  min_lr: 5e-4\nmax_steps: 2\n"
        "accelerator_config: {even_batches: false}\n"
    )
    assert cli.run(command(llava, annotated, tmp_path / "out", "--config", recipe)) == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["learning_rate"] for entry in history if "loss" in entry] == pytest.approx([1e-3, 7.5e-4])
    assert "| beta | inf |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_moved_are_one_line_that_names_the_flag_with_loader_workers_too(
    workers: int, llava: Family, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, images = write_llava_json(tmp_path, 40)
    shards = annotate(
        tmp_path / "out", plan_shards([str(data)], [str(images)]), llava.encoder, llava.model, carry="paths"
    )
    # Behind the rows that are looked at before the training.
    rows = pq.read_table(shards, columns=["status", "images"]).filter(pc.field("status") == "ok")["images"].to_pylist()
    for image in {item["path"] for row in rows[20:] for item in row} - {
        item["path"] for row in rows[:20] for item in row
    }:
        (images / image).unlink()
    flags = ("--max_steps", 20, "--dataloader_num_workers", workers, "--data_path", shards)
    assert cli.run(command(llava, shards, tmp_path / "trained", *flags)) == 2
    err = capfd.readouterr().err
    at = err.index("cal-train: ")
    assert err[at:].count("\n") == 1
    assert "measured ok, but cannot be encoded now" in err[at:]
    assert "say where they are now (--image_folder;" in err[at:]


@pytest.mark.parametrize(("drift_every", "logging_steps"), [(1, 1), (2, 2)])
def test_the_drift_log_swallows_no_log_of_the_training(
    drift_every: int, logging_steps: int, llava: Family, annotated: Path, tmp_path: Path
) -> None:
    flags = ("--max_steps", 4, "--drift_every", drift_every, "--logging_steps", logging_steps, "--save_strategy", "no")
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags)) == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if "loss" in entry]) == 4 // logging_steps
    assert len([entry for entry in history if "drift_spearman" in entry]) == 1 + 4 // drift_every
