"""The loss in chunks against the loss at once: same loss, gradients and logits for online deltas, and flat memory."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import AutoModelForImageTextToText

from cal_pipeline.encoding.collate import Batch
from cal_pipeline.measuring.contrast import label_logits
from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.objective import chunked_nll, label_losses
from cal_trainer.objective.after_head import AfterHead, learn_after_head
from cal_trainer.objective.label_losses import LabelLosses, LabelLossRunner
from cal_trainer.objective.label_rows import supervised_ids
from conftest import Family
from measuring import peak_memory
from ragged_batch import batch_of

CAP = 2.0
"""Below the tiny models' logits, so that it bends them."""
SIZE = 3
"""Rows of a chunk."""
Change = Callable[[Any], None]


def cap(model: Any) -> None:
    model.config.text_config.final_logit_softcapping = CAP


def bias(model: Any) -> None:
    head = model.get_output_embeddings()
    head.bias = nn.Parameter(torch.randn(head.out_features, generator=torch.Generator().manual_seed(1)))


def freeze(model: Any) -> None:
    model.get_output_embeddings().weight.requires_grad_(False)


def adapt(model: Any) -> None:
    """Adapters on the head, with dropout, whose mask must be the same in both forwards of a chunk."""
    from peft import LoraConfig, inject_adapter_in_model

    found = inject_adapter_in_model(LoraConfig(r=2, lora_dropout=0.5, target_modules=["lm_head"]), model)
    assert type(found.get_output_embeddings()).forward is not nn.Linear.forward
    with torch.no_grad():
        found.get_output_embeddings().lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(2))


KINDS: dict[str, tuple[str, Change]] = {
    "llava": ("llava", lambda model: None),
    "tied": ("gemma3", lambda model: None),
    "soft-capped": ("paligemma", cap),
    "with a bias": ("llava", bias),
    "frozen": ("llava", freeze),
    "checkpointed": ("llava", lambda model: model.activation_checkpointing_enable()),
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_losses, "CHUNKED_ABOVE", 0)
    monkeypatch.setattr(chunked_nll, "CHUNK_BYTES", 4 * 388 * SIZE)  # 36 of their columns where 32 wide


@pytest.fixture
def build(family: Callable[[str], Family]) -> Callable[[str], tuple[Any, Batch]]:
    def get(name: str) -> tuple[Any, Batch]:
        found = family(name)
        model = AutoModelForImageTextToText.from_pretrained(found.directory, dtype=torch.float32)
        return model.train(), batch_of(found.encoder)

    return get


def losses_of(model: Any, batch: Batch, *, chunked: bool = True, logits: bool = False) -> LabelLosses:
    run = LabelLossRunner()
    with pytest.MonkeyPatch.context() as patch:
        if not chunked:
            patch.setattr(label_losses, "CHUNKED_ABOVE", 2**60)
        run.learn(model, batch.inputs, batch.labels)
        found = run(lambda: model(**batch.inputs, use_cache=False), model, batch.labels, logits=logits)
    num_supervised = len(supervised_ids(batch.labels))
    assert num_supervised > 2 * SIZE
    assert found.output.logits.shape[:2] == (1, num_supervised)
    assert (found.output.logits.shape[2] == 1) == chunked
    return found


def step(model: Any, batch: Batch, *, chunked: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """K sums of weighted nll, and the gradients of the first."""
    model.zero_grad()
    torch.manual_seed(5)
    nll = losses_of(model, batch, chunked=chunked).nll
    weights = torch.rand(2, len(nll), generator=torch.Generator().manual_seed(0)) * 4 / len(nll)
    sums = (nll * weights).sum(-1)
    sums[0].backward()
    return sums.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model: Any, batch: Batch, *, share: float = 1e-6) -> None:
    """share: of the largest gradient, by which those of the head may differ; below the head rounding has grown."""
    (expected, gradients), (found, others) = (step(model, batch, chunked=chunked) for chunked in (False, True))
    torch.testing.assert_close(found, expected, atol=share, rtol=share)
    assert others.keys() == gradients.keys()
    size = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert size > 0.01
    for name, gradient in gradients.items():
        difference = float((others[name] - gradient).abs().max())
        allowed = share if name.startswith("lm_head") else 4 * share
        assert difference <= allowed * max(size, 1.0), (name, difference, size)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_every_gradient_are_those_of_the_logits_at_once(build: Any, kind: str) -> None:
    name, change = KINDS[kind]
    model, batch = build(name)
    change(model)
    assert_same_step(model, batch)


