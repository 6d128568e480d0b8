"""Directories of models that are not what they seem: found from names and headers, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from cal_pipeline import cli
from cal_pipeline.models.checkpoint import check_image_tokens, check_weights
from cal_pipeline.models.loading import check_architecture, load_meta_model, load_model, load_processor
from cal_schemas.errors import ConfigError
from cal_trainer import cli as train_cli
from conftest import Family
from tiny_data import write_parquet


@pytest.fixture
def copied(llava: Family, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llava.directory, tmp_path / "model"))


def refused(directory: Path, message: str) -> str:
    with pytest.raises(ConfigError, match=message) as raised:
        check_weights(directory, load_meta_model(directory))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def in_two_files(directory: Path) -> None:
    """As save_pretrained splits a large model."""
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    halves = {f"model-0000{half + 1}-of-00002.safetensors": sorted(weights)[half::2] for half in (0, 1)}
    for name, keys in halves.items():
        save_file({key: weights[key] for key in keys}, directory / name, metadata={"format": "pt"})
    names = {key: name for name, keys in halves.items() for key in keys}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma", "idefics3", "mini_gemini"])
def test_what_loads_passes_with_one_file_of_weights_and_with_more(
    family: Callable[[str], Family], name: str, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(family(name).directory, tmp_path / "model"))
    check_weights(directory, load_meta_model(directory))
    if name != "mini_gemini":  # Its converter writes several files.
        in_two_files(directory)
        check_weights(directory, load_meta_model(directory))


def test_weights_that_are_tied_are_not_missing(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (copied / "config.json").write_text(json.dumps(config))
    rewrite(copied, lambda weights: {key: value for key, value in weights.items() if "lm_head" not in key})
    check_weights(copied, load_meta_model(copied))


def test_missing_and_renamed_weights_are_named_on_both_sides(copied: Path) -> None:
    rewrite(copied, lambda w: {key.replace("multi_modal_projector", "mm_projector"): w[key] for key in w})
    said = refused(copied, r"no weights for 4 parameters \(model\.multi_modal_projector\.linear_1\.bias, …\)")
    assert "the files have 4 that the model has no place for" in said
    assert "mm_projector.linear_1.bias" in said
    rewrite(copied, lambda w: {key: w[key] for key in w if "mm_projector" not in key})
    assert "the files have" not in refused(copied, "no weights for 4 parameters")


def test_weights_of_other_shapes_are_named_with_both(copied: Path) -> None:
    rewrite(copied, lambda w: {key: w[key][1:].clone() if "lm_head" in key else w[key] for key in w})
    refused(copied, r"lm_head\.weight is \[387, 32\], the model's is \[388, 32\]")


def test_adapters_among_the_weights_are_refused_because_they_would_not_be_applied(copied: Path) -> None:
    rewrite(copied, lambda w: w | {"model.language_model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(1, 32)})
    assert "merge them" in refused(copied, r"adapters among its weights \(.*q_proj\.lora_A\.weight\)")


def test_files_that_are_absent_or_cut_off_are_named(copied: Path) -> None:
    in_two_files(copied)
    second = copied / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-7])
    refused(copied, r"model-00002-of-00002\.safetensors is cut off: \d+ bytes of the \d+")
    second.unlink()
    refused(copied, r"lacks 1 of the 2 files of weights in its index: model-00002-of-00002\.safetensors")
    (copied / "model.safetensors.index.json").unlink()
    refused(copied, r"neither model\.safetensors nor model\.safetensors\.index\.json \(but model-00001")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks under the old name.
def test_adapters_merged_where_they_lay_are_refused_by_both_programs(
    copied: Path, llava: Family, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    adapted = get_peft_model(
        AutoModelForImageTextToText.from_pretrained(llava.directory), LoraConfig(r=2, target_modules="all-linear")
    )
    adapted.save_pretrained(copied)
    adapted.merge_and_unload().save_pretrained(copied)
    for check in (
        lambda: check_architecture(copied),
        lambda: load_model(copied, dtype="float32", attn_implementation="sdpa", device_map=None,
                           trust_remote_code=False),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"beside whole weights \(model\.safetensors\)"):
            check()
    data = write_parquet(tmp_path / "data.parquet", count=2)
    common = ["--model_name_or_path", str(copied), "--output_dir", str(tmp_path / "out")]
    assert cli.run([*common, "--data_path", str(data), "--dry_run"]) == 2
    assert train_cli.run([*common, "--source_path", str(data), "--delta_source", "uniform", "--use_cpu", "true"]) == 2
    assert capfd.readouterr().err.count("move adapter_config.json and adapter_model.safetensors away") == 2
    for left in copied.glob("adapter_*"):
        left.unlink()
    check_weights(copied, load_meta_model(copied))


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_a_processor_that_counts_other_image_tokens_than_the_tower_makes_is_refused(
    family: Callable[[str], Family], name: str, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(family(name).directory, tmp_path / "model"))
    file, meta_model = directory / "processor_config.json", load_meta_model(directory)
    values = json.loads(file.read_text())
    # The first token of the tower, which the model drops: a processor may count and drop it, or do neither.
    for strategy, given, wanted in (("default", 1, None), ("default", 0, 1), ("full", 0, None), ("full", 1, 0)):
        changed = {"vision_feature_select_strategy": strategy, "num_additional_image_tokens": given}
        file.write_text(json.dumps(values | changed))
        if wanted is None:
            check_image_tokens(load_processor(directory), meta_model)
            continue
        with pytest.raises(ConfigError, match=f"write num_additional_image_tokens {wanted} into"):
            check_image_tokens(load_processor(directory), meta_model)


def test_adapters_alone_are_refused_with_a_way_that_merges_into_another_directory(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="save_pretrained into a new directory"):
        check_architecture(tmp_path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks under the old name.
def test_training_on_top_of_adapters_is_refused_because_it_would_be_lost(
    llava: Family, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    adapted = get_peft_model(
        AutoModelForImageTextToText.from_pretrained(llava.directory), LoraConfig(r=2, target_modules="all-linear")
    )
    adapted.save_pretrained(model)
    config = json.loads((llava.directory / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"transformers_weights": "whole.safetensors"}))
    shutil.copy(llava.directory / "model.safetensors", model / "whole.safetensors")
    data = write_parquet(tmp_path / "data.parquet", count=2)
    flags = ["--model_name_or_path", str(model), "--source_path", str(data), "--delta_source", "uniform"]
    assert train_cli.run([*flags, "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]) == 2
    assert "would be saved as adapters alone" in capfd.readouterr().err
    check_architecture(model)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("/no/such/base", "/no/such/base (no such directory)"),
        ("some-people/a-model", "some-people/a-model"),
        (None, "a model that it does not name"),
    ],
)
def test_adapters_beside_a_config_are_refused_before_a_worker_starts_whatever_base_they_name(
    copied: Path, tmp_path: Path, base: str | None, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    LoraConfig(r=2, base_model_name_or_path=base).save_pretrained(copied)
    (copied / "model.safetensors").rename(copied / "adapter_model.safetensors")
    data = write_parquet(tmp_path / "data.parquet", count=2)
    flags = ["--model_name_or_path", str(copied), "--data_path", str(data), "--output_dir", str(tmp_path / "out")]
    assert cli.run([*flags, "--dry_run"]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cal-precompute: ")]
    assert f"{copied} holds adapters (adapter_config.json) of {said} and none of its weights: merge them" in line


def test_renamed_weights_are_refused_before_a_worker_starts(
    copied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rewrite(copied, lambda w: {key.replace("vision_tower", "tower"): w[key] for key in w})
    data = write_parquet(tmp_path / "data.parquet", count=2)
    flags = ["--model_name_or_path", str(copied), "--data_path", str(data), "--output_dir", str(tmp_path / "out")]
    assert cli.run(flags) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line or "cal-precompute: " in line]
    assert len(said) == 1
    assert "has no weights for" in said[0]
