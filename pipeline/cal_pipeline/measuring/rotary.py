"""Gives every row its own rotary frequencies where they follow the longest row of a batch (dynamic, longrope)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from cal_pipeline.measuring.replaced_forward import replaced_forward

_FIXED: Final = {"default", "linear", "yarn", "llama3", "proportional"}
"""Rope types whose frequencies are the same for every length; whatever else there is may look at the positions."""


def varying_rotary(decoder: nn.Module) -> list[nn.Module]:
    """Modules of a decoder that make other frequencies for longer rows."""
    return [module for module in decoder.modules() if _types(module) - _FIXED and _takes_positions(module)]


@contextmanager
def rows_alone(decoder: nn.Module, attention_mask: Any) -> Iterator[None]:
    """Gives a row, inside, the rotary embedding that it gets in a batch of its own, after no other batch.

    Takes the mask [B, T] of the batch: padding has positions too, and does not lengthen a row. Masks of another form
    say nothing: contrast `drop` makes them for windows, and its padding repeats the positions of first tokens.
    """
    with ExitStack() as stack:
        for module in varying_rotary(decoder):
            stack.enter_context(_row_by_row(module, attention_mask))
        yield


def _types(module: nn.Module) -> set[str]:
    rope_type = getattr(module, "rope_type", None)
    if isinstance(rope_type, dict):
        return set(rope_type.values())
    return {rope_type} if isinstance(rope_type, str) else set()


def _takes_positions(module: nn.Module) -> bool:
    return "position_ids" in inspect.signature(module.forward).parameters


@contextmanager
def _row_by_row(module: Any, attention_mask: Any) -> Iterator[None]:
    whole = module.forward

    def forward(x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows, length = len(x), position_ids.shape[-1]
        positions = position_ids.expand(*position_ids.shape[:-2], rows, length)
        if isinstance(attention_mask, Tensor) and attention_mask.shape == (rows, length):
            positions = positions * attention_mask.to(positions.device).bool()
        longest = positions.reshape(-1, rows, length).amax((0, 2))
        embeddings: list[tuple[Tensor, ...]] = []
        index = torch.empty(0, dtype=torch.long, device=longest.device)
        for value in longest.unique():
            alike = torch.nonzero(longest == value)[:, 0]
            _forget(module)
            output = whole(x[alike.to(x.device)], positions[..., alike, :], *args, **kwargs)
            embeddings.append(output if isinstance(output, tuple) else (output,))
            index = torch.cat([index, alike])
        _forget(module)
        # [..., B, T, D]: with sections of positions there is a dimension in front of the batch.
        order = index.argsort()
        parts = tuple(
            torch.cat(part, -3).index_select(-3, order.to(part[0].device)) for part in zip(*embeddings, strict=True)
        )
        return parts if len(parts) > 1 else parts[0]

    with replaced_forward(module, forward):
        yield


def _forget(module: Any) -> None:
    """Resets `dynamic`, which keeps the frequencies of the longest row that it has ever seen."""
    for prefix in {"", *(f"{kind}_" for kind in _layer_kinds(module))}:
        original = getattr(module, f"{prefix}original_inv_freq", None)
        if original is not None and hasattr(module, "original_max_seq_len"):
            current = getattr(module, f"{prefix}inv_freq")
            setattr(module, f"{prefix}inv_freq", original.to(current.device).clone())
            if hasattr(module, f"{prefix}max_seq_len_cached"):
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _layer_kinds(module: Any) -> list[str]:
    return list(module.rope_type) if isinstance(module.rope_type, dict) else []