@pytest.mark.parametrize("dropout", [True, False])
def test_adapters_on_the_head_have_the_gradients_of_the_logits_at_once(build: Any, dropout: bool) -> None:
    model, batch = build("llava")
    adapt(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    if not dropout:
        assert_same_step(model, batch)
        return
    # The masks of chunks are others than that of all rows; but the gradient is that of the loss it belongs to.
    parameter = model.get_output_embeddings().lora_B["default"].weight
    _, gradients = step(model, batch, chunked=True)
    along, size, sums = gradients["lm_head.lora_B.default.weight"], 1e-3, []
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * size * along
        sums.append(float(step(model, batch, chunked=True)[0][0]))
        with torch.no_grad():
            parameter -= sign * size * along
    assert (sums[0] - sums[1]) / (2 * size) == pytest.approx(float(along.square().sum()), rel=1e-2)


@pytest.mark.parametrize("how", ["autocast bfloat16", "autocast float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["llava", "soft-capped"])
def test_in_half_precision_loss_and_gradients_differ_by_rounding_alone(build: Any, kind: str, how: str) -> None:
    name, change = KINDS[kind]
    model, batch = build(name)
    change(model)
    kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if how == "bfloat16":
        model = model.to(torch.bfloat16)
        batch = dataclasses.replace(
            batch, inputs={k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.inputs.items()}
        )
        assert_same_step(model, batch, share=2**-7)
        return
    with torch.autocast("cpu", dtype=kinds[how.removeprefix("autocast ")]):
        assert_same_step(model, batch, share=2**-7)


def test_sums_over_chunks_are_kept_in_float32(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of chunks in bfloat16: added up in its own format the gradient would be off by percents."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 16, generator=generator).bfloat16().requires_grad_()
    rows, ids = torch.randn(900, 16, generator=generator).bfloat16(), torch.zeros(900, dtype=torch.long)
    after = AfterHead(steps=(), vocabulary=40, kept=40)
    nll, _ = chunked_nll._LinearNll.apply(after, rows.requires_grad_(), ids, weight, None)  # type: ignore[no-untyped-call]
    nll.sum().backward()
    exact = weight.detach().float().requires_grad_()
    torch.nn.functional.cross_entropy(rows.detach().float() @ exact.T, ids, reduction="sum").backward()
    assert weight.grad is not None
    assert exact.grad is not None
    assert float((weight.grad - exact.grad).abs().max() / exact.grad.abs().max()) < 2**-7


@pytest.mark.parametrize("chunked", [False, True], ids=["at once", "chunks"])
@pytest.mark.parametrize("kind", ["llava", "tied", "soft-capped", "with a bias"])
def test_the_labels_logits_for_online_deltas_are_those_of_the_pass_without_the_image(
    build: Any, kind: str, chunked: bool
) -> None:
    """Run on the same inputs: what else is between the two would be noise in every delta."""
    name, change = KINDS[kind]
    model, batch = build(name)
    change(model)
    supervised = batch.labels[:, 1:] != IGNORE_INDEX
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            found = losses_of(model, batch, chunked=chunked, logits=True)
            with torch.no_grad():
                expected = label_logits(model, batch.inputs, batch.labels)[:, 1:][supervised]
                rounded = model(**batch.inputs, use_cache=False).logits[:, :-1][supervised]
        assert found.logits is not None
        assert not found.logits.requires_grad
        torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-5)
        of_head = rounded.gather(1, supervised_ids(batch.labels)[:, None])[:, 0].float()
        error = float((found.logits - of_head).abs().max())
        assert error < 1e-5 if precision == torch.float32 else 1e-3 < error < 0.05


@pytest.mark.parametrize("chunked", [False, True], ids=["at once", "chunks"])
def test_adapters_on_the_head_have_their_part_in_both_passes_of_online_deltas(build: Any, chunked: bool) -> None:
    model, batch = build("llava")
    supervised, ids = batch.labels[:, 1:] != IGNORE_INDEX, supervised_ids(batch.labels)[:, None]
    base = model(**batch.inputs, use_cache=False).logits[:, :-1][supervised].gather(1, ids)[:, 0].detach()
    adapt(model)
    model.eval()  # no dropout
    with torch.no_grad():
        expected = model(**batch.inputs, use_cache=False).logits[:, :-1][supervised].gather(1, ids)[:, 0]
        without = label_logits(model, batch.inputs, batch.labels)[:, 1:][supervised]
        found = losses_of(model, batch, chunked=chunked, logits=True).logits
    assert float((expected - base).abs().max()) > 0.01
    torch.testing.assert_close(without, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_evaluation_takes_the_same_way(build: Any) -> None:
    model, batch = build("llava")
    model.eval()
    with torch.no_grad():
        expected, found = (losses_of(model, batch, chunked=chunked).nll for chunked in (False, True))
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def changed(model: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Has the model do this to its logits, behind all it does itself."""
    forward = model.forward

    def and_more(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = change(output.logits)
        return output

    model.forward = and_more


def learned(model: Any, batch: Batch) -> AfterHead | None:
    return learn_after_head(model, batch.inputs, supervised_ids(batch.labels)[:1])


@pytest.mark.parametrize(
    ("change", "share"),
    [
        # A product at the edge between two numbers of bfloat16 may go to either, as its matrix is large or small.
        (lambda logits: 3.0 * torch.tanh(logits.bfloat16().float() / 3.0) - 0.5, 1e-5),
        (lambda logits: logits[..., :300] * 0.25, 1e-6),
        (lambda logits: -2.0 * logits.clamp(min=-1.0), 1e-6),
        (lambda logits: logits.bfloat16().type_as(torch.zeros(1)), 1e-5),
    ],
)
def test_what_is_done_to_each_logit_for_itself_is_learned_and_done_to_chunks(
    build: Any, change: Any, share: float
) -> None:
    model, batch = build("llava")
    changed(model, change)
    logits = torch.randn(2, 4, 388, generator=torch.Generator().manual_seed(0))
    after = learned(model, batch)
    assert after is not None
    assert torch.equal(after(logits), change(logits))
    labels = batch.labels.where(batch.labels < 300, IGNORE_INDEX)  # some columns are left out
    assert_same_step(model, dataclasses.replace(batch, labels=labels), share=share)


def test_logits_for_online_deltas_are_not_rounded_by_the_models_casts(build: Any) -> None:
    model, batch = build("llava")
    expected = losses_of(model, batch, logits=True).logits
    changed(model, lambda logits: 2.0 * logits[..., :388].bfloat16().float())
    found = losses_of(model, batch, logits=True)
    assert found.logits is not None
    torch.testing.assert_close(found.logits, 2.0 * expected)
    assert float((found.logits - found.output.logits.detach().flatten()).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("change", "operation"),
    [
        (lambda logits: logits - logits.mean(-1, keepdim=True), "mean"),
        (lambda logits: logits * logits.shape[-1] ** 0 * torch.ones(388), "mul"),
        (lambda logits: logits / max(1.0, float(logits.abs().max())), "abs|max"),
        (lambda logits: logits.mul_(2.0), "mul_"),
        (lambda logits: logits[..., 88:], "slice"),
        (lambda logits: logits.detach(), "detach"),
        (lambda logits: torch.from_numpy(logits.numpy()) if not logits.requires_grad else logits, "detach|not what"),
    ],
)
def test_what_is_not_is_computed_at_once_and_said(
    build: Any, caplog: pytest.LogCaptureFixture, change: Any, operation: str
) -> None:
    model, batch = build("llava")
    changed(model, change)
    with caplog.at_level(logging.WARNING, logger="cal-train"):
        assert learned(model, batch) is None
    (record,) = caplog.records
    assert "LlavaForConditionalGeneration: its loss is not computed in chunks" in record.getMessage()
    assert any(word in record.getMessage() for word in operation.split("|")), record.getMessage()


def test_a_model_that_takes_no_single_token_is_computed_at_once_and_said(
    build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, batch = build("llava")

    def refuse(logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:
            raise IndexError("too short")
        return logits

    changed(model, refuse)
    with caplog.at_level(logging.WARNING, logger="cal-train"):
        losses_of(model, batch, chunked=False)
        assert learned(model, batch) is None
    assert "it does not take one token (IndexError: too short)" in caplog.text


def test_a_row_that_is_no_number_is_no_reason_to_refuse(build: Any) -> None:
    model, batch = build("llava")
    with torch.no_grad():
        model.get_output_embeddings().weight[int(supervised_ids(batch.labels)[0])] = torch.nan
    assert bool(losses_of(model, batch).nll.isnan().all())


def test_what_differs_from_batch_to_batch_is_refused(build: Any) -> None:
    model, batch = build("llava")
    changed(model, lambda logits: logits * logits.shape[1])  # 1 when it is learned
    with pytest.raises(ConfigError, match="take fewer rows at a time"):
        losses_of(model, batch)
    # At once online deltas are of the logits that the model gives in this batch.
    found = losses_of(model, batch, chunked=False, logits=True)
    own = found.output.logits[0].gather(1, supervised_ids(batch.labels)[:, None])[:, 0]
    assert found.logits is not None
    assert torch.equal(found.logits, own.detach())


def test_learning_takes_nothing_from_the_random_numbers_and_happens_once(build: Any) -> None:
    model, batch = build("llava")
    for layer in model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5
    calls: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, __: calls.append(args[0].shape[1]))
    run, before = LabelLossRunner(), torch.random.get_rng_state()
    for _ in range(2):
        run.learn(model, batch.inputs, batch.labels)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.random.set_rng_state(before)
        run(lambda: model(**batch.inputs, use_cache=False), model, batch.labels)
        assert not torch.equal(torch.random.get_rng_state(), before)
        torch.random.set_rng_state(before)
    assert len(calls) == 3
    assert calls[0] == 1


@pytest.mark.parametrize("reshard", [True, False])
def test_a_sharded_model_and_head_give_the_same_gradients(
    build: Any, tmp_path: Path, reshard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = build("llava")
    expected, gradients = step(model, batch, chunked=False)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        policy = MixedPrecisionPolicy(output_dtype=torch.float32)
        fully_shard(model.get_output_embeddings(), mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        fully_shard(model, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)
        found, sharded = step(model, batch, chunked=True)
        whole = {name: gradient.full_tensor() for name, gradient in sharded.items()}
    finally:
        distributed.destroy_process_group()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert whole.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(whole[name], gradient, atol=1e-6, rtol=1e-5)


def test_a_head_in_half_precision_takes_no_sum_of_its_own_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_nll, "CHUNK_BYTES", 2**18)
    vocabulary, width = 8000, 256
    after = AfterHead(steps=(), vocabulary=vocabulary, kept=vocabulary)
    weight = torch.randn(vocabulary, width).bfloat16().requires_grad_()
    rows = torch.randn(300, width).bfloat16().requires_grad_()

    def run() -> None:
        weight.grad = None
        nll, _ = chunked_nll._LinearNll.apply(after, rows, torch.zeros(300, dtype=torch.long), weight, None)  # type: ignore[no-untyped-call]
        nll.sum().backward()

    assert peak_memory(run) < 1.5 * weight.nbytes + 8 * chunked_nll.CHUNK_BYTES


def test_memory_does_not_grow_with_the_supervised_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    vocabulary, width = 5000, 8
    monkeypatch.setattr(chunked_nll, "CHUNK_BYTES", 4 * vocabulary * 64)
    after, weight = (
        AfterHead(steps=(), vocabulary=vocabulary, kept=vocabulary),
        torch.randn(vocabulary, width, requires_grad=True),
    )

    def run(count: int) -> None:
        rows = torch.randn(count, width, requires_grad=True)
        nll, _ = chunked_nll._LinearNll.apply(after, rows, torch.zeros(count, dtype=torch.long), weight, None)  # type: ignore[no-untyped-call]
        nll.sum().backward()

    few, many = (peak_memory(lambda count=count: run(count)) for count in (128, 1024))
    assert many - few < 1024 * width * 4 * 8
    assert many < 1024 * vocabulary * 4 / 2
