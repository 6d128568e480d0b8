"""What holds on a machine without torchvision; test_without_torchvision.py runs these in a process of their own."""

import os
from pathlib import Path

import pytest
from transformers.utils import is_torchvision_available

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec
from cal_pipeline.models.loading import load_processor
from cal_schemas.errors import ConfigError
from families.end_to_end import check_files_to_checkpoint
from families.processors import BY_NAME


def test_torchvision_is_not_here() -> None:
    assert not is_torchvision_available()


def test_a_processor_that_needs_torchvision_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"cannot load the processor of .*Torchvision.* Install torchvision\."):
        load_processor(Path(os.environ["QWEN"]))


def test_llava_goes_from_files_to_a_checkpoint_by_pil(tmp_path: Path) -> None:
    model = tmp_path / "model"
    BY_NAME["llava"].build(model)
    assert input_spec(Encoder(load_processor(model))).image_processor_backend == "pil"
    check_files_to_checkpoint(BY_NAME["llava"], model, tmp_path)
    with pytest.raises(ConfigError, match=r"--processor_backend torchvision: Llava.* is here with pil alone: install"):
        load_processor(model, backend="torchvision")
