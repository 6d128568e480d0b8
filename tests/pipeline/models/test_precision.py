"""What a forward computes in is seen from outside, and each precision explains differences of its own size only."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from cal_pipeline.encoding.collate import Batch, collate
from cal_pipeline.measuring.self_check import check_reference, encode_questions
from cal_pipeline.models.loading import load_reference
from cal_pipeline.models.precision import EXACT_TOLERANCE, FLOAT32, HALF, Precision, precision_of, watched
from cal_schemas.errors import ConfigError
from cal_schemas.spec import ContrastSpec
from conftest import Family

AUTOCAST = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def questions(family: Family) -> Batch:
    encoded = encode_questions(family.encoder, family.name, ContrastSpec())
    return collate(encoded, pad_token_id=family.encoder.pad_token_id, batch_first=family.encoder.batch_first_inputs)


def scaled(family: Family, dtype: Any = "float32", scale: float = 5.0) -> Any:
    """The tiny model with logits of a trained one's size: rms 15 instead of 3."""
    model = load_reference(family.directory, dtype=dtype, device="cpu")
    with torch.no_grad():
        model.get_output_embeddings().weight *= scale
    return model


def run_under(model: Any, autocast: str) -> None:
    """As accelerate does: the model's forward enters autocast itself."""
    if AUTOCAST[autocast] is not None:
        model.forward = torch.autocast("cpu", dtype=AUTOCAST[autocast])(model.forward)


@pytest.mark.parametrize(
    ("weights", "autocast", "expected"),
    [
        ("float32", "none", "float32"), ("float32", "bfloat16", "bfloat16"), ("float32", "float16", "float16"),
        ("bfloat16", "none", "bfloat16"), ("float16", "none", "float16"),
    ],
)  # fmt: skip
def test_weights_and_autocast_decide(weights: Any, autocast: str, expected: str, llava: Family) -> None:
    model = load_reference(llava.directory, dtype=weights, device="cpu")
    run_under(model, autocast)
    batch = questions(llava).to(model.device, model.dtype)
    output, precision = watched(model, lambda: model(**batch.inputs))
    assert precision.name == expected
    assert precision.exact == (expected == "float32")
    assert output.logits.dtype == (AUTOCAST[autocast] or getattr(torch, weights))
    # Rows without an image cost no pass.
    assert watched(model, lambda: None)[1].name == weights


def test_a_process_that_multiplies_float32_coarsely_is_not_exact(llava: Family) -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        for setting, expected in (("tf32", "tf32"), ("bf16", "bfloat16"), ("ieee", "float32")):
            torch.backends.mkldnn.matmul.fp32_precision = setting
            assert watched(llava.model, lambda: None)[1].name == expected
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_the_coarsest_format_counts_and_whatever_is_quantised_is_half_at_best() -> None:
    assert precision_of({"float64", "float32"}, quantized=False) == FLOAT32
    assert precision_of({"float32", "float16", "bfloat16"}, quantized=False).name == "bfloat16"
    assert precision_of({"float32", "float16"}, quantized=False).name == "float16"
    assert precision_of({"float32"}, quantized=True).name == "bfloat16"
    assert precision_of({"float32", "float8_e4m3fn"}, quantized=False).name == "bfloat16"


def test_a_tolerance_in_half_precision_grows_with_the_logits() -> None:
    logits, differences = torch.tensor([3.0, -4.0]), torch.tensor([-0.3, 0.1])
    rms = 12.5**0.5
    assert (FLOAT32.tolerance(logits), FLOAT32.size(differences)) == (EXACT_TOLERANCE, pytest.approx(0.3))
    half = Precision(name="bfloat16")
    assert half.tolerance(logits) == pytest.approx(8 * rms / 256)
    assert half.tolerance(10 * logits, "head") == pytest.approx(2 * 10 * rms / 256)
    assert half.size(differences) == pytest.approx(0.05**0.5)
    for precision in (FLOAT32, half):
        assert precision.size(torch.empty(0)) == 0.0
        assert not precision.size(torch.tensor([0.1, torch.nan])) <= precision.tolerance(logits)


@pytest.mark.parametrize("name", HALF)
def test_one_rounding_is_within_the_head_s_tolerance_and_a_hundredth_is_not(name: str) -> None:
    precision, logits = Precision(name=name), torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 15
    share = HALF[name]
    rounded = logits.half().float() if share < 1e-3 else logits.bfloat16().float()
    assert 0 < precision.size(rounded - logits) <= precision.tolerance(logits, "head")
    assert precision.size(0.01 * logits) > precision.tolerance(logits, "head")


FAULTS = {
    "none": None,
    "scaled": lambda module, args, out: out * 1.01,
    "shifted": lambda module, args, out: out.roll(1, -1),
    "moved": lambda module, args, out: out + out.shape[-1] / 1000,
}


@pytest.mark.parametrize(
    ("weights", "autocast"), [("float32", "none"), ("float32", "bfloat16"), ("bfloat16", "none"), ("float16", "none")]
)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_right_head_passes_and_a_wrong_one_is_refused_in_every_precision(
    fault: str, weights: Any, autocast: str, llava: Family
) -> None:
    model = scaled(llava, weights)
    run_under(model, autocast)
    if FAULTS[fault]:
        # On full logits only: what the label-only LM head yields has one column.
        model.get_output_embeddings().register_forward_hook(
            lambda module, args, out: FAULTS[fault](module, args, out) if out.shape[-1] > 1 else out  # type: ignore[misc]
        )
    batch = questions(llava).to(model.device, model.dtype)
    expected = (
        pytest.raises(ConfigError, match="label-only LM head and full logits") if FAULTS[fault] else nullcontext()
    )
    with expected:
        check_reference(model, batch, ContrastSpec(), "tiny")
