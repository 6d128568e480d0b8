"""A run goes on as it began, or says what is different; and going on gives what never stopping would have given."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from annotated_data import annotate
from cal_pipeline.encoding import chat
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError
from cal_trainer import cli, training
from cal_trainer.run.resuming import check_state, run_state, write_state
from conftest import Family
from tiny_data import write_llava_json
from trained import command, losses

SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "number of processes": 1,
    "delta_source": "cached", "beta": float("inf"), "trainable": ["projector"], "seed": 42,
}  # fmt: skip
DATA = {"data_path": {"a.parquet": [8, 1000], "b.parquet": [8, 1010]}}


def state(exact: bool = True, data: Any = DATA, **changed: Any) -> dict[str, Any]:
    return run_state(settings={**SETTINGS, **changed}, data=data, exact=exact)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"per_device_train_batch_size": 4}, "samples in a step was 8, is 16"),
        ({"exact": False, "per_device_train_batch_size": 4}, "samples in a step was 8"),
        ({"beta": 5.0}, "--beta was inf, is 5.0"),
        ({"seed": 1}, "--seed was 42, is 1"),
        ({"trainable": ["projector", "language_model"]}, "--trainable was projector, is projector language_model"),
        ({"streaming": True}, "--streaming was not given, is True"),
        ({"data": {"data_path": {"a.parquet": [8, 1000]}}}, "b.parquet .8 rows. is no longer there"),
        (
            {"data": {"data_path": {**DATA["data_path"], "b.parquet": [8, 1099]}}},
            "b.parquet had 8 rows in 1010 bytes, has 8 in 1099",
        ),
        (
            {"data": {"data_path": dict(reversed(DATA["data_path"].items()))}},
            "--data_path: the shards come in another order: b.parquet stands where a.parquet was",
        ),
        ({"data": {**DATA, "source_path": {"s": [1, 1]}}}, "--source_path: s .1 rows. is new"),
    ],
)
def test_a_difference_is_named_with_both_values_and_the_way_out(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    write_state(tmp_path, state())
    with pytest.raises(ConfigError, match=message) as refused:
        check_state(tmp_path, state(**changed))
    assert "start a new one from its weights (--model_name_or_path" in str(refused.value)


def test_where_only_the_step_counts_it_may_be_split_otherwise(tmp_path: Path) -> None:
    write_state(tmp_path, state())
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "number of processes": 4}
    check_state(tmp_path, state(**split))
    write_state(tmp_path, state(exact=False))
    with pytest.raises(ConfigError, match=r"--per_device_train_batch_size was 2, is 1; --gradient_accum.* was 4, is 2"):
        check_state(tmp_path, state(exact=False, **split))


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, llava: Family) -> Path:
    """16 rows that are ok in three shards."""
    folder = tmp_path_factory.mktemp("annotated")
    data, images = write_llava_json(folder, 24)
    return annotate(
        folder / "out", plan_shards([str(data)], [str(images)], rows_per_shard=8), llava.encoder, llava.model
    )


@pytest.fixture(scope="module")
def begun(llava: Family, annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun") / "out"
    assert cli.run(command(llava, annotated, folder, "--max_steps", 4, "--save_steps", 2)) == 0
    return folder


REFUSED: dict[str, tuple[list[object], str]] = {
    "batch": (["--per_device_train_batch_size", 4], "samples in a step was 2, is 4"),
    "source": (["--delta_source", "uniform"], "--delta_source was cached, is uniform"),
    "weights": (["--alpha", 0], "--alpha was 1.0, is 0.0"),
    "seed": (["--data_seed", 3], "--data_seed was not given, is 3"),
    "rate": (["--learning_rate", "5e-4"], "--learning_rate was 0.001, is 0.0005"),
    "parts": (["--trainable", "projector"], "--trainable was projector language_model, is projector"),
    "stream": (["--streaming"], "--streaming was False, is True"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_another_run_is_refused_before_the_model_is_loaded(
    what: str, llava: Family, annotated: Path, begun: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(training, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    flags, message = REFUSED[what]
    argv = command(llava, annotated, begun, "--max_steps", 4, "--resume_from_checkpoint", "last", *flags)
    assert cli.run(argv) == 2
    assert message in capfd.readouterr().err


def test_another_model_of_the_same_shape_is_not_what_the_checkpoint_began_from(
    llava: Family, annotated: Path, begun: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(llava.directory, tmp_path / "other"))
    argv = command(llava, annotated, begun, "--max_steps", 4, "--resume_from_checkpoint", "last",
                   "--model_name_or_path", other)  # fmt: skip
    assert cli.run(argv) == 0  # The same in another place.
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    assert cli.run(argv) == 2
    assert "digest of the base model was " in capfd.readouterr().err


def test_measured_again_is_other_data(
    llava: Family, annotated: Path, begun: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fewer = Path(shutil.copytree(annotated, tmp_path / "out"))
    next(fewer.rglob("*.parquet")).unlink()
    argv = command(llava, fewer, begun, "--max_steps", 4, "--resume_from_checkpoint", "last")
    assert cli.run(argv) == 2
    assert "rows) is no longer there" in capfd.readouterr().err


def test_more_steps_other_logs_and_a_moved_directory_are_the_same_run(
    llava: Family, annotated: Path, begun: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(annotated, tmp_path / "moved"))
    flags = ("--max_steps", 6, "--save_steps", 5, "--per_device_train_batch_size", 1)
    flags = (*flags, "--gradient_accumulation_steps", 2, "--resume_from_checkpoint", begun / "checkpoint-4")
    assert cli.run(command(llava, moved, tmp_path / "more", *flags)) == 0
    assert len(losses(tmp_path / "more")) == 6
    # Not every two steps as before, and at the rates of six steps: that of the old schedule was at its end.
    assert (tmp_path / "more" / "checkpoint-5").is_dir()
    history = json.loads((tmp_path / "more" / "trainer_state.json").read_text())["log_history"]
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert rates[4:] == pytest.approx([1e-3 * 2 / 6, 1e-3 * 1 / 6])


def test_the_way_out_of_a_checkpoint_of_adapters_is_to_merge_them(tmp_path: Path) -> None:
    write_state(tmp_path, state())
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"from its adapters \(--model_name_or_path what they were merged into"):
        check_state(tmp_path, state(beta=5.0))


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--streaming", "--shuffle_rows", 6], id="streaming"),
        pytest.param(["--streaming", "--dataloader_num_workers", 2], id="streaming with workers"),
        pytest.param(["--dataloader_num_workers", 2, "--group_by", "modality_length"], id="workers"),
    ],
)
@pytest.mark.full
def test_a_resumed_run_has_the_losses_of_one_that_never_stopped(
    flags: list[object], llava: Family, annotated: Path, tmp_path: Path
) -> None:
    # 16 rows, two a step: it stops inside the second epoch.
    flags = [*flags, "--max_steps", 12, "--save_steps", 10]
    assert cli.run(command(llava, annotated, tmp_path / "whole", *flags)) == 0
    resume = ("--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-10")
    assert cli.run(command(llava, annotated, tmp_path / "cut", *flags, *resume)) == 0
    assert len(losses(tmp_path / "whole")) == 12
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)


def test_rows_that_turn_out_unusable_are_counted_in_the_log_and_in_the_card(
    llava: Family, annotated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, images = write_llava_json(tmp_path, 12)
    for image in list(images.iterdir())[:8]:
        image.unlink()
    flags = ("--source_path", data, "--image_folder", images, "--delta_source", "uniform", "--num_train_epochs", 2)
    argv = command(llava, annotated, tmp_path / "out", *flags)
    at = argv.index("--data_path")
    assert cli.run(argv[:at] + argv[at + 2 :]) == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    counted = [entry["unusable_rows"] for entry in history if "unusable_rows" in entry]
    rows = json.loads(data.read_text())
    gone = [row for row in rows if "image" in row and not (images / row["image"]).exists()]
    assert counted == sorted(counted)
    assert counted[-1] == 2 * len(gone) > 0
    assert f"| rows that turned out unusable | {2 * len(gone)} |" in (tmp_path / "out" / "README.md").read_text()


def test_a_template_reads_the_date_that_training_began_with_however_often_it_is_resumed(
    llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated = shutil.copytree(llava.directory, tmp_path / "dated")
    template = dated / "chat_template.jinja"
    template.write_text("{{ strftime_now('%A %d %B') }}" + template.read_text())
    data, images = write_llava_json(tmp_path / "data", 4)
    flags = [
        "--model_name_or_path", dated, "--source_path", data, "--image_folder", images, "--delta_source", "uniform",
        "--cache_dir", tmp_path / "cache", "--use_cpu", "true", "--per_device_train_batch_size", 2, "--logging_steps",
        1, "--disable_tqdm", "true", "--max_steps", 2, "--save_steps", 1, "--lr_scheduler_type", "constant",
    ]  # fmt: skip

    def run(day: str, output: str, *more: object) -> list[float]:
        monkeypatch.setattr(chat, "today", lambda: day)
        assert cli.run([str(part) for part in (*flags, "--output_dir", tmp_path / output, *more)]) == 0
        return losses(tmp_path / output)

    whole, other = run("2020-01-01", "whole"), run("2020-02-02", "other")
    assert whole != other
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-2")
    assert run("2020-02-02", "cut", "--resume_from_checkpoint", "last") == whole
