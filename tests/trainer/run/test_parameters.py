"""Parts are found in every family, frozen and trained as asked, and given their own learning rates."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig, Trainer, TrainingArguments

from cal_pipeline.encoding.collate import collate
from cal_schemas.errors import ConfigError
from cal_schemas.sample import Sample, Turn
from cal_trainer.run.parameters import (
    PARTS,
    active_dropout,
    parameter_groups,
    parse_lr_multipliers,
    part_of_each,
    set_trainable,
    unused_parameters,
)
from conftest import Family
from tiny_models import FAMILIES, build_qwen2_5_vl_model, sample_image

PREFIXES = {
    "vision_tower": r"model\.(vision_tower|vision_model)\.",
    "projector": r"model\.(multi_modal_projector\.|connector\.|image_newline$)",
    "language_model": r"(model\.(language_model|text_model)|lm_head)\.",
}


def model_of(family: Callable[[str], Family], name: str) -> Any:
    return copy.deepcopy(family(name).model)


def batch_of(family: Family) -> dict[str, torch.Tensor]:
    """One row with two shapes of image, so that every row of a tile grid is used."""
    turns = (Turn(role="user", content="<image>\nWhat is it?"), Turn(role="assistant", content="A red square."))
    sample = Sample(sample_id="a", images=(), messages=turns)
    encoded = [family.encoder(sample, [sample_image(1, size)]) for size in ((80, 50), (50, 80))]
    batch = collate(encoded, pad_token_id=family.encoder.pad_token_id, batch_first=family.encoder.batch_first_inputs)
    return dict(batch.inputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_of_every_family_belongs_to_the_right_part(family: Callable[[str], Family], name: str) -> None:
    model = family(name).model
    found = part_of_each(model)
    assert set(found.values()) == set(PARTS)
    for parameter, part in found.items():
        assert part is not None
        assert re.match(PREFIXES[part], parameter), (parameter, part)
    assert any(parameter.startswith("lm_head.") for parameter in found)  # Tied or not, the head is listed.


def test_the_merger_inside_qwens_tower_is_its_projector() -> None:
    model, _ = build_qwen2_5_vl_model()
    found = part_of_each(model)
    projector = {name for name, part in found.items() if part == "projector"}
    assert projector == {name for name in found if ".visual.merger." in name}
    assert projector
    assert set(found.values()) == set(PARTS)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("part", PARTS)
def test_only_the_named_part_trains(family: Callable[[str], Family], name: str, part: str) -> None:
    model = model_of(family, name)
    training = set_trainable(model, [part])
    assert training
    assert training == [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(re.match(PREFIXES[part], key) for key in training)


@pytest.mark.parametrize("name", FAMILIES)
def test_everything_that_trains_gets_a_gradient(family: Callable[[str], Family], name: str) -> None:
    model = model_of(family, name)
    training = set_trainable(model, ["all"])
    model.train()(**batch_of(family(name))).logits.float().sum().backward()
    found = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert found == set(training)


def test_tower_layers_behind_the_feature_layer_stay_frozen(llava: Family) -> None:
    model = copy.deepcopy(llava.model)  # Two layers, vision_feature_layer -2: the second and the last norm are unused.
    training = set_trainable(model, ["vision_tower"])
    assert any(".encoder.layers.0." in name for name in training)
    assert not any(".encoder.layers.1." in name or "post_layernorm" in name for name in training)
    with pytest.raises(ConfigError, match="not used"):
        set_trainable(model, [r"vision_tower.*layers\.1\."])


def test_a_pattern_chooses_by_name_and_reaches_tied_weights(family: Callable[[str], Family]) -> None:
    model = model_of(family, "llava")
    training = set_trainable(model, ["projector", r"language_model\.layers\.1\.mlp"])
    assert {name.split(".")[1] for name in training} == {"multi_modal_projector", "language_model"}
    assert sum("layers.1.mlp" in name for name in training) == 3
    tied = model_of(family, "gemma3")
    assert set_trainable(tied, ["lm_head"]) == ["model.language_model.embed_tokens.weight"]
    assert tied.get_output_embeddings().weight.requires_grad


@pytest.mark.parametrize("bad", ["vison_tower", "(", "mlp.fc9"])
def test_what_matches_nothing_is_refused_with_what_there_is(llava: Family, bad: str) -> None:
    model = copy.deepcopy(llava.model)
    with pytest.raises(ConfigError, match=re.escape(bad)) as caught:
        set_trainable(model, ["projector", bad])
    assert bad == "(" or "language_model" in str(caught.value)
    assert all(parameter.requires_grad for parameter in model.parameters())  # Refused before anything is frozen.
    with pytest.raises(ConfigError, match="empty"):
        set_trainable(model, [])


def test_groups_without_multipliers_are_those_of_transformers(llava: Family, tmp_path: Any) -> None:
    model = copy.deepcopy(llava.model)
    set_trainable(model, ["all"])
    options = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], weight_decay=0.1)
    theirs = Trainer(model=model, args=options).create_optimizer().param_groups
    ours = parameter_groups(model, 1e-3, 0.1)
    by_decay = {group["weight_decay"]: {id(p) for p in group["params"]} for group in ours}
    assert by_decay == {group["weight_decay"]: {id(p) for p in group["params"]} for group in theirs}


def test_multipliers_scale_the_rate_and_the_schedule_keeps_the_ratio(llava: Family) -> None:
    model = copy.deepcopy(llava.model)
    set_trainable(model, ["all"])
    groups = parameter_groups(model, 2e-5, 0.1, {"vision_tower": 0.1, "projector": 2.0})
    assert len(groups) == 6
    for group in groups:
        kinds = {PARTS[[bool(re.match(PREFIXES[part], name)) for part in PARTS].index(True)]
                 for name in group["parameter_names"]}  # fmt: skip
        assert len(kinds) == 1
        expected = {"vision_tower": 2e-6, "projector": 4e-5, "language_model": 2e-5}[kinds.pop()]
        assert group["lr"] == pytest.approx(expected)
        assert all(name.endswith("bias") or "norm" in name for name in group["parameter_names"]) == (
            group["weight_decay"] == 0
        )
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    optimizer = torch.optim.AdamW(groups)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert sorted({round(group["lr"], 9) for group in optimizer.param_groups}) == [1e-6, 1e-5, 2e-5]


def test_multipliers_must_match_something_that_trains_and_only_once(llava: Family) -> None:
    model = copy.deepcopy(llava.model)
    set_trainable(model, ["projector", "language_model"])
    with pytest.raises(ConfigError, match="vision_tower: nothing of it trains"):
        parameter_groups(model, 1e-3, 0.0, {"vision_tower": 0.1})
    with pytest.raises(ConfigError, match="matches no parameter"):
        parameter_groups(model, 1e-3, 0.0, {"toer": 0.1})
    with pytest.raises(ConfigError, match=r"projector and linear_1 both match"):
        parameter_groups(model, 1e-3, 0.0, {"projector": 2.0, "linear_1": 0.1})


def test_multipliers_are_parsed_or_refused() -> None:
    assert parse_lr_multipliers(["vision_tower=0.1", "a=b=2"]) == {"vision_tower": 0.1, "a=b": 2.0}
    for bad in ("vision_tower", "=1", "vision_tower=", "x=fast", "x=0", "x=-1", "x=nan", "x=inf"):
        with pytest.raises(ConfigError, match="--lr_multipliers"):
            parse_lr_multipliers([bad])
    with pytest.raises(ConfigError, match="twice"):
        parse_lr_multipliers(["x=1", "x=2"])


def test_dropout_is_found_in_modules_and_settings(llava: Family) -> None:
    model = copy.deepcopy(llava.model)
    assert active_dropout(model) == []
    model.config.text_config.classifier_dropout = 0.1  # GPT-NeoX's default: of a head that is not here
    assert active_dropout(model) == []
    model.config.text_config.attention_dropout = 0.1
    model.model.multi_modal_projector.extra = torch.nn.Dropout(0.2)
    assert active_dropout(model) == ["model.multi_modal_projector.extra", "config.text_config.attention_dropout"]


def test_a_tower_without_a_count_of_layers_uses_all_of_its_parameters(llava: Family) -> None:
    model = copy.deepcopy(llava.model)
    model.config.vision_config = PreTrainedConfig()  # as FastVLM's, which is timm's
    assert unused_parameters(model) == set()
    assert unused_parameters(llava.model) != set()
