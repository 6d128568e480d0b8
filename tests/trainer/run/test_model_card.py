"""The card names data, measurement and weights, and its front matter is YAML that the hub takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from cal_schemas.spec import ContrastSpec
from cal_trainer.run.model_card import model_card, write_model_card
from run_facts import FACTS, SPEC, with_flags

STEPS = 30, 30


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    found = yaml.safe_load(front)
    assert isinstance(found, dict)
    return found


def test_a_card_names_data_measurement_and_weights() -> None:
    card = model_card(FACTS, steps=STEPS, num_unusable=5)
    for fact in (
        "| data | annotated/a\\|b |", "| rows | 90 |", "| skipped rows | 10 (image_error 7, too_long 3) |",
        "| rows that turned out unusable | 5 |", "| images | LlavaImageProcessor, pad |", "| world_size | 8 |",
        f"| fingerprint | {SPEC.fingerprint()} |", "| reference | llava-hf/llava-1.5-7b-hf (weights wwww",
        "| contrast | mask |", "| dtype | bfloat16 |", "| reference saw the data | yes |", "cached: measured",
        "| alpha | 0.5 (q0.5 of the data's deltas) |", "| beta | inf |", "| window | 5 |", "| pool | joined |",
        "| normalization | sample |",
        "| base model | llava-hf/llava-1.5-7b-hf |", "| trained parts | projector, language_model |",
        "| trained parameters | 7,000,000 |", "| learning rate multipliers | vision_tower 0.1 |", "| transformers | ",
    ):  # fmt: skip
        assert fact in card, fact
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["cal", "contrastive-alignment", "vision-language"],
        "base_model": "llava-hf/llava-1.5-7b-hf",
    }
    parsed = ModelCard(card, ignore_metadata_errors=False)
    assert parsed.data.base_model == "llava-hf/llava-1.5-7b-hf"


def test_online_and_uniform_say_that_stored_deltas_were_not_used() -> None:
    online = model_card(replace(with_flags(delta_source="online"), contrast=ContrastSpec()), steps=STEPS)
    assert "labels only" in online
    assert "| contrast | drop |" in online
    uniform = model_card(with_flags(delta_source="uniform"), steps=STEPS)
    assert "| alpha |" not in uniform
    assert "| normalization | sample |" in uniform
    assert "fingerprint" not in model_card(replace(with_flags(delta_source="uniform"), spec=None), steps=STEPS)


def test_a_card_says_how_many_rows_are_not_there_or_were_not_measured() -> None:
    assert "| rows | 90 of 110 planned |" in model_card(replace(FACTS, num_planned=110), steps=STEPS)
    whole = model_card(replace(FACTS, num_planned=100), steps=STEPS)  # 10 are skipped.
    assert "| rows | 90 |" in whole
    assert "not measured" not in whole
    card = model_card(replace(FACTS, num_unmeasured=40), steps=STEPS)
    assert "| of them not measured, at weight alpha | 40 |" in card


def test_an_adapters_card_says_so_and_a_directory_is_no_hub_id(tmp_path: Path) -> None:
    card = model_card(with_flags(model_name_or_path=str(tmp_path), lora_r=8), steps=STEPS)
    front = front_matter(card)
    assert front["library_name"] == "peft"
    assert "lora" in front["tags"]
    assert "base_model" not in front
    assert f"| base model | {tmp_path} |" in card
    assert "| LoRA | r 8, alpha 16, dropout 0.0 |" in card


@pytest.mark.parametrize("before", [None, "a card of peft's"])
def test_it_is_written_as_the_readme_whole(tmp_path: Path, before: str | None) -> None:
    if before:
        (tmp_path / "README.md").write_text(before)
    written = write_model_card(with_flags(output_dir=str(tmp_path)), steps=STEPS, num_unusable=0)
    assert written == tmp_path / "README.md"
    assert f"# {tmp_path.name}\n" in written.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_the_card_says_how_many_steps_were_taken_and_when_that_was_not_all() -> None:
    assert "| steps taken | 30 |" in model_card(FACTS, steps=STEPS)
    assert "| steps taken | 12 of 30: stopped early |" in model_card(FACTS, steps=(12, 30))
