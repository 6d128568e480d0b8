"""Online deltas of a row do not depend on the rows beside it, nor on the mode of the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import TrainingArguments

from cal_pipeline.encode import IGNORE_INDEX
from cal_schemas.spec import ContrastSpec
from cal_trainer.alignment import Example
from cal_trainer.dataset import ExampleCollator
from cal_trainer.delta_source import OnlineDeltas
from cal_trainer.trainer import CalTrainer, Weighting
from families.case import VOCABULARY, Case, Picture, pixels, token_samples
from tiny_models import HIDDEN, build

_LAYERS = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT: dict[str, Any] = {**_LAYERS, "vocab_size": VOCABULARY, "pad_token_id": 0, "num_key_value_heads": 1}


def online_loss(directory: Path, case: Case, size: int, **options: Any) -> float:
    """Of one step over all samples at learning rate 0, in micro-batches of `size` rows, each row weighed by itself."""
    examples = [Example(encoded=sample, deltas=torch.zeros(sample.num_tokens)) for sample in case.samples]
    first = case.samples[0]
    blank = dataclasses.replace(first, labels=torch.full_like(first.labels, IGNORE_INDEX))
    arguments = TrainingArguments(
        output_dir=str(directory), use_cpu=True, report_to=[], remove_unused_columns=False, learning_rate=0.0,
        max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=len(examples) // size,
        logging_steps=1, save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant", seed=0, **options,
    )  # fmt: skip
    encoder: Any = case
    trainer = CalTrainer(
        model=case.model, args=arguments, delta_source=OnlineDeltas(contrast=ContrastSpec()),
        weighting=Weighting(normalization="sample"), train_dataset=examples,
        data_collator=ExampleCollator(encoder=encoder, blank=blank),
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
    samples = token_samples(lambda seed: Picture(ids=[3] * 4, inputs={"pixel_values": pixels(seed, 1, 3, 16, 16)}))
    case = Case(model=build(hf.LlavaForConditionalGeneration, config), samples=samples)
    together, alone = (
        online_loss(tmp_path, case, size, activation_checkpointing=checkpointing) for size in (len(samples), 1)
    )
    assert together == pytest.approx(alone, abs=1e-5)
