"""References in 8 and 4 bits, for real where bitsandbytes runs on CPU; what needs a GPU as far as arguments go."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from cal_pipeline import job, loading
from cal_pipeline.config import PrecomputeConfig
from cal_pipeline.loading import load_reference
from cal_pipeline.quantization import check_quantization, quantization_config
from cal_pipeline.reference import delta_logits
from cal_pipeline.worker import self_check
from cal_schemas.errors import ConfigError
from cal_schemas.spec import MeasurementSpec
from conftest import Family
from examples_of import conversation, measurement_spec
from tiny_models import sample_image

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="pip install 'cal-vlm[quantized]'"
)
GIVEN = conversation("<image>\nWhat is this?", "A red cat on the table."), [sample_image(1, (60, 40))]


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore")  # bitsandbytes' own, on CPU
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("name", ["llava", "mini_gemini"])  # the latter hands maps of four dimensions to linear layers
def test_a_quantised_reference_measures_near_the_whole_one(
    name: str, family: Callable[[str], Family], quantization: Any
) -> None:
    from cal_pipeline.collate import collate

    whole = family(name)
    model = load_reference(whole.directory, dtype="float32", device="cpu", quantization=quantization)
    assert model.is_quantized
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"}
    assert model.get_output_embeddings().weight.dtype == torch.float32
    self_check(model, whole.encoder, measurement_spec(quantization=quantization))
    batch = collate([whole.encoder(*GIVEN)], pad_token_id=whole.encoder.pad_token_id)
    placed = batch.to(model.device, model.dtype)
    given = (placed.inputs, placed.labels, placed.image_mask)
    found, expected = delta_logits(model, *given), delta_logits(whole.model, *given)
    defined = ~expected.isnan()
    assert bool(found[defined].isfinite().all())
    assert 0 < float((found - expected)[defined].abs().mean()) < float(expected[defined].abs().mean())


def test_without_bitsandbytes_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, llava: Family) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(ConfigError, match=r"pip install 'cal-vlm\[quantized\]'"):
        load_reference(llava.directory, device="cpu", quantization="8bit")
    check_quantization("none", "cpu")


def test_a_bitsandbytes_without_kernels_for_the_cpu_is_refused_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: object())
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(supported_torch_devices={"cuda", "xpu"}))  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match="cannot run on a cpu worker: this bitsandbytes has kernels for cuda, xpu only"
    ):
        check_quantization("4bit", "cpu")
    check_quantization("4bit", "cuda")


class _Seen(Exception):  # noqa: N818
    pass


@contextmanager
def asked_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Arguments that reach transformers, which is not called: there is no GPU to put the model on."""
    seen: dict[str, Any] = {}

    def record(directory: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        raise _Seen

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", record)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "check_quantization", lambda *_: None)
    with pytest.raises(_Seen):
        yield seen


def test_several_gpus_share_one_model(monkeypatch: pytest.MonkeyPatch, llava: Family) -> None:
    with asked_for(monkeypatch) as seen:
        load_reference(llava.directory, num_devices=4, attn_implementation="flash_attention_2")
    assert (seen["device_map"], seen["attn_implementation"], seen["dtype"]) == (
        "auto", "flash_attention_2", torch.bfloat16,
    )  # fmt: skip
    assert "quantization_config" not in seen


def test_quantisation_and_devices_go_together(monkeypatch: pytest.MonkeyPatch, llava: Family) -> None:
    with asked_for(monkeypatch) as seen:
        load_reference(llava.directory, num_devices=2, quantization="4bit")
    found = seen["quantization_config"]
    assert (found.load_in_4bit, found.bnb_4bit_quant_type, found.bnb_4bit_compute_dtype) == (
        True,
        "nf4",
        torch.bfloat16,
    )
    assert seen["device_map"] == "auto"
    eight = quantization_config("8bit", torch.float16)
    assert eight is not None
    assert eight.load_in_8bit
    assert quantization_config("none", torch.float16) is None


def test_the_measurement_says_that_it_was_quantised() -> None:
    plain, spec = measurement_spec(), measurement_spec(quantization="8bit")
    assert MeasurementSpec.from_json(spec.to_json()) == spec
    assert plain.fingerprint() != spec.fingerprint()
    assert plain.differences(spec) == [("quantization", None, "8bit")]


def config(**changed: Any) -> PrecomputeConfig:
    values = {"model_name_or_path": "m", "output_dir": "o", "data_path": ["d"]}
    return PrecomputeConfig(**{**values, **changed})


def test_what_needs_a_gpu_is_refused_before_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="flash_attention_2 needs a GPU, and workers have none"):
        job.check_device(config(attn_implementation="flash_attention_2"), 0.0)
    job.check_device(config(attn_implementation="flash_attention_2"), 1.0)
    with pytest.raises(ConfigError, match="--attn_implementation flash: expected one of"):
        config(attn_implementation="flash")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        job.check_device(config(quantization="4bit"), 1.0)
    job.check_device(config(quantization="4bit", ray_address="ray://elsewhere:10001"), 1.0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_that_was_asked_for_runs(llava: Family, attention: str) -> None:
    model = load_reference(llava.directory, dtype="float32", device="cpu", attn_implementation=attention)
    assert model.config.get_text_config()._attn_implementation == attention
