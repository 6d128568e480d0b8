"""Adapters train through the weighted trainer, are saved by it, and load back with peft alone."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, TrainingArguments

from cal_pipeline.encoding.collate import collate
from cal_pipeline.measuring.contrast import captured_position_ids, contrast_logits
from cal_schemas.errors import ConfigError
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import ContrastSpec
from cal_trainer.objective.delta_source import OnlineDeltas
from cal_trainer.objective.label_rows import label_rows, supervised_ids
from cal_trainer.run.lora import add_lora
from cal_trainer.run.parameters import active_dropout, parameter_groups, part_of_each
from cal_trainer.trainer import CalTrainer, Weighting
from conftest import Family
from tiny_models import FAMILIES, build_qwen2_5_vl_model, sample_image

# peft 0.21 asks transformers 5.23 for `is_gradient_checkpointing` by its old name whenever it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def batch_of(family: Family) -> dict[str, torch.Tensor]:
    turns = (Turn(role="user", content="<image>\nWhat is it?"), Turn(role="assistant", content="A red square."))
    encoded = family.encoder(Sample(sample_id="a", images=(), messages=turns), [sample_image(1)])
    batch = collate(
        [encoded, encoded], pad_token_id=family.encoder.pad_token_id, batch_first=family.encoder.batch_first_inputs
    )
    return {**batch.inputs, "labels": batch.labels, "image_mask": batch.image_mask}


def training(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_sit_on_the_language_model_alone(family: Callable[[str], Family], name: str) -> None:
    wrapped = add_lora(copy.deepcopy(family(name).model), r=2)
    owners = part_of_each(wrapped)
    assert all("lora_" in parameter and owners[parameter] == "language_model" for parameter in training(wrapped))
    kinds = {parameter.split(".lora_")[0].rpartition(".")[2] for parameter in training(wrapped)}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert None not in owners.values()


@pytest.mark.parametrize("name", FAMILIES)
def test_two_passes_and_label_rows_work_on_the_wrapped_model(family: Callable[[str], Family], name: str) -> None:
    plain = family(name)
    # Fresh adapters add nothing, so every number is that of the plain model.
    wrapped = add_lora(copy.deepcopy(plain.model), r=2, trainable=["language_model", "projector"])
    batch = batch_of(plain)
    labels, image_mask = batch.pop("labels"), batch.pop("image_mask")
    given = (batch, labels, image_mask, ContrastSpec())
    for ours, theirs in zip(contrast_logits(wrapped, *given), contrast_logits(plain.model, *given), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    with captured_position_ids(wrapped) as seen, label_rows(wrapped, labels):
        logits = wrapped(**batch, use_cache=False).logits
    assert len(seen) == 1
    assert logits.shape[:2] == (1, len(supervised_ids(labels)))


def test_a_trained_adapter_is_saved_by_the_trainer_and_loads_back(llava: Family, tmp_path: Path) -> None:
    base = AutoModelForImageTextToText.from_pretrained(llava.directory)
    wrapped = add_lora(base, r=2, trainable=["projector", "language_model"])
    before = {name: parameter.clone() for name, parameter in wrapped.named_parameters()}
    batch = batch_of(llava)
    options = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], remove_unused_columns=False, max_steps=2,
        learning_rate=1e-2, per_device_train_batch_size=1, disable_tqdm=True, dataloader_pin_memory=False,
        activation_checkpointing=True, save_strategy="no",
    )  # fmt: skip
    trainer = CalTrainer(
        model=wrapped, args=options, delta_source=OnlineDeltas(contrast=ContrastSpec()), weighting=Weighting(),
        train_dataset=[0, 1], data_collator=lambda items: dict(batch), processing_class=llava.encoder.processor,
    )  # fmt: skip
    trainer.train()
    moved = {name for name, value in wrapped.named_parameters() if not torch.equal(value, before[name])}
    assert moved == set(training(wrapped))
    assert any("multi_modal_projector.modules_to_save" in name for name in moved)
    trainer.save_model()
    assert not list(tmp_path.glob("model*.safetensors"))  # Adapters only.

    fresh = AutoModelForImageTextToText.from_pretrained(llava.directory)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "image_mask")}
    with torch.no_grad():
        wrapped.eval()
        expected = wrapped(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=0, atol=0)
        plain = AutoModelForImageTextToText.from_pretrained(llava.directory)(**inputs).logits
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, plain, atol=1e-3)
    assert "multi_modal_projector.linear_1.weight" in "".join(name for name, _ in merged.named_parameters())


def test_a_training_tower_is_saved_whole_and_its_unused_layers_stay_frozen(llava: Family) -> None:
    wrapped = add_lora(copy.deepcopy(llava.model), r=2, trainable=["all"])
    wrapped(**{name: value for name, value in batch_of(llava).items() if name not in ("labels", "image_mask")}
            ).logits.sum().backward()  # fmt: skip
    assert {name for name, value in wrapped.named_parameters() if value.grad is not None} == set(training(wrapped))
    groups = parameter_groups(wrapped, 1e-4, 0.0, {"vision_tower": 0.1, "projector": 0.2})
    assert {round(group["lr"], 7) for group in groups} == {1e-5, 2e-5, 1e-4}


def test_a_part_inside_another_trains_alone() -> None:
    model, _ = build_qwen2_5_vl_model()
    wrapped = add_lora(model, r=2, trainable=["language_model", "vision_tower"])
    owners = part_of_each(wrapped)
    assert {owners[name] for name in training(wrapped)} == {"language_model", "vision_tower"}


def test_targets_choose_layers_and_wrong_requests_are_refused(
    family: Callable[[str], Family], caplog: pytest.LogCaptureFixture
) -> None:
    model = copy.deepcopy(family("llava_next").model)
    for wrong, message in (
        ({"target": ["fc1"]}, "fc1 is no linear layer.*q_proj"),
        ({"trainable": ["projector"]}, "name language_model"),
        ({"trainable": ["language_model", "mlp"]}, "mlp with --lora_r"),
        ({"r": 0}, "r >= 1"),
        ({"dropout": 1.0}, "dropout"),
    ):
        with pytest.raises(ConfigError, match=message):
            add_lora(model, **{"r": 2, **wrong})
    with caplog.at_level(logging.WARNING, logger="cal_trainer.run.lora"):
        wrapped = add_lora(
            model, r=2, alpha=4, dropout=0.1, target=["q_proj"], trainable=["language_model", "projector"]
        )
    assert "image_newline" in caplog.text
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in training(wrapped) if "lora_" in name} == {"q_proj"}
    assert any("lora_dropout" in name for name in active_dropout(wrapped))
