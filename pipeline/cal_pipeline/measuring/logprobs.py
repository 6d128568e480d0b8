"""Computes log-probabilities of the labels, which need the whole vocabulary, in bounded memory.

The hidden rows that predict a label are kept (N x H), and the head's full rows are made for a few of them at a time.
B batch, T padded tokens, N supervised tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cal_pipeline.encoding.encoded import token_aligned
from cal_pipeline.measuring.contrast import label_logits, required_inputs
from cal_pipeline.measuring.replaced_forward import replaced_forward
from cal_schemas.spec import IGNORE_INDEX

CHUNK_BYTES = 64 * 2**20
"""Of full rows held at a time, [rows, V] float32; with their temporaries a pass holds a few times as much."""
_PROBE = (-50.0, -1.0, 0.0, 0.5, 100.0)


def label_logits_and_logprobs(model: Any, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """Raw logit and log-probability of every supervised token, [2, B, T] float32.

    Arguments, order and NaN as in `contrast.label_logits`, which the first entry is. The second is log_softmax of the
    model's own logits, soft-cap and scale included, in float32.
    """
    with _label_rows(model, labels) as rows:
        logits = label_logits(model, inputs, labels)
    supervised = labels[:, 1:] != IGNORE_INDEX
    logprobs = torch.full_like(logits, torch.nan)
    if not len(rows[0]):
        return torch.stack([logits, logprobs])
    normalizers = _logsumexp(model, rows[0], one_token(model, inputs, labels[:, 1:][supervised][:1]))
    logprobs[:, 1:][supervised] = logits[:, 1:][supervised] - normalizers.to(logits.device)
    return torch.stack([logits, logprobs])


@contextmanager
def _label_rows(model: Any, labels: Tensor) -> Iterator[list[Tensor]]:
    """Collects the head's input at the rows that predict a label, [N, H]."""
    rows: list[Tensor] = []
    supervised = labels[:, 1:] != IGNORE_INDEX

    def keep(module: Any, args: tuple[Tensor, ...]) -> None:
        rows.append(args[0][:, :-1][supervised.to(args[0].device)])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield rows
    finally:
        handle.remove()


def one_token(model: Any, inputs: Mapping[str, Any], label: Tensor) -> dict[str, Tensor]:
    """Makes one label [1] a text of its own: the cheapest call that ends in the model's treatment of its logits."""
    token = {key: torch.zeros_like(inputs[key][:1, :1]) for key in token_aligned(inputs)}
    image = {key: inputs[key][:1] for key in required_inputs(model) if key in inputs and key not in token}
    attended = torch.ones_like(inputs["attention_mask"][:1, :1])
    return {**image, **token, "input_ids": label[None], "attention_mask": attended}


def _logsumexp(model: Any, rows: Tensor, one_token: Mapping[str, Tensor]) -> Tensor:
    """[N] float32: log of the summed exponentials of the model's logits for hidden rows [N, H]."""
    head = model.get_output_embeddings()
    weight, bias = head.weight, getattr(head, "bias", None)
    rows = rows.to(weight.device)
    finish = _finishing(model, one_token)
    size = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    columns = max(1, CHUNK_BYTES // (4 * weight.shape[1]))
    normalizers = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size].float()
        full = part.new_empty(len(part), weight.shape[0])
        for first in range(0, weight.shape[0], columns):
            chosen = slice(first, first + columns)
            torch.matmul(part, weight[chosen].float().T, out=full[:, chosen])
            if bias is not None:
                full[:, chosen] += bias[chosen].float()
        normalizers.append(finish(full).logsumexp(-1))
    return torch.cat(normalizers)


def _finishing(model: Any, one_token: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Repeats what the model does to its head's output [n, columns], elementwise: learned by calling it, not by name.

    The whole model runs on one token while its head returns the given rows instead of its own.
    """

    def finish(full: Tensor) -> Tensor:
        with replaced_forward(model.get_output_embeddings(), lambda hidden: full[None]):
            logits: Tensor = model(**one_token, use_cache=False).logits
        return logits[0].float()

    probe = torch.tensor([_PROBE], device=model.get_output_embeddings().weight.device)
    unchanged = torch.equal(finish(probe.clone()).to(probe.device), probe)
    return (lambda full: full) if unchanged else finish
