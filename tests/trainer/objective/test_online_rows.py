"""Online deltas of a row, and its loss, do not depend on the rows beside it, nor on the mode of the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers import TrainingArguments

from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from cal_trainer.data.alignment import Example
from cal_trainer.data.collator import ExampleCollator
from cal_trainer.objective.delta_source import CachedDeltas, OnlineDeltas
from cal_trainer.objective.same_network import validate_determinism
from cal_trainer.run.parameters import active_dropout
from cal_trainer.trainer import CalTrainer, Weighting
from families.builders.emu3 import emu3
from families.case import VOCABULARY, Case, Image, pixels, token_samples
from tiny_models import HIDDEN, build

_LAYERS = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT: dict[str, Any] = {**_LAYERS, "vocab_size": VOCABULARY, "pad_token_id": 0, "num_key_value_heads": 1}


def online_loss(directory: Path, case: Case, size: int, *, cached: bool = False, **options: Any) -> float:
    """Of one step over all samples at learning rate 0, in micro-batches of `size` rows, each row weighed by itself."""
    examples = [Example(encoded=sample, deltas=torch.zeros(sample.num_tokens)) for sample in case.samples]
    first = case.samples[0]
    dummy = dataclasses.replace(first, labels=torch.full_like(first.labels, IGNORE_INDEX))
    arguments = TrainingArguments(
        output_dir=str(directory), use_cpu=True, report_to=[], remove_unused_columns=False, learning_rate=0.0,
        max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=len(examples) // size,
        logging_steps=1, save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant", seed=0, **options,
    )  # fmt: skip
    encoder: Any = case
    trainer = CalTrainer(
        model=case.model, args=arguments,
        delta_source=CachedDeltas() if cached else OnlineDeltas(contrast=ContrastSpec()),
        weighting=Weighting(normalization="sample"), train_dataset=examples,
        data_collator=ExampleCollator(encoder=encoder, dummy=dummy),
    )  # fmt: skip
    trainer.train()
    return float(trainer.state.log_history[0]["loss"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rope_that_scales_with_the_longest_row_gives_each_row_its_own(tmp_path: Path, checkpointing: bool) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_LAYERS, image_size=16, patch_size=8, projection_dim=HIDDEN),
        text_config=hf.LlamaConfig(**_TEXT, max_position_embeddings=16, rope_parameters=rope),
        image_token_index=3,
        image_seq_length=4,
    )
    samples = token_samples(lambda seed: Image(ids=[3] * 4, inputs={"pixel_values": pixels(seed, 1, 3, 16, 16)}))
    case = Case(model=build(hf.LlavaForConditionalGeneration, config), samples=samples)
    together, alone = (
        online_loss(tmp_path, case, size, activation_checkpointing=checkpointing) for size in (len(samples), 1)
    )
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(("cached", "checkpointing"), [(False, False), (False, True), (True, False)])
def test_batch_norms_stay_still_and_a_row_is_none_of_its_neighbours(
    tmp_path: Path, cached: bool, checkpointing: bool
) -> None:
    case = emu3()
    norms = [module for module in case.model.modules() if isinstance(module, nn.BatchNorm3d)]
    before = [(norm.running_mean.clone(), int(norm.num_batches_tracked)) for norm in norms]  # type: ignore[union-attr, arg-type]
    assert before
    size = len(case.samples)
    together, alone = (
        online_loss(tmp_path, case, count, cached=cached, activation_checkpointing=checkpointing) for count in (size, 1)
    )
    assert together == pytest.approx(alone, abs=1e-5)
    for norm, (mean, count) in zip(norms, before, strict=True):
        assert torch.equal(norm.running_mean, mean)  # type: ignore[arg-type]
        assert norm.num_batches_tracked == count


class _Noise(nn.Module):
    """Random in train mode, under a name that says nothing of it."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * (1 + 0.1 * torch.randn_like(hidden)) if self.training else hidden


def _llava() -> Case:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_LAYERS, image_size=16, patch_size=8, projection_dim=HIDDEN),
        text_config=hf.LlamaConfig(**_TEXT),
        image_token_index=3,
        image_seq_length=4,
    )
    samples = token_samples(lambda seed: Image(ids=[3] * 4, inputs={"pixel_values": pixels(seed, 1, 3, 16, 16)}))
    return Case(model=build(hf.LlavaForConditionalGeneration, config), samples=samples)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_whatever_is_random_in_train_mode_is_refused(tmp_path: Path, checkpointing: bool) -> None:
    case = _llava()
    case.model.model.multi_modal_projector.act = nn.Sequential(case.model.model.multi_modal_projector.act, _Noise())
    with pytest.raises(ConfigError, match=r"two passes of LlavaForConditionalGeneration .* differ by .*cached"):
        online_loss(tmp_path, case, len(case.samples), activation_checkpointing=checkpointing)


def test_proving_leaves_the_random_numbers_of_the_run_as_they_were() -> None:
    case = _llava()
    batch = case.batch(case.samples)
    case.model.train()
    torch.manual_seed(7)
    validate_determinism(case.model, batch.inputs, batch.labels)
    found = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(found, torch.rand(3))


def test_drop_path_is_known_by_its_class() -> None:
    config = hf.QianfanOCRConfig(
        vision_config={**_LAYERS, "image_size": (16, 16), "patch_size": (4, 4), "drop_path_rate": 0.2},
        text_config=hf.Qwen2Config(**_TEXT, head_dim=16).to_dict(),
        image_token_id=3,
        image_seq_length=4,
    )
    assert any("drop_path" in name for name in active_dropout(build(hf.QianfanOCRForConditionalGeneration, config)))
    config.vision_config.drop_path_rate = 0.0
    assert active_dropout(build(hf.QianfanOCRForConditionalGeneration, config)) == []
