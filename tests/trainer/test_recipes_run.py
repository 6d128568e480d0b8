"""Each recipe trains a tiny model for two steps through cal-train, and the released preset fits on top of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from annotated_data import annotate
from cal_pipeline.encode import Encoder
from cal_pipeline.shards import plan_shards
from cal_trainer import cli
from conftest import Family
from tiny_data import MAX_IMAGE_PIXELS, write_llava_json

RECIPES = sorted((Path(__file__).parents[2] / "docs" / "recipes").glob("*.yaml"))
FAMILY_OF = {
    "llava15": "llava", "llavanext": "llava_next", "mgm_2b": "mini_gemini_gemma", "mgm_7b": "mini_gemini",
    "mgm_13b": "mini_gemini", "mgm_7b_hd": "mini_gemini_hd", "mgm_13b_hd": "mini_gemini_hd",
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def run(recipe: Path, found: Family, folder: Path, *flags: str) -> list[dict[str, Any]]:
    values = yaml.load(recipe.read_text(), Loader=yaml.BaseLoader)
    data, images = write_llava_json(folder, 20)
    names = ("template", "image_aspect_ratio", "truncation")
    encoder = Encoder(
        found.encoder.processor, max_length=int(values["max_length"]), **{name: values[name] for name in names}
    )
    annotated = annotate(folder / "annotated", plan_shards([str(data)], [str(images)]), encoder, found.model)
    # Pretraining recipes name raw captions, which online deltas need no more than; annotated ones take their place.
    raw = "source_path" in values and not flags
    given = ["--source_path", str(data), "--image_folder", str(images)] if raw else ["--data_path", str(annotated)]
    argv = [
        "--config", str(recipe), "--model_name_or_path", str(found.directory), *given,
        "--output_dir", str(folder / "out"), "--cache_dir", str(folder / "cache"), "--max_steps", "2",
        "--use_cpu", "true", "--bf16", "false", "--per_device_train_batch_size", "6", "--dataloader_num_workers", "0",
        "--save_strategy", "no", "--max_image_pixels", str(MAX_IMAGE_PIXELS), "--disable_tqdm", "true",
    ]  # fmt: skip
    config, arguments = cli.parse([*argv, *flags])
    trainer = cli.train(config, arguments)
    assert (folder / "out" / "README.md").is_file()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "recipe",
    # An HD picture is four tiles and the whole: many seconds.
    [
        pytest.param(recipe, id=recipe.stem, marks=[pytest.mark.full] if "_hd_" in recipe.stem else [])
        for recipe in RECIPES
    ],
)
def test_two_steps(recipe: Path, family: Callable[[str], Family], tmp_path: Path) -> None:
    found = family(FAMILY_OF[recipe.stem.rpartition("_")[0]])
    history = run(recipe, found, tmp_path)
    assert len(history) == 2
    assert all(0 < entry["loss"] < 100 and entry["mean_weight"] >= 1 for entry in history)


@pytest.mark.parametrize("recipe", [RECIPES[0], RECIPES[1]], ids=lambda recipe: recipe.stem)
def test_the_released_preset_fits_on_top(recipe: Path, family: Callable[[str], Family], tmp_path: Path) -> None:
    history = run(recipe, family("llava"), tmp_path, "--delta_source", "online", "--preset", "released")
    assert len(history) == 2
