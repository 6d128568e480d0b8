"""References in 8 and 4 bits, for real where bitsandbytes runs on CPU; what needs a GPU as far as arguments go."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaConfig

from cal_pipeline.encoding.collate import collate
from cal_pipeline.inspect.cli import run
from cal_pipeline.measuring.contrast import delta_logits
from cal_pipeline.models import loading
from cal_pipeline.models.loading import load_config, load_reference
from cal_pipeline.models.precision import watched
from cal_pipeline.models.quantization import check_quantization, flag_of, quantization_config, resolve_quantization
from cal_pipeline.runtime import plan
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.runtime.devices import validate_device
from cal_pipeline.runtime.worker import self_check
from cal_schemas.errors import ConfigError
from cal_schemas.spec import MeasurementSpec
from conftest import Family
from examples_of import conversation, measurement_spec
from inspected_data import parquet_directory
from tiny_data import write_parquet
from tiny_models import build, sample_image

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="pip install 'cal-vlm[quantized]'"
)
GIVEN = conversation("<image>\nWhat is this?", "A red cat on the table."), [sample_image(1, (60, 40))]


WIDE: dict[str, dict[str, dict[str, Any]]] = {
    "llava": {"text_config": {"head_dim": 32}},
    "mini_gemini": {
        "text_config": {"head_dim": 32},
        "aux_vision_config": {"hidden_sizes": [64] * 4},
    },
}
"""What differs from the tiny families beside the widths; layers are multiples of 64, the blocks of 4 bits."""


def widened(family: Family, directory: Path) -> Family:
    """A family with layers of whole blocks of 4 bits, random."""
    values = family.model.config.to_dict()
    for part in ("text_config", "vision_config"):
        values[part].update(hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=2)
    for part, changed in WIDE[family.name].items():
        values[part].update(changed)
    model = build(type(family.model), type(family.model.config)(**values))
    model.save_pretrained(directory)
    family.encoder.processor.save_pretrained(directory)
    loaded = load_reference(directory, dtype="float32", device="cpu")
    return Family(name=family.name, directory=directory, model=loaded, encoder=family.encoder)


# The latter has linear layers for maps [B, H, W, C].
@pytest.fixture(scope="module", params=["llava", pytest.param("mini_gemini", marks=pytest.mark.full)])
def wide(request: pytest.FixtureRequest, family: Callable[[str], Family], tmp_path_factory: Any) -> Family:
    return widened(family(request.param), tmp_path_factory.mktemp("wide") / request.param)


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore")  # bitsandbytes' own, on CPU
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantised_reference_measures_near_the_whole_one(wide: Family, quantization: Any) -> None:
    model = load_reference(wide.directory, dtype="float32", device="cpu", quantization=quantization)
    assert model.is_quantized
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"}
    assert model.get_output_embeddings().weight.dtype == torch.float32
    self_check(model, wide.encoder, measurement_spec(quantization=quantization))
    batch = collate([wide.encoder(*GIVEN)], pad_token_id=wide.encoder.pad_token_id)
    placed = batch.to(model.device, model.dtype)
    first_pass = (placed.inputs, placed.labels, placed.image_mask)
    deltas, precision = watched(model, lambda: delta_logits(model, *first_pass))
    assert precision.name == "bfloat16"
    expected = delta_logits(wide.model, *first_pass)
    defined = ~expected.isnan()
    assert bool(deltas[defined].isfinite().all())
    assert 0 < float((deltas - expected)[defined].abs().mean()) < float(expected[defined].abs().mean())


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore")
def test_four_bits_of_any_width_multiply_in_the_dtype_that_was_asked_for(
    llava: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever processor runs the test: layers ask bitsandbytes once, when they are made. In eval mode it would pack
    # them for such a processor, multiply in bfloat16, and fail with these, which are no 32 rows by 64 columns.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = load_reference(llava.directory, dtype="float32", device="cpu", quantization="4bit")
    batch = collate([llava.encoder(*GIVEN)], pad_token_id=llava.encoder.pad_token_id)
    with torch.no_grad():
        logits = model(**batch.inputs).logits
        again = model(**batch.inputs).logits
        expected = model.dequantize()(**batch.inputs).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, logits)


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_checkpoint_s_own_quantisation_is_recorded_and_audited_as_what_it_is(
    family: Callable[[str], Family], tmp_path: Path, bits: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = widened(family("llava"), tmp_path / "whole")
    stored = tmp_path / "stored"
    load_reference(whole.directory, dtype="float32", device="cpu", quantization=f"{bits}bit").save_pretrained(stored)
    whole.encoder.processor.save_pretrained(stored)
    model = load_reference(stored, dtype="float32", device="cpu")
    name = resolve_quantization("none", load_config(stored))
    assert name == f"bitsandbytes-{bits}bit"
    with pytest.raises(ConfigError, match=rf"--quantization 8bit: .* quantised as it is stored \({name}\)"):
        load_reference(stored, dtype="float32", device="cpu", quantization="8bit")
    planned = plan.make_plan(
        config(model_name_or_path=str(stored), output_dir=str(tmp_path / "out"), gpus_per_worker=0.0, dry_run=True,
               data_path=[str(write_parquet(tmp_path / "planned.parquet", 1))])
    )  # fmt: skip
    assert planned.settings.spec.quantization == name
    assert planned.settings.quantization == "none"
    quantised = Family(name="llava", directory=stored, model=model, encoder=whole.encoder)
    path = parquet_directory(quantised, tmp_path, count=8, quantization=name)
    # Other batches than those of the run: what 8 bits make of a row depends on its neighbours.
    audit = ["audit", str(path), "--fraction", "1", "--device", "cpu", "--swap", "0", "--tokens_per_batch"]
    for budget in ("60", "4096"):
        assert run([*audit, budget]) == 0, capsys.readouterr()
    assert "for bfloat16" in capsys.readouterr().out
    # The same files' digest, and other deltas: a really different reference.
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.1 * torch.randn_like(model.get_input_embeddings().weight)
    other = parquet_directory(quantised, tmp_path / "other", count=8, quantization=name)
    assert run(["audit", str(other), *audit[2:], "4096"]) == 1
    assert "8 of 8 rows differ" in capsys.readouterr().out


def described(**values: Any) -> Any:
    return LlavaConfig(quantization_config=values) if values else LlavaConfig()


def test_what_the_spec_records_of_a_checkpoint_by_its_config() -> None:
    assert resolve_quantization("none", described()) is None
    assert resolve_quantization("4bit", described()) == "4bit"
    assert resolve_quantization("none", described(quant_method="gptq", bits=4)) == "gptq-4bit"
    assert resolve_quantization("none", described(quant_method="fp8", activation_scheme="dynamic")) == "fp8"
    inside = LlavaConfig()
    inside.text_config.quantization_config = {"quant_method": "awq", "bits": 4}
    assert resolve_quantization("none", inside) == "awq-4bit"
    assert [flag_of(name) for name in (None, "8bit", "4bit", "bitsandbytes-4bit")] == ["none", "8bit", "4bit", "none"]


def test_without_bitsandbytes_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, llava: Family) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(ConfigError, match=r"pip install 'cal-vlm\[quantized\]'"):
        load_reference(llava.directory, device="cpu", quantization="8bit")
    check_quantization("none", "cpu")


def test_a_bitsandbytes_without_kernels_for_the_cpu_is_refused_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: object())
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(supported_torch_devices={"cuda", "xpu"}))  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match="cannot run on cpu: this bitsandbytes has kernels for cuda, xpu only; use a GPU"
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
    config = seen["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == (
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
        validate_device(config(attn_implementation="flash_attention_2"), 0.0)
    validate_device(config(attn_implementation="flash_attention_2"), 1.0)
    with pytest.raises(ConfigError, match="--attn_implementation flash: expected one of"):
        validate_device(config(attn_implementation="flash"), 1.0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        validate_device(config(quantization="4bit"), 1.0)
    validate_device(config(quantization="4bit", ray_address="elsewhere:6379"), 1.0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_that_was_asked_for_runs(llava: Family, attention: str) -> None:
    model = load_reference(llava.directory, dtype="float32", device="cpu", attn_implementation=attention)
    assert model.config.get_text_config()._attn_implementation == attention


def test_a_slip_in_dtype_or_quantization_loads_nothing_whole() -> None:
    for wrong in ({"dtype": "bf16"}, {"quantization": "8 bit"}):
        ((name, value),) = wrong.items()
        with pytest.raises(ConfigError, match=f"{name} must be one of .*, got {value!r}"):
            load_reference("no model", device="cpu", **wrong)  # type: ignore[arg-type]
