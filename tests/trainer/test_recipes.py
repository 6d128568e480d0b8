"""Every recipe is made of flags that exist, with values of their types, and says what the issue asks of it."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import HfArgumentParser, TrainingArguments

from cal_trainer.run.parameters import PARTS, parse_lr_multipliers
from cal_trainer.trainer import Weighting

RECIPES = sorted((Path(__file__).parents[2] / "docs" / "recipes").glob("*.yaml"))
LLAVA = [recipe for recipe in RECIPES if recipe.stem.startswith("llava")]
MINI_GEMINI = [recipe for recipe in RECIPES if recipe.stem.startswith("mgm")]
CHOICES = {
    "delta_source": ("cached", "online", "uniform"), "preset": ("cal", "released"),
    "pool": ("span", "joined", "released"), "normalization": ("step", "sample", "micro_batch"),
    "contrast": ("drop", "mask"), "template": ("auto", "plain", "vicuna_v1"),
    "image_aspect_ratio": ("square", "pad", "native"), "truncation": ("drop", "tail"),
    "group_by": ("none", "length", "modality_length"),
}  # fmt: skip
LISTS = ("data_path", "source_path", "image_folder", "trainable", "lr_multipliers")
NUMBERS = ("alpha", "beta", "window", "max_length", "lora_r")
OTHERS = ("model_name_or_path", "streaming")
OWN = {*CHOICES, *LISTS, *NUMBERS, *OTHERS}


def values_of(recipe: Path) -> dict[str, Any]:
    """As the command line reads it: every value as it is written."""
    found = yaml.load(recipe.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    assert isinstance(found, dict)
    return found


def training_arguments(values: dict[str, Any], folder: Path) -> TrainingArguments:
    chosen = {key: value for key, value in values.items() if key not in OWN}
    flags = [part for key, value in chosen.items() for part in (f"--{key}", value)]
    # A machine with neither GPU nor bfloat16 would refuse what the recipes are for.
    flags += ["--output_dir", str(folder), "--use_cpu", "true", "--report_to", "none"]
    with warnings.catch_warnings():
        # Renamed to activation_checkpointing in 5.23; the old name works in every version we allow.
        warnings.filterwarnings("ignore", ".*gradient_checkpointing. is deprecated", FutureWarning)
        (parsed,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(flags, look_for_args_file=False)
    assert isinstance(parsed, TrainingArguments)
    return parsed


def test_the_recipes_are_there() -> None:
    assert [recipe.stem for recipe in RECIPES] == [
        "llava15_finetune", "llava15_pretrain", "llavanext_finetune", "llavanext_pretrain",
        "mgm_13b_finetune", "mgm_13b_hd_finetune", "mgm_13b_pretrain", "mgm_2b_finetune", "mgm_2b_pretrain",
        "mgm_7b_finetune", "mgm_7b_hd_finetune", "mgm_7b_pretrain",
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_every_key_is_a_flag_and_every_value_of_its_type(recipe: Path, tmp_path: Path) -> None:
    values = values_of(recipe)
    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert set(values) <= theirs | OWN
    for key, value in values.items():
        assert isinstance(value, list) == (key in LISTS), key
        if key in CHOICES:
            assert value in CHOICES[key]
        if key in NUMBERS:
            assert float(value) >= 0
    assert set(values.get("trainable", [])) <= {*PARTS, "patch_info_mining"}
    assert set(parse_lr_multipliers(values.get("lr_multipliers", []))) <= set(values["trainable"])
    Weighting(alpha=float(values["alpha"]), beta=float(values["beta"]), window=int(values["window"]))
    options = training_arguments(values, tmp_path)
    for key, value in values.items():
        if key not in OWN and key != "output_dir":
            found = getattr(options, key)
            expected = float(value) if re.fullmatch(r"[\d.e+-]+", value) else value
            assert found == (value == "true" if isinstance(found, bool) else expected), key


@pytest.mark.parametrize("recipe", MINI_GEMINI, ids=lambda recipe: recipe.stem)
def test_a_recipe_of_mini_gemini_is_the_published_one(recipe: Path, tmp_path: Path) -> None:
    values = values_of(recipe)
    options = training_arguments(values, tmp_path)
    pretrain, gemma, hd = (part in recipe.stem for part in ("pretrain", "2b", "hd"))
    assert options.learning_rate == (1e-3 if pretrain else 2e-5)
    assert (options.num_train_epochs, options.lr_scheduler_type, options.weight_decay) == (1, "cosine", 0)
    assert options.get_warmup_steps(1000) == math.ceil(0.03 * 1000)
    assert options.bf16
    assert options.gradient_checkpointing
    assert values["template"] == ("auto" if gemma else "plain" if pretrain else "vicuna_v1")
    assert values["image_aspect_ratio"] == ("square" if pretrain else "pad")
    assert values["max_length"] == ("4096" if hd else "2048")
    assert values["group_by"] == ("none" if pretrain else "modality_length")
    assert values["delta_source"] == ("online" if pretrain else "cached")
    # The towers stay frozen in both stages.
    assert values["trainable"] == ["projector", "patch_info_mining", *([] if pretrain else ["language_model"])]
    told = re.search(r"# (\d+) per GPU x (\d+) GPUs x (\d+) = batch (\d+)", recipe.read_text(encoding="utf-8"))
    assert told
    per_device, gpus, accumulation, batch = map(int, told.groups())
    assert (per_device, accumulation) == (options.per_device_train_batch_size, options.gradient_accumulation_steps)
    assert per_device * gpus * accumulation == batch == (256 if pretrain else 128)


@pytest.mark.parametrize("recipe", LLAVA, ids=lambda recipe: recipe.stem)
def test_a_recipe_is_the_published_one(recipe: Path, tmp_path: Path) -> None:
    values = values_of(recipe)
    options = training_arguments(values, tmp_path)
    family, stage = recipe.stem.split("_")
    pretrain = stage == "pretrain"
    assert options.learning_rate == (1e-3 if pretrain else 2e-5)
    assert (options.num_train_epochs, options.lr_scheduler_type, options.weight_decay) == (1, "cosine", 0)
    assert options.get_warmup_steps(1000) == math.ceil(0.03 * 1000)
    assert options.bf16
    assert options.gradient_checkpointing
    assert values["template"] == ("plain" if pretrain else "vicuna_v1")
    assert values["max_length"] == ("2048" if family == "llava15" else "4096")
    aspect = {"llava15_pretrain": "square", "llava15_finetune": "pad"}.get(recipe.stem, "native")
    assert values["image_aspect_ratio"] == aspect
    assert values["group_by"] == ("none" if pretrain else "modality_length")
    assert values["delta_source"] == ("online" if pretrain else "cached")
    # What is not written is cal-train's default, so that a preset on the command line can change it.
    assert values.get("preset") == ("cal" if pretrain else None)
    assert not {"pool", "normalization", "contrast"} & set(values)
    expected = ["projector"] if pretrain else ["projector", "language_model"]
    assert values["trainable"] == (["vision_tower", *expected] if recipe.stem == "llavanext_finetune" else expected)
    if recipe.stem == "llavanext_finetune":
        assert values["lr_multipliers"] == ["vision_tower=0.1"]
    # The comment says for how many GPUs, and the product is the batch.
    text = recipe.read_text(encoding="utf-8")
    told = re.search(r"# (\d+) per GPU x (\d+) GPUs x (\d+) = batch (\d+)", text)
    assert told
    per_device, gpus, accumulation, batch = map(int, told.groups())
    assert (per_device, accumulation) == (options.per_device_train_batch_size, options.gradient_accumulation_steps)
    assert per_device * gpus * accumulation == batch == (256 if pretrain else 128)
    if pretrain:
        assert "a different method there" in text
    if family == "llavanext":
        assert "336x672, 672x336" in text or "336x672,672x336" in text


def test_numbers_in_yaml_are_numbers_for_other_readers_too() -> None:
    for recipe in RECIPES:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        assert isinstance(values["learning_rate"], float)
        assert isinstance(values["warmup_steps"], float)
