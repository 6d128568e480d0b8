"""Models whose rows know of their neighbours train one row a forward."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainingArguments

from cal_pipeline.encode import Encoder
from cal_schemas.errors import ConfigError
from cal_trainer.self_check import refuse_mixed_batches


@pytest.mark.parametrize(("train", "evaluate"), [(2, 1), (1, 2)])
def test_more_rows_than_one_are_refused_by_the_flag_that_asks_for_them(
    mllama: Encoder, tmp_path: Path, train: int, evaluate: int
) -> None:
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=train, per_device_eval_batch_size=evaluate
    )
    flag = "--per_device_train_batch_size" if train > 1 else "--per_device_eval_batch_size"
    with pytest.raises(ConfigError, match=f"{flag} 2: a model of MllamaProcessor takes one row at a time"):
        refuse_mixed_batches(mllama, arguments, evaluates=True)


def test_the_size_of_an_evaluation_that_there_is_not_does_not_matter(mllama: Encoder, tmp_path: Path) -> None:
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, per_device_train_batch_size=1, per_device_eval_batch_size=8
    )
    refuse_mixed_batches(mllama, arguments, evaluates=False)
