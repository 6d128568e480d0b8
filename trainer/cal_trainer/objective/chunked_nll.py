"""Computes the nll of label rows a chunk of tokens at a time, so that no logits of all of them are ever held.

Backward computes the logits again, a part of the vocabulary at a time, and so the head's gradient part by part. The
model is called as ever: its head gives one number per token, on which it does what it does to logits. N supervised
tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cal_pipeline.measuring.contrast import label_products
from cal_pipeline.measuring.replaced_forward import replaced_forward
from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.objective.after_head import AfterHead
from cal_trainer.objective.loss import label_nll

CHUNK_BYTES: Final = 64 * 2**20
"""Of logits in float32 in a chunk; with its temporaries it takes five times as much. Half of it took half more time."""


@dataclass(kw_only=True, slots=True, eq=False)
class ChunkedRows:
    """What one forward gave to its labels; whole once `bring_back` has had the model's output."""

    nll: Tensor
    """[N] float32, without gradient."""
    raw: Tensor
    """[N], the labels' logits as the head gave them."""
    exact: Tensor | None
    """[N] float32: the same multiplied in float32, and with what the model does to its logits."""
    gradient: Tensor | None = None
    """[N], of `nll`, while backward runs."""

    def bring_back(self, output: Tensor) -> Tensor:
        """[N] float32: the nll with its gradient, given the model's `logits` [1, N, 1].

        Gradients go back through the model's output, where wrappers wait for them (FSDP gathers the head's weights
        again when they arrive); their values go beside it, for what the model does to its logits has its part in them.
        """
        return _Back.apply(self, output)  # type: ignore[no-any-return, no-untyped-call]


@contextmanager
def chunked_rows(model: Any, labels: Tensor, after: AfterHead, *, exact: bool) -> Iterator[list[ChunkedRows]]:
    """Within it the model's `logits` are [1, N, 1], for `bring_back` of what the list then holds.

    Takes unshifted labels [B, T]. exact: whether `ChunkedRows.exact` is wanted.
    """
    head = model.get_output_embeddings()
    supervised = labels[:, 1:] != IGNORE_INDEX
    forward, plain = head.forward, type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    found: list[ChunkedRows] = []

    def in_chunks(hidden: Tensor) -> Tensor:
        device = next(head.parameters()).device
        rows = hidden[:, :-1][supervised.to(hidden.device)].to(device)
        label_ids = labels[:, 1:][supervised].to(device)
        # Of a linear layer and nothing else gradients can be added up in place.
        if plain and type(head.weight) is nn.Parameter:
            nll, raw = _LinearNll.apply(after, rows, label_ids, head.weight, head.bias)  # type: ignore[no-untyped-call]
        else:
            nll, raw = _module_nll(after, forward, rows, label_ids)
        products = None
        if exact:
            with torch.no_grad():
                parts = _parts(len(rows), rows.shape[1])
                products = torch.cat([label_products(head, rows[part], label_ids[part]) for part in parts])
                products = after.of_labels(products, rounded=False)
        found.append(ChunkedRows(nll=nll.detach(), raw=raw, exact=products))
        return _Outward.apply(found[-1], nll, raw)  # type: ignore[no-any-return, no-untyped-call]

    with replaced_forward(head, in_chunks):
        yield found


