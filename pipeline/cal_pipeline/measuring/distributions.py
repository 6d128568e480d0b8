"""Computes what needs the whole vocabulary of both passes, in bounded memory: log-probabilities, divergences, ranks.

The hidden rows that predict a label are kept of each pass (N x H). After both, the head's full rows are made for a few
tokens at a time, those of the two passes side by side.
B batch, T padded tokens, N supervised tokens, n of them at a time, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cal_pipeline.encoding.encoded import token_aligned
from cal_pipeline.measuring.contrast import contrast_logits, label_logits, required_inputs
from cal_pipeline.measuring.replaced_forward import replaced_forward
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from cal_schemas.token_columns import EXTRA_COLUMNS, ExtraColumn

CHUNK_BYTES = 64 * 2**20
"""Of full rows held at a time, [2, n, V] float32; with their temporaries they take a few times as much."""
_PROBE = (-50.0, -1.0, 0.0, 0.5, 100.0)


@torch.no_grad()
def contrast_columns(
    model: Any,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    image_mask: Tensor,
    contrast: ContrastSpec | None = None,
    contrast_inputs: Mapping[str, Tensor] | None = None,
    *,
    extra: Collection[ExtraColumn] = (),
) -> dict[str, Tensor]:
    """Both passes' numbers of every supervised token, by name of their column: [B, T] float32 each.

    Arguments, order and NaN as in `contrast.contrast_logits`, whose two results are always there. Of `extra` all
    columns; of the model's own logits, soft-cap and scale included, in float32. The logits are the same without them.
    """
    given = (model, inputs, labels, image_mask, contrast, contrast_inputs)
    wanted = [kind for kind in EXTRA_COLUMNS if kind in extra and kind in _OF_BOTH]
    if not wanted:
        return dict(zip(EXTRA_COLUMNS["logits"], contrast_logits(*given), strict=True))
    kept = KeptRows()
    (with_image, first), (without, second) = contrast_logits(*given, kept)
    columns = dict(zip(EXTRA_COLUMNS["logits"], (with_image, without), strict=True))
    defined = labels[~(first.isnan() | second.isnan())]
    finish = after_head(model, inputs, defined[:1]) if len(defined) else _unchanged
    return columns | kept.columns(model, finish, labels, (first, second), wanted)


def _values(
    model: Any,
    rows: Tensor,
    numbers: Tensor,
    label_ids: Tensor,
    finish: Callable[[Tensor], Tensor],
    wanted: Sequence[ExtraColumn],
) -> Tensor:
    """[columns of all wanted, N] float32, of labels [N] that rows `numbers` [2, N] of [any, H] predict."""
    head = model.get_output_embeddings()

    def of_some(pair: Tensor, ids: Tensor) -> Tensor:
        # A text has one pass, and what is computed of it once is equal to the last bit.
        passes = pair[:1] if torch.equal(pair[0], pair[1]) else pair
        logprobs = _logprobs(head, rows[passes.to(rows.device)], finish).expand(2, -1, -1)
        tokens = _Tokens(logprobs=logprobs, probs=logprobs.exp(), label_ids=ids.to(logprobs.device))
        return torch.cat([_OF_BOTH[kind](tokens) for kind in wanted])

    size = max(1, CHUNK_BYTES // (8 * head.weight.shape[0]))
    return torch.cat([*map(of_some, numbers.split(size, dim=1), label_ids.split(size))], dim=1)


class KeptRows:
    """Keeps the head's input at the rows that predict a label, of one pass after the other."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        """Of each pass, [N, H]."""

    @contextmanager
    def keeping(self, model: Any, labels: Tensor) -> Iterator[None]:
        """Around one pass over labels [B, T], before whatever else hooks the head's input."""
        supervised = labels[:, 1:] != IGNORE_INDEX

        def keep(module: Any, args: tuple[Tensor, ...]) -> None:
            self._rows.append(args[0].detach()[:, :-1][supervised.to(args[0].device)])

        handle = model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def numbers(self, labels: Tensor) -> Tensor:
        """[B, T] float32: of the last pass each row's number among all that are kept; NaN where none predicts."""
        supervised = labels[:, 1:] != IGNORE_INDEX
        count = sum(map(len, self._rows))
        assert count < 2**24, count  # which float32 holds
        numbers = torch.full(labels.shape, torch.nan, device=labels.device)
        numbers[:, 1:][supervised] = torch.arange(
            count - len(self._rows[-1]), count, dtype=torch.float32, device=labels.device
        )
        return numbers

    def __call__(self, model: Any, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
        """[2, B, T] float32: `label_logits`, and each one's number among all rows kept, which float32 holds."""
        with self.keeping(model, labels):
            logits = label_logits(model, inputs, labels)
        return torch.stack([logits, self.numbers(labels)])

    @torch.no_grad()
    def columns(
        self,
        model: Any,
        finish: Callable[[Tensor], Tensor],
        labels: Tensor,
        numbers: tuple[Tensor, Tensor],
        kinds: Sequence[ExtraColumn],
    ) -> dict[str, Tensor]:
        """All columns of these kinds, [B, T] float32, given the `numbers` [B, T] of both passes; NaN where one is.

        finish: of `after_head`.
        """
        first, second = numbers
        names = [name for kind in kinds for name in EXTRA_COLUMNS[kind]]
        columns = {name: torch.full_like(first, torch.nan) for name in names}
        defined = ~(first.isnan() | second.isnan())
        label_ids, pairs = labels[defined], torch.stack([first[defined], second[defined]]).long()
        if not len(label_ids):
            return columns
        values = _values(model, torch.cat(self._rows), pairs, label_ids, finish, kinds)
        for name, of_name in zip(names, values.to(labels.device), strict=True):
            columns[name][defined] = of_name
        return columns


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tokens:
    """What the two passes, the one with the image first, expect in the places of n tokens."""

    logprobs: Tensor
    """[2, n, V] float32."""
    probs: Tensor
    """Their exponentials."""
    label_ids: Tensor
    """[n]."""

    def of_labels(self) -> Tensor:
        """[2, n, 1]: the labels' log-probabilities."""
        return self.logprobs.gather(-1, self.label_ids.expand(2, -1)[..., None])


def _divergences(tokens: _Tokens) -> Tensor:
    """[3, n]: KL from with to without, the other way, Jensen-Shannon.

    Every term p ln(p / q) - p + q of a sum is at least 0, and an error of the normalizers cancels out of their sum. A
    token that one pass alone gives up makes a KL infinite.
    """
    (p, q), (of_p, of_q) = tokens.probs, tokens.logprobs
    # Both may be -inf, where a model gives a token up.
    change = torch.where(of_p == of_q, 0.0, of_p - of_q)
    with_without = _times(p, change).sub_(p).add_(q).sum(-1)
    without_with = _times(q, -change).sub_(q).add_(p).sum(-1)
    # ln(p / m), m the mean of p and q, is ln 2 - ln(1 + q / p).
    js = _times(p, math.log(2) - softplus(-change)).add_(_times(q, math.log(2) - softplus(change))).sum(-1) / 2
    return torch.stack([with_without, without_with, js]).clamp(min=0)


def _times(probs: Tensor, logs: Tensor) -> Tensor:
    """Their product, 0 where the probability is, whatever the logarithm."""
    return torch.where(probs == 0, 0.0, probs * logs)


def _ranks(tokens: _Tokens) -> Tensor:
    """[2, n]: 1 + the number of likelier tokens; NaN where the label's own log-probability is no number."""
    of_labels = tokens.of_labels()
    return torch.where(of_labels[..., 0].isnan(), torch.nan, 1.0 + (tokens.logprobs > of_labels).sum(-1))


_OF_BOTH: Mapping[ExtraColumn, Callable[[_Tokens], Tensor]] = {
    "logprobs": lambda tokens: tokens.of_labels()[..., 0],
    "kl": _divergences,
    "entropy": lambda tokens: torch.special.entr(tokens.probs).sum(-1),
    "rank": _ranks,
}
"""What needs full rows, and how: [columns, n] float32 in the order of EXTRA_COLUMNS."""


def one_token(model: Any, inputs: Mapping[str, Any], label: Tensor) -> dict[str, Tensor]:
    """Makes one label [1] a text of its own: the cheapest call that ends in the model's treatment of its logits."""
    token = {key: torch.zeros_like(inputs[key][:1, :1]) for key in token_aligned(inputs)}
    image = {key: inputs[key][:1] for key in required_inputs(model) if key in inputs and key not in token}
    attended = torch.ones_like(inputs["attention_mask"][:1, :1])
    return {**image, **token, "input_ids": label[None], "attention_mask": attended}


def _logprobs(head: Any, rows: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
    """[P, n, V] float32: log_softmax of the model's logits for hidden rows [P, n, H]."""
    weight, bias = head.weight, getattr(head, "bias", None)
    rows = rows.to(weight.device).float()
    full = rows.new_empty(*rows.shape[:-1], weight.shape[0])
    columns = max(1, CHUNK_BYTES // (4 * weight.shape[1]))
    for first in range(0, weight.shape[0], columns):
        chosen = slice(first, first + columns)
        full[..., chosen] = rows @ weight[chosen].float().T
        if bias is not None:
            full[..., chosen] += bias[chosen].float()
    logits: Tensor = finish(full.flatten(0, 1)).unflatten(0, rows.shape[:-1])
    logits -= logits.logsumexp(-1, keepdim=True)
    return logits


def _unchanged(full: Tensor) -> Tensor:
    return full


@torch.no_grad()
def after_head(model: Any, inputs: Mapping[str, Tensor], label: Tensor) -> Callable[[Tensor], Tensor]:
    """Repeats what the model does to its head's output [n, V]: learned by calling it on a label [1], not by name.

    The whole model runs on one token while its head returns the given rows instead of its own. The probe is as wide as
    they are, since a model may cut off the columns that pad its vocabulary.
    """
    head, token = model.get_output_embeddings(), one_token(model, inputs, label)

    def finish(full: Tensor) -> Tensor:
        with replaced_forward(head, lambda hidden: full[None]):
            logits: Tensor = model(**token, use_cache=False).logits
        return logits[0].float()

    size = head.weight.shape[0]
    probe = torch.tensor(_PROBE, device=head.weight.device).repeat(size // len(_PROBE) + 1)[None, :size]
    unchanged = torch.equal(finish(probe.clone()).to(probe.device), probe)
    return _unchanged if unchanged else finish
