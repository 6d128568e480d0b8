"""Models whose rows know of their neighbours train one row a forward."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from transformers import LlavaForConditionalGeneration, TrainingArguments

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.measure import measure
from cal_schemas.annotated import MeasuredSample
from cal_schemas.errors import ConfigError
from cal_schemas.spec import ContrastSpec
from cal_trainer.run.self_check import SelfCheck, validate_batch_sizes
from conftest import Family
from examples_of import conversation
from tiny_models import sample_image


@pytest.mark.parametrize(("train", "evaluate"), [(2, 1), (1, 2)])
def test_more_rows_than_one_are_refused_by_the_flag_that_asks_for_them(
    mllama: Encoder, tmp_path: Path, train: int, evaluate: int
) -> None:
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=train, per_device_eval_batch_size=evaluate
    )
    flag = "--per_device_train_batch_size" if train > 1 else "--per_device_eval_batch_size"
    with pytest.raises(ConfigError, match=f"{flag} 2: a model of MllamaProcessor takes one row at a time"):
        validate_batch_sizes(mllama, arguments, evaluates=True)


def test_the_size_of_an_evaluation_that_there_is_not_does_not_matter(mllama: Encoder, tmp_path: Path) -> None:
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=1, per_device_eval_batch_size=8
    )
    validate_batch_sizes(mllama, arguments, evaluates=False)


class _Neighbourly(LlavaForConditionalGeneration):  # type: ignore[misc]
    """Every image is seen through the first one of the batch."""

    def forward(self, pixel_values: Any = None, **inputs: Any) -> Any:
        if pixel_values is not None:
            pixel_values = pixel_values + pixel_values[:1]
        return super().forward(pixel_values=pixel_values, **inputs)


def test_a_row_that_sees_its_neighbour_trains_and_is_measured_alone(llava: Family, tmp_path: Path) -> None:
    encoder = Encoder(llava.encoder.processor)
    model = _Neighbourly(llava.model.config)
    model.load_state_dict(llava.model.state_dict())
    check = SelfCheck(encoder, ContrastSpec(), "neighbourly")

    def begin(size: int) -> None:
        arguments = TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=size)
        check.on_train_begin(arguments, None, None, model=model)

    with pytest.raises(ConfigError, match=r"--per_device_train_batch_size 2: .* neighbourly .*another row beside it"):
        begin(2)
    begin(1)
    answers = ("A cat.", "A small white dog.", "No.")
    samples = [
        encoder(conversation("<image>\nWhat?", words), [sample_image(seed)]) for seed, words in enumerate(answers)
    ]

    def deltas(rows: list[Any]) -> list[Any]:
        found = measure(rows, model=model, encoder=encoder, contrast=ContrastSpec(), tokens_per_batch=10_000)
        assert all(isinstance(row, MeasuredSample) for row in found)
        return [row.delta_logits for row in found if isinstance(row, MeasuredSample)]

    for sample, together in zip(samples, deltas(samples), strict=True):
        np.testing.assert_array_equal(together, deltas([sample])[0])


def test_the_self_check_of_training_refuses_what_is_random_beside_images(llava: Family, tmp_path: Path) -> None:
    """The first batches of the data may all be without one."""
    model = copy.deepcopy(llava.model)
    model.model.multi_modal_projector.act = nn.Sequential(nn.GELU(), nn.Dropout(0.5))
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=1)
    with pytest.raises(ConfigError, match=r"two passes of .* in train mode over one batch differ"):
        SelfCheck(Encoder(llava.encoder.processor), ContrastSpec(), "noisy").on_train_begin(
            arguments, None, None, model=model
        )
