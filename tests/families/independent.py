"""Both passes of one row by a way that shares nothing with the product's: no code, no kernel, no head, no masks.

The model's plain forward under eager attention gives all logits with the image, and, by hooks, what its decoder and
each of its layers received. The second pass is the same forward with those inputs changed:

- `drop`: rows of image tokens are cut out of all that the decoder received, positions and embeddings among them.
- `mask`: all rows stay.

Every layer then gets the mask that it had beside the image, without the rows (`drop`) or with the columns hidden
(both) of image tokens: windows and chunks are counted where they were counted in the first pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cal_pipeline.encoding.encoded import EncodedSample
from cal_schemas.spec import IGNORE_INDEX, Condition

OF_IMAGES: Final = {
    "visual_pos_masks", "deepstack_visual_embeds", "vision_mask", "deepstack_features", "cross_attention_states",
    "cross_attention_mask", "full_text_row_masked_out_mask",
}  # fmt: skip
"""What carries images into a decoder beside the embeddings; None where no image is."""

Hook: TypeAlias = Callable[[str, Any, tuple[Any, ...], dict[str, Any]], tuple[Any, ...]]
"""Of a module's name, the module and what it is called with: what it is to be called with. Keywords change in place."""


@dataclass(kw_only=True)
class Seen:
    """What the first pass showed of one row."""

    decoder: str = ""
    """Name of the innermost module that took the row's tokens."""
    visible: dict[str, Tensor] = field(default_factory=dict)
    """[1, heads or 1, T, T] bool of every module below it that received a mask."""


def own_copy(model: Any) -> Any:
    """The model with eager attention, which is always told what to hide."""
    own = copy.deepcopy(model).eval()
    own.set_attn_implementation("eager")
    return own


def with_image(model: Any, sample: EncodedSample) -> tuple[Tensor, Seen]:
    """[T] float32: label logits of a plain forward, NaN where there are none; and what it showed."""
    seen, tokens = Seen(), sample.num_tokens

    def look(name: str, module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, ...]:
        rows = [given.get(key) for key in ("input_ids", "inputs_embeds")]
        fits = any(isinstance(value, Tensor) and value.shape[:2] == (1, tokens) for value in rows)
        if fits and isinstance(module, PreTrainedModel):
            seen.decoder = max(seen.decoder, name, key=len)
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[-2:] == (tokens, tokens):
            seen.visible[name] = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        return args

    logits = _forward(model, sample, look)
    seen.visible = {name: mask for name, mask in seen.visible.items() if name.startswith(seen.decoder)}
    return _of_labels(logits, sample, torch.arange(tokens)), seen


def without_image(model: Any, sample: EncodedSample, seen: Seen, condition: Condition) -> Tensor:
    """[T] float32: label logits of the pass that does not see the image, NaN where nothing is left before a token.

    A row that sees nothing (an image's, in a window that the image fills) gets nothing from attention, as sdpa has it.
    """
    image, tokens = sample.image_mask, sample.num_tokens
    rows = torch.nonzero(~image)[:, 0] if condition == "drop" else torch.arange(tokens)
    visible = {name: (mask & ~image)[:, :, rows][..., rows] for name, mask in seen.visible.items()}

    def change(name: str, module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, ...]:
        if name == seen.decoder and condition == "drop":
            if given.get("position_ids") is None:
                given["position_ids"] = torch.arange(tokens)[None]
            for key, value in given.items():
                given[key] = None if key in OF_IMAGES else _cut(value, rows, tokens)
        mask = given.get("attention_mask")
        if name in visible and isinstance(mask, Tensor) and mask.dim() == 4:
            hidden = torch.zeros(visible[name].shape, dtype=model.dtype)
            hidden = hidden.masked_fill(~visible[name], torch.finfo(model.dtype).min)
            given["attention_mask"] = visible[name] if mask.dtype == torch.bool else hidden
        attention, _, last = name.rpartition(".")
        if last == "o_proj" and attention in visible:
            return (args[0] * visible[attention][:, 0].any(-1)[..., None], *args[1:])
        return args

    return _of_labels(_forward(model, sample, change), sample, rows)


def _cut(value: Any, rows: Tensor, tokens: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _cut(entry, rows, tokens) for key, entry in value.items()}
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 4 and value.shape[-2:] == (tokens, tokens):
        return value[:, :, rows][..., rows]
    if value.dim() >= 2 and value.shape[:2] == (1, tokens):
        return value[:, rows]
    return value[..., rows] if value.dim() in (1, 3) and value.shape[-1] == tokens else value


@torch.no_grad()
def _forward(model: Any, sample: EncodedSample, hook: Hook) -> Tensor:
    """[rows of the decoder, vocabulary] float32."""
    inputs = {key: value[None] for key, value in sample.sequence_inputs.items()}
    for key, value in sample.image_inputs.items():
        inputs[key] = value.to(model.dtype) if value.is_floating_point() else value
    with ExitStack() as stack:
        for name, module in model.named_modules():

            def before(module: Any, args: tuple[Any, ...], given: dict[str, Any], name: str = name) -> Any:
                given = dict(given)
                return hook(name, module, args, given), given

            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[0].float()


def _of_labels(logits: Tensor, sample: EncodedSample, rows: Tensor) -> Tensor:
    """Row k of the logits is what follows token rows[k]; read is the last of them that stands before the label."""
    left = (~sample.image_mask).long()
    at = torch.nonzero((sample.labels != IGNORE_INDEX) & (left.cumsum(0) > left))[:, 0]
    found = torch.full((sample.num_tokens,), torch.nan)
    found[at] = logits[torch.searchsorted(rows, at) - 1, sample.labels[at]]
    return found
