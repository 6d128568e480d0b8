"""With the reference itself as the model and learning rate 0, cached and online deltas give the same loss."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cal_pipeline.annotate import AnnotateOptions, annotate_shard
from cal_pipeline.encoding.identity import input_spec, label_spec
from cal_pipeline.output.store import LocalStore
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.annotated import annotated_schema
from cal_schemas.errors import ConfigError
from cal_schemas.presets import PRESETS
from cal_schemas.scores import SCORES
from cal_schemas.spec import ContrastSpec
from cal_schemas.token_columns import ExtraColumn
from cal_trainer import cli
from cal_trainer.objective import label_losses
from cal_trainer.training import train
from conftest import Family
from examples_of import measurement_spec
from tiny_data import MAX_IMAGE_PIXELS, write_llava_json


def measured(folder: Path, llava: Family, contrast: ContrastSpec, extra_columns: tuple[ExtraColumn, ...] = ()) -> Path:
    data, images = write_llava_json(folder, 24)
    store = LocalStore(output_dir=folder / "out")
    store.prepare()
    options = AnnotateOptions(
        schema=annotated_schema(carry="images", extra_columns=extra_columns), carry="images", tokens_per_batch=512,
        max_image_pixels=MAX_IMAGE_PIXELS, extra_columns=extra_columns,
    )  # fmt: skip
    spec = measurement_spec(label=label_spec(llava.encoder), input=input_spec(llava.encoder), contrast=contrast)
    for shard in plan_shards([str(data)], [str(images)], rows_per_shard=8):
        annotate_shard(shard, encoder=llava.encoder, model=llava.model, spec=spec, store=store, options=options)
    return folder / "out"


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, llava: Family) -> Path:
    return measured(tmp_path_factory.mktemp("annotated"), llava, ContrastSpec())


def losses(llava: Family, annotated: Path, output: Path, *flags: str) -> list[float]:
    argv = [
        "--model_name_or_path", str(llava.directory), "--data_path", str(annotated), "--output_dir", str(output),
        "--cache_dir", str(annotated.parent / "cache"), "--learning_rate", "0",
        "--logging_steps", "1", "--use_cpu", "--save_strategy", "no", "--disable_tqdm", "true",
    ]  # fmt: skip
    defaults = {"--max_steps": "4", "--per_device_train_batch_size": "4"}
    argv += [part for pair in defaults.items() if pair[0] not in flags for part in pair]
    trainer = train(*cli.parse([*argv, *flags]))
    history: list[dict[str, Any]] = trainer.state.log_history
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("normalization", ["step", "sample", "micro_batch"])
def test_cached_equals_online(llava: Family, annotated: Path, tmp_path: Path, normalization: str) -> None:
    flags = ("--normalization", normalization)
    cached = losses(llava, annotated, tmp_path / "c", "--delta_source", "cached", *flags)
    online = losses(llava, annotated, tmp_path / "o", "--delta_source", "online", *flags)
    uniform = losses(llava, annotated, tmp_path / "u", "--delta_source", "uniform", *flags)
    assert len(cached) == 4
    assert online == pytest.approx(cached, abs=1e-5)
    assert uniform != pytest.approx(cached, abs=1e-3)


@pytest.fixture(scope="module")
def with_columns(tmp_path_factory: pytest.TempPathFactory, llava: Family) -> Path:
    return measured(tmp_path_factory.mktemp("columns"), llava, ContrastSpec(), ("logprobs", "kl", "entropy"))


def _quick(names: Iterable[str], *quick: str) -> list[Any]:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.full) for name in sorted(names)]


@pytest.mark.parametrize("score", _quick(set(SCORES) - {"excess_loss"}, "kl", "probability"))
def test_every_score_of_the_model_in_training_is_the_one_that_was_cached_of_it(
    llava: Family, with_columns: Path, tmp_path: Path, score: str
) -> None:
    flags = ("--score", score, "--map", "softmax=0.5", "--normalization", "step")
    cached = losses(llava, with_columns, tmp_path / "c", *flags)
    online = losses(llava, with_columns, tmp_path / "o", "--delta_source", "online", *flags)
    uniform = losses(llava, with_columns, tmp_path / "u", "--delta_source", "uniform")
    assert online == pytest.approx(cached, abs=1e-5)
    assert uniform != pytest.approx(cached, abs=1e-4)


@pytest.mark.parametrize("preset", _quick(set(PRESETS) - {"released"}, "vig", "vppo", "rho1"))
def test_every_preset_trains_from_one_cache_and_online_where_it_can(
    llava: Family, with_columns: Path, tmp_path: Path, preset: str
) -> None:
    cached = losses(llava, with_columns, tmp_path / "c", "--preset", preset)
    assert len(cached) == 4
    assert all(map(math.isfinite, cached))
    online = ("--preset", preset, "--delta_source", "online")
    if preset in ("vig", "visnec", "rho1"):
        with pytest.raises(ConfigError, match=r"--delta_source cached|needs cached deltas"):
            losses(llava, with_columns, tmp_path / "o", *online)
        return
    assert losses(llava, with_columns, tmp_path / "o", *online) == pytest.approx(cached, abs=1e-5)


def test_the_reference_has_no_excess_loss_over_itself(llava: Family, with_columns: Path, tmp_path: Path) -> None:
    flags = ("--score", "excess_loss", "--map", "threshold=0.001", "--stop_on_nan", "true")
    assert losses(llava, with_columns, tmp_path / "e", *flags) == [0.0] * 4


def test_a_cache_without_the_columns_of_a_score_names_them_and_the_way_out(
    llava: Family, annotated: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"score kl = KL.*reads kl_with_without, which .*--extra_columns kl$"):
        losses(llava, annotated, tmp_path / "k", "--score", "kl", "--map", "top_share=0.4")
    with pytest.raises(ConfigError, match=r"reads logprobs_with_image.*--extra_columns logprobs$"):
        losses(llava, annotated, tmp_path / "v", "--preset", "vig")


def test_the_reference_has_not_drifted_from_itself(llava: Family, annotated: Path, tmp_path: Path) -> None:
    losses(llava, annotated, tmp_path / "d", "--delta_source", "cached", "--drift_every", "2")
    history = json.loads((tmp_path / "d" / "trainer_state.json").read_text())["log_history"]
    drift = [(entry["drift_spearman"], entry["drift_clamp_flips"]) for entry in history if "drift_spearman" in entry]
    assert len(drift) == 3
    assert all(pair == (pytest.approx(1.0, abs=1e-4), 0.0) for pair in drift)


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("contrast", "flags"),
    [
        pytest.param(ContrastSpec(condition="mask"), ("--contrast", "mask"), marks=pytest.mark.full),
        (
            ContrastSpec(condition="patch_mask", patch_mask_ratio=0.7),
            ("--contrast", "patch_mask", "--patch_mask_ratio", "0.7"),
        ),
        pytest.param(
            ContrastSpec(condition="gaussian_blur", blur_sigma=10.0),
            ("--contrast", "gaussian_blur", "--blur_sigma", "10"),
            marks=pytest.mark.full,
        ),
    ],
    ids=lambda value: value.condition if isinstance(value, ContrastSpec) else "",
)
def test_cached_equals_online_under_every_contrast(
    llava: Family, annotated: Path, tmp_path: Path, contrast: ContrastSpec, flags: tuple[str, ...], streaming: bool
) -> None:
    data = measured(tmp_path, llava, contrast)
    # Batches of one: text-only ones among them, which the dummy row goes with.
    common = ("--normalization", "sample", "--max_steps", "8", "--per_device_train_batch_size", "1")
    common += ("--streaming", "true") if streaming else ("--group_by", "modality_length")
    cached = losses(llava, data, tmp_path / "c", "--delta_source", "cached", *common)
    online = losses(llava, data, tmp_path / "o", "--delta_source", "online", *common, *flags)
    dropped = losses(llava, annotated, tmp_path / "d", "--delta_source", "cached", *common)
    assert len(online) == 8
    assert online == pytest.approx(cached, abs=1e-5)
    if contrast.perturbs:  # drop and mask agree by design
        assert dropped != pytest.approx(cached, abs=1e-3)
    assert f"| contrast | {contrast.describe()} |" in (tmp_path / "o" / "README.md").read_text()


def test_the_drift_log_perturbs_as_the_measurement_did(llava: Family, tmp_path: Path) -> None:
    data = measured(tmp_path, llava, ContrastSpec(condition="patch_mask", patch_mask_ratio=0.5))
    losses(llava, data, tmp_path / "d", "--delta_source", "cached", "--drift_every", "4")
    history = json.loads((tmp_path / "d" / "trainer_state.json").read_text())["log_history"]
    drift = [(entry["drift_spearman"], entry["drift_clamp_flips"]) for entry in history if "drift_spearman" in entry]
    assert len(drift) == 2
    assert all(pair == (pytest.approx(1.0, abs=1e-4), 0.0) for pair in drift)


@pytest.mark.full
@pytest.mark.parametrize("source", ["cached", "online"])
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo's own look at a tensor.
def test_a_compiled_model_learns_of_its_loss_however_large_that_is(
    llava: Family, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(label_losses, "CHUNKED_ABOVE", 0)
    flags = ("--max_steps", "2", "--learning_rate", "1e-2", "--lr_scheduler_type", "constant", "--seed", "1")
    flags = (*flags, "--delta_source", source)
    plain = losses(llava, annotated, tmp_path / "plain", *flags)
    compiled = losses(
        llava, annotated, tmp_path / "compiled", *flags, "--torch_compile", "true", "--torch_compile_backend", "eager"
    )
    assert plain[1] < plain[0]
    assert compiled == pytest.approx(plain, abs=1e-4)
