"""Each recipe as it stands trains a trained tiny model for two steps, with either source of deltas."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from annotated_data import annotate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor, load_reference
from cal_pipeline.sources.planning import plan_shards
from cal_trainer import cli
from cal_trainer.training import train
from conftest import Family
from tiny_data import write_llava_json
from trained_references import TRAINED_RMS, label_logits_rms, trained

RECIPES = sorted((Path(__file__).parents[2] / "docs" / "recipes").glob("*.yaml"))
FAMILY_OF = {
    "llava15": "llava", "llavanext": "llava_next", "mgm_2b": "mini_gemini_gemma", "mgm_7b": "mini_gemini",
    "mgm_13b": "mini_gemini", "mgm_7b_hd": "mini_gemini_hd", "mgm_13b_hd": "mini_gemini_hd",
}  # fmt: skip
QUICK = ("llava15_finetune", "llava15_pretrain", "mgm_2b_finetune")
"""Every other is of a family like one of these, differs in sizes and batches, or has HD's many images."""
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """A trained reference of a family, made on first use."""
    made: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in made:
            directory = trained(name, tmp_path_factory.mktemp("trained") / name)
            model, encoder = load_reference(directory, dtype="float32"), Encoder(load_processor(directory))
            if not name.endswith("_hd"):  # It was trained on other images.
                assert label_logits_rms(model, encoder) > TRAINED_RMS
            made[name] = Family(name=name, directory=directory, model=model, encoder=encoder)
        return made[name]

    return get


def values_of(recipe: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(recipe.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    return found


def run(recipe: Path, found: Family, folder: Path, *flags: str) -> list[dict[str, Any]]:
    """As written, but for paths, the device, and how long: no loader processes, two steps."""
    values = values_of(recipe)
    data, images = write_llava_json(folder, 14)
    names = ("template", "image_aspect_ratio", "truncation")
    encoder = Encoder(
        found.encoder.processor, max_length=int(values["max_length"]), **{name: values[name] for name in names}
    )
    online = "online" in flags or (values["delta_source"] == "online" and "cached" not in flags)
    if online and "source_path" in values:
        given = ["--source_path", str(data), "--image_folder", str(images)]
    else:
        annotated = annotate(folder / "annotated", plan_shards([str(data)], [str(images)]), encoder, found.model)
        given = ["--data_path", str(annotated)]
    argv = [
        "--config", str(recipe), "--model_name_or_path", str(found.directory), *given,
        "--output_dir", str(folder / "out"), "--cache_dir", str(folder / "cache"), "--max_steps", "2",
        "--use_cpu", "true", "--dataloader_num_workers", "0", "--disable_tqdm", "true",
    ]  # fmt: skip
    config, arguments = cli.parse([*argv, *flags])
    trainer = train(config, arguments)
    assert (folder / "out" / "README.md").is_file()
    if "false" not in flags:
        assert trainer.accelerator.mixed_precision == "bf16"
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("source", ["online", "cached"])
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, id=recipe.stem, marks=[] if recipe.stem in QUICK else [pytest.mark.full])
        for recipe in RECIPES
    ],
)
def test_two_steps(recipe: Path, source: str, reference: Callable[[str], Family], tmp_path: Path) -> None:
    found = reference(FAMILY_OF[recipe.stem.rpartition("_")[0]])
    flags = [] if values_of(recipe)["delta_source"] == source else ["--delta_source", source]
    history = run(recipe, found, tmp_path, *flags)
    assert len(history) == 2
    assert all(0 < entry["loss"] < 100 and entry["mean_weight"] >= 1 for entry in history)


@pytest.mark.parametrize("recipe", [RECIPES[0], RECIPES[1]], ids=lambda recipe: recipe.stem)
def test_the_released_preset_fits_on_top(recipe: Path, reference: Callable[[str], Family], tmp_path: Path) -> None:
    history = run(recipe, reference("llava"), tmp_path, "--delta_source", "online", "--preset", "released")
    assert len(history) == 2


@pytest.mark.parametrize("name", ["llava15_finetune", pytest.param("mgm_2b_finetune", marks=pytest.mark.full)])
def test_bfloat16_trains_with_the_weights_that_float32_would(
    name: str, reference: Callable[[str], Family], tmp_path: Path
) -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.stem == name)
    found = reference(FAMILY_OF[name.rpartition("_")[0]])
    (half, _), (whole, _) = (
        run(recipe, found, tmp_path / bf16, "--delta_source", "online", "--bf16", bf16) for bf16 in ("true", "false")
    )
    for key in ("loss", "mean_weight"):
        assert half[key] == pytest.approx(whole[key], rel=0.02), key
    assert half["loss"] != whole["loss"]


@pytest.mark.full
def test_gemma3_trains_online_in_bfloat16(reference: Callable[[str], Family], tmp_path: Path) -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.stem == "mgm_2b_finetune")
    history = run(recipe, reference("gemma3"), tmp_path, "--delta_source", "online", "--trainable", "language_model")
    assert len(history) == 2
