"""Facts of a run of cal-train that never was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cal_schemas.spec import ContrastSpec, InputSpec, LabelSpec, MeasurementSpec
from cal_trainer.run.facts import RunFacts
from cal_trainer.trainer import Weighting

SPEC = MeasurementSpec(
    label=LabelSpec(tokenizer_digest="t", chat_template_digest="c", template="vicuna_v1"),
    input=InputSpec(
        image_processor="LlavaImageProcessor", image_processor_backend="pil", image_processor_digest="i",
        image_aspect_ratio="pad", max_length=2048, truncation="tail",
    ),
    contrast=ContrastSpec(condition="mask"), dtype="bfloat16", attn_implementation="sdpa",
    model_id="llava-hf/llava-1.5-7b-hf", revision=None, weights_digest="w" * 32, reference_saw_data="yes",
)  # fmt: skip
FLAGS: dict[str, Any] = {
    "model_name_or_path": "llava-hf/llava-1.5-7b-hf", "data_path": ["annotated/a|b"], "source_path": [],
    "delta_source": "cached", "trainable": ["projector", "language_model"], "output_dir": "out",
    "lora_r": 0, "lora_alpha": None, "lora_dropout": 0.0, "learning_rate": 2e-5, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1, "world_size": 8, "num_train_epochs": 3.0, "max_steps": -1, "seed": 42,
}  # fmt: skip
FACTS = RunFacts(
    flags=FLAGS, base=Path("base"), num_rows=90, skipped={"image_error": 7, "too_long": 3}, shards={}, spec=SPEC,
    weighting=Weighting(alpha=0.5, beta=float("inf"), window=5, pool="joined", normalization="sample"),
    quantiles={"alpha": "q0.5"}, num_trainable=7_000_000, lr_multipliers={"vision_tower": 0.1},
)  # fmt: skip


def with_flags(**flags: Any) -> RunFacts:
    return replace(FACTS, flags={**FLAGS, **flags})