class _LinearNll(torch.autograd.Function):
    """Of a plain linear head: nll [N] float32, and the labels' logits as the head gives them, without gradient."""

    @staticmethod
    def forward(
        ctx: Any, after: AfterHead, rows: Tensor, label_ids: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        kind = rows.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
        ctx.after = after
        head = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)  # as autocast would in every chunk
        parts = _parts(len(rows), after.vocabulary)
        pairs = [_nll(after, _linear(rows[part], *head), label_ids[part]) for part in parts]
        nll, raw = (torch.cat(values) for values in zip(*pairs, strict=True))
        normalizer = nll + after.of_labels(raw, rounded=True).float()
        ctx.save_for_backward(rows, label_ids, weight, bias, normalizer)
        ctx.mark_non_differentiable(raw)
        return nll, raw

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        rows, label_ids, weight, bias, normalizer = ctx.saved_tensors
        of_rows = torch.zeros_like(rows, dtype=torch.promote_types(rows.dtype, torch.float32))
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[3] else None
        of_bias = torch.zeros_like(bias) if ctx.needs_input_grad[4] else None
        for columns in _parts(ctx.after.kept, weight.shape[1]):
            head = weight[columns].to(ctx.dtype), None if bias is None else bias[columns].to(ctx.dtype)
            # Over hundreds of chunks a sum in half precision would be off by percents.
            sum_of_weight = None if of_weight is None else torch.zeros_like(head[0], dtype=of_rows.dtype)
            sum_of_bias = None if of_bias is None else of_rows.new_zeros(len(head[0]))
            for part in _parts(len(rows), len(head[0])):
                chosen = rows[part].to(ctx.dtype)
                of_logits = _of_logits(
                    ctx.after, _linear(chosen, *head), label_ids[part] - columns.start, normalizer[part], gradient[part]
                )
                of_rows[part] += of_logits @ head[0]
                if sum_of_weight is not None and ctx.dtype == of_rows.dtype:
                    sum_of_weight.addmm_(of_logits.T, chosen)
                elif sum_of_weight is not None:
                    sum_of_weight += of_logits.T @ chosen
                if sum_of_bias is not None:
                    sum_of_bias += of_logits.sum(0, dtype=of_rows.dtype)
            if of_weight is not None and sum_of_weight is not None:
                of_weight[columns] = sum_of_weight
            if of_bias is not None and sum_of_bias is not None:
                of_bias[columns] = sum_of_bias
        return None, of_rows.to(rows.dtype), None, of_weight, of_bias


def _of_logits(after: AfterHead, logits: Tensor, label_ids: Tensor, normalizer: Tensor, gradient: Tensor) -> Tensor:
    """[n, c]: gradient of the nll of n tokens by the head's logits of c columns, to which `label_ids` are relative.

    It is the softmax, whose normalizer [n] is the logarithm of its sum over the whole vocabulary, less 1 at the label.
    """
    with torch.enable_grad():
        given = after.of_labels(logits.requires_grad_(), rounded=True)
    shares = (given.detach().float() - normalizer[:, None]).exp_()
    here = (label_ids >= 0) & (label_ids < logits.shape[1])
    shares[here.nonzero()[:, 0], label_ids[here]] -= 1.0
    shares *= gradient[:, None]
    (of_logits,) = torch.autograd.grad(given, logits, shares.to(given.dtype))
    return of_logits


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(rows.to(weight.dtype), weight, bias)


def _module_nll(
    after: AfterHead, forward: Callable[[Tensor], Tensor], rows: Tensor, label_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """As `_LinearNll`, of a head that is more than a linear layer, with adapters for instance."""

    def of_chunk(part_of_rows: Tensor, part_of_ids: Tensor) -> tuple[Tensor, Tensor]:
        return _nll(after, forward(part_of_rows[None])[0], part_of_ids)

    parts = [
        checkpoint(of_chunk, rows[part], label_ids[part], use_reentrant=False)
        for part in _parts(len(rows), after.vocabulary)
    ]
    nll, raw = (torch.cat(values) for values in zip(*parts, strict=True))
    return nll, raw.detach()


def _nll(after: AfterHead, logits: Tensor, label_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits [n, V] as the head gave them: nll [n] float32, and the labels' own [n]."""
    return label_nll(after(logits[None])[0], label_ids), logits.detach().gather(1, label_ids[:, None])[:, 0]


def _parts(count: int, width: int) -> Iterator[slice]:
    """Of `count` rows of `width` numbers, as many at a time as a chunk takes."""
    size = max(1, CHUNK_BYTES // (4 * width))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


class _Outward(torch.autograd.Function):
    """The labels' logits as the head's output, whose gradient is that of the nll, wherever it comes from."""

    @staticmethod
    def forward(ctx: Any, journey: ChunkedRows, nll: Tensor, raw: Tensor) -> Tensor:
        ctx.journey = journey
        return raw[None, :, None].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, None]:
        return None, ctx.journey.gradient, None


class _Back(torch.autograd.Function):
    """The nll in place of the model's output, through which its gradient begins as zeros."""

    @staticmethod
    def forward(ctx: Any, journey: ChunkedRows, output: Tensor) -> Tensor:
        ctx.journey, ctx.output = journey, output.new_zeros(()).expand_as(output)
        return journey.nll.clone().to(output.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        ctx.journey.gradient = gradient.to(ctx.journey.nll.device)
        return None, torch.zeros_like(ctx.output)
