"""Log-probabilities of the labels against log_softmax of full logits, and the memory they take."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlavaForConditionalGeneration

from cal_pipeline.encoding.collate import Batch, collate
from cal_pipeline.encoding.perturbation import encode_with_contrast
from cal_pipeline.measuring import logprobs
from cal_pipeline.measuring.contrast import contrast_logits, label_logits
from cal_pipeline.measuring.logprobs import label_logits_and_logprobs
from cal_schemas.spec import CONDITIONS, ContrastSpec
from conftest import Family
from examples_of import conversation
from families.table import ALL
from tiny_models import FAMILIES, build_qwen2_5_vl_model, sample_image

PARAMETERS = {"patch_mask": {"patch_mask_ratio": 0.7}, "gaussian_blur": {"blur_sigma": 3.0}}
GIVEN = [
    (conversation("<image>\nWhat is this?", "A red cat on the table."), [sample_image(1, (60, 40))]),
    (conversation("<image>\n<image>\nAnd these?", "A dog."), [sample_image(2, (50, 50)), sample_image(3, (80, 30))]),
    (conversation("How are you?", "Fine, thank you."), []),
]


def batch_of(reference: Family, contrast: ContrastSpec | None = None) -> Batch:
    encoded = [encode_with_contrast(reference.encoder, contrast or ContrastSpec(), *pair, "k") for pair in GIVEN]
    return collate(
        encoded, pad_token_id=reference.encoder.pad_token_id, batch_first=reference.encoder.batch_first_inputs
    )


def expected(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """By the long way: full logits, log_softmax, gather; and where a label is supervised, [B, T - 1]."""
    with torch.no_grad():
        full = model(**inputs, use_cache=False).logits[:, :-1].float()
    targets = labels[:, 1:]
    return full.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0], targets != -100


@pytest.fixture(params=[64 * 2**20, 2048], ids=["one chunk", "many chunks"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", request.param)


def check(model: Any, inputs: dict[str, Tensor], labels: Tensor) -> None:
    with torch.no_grad():
        logits, logprobs_ = label_logits_and_logprobs(model, inputs, labels)
        torch.testing.assert_close(logits, label_logits(model, inputs, labels), equal_nan=True)
    wanted_logprobs, supervised = expected(model, inputs, labels)
    torch.testing.assert_close(logprobs_[:, 1:][supervised], wanted_logprobs[supervised], atol=2e-5, rtol=0)
    assert bool(logprobs_[:, 1:][~supervised].isnan().all())
    assert bool(logprobs_[:, 0].isnan().all())


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(
    "name", [name if name in ("llava", "gemma3") else pytest.param(name, marks=pytest.mark.full) for name in FAMILIES]
)
def test_they_are_log_softmax_of_full_logits(family: Callable[[str], Family], name: str) -> None:
    reference = family(name)
    batch = batch_of(reference)
    check(reference.model, batch.inputs, batch.labels)


@pytest.mark.usefixtures("chunk")
def test_a_model_that_cannot_be_called_without_an_image(tmp_path: Path) -> None:
    case = ALL["blip_2"].make(tmp_path)
    batch = case.batch(case.samples[:2])
    check(case.model, batch.inputs, batch.labels)


@pytest.mark.usefixtures("chunk")
def test_at_model_level_with_rotary_sections() -> None:
    model, tiny = build_qwen2_5_vl_model()
    check(model, tiny.inputs, tiny.labels)


@pytest.mark.usefixtures("chunk")
def test_a_soft_cap_is_respected(family: Callable[[str], Family], monkeypatch: pytest.MonkeyPatch) -> None:
    reference = family("gemma3")
    batch = batch_of(reference)
    before, _ = expected(reference.model, batch.inputs, batch.labels)
    config = reference.model.config.get_text_config()
    monkeypatch.setattr(config, "final_logit_softcapping", 3.0)
    after, supervised = expected(reference.model, batch.inputs, batch.labels)
    if torch.equal(before, after):  # This wrapper has no cap of its own: one around its forward serves as well.
        _cap_outside(reference.model, monkeypatch)
        after, supervised = expected(reference.model, batch.inputs, batch.labels)
    assert float((after - before)[supervised].abs().max()) > 0.1
    check(reference.model, batch.inputs, batch.labels)


def _cap_outside(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = type(model).forward

    def capped(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = torch.tanh(output.logits / 3.0) * 3.0
        return output

    monkeypatch.setattr(type(model), "forward", capped)


@pytest.mark.usefixtures("chunk")
def test_a_scale_and_a_bias_are_respected(llava: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlavaForConditionalGeneration.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 0.25
        return output

    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", scaled)
    head = llava.model.get_output_embeddings()
    head.bias = nn.Parameter(torch.linspace(-3, 3, head.out_features))
    batch = batch_of(llava)
    try:
        check(llava.model, batch.inputs, batch.labels)
        assert "forward" not in head.__dict__
    finally:
        head.bias = None


@pytest.mark.parametrize("condition", CONDITIONS)
def test_both_passes_under_every_contrast(llava: Family, condition: Any) -> None:
    contrast = ContrastSpec(condition=condition, **PARAMETERS.get(condition, {}))
    batch = batch_of(llava, contrast)
    first_pass = (llava.model, batch.inputs, batch.labels, batch.image_mask, contrast)
    contrast_inputs = batch.contrast_inputs if contrast.perturbs else None
    plain = contrast_logits(*first_pass, contrast_inputs)
    with_logprobs = contrast_logits(*first_pass, contrast_inputs, label_logits_and_logprobs)
    for logits, both in zip(plain, with_logprobs, strict=True):
        assert both.shape == (2, *logits.shape)
        torch.testing.assert_close(both[0], logits, equal_nan=True, atol=1e-5, rtol=0)
        assert bool((both[1][~logits.isnan()] < 0).all())
        assert bool(both[1].isnan().equal(logits.isnan()))
    if condition == "mask":
        masked = {**batch.inputs, "attention_mask": batch.inputs["attention_mask"] * ~batch.image_mask}
        wanted, _ = expected(llava.model, masked, batch.labels)
        shown = ~plain[1][:, 1:].isnan() & batch.image_mask.any(-1, keepdim=True)
        torch.testing.assert_close(with_logprobs[1][1][:, 1:][shown], wanted[shown], atol=1e-4, rtol=0)


class LiveBytes(TorchDispatchMode):
    """Bytes of tensors that are alive, at most; counted by storage, so nothing depends on the machine."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, Tensor) and (address := item.untyped_storage()._cdata) not in self._known:
                size = item.untyped_storage().nbytes()
                self._known.add(address)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(item.untyped_storage(), self._freed, address, size)
        return result

    def _freed(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


@pytest.mark.parametrize("cap", [None, 30.0])
def test_memory_is_bounded_by_the_chunk_and_not_by_rows_times_vocabulary(
    cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, hidden, vocabulary, limit = 512, 64, 20_000, 2**20
    head = nn.Linear(hidden, vocabulary, bias=False)

    class Model(nn.Module):
        def get_output_embeddings(self) -> nn.Linear:
            return head

        def forward(self, use_cache: bool, **inputs: Tensor) -> Any:
            logits = head(torch.zeros(1, 1, hidden))
            return SimpleNamespace(logits=logits if cap is None else torch.tanh(logits / cap) * cap)

    monkeypatch.setattr(logprobs, "CHUNK_BYTES", limit)
    hidden_rows = torch.randn(rows, hidden)
    with torch.no_grad():
        full = head(hidden_rows) if cap is None else torch.tanh(head(hidden_rows) / cap) * cap
        with LiveBytes() as live:
            normalizers = logprobs._logsumexp(Model(), hidden_rows, {})
    torch.testing.assert_close(normalizers, full.logsumexp(-1), atol=1e-5, rtol=1e-5)
    assert full.nbytes > 30 * limit
    assert limit < live.peak < 8 * limit
