"""Label rows against full logits: same rows, same gradients, and no other row through the output head."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

from cal_pipeline.encoding.collate import Batch
from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.objective.label_rows import at_rows, at_tokens, label_rows, supervised_ids
from conftest import Family
from ragged_batch import batch_of

CAP = 2.0
"""Below the tiny models' logits, so that it bends them."""
KINDS = ("llava", "gemma3", "paligemma soft-capped")


@pytest.fixture
def build(family: Callable[[str], Family]) -> Callable[[str], tuple[Any, Batch]]:
    """A model of its own in training mode, and a batch for it."""

    def get(kind: str) -> tuple[Any, Batch]:
        name, *capped = kind.split(" ")
        found = family(name)
        model = AutoModelForImageTextToText.from_pretrained(found.directory, dtype=torch.float32)
        if capped:
            model.config.text_config.final_logit_softcapping = CAP
        return model.train(), batch_of(found.encoder)

    return get


@contextmanager
def head_inputs(model: Any) -> Iterator[list[torch.Size]]:
    """Shapes of what reaches the output head; enter it inside `label_rows`, whose hook then comes first."""
    shapes: list[torch.Size] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, args, __: shapes.append(args[0].shape))
    try:
        yield shapes
    finally:
        handle.remove()


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def full_rows(model: Any, batch: Batch) -> Tensor:
    """[N, V], from the logits of all positions."""
    logits: Tensor = model(**batch.inputs, use_cache=False).logits[:, :-1]
    return logits[batch.labels[:, 1:] != IGNORE_INDEX]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_gradients_are_those_of_the_full_logits(build: Any, kind: str, checkpointing: bool) -> None:
    model, batch = build(kind)
    full = full_rows(model, batch)
    label_ids = supervised_ids(batch.labels)
    expected = gradients(model, F.cross_entropy(full, label_ids))
    if checkpointing:
        model.activation_checkpointing_enable()
    with label_rows(model, batch.labels), head_inputs(model) as shapes:
        logits = model(**batch.inputs, use_cache=False).logits
    num_supervised = len(label_ids)
    assert 0 < num_supervised < batch.labels.numel() // 2
    assert [shape[:2] for shape in shapes] == [(1, num_supervised)]
    assert logits.shape == (1, num_supervised, full.shape[1])
    torch.testing.assert_close(logits[0], full, atol=1e-5, rtol=0)
    found = gradients(model, F.cross_entropy(logits[0], label_ids))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_soft_cap_acts_on_the_rows(build: Any) -> None:
    model, batch = build("paligemma soft-capped")
    with torch.no_grad(), label_rows(model, batch.labels):
        capped = model(**batch.inputs, use_cache=False).logits
        model.config.text_config.final_logit_softcapping = None
        free = model(**batch.inputs, use_cache=False).logits
    assert float(free.abs().max()) > CAP
    torch.testing.assert_close(capped, CAP * torch.tanh(free / CAP))


def test_gemma_ties_its_embeddings(build: Any) -> None:
    model, _ = build("gemma3")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("kind", KINDS)
def test_without_supervised_tokens_every_gradient_is_there_and_zero(build: Any, kind: str) -> None:
    model, batch = build(kind)
    with_labels = gradients(model, full_rows(model, batch).logsumexp(-1).sum())
    labels = torch.full_like(batch.labels, IGNORE_INDEX)
    with label_rows(model, labels), head_inputs(model) as shapes:
        logits = model(**batch.inputs, use_cache=False).logits
    assert [shape[:2] for shape in shapes] == [(1, 0)]
    assert logits.shape[:2] == (1, 0)
    found = gradients(model, logits.sum())
    assert found.keys() == with_labels.keys()
    assert all(bool((gradient == 0).all()) for gradient in found.values())


def test_the_head_is_as_before_afterwards_even_when_the_forward_fails(build: Any) -> None:
    model, batch = build("llava")
    with pytest.raises(RuntimeError, match="stop"), label_rows(model, batch.labels):
        raise RuntimeError("stop")
    with torch.no_grad():
        assert model(**batch.inputs, use_cache=False).logits.shape[:2] == batch.labels.shape


def test_rows_go_back_to_their_tokens() -> None:
    labels = torch.tensor([[7, IGNORE_INDEX, 5, 6], [IGNORE_INDEX, 8, IGNORE_INDEX, IGNORE_INDEX]])
    assert supervised_ids(labels).tolist() == [5, 6, 8]  # nothing precedes the 7
    nan = torch.nan
    expected = torch.tensor([[nan, nan, 0.5, 0.6], [nan, 0.8, nan, nan]])
    tokens = at_tokens(torch.tensor([0.5, 0.6, 0.8]), labels)
    torch.testing.assert_close(tokens, expected, equal_nan=True)
    assert torch.equal(at_rows(tokens, labels), torch.tensor([0.5, 0.6, 0.8]))
    assert torch.equal(
        at_rows(torch.stack([tokens, -tokens]), labels), torch.tensor([[0.5, 0.6, 0.8], [-0.5, -0.6, -0.8]])
    )
