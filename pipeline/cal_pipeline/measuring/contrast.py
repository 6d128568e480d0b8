"""Runs the two passes of the reference model: every supervised token's logit with and without the image.

Both are ordinary calls of the top-level model whose output head computes one number per supervised token instead of
a row over the vocabulary. B batch, T padded tokens, N supervised tokens, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from cal_pipeline.measuring.conditions import FirstPass, check_contrast_inputs, defined_tokens, without_image
from cal_pipeline.measuring.replaced_forward import replaced_forward
from cal_pipeline.measuring.rotary import rows_alone, varying_rotary
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec

_LOGITS = 2**24
"""Of a head with adapters, held at once."""
Reading: TypeAlias = Callable[[Any, Mapping[str, Any], Tensor], Tensor]
"""Of one pass, given model, inputs and labels [B, T]: numbers of every supervised token, [..., B, T] float32."""


@contextmanager
def label_only_head(model: Any, labels: Tensor) -> Iterator[None]:
    """Makes the model's `logits`, inside, [1, N, 1] float32: what position t - 1 gives to token t of `labels` [B, T].

    Order is that of `labels[:, 1:] != IGNORE_INDEX`. Whatever the model does to its logits afterwards (scale,
    soft-cap) acts on them elementwise as before. The hidden row and the head's row are multiplied in float32.
    """
    head = model.get_output_embeddings()
    targets = labels[:, 1:]
    supervised = targets != IGNORE_INDEX

    def forward(hidden: Tensor) -> Tensor:
        device = head.weight.device
        rows = hidden[:, :-1][supervised.to(hidden.device)].to(device)
        label_ids = targets[supervised].to(device)
        return label_products(head, rows, label_ids).view(1, -1, 1)

    with replaced_forward(head, forward):
        yield


def label_products(head: Any, rows: Tensor, label_ids: Tensor) -> Tensor:
    """[N] float32: each of the hidden rows [N, H] times the output head's row of its label, plus the bias.

    A head with adapters is called for all its logits, a few rows at a time, in its own precision.
    """
    if hasattr(head, "base_layer"):
        size = max(1, _LOGITS // head.weight.shape[0])
        parts = [
            # Not `head(…)`, in whose place `label_only_head` has put a forward.
            type(head).forward(head, part[None])[0].gather(1, ids[:, None])[:, 0].float()
            for part, ids in zip(rows.split(size), label_ids.split(size), strict=True)
        ]
        return torch.cat(parts)
    logits: Tensor = (rows.float() * head.weight[label_ids].float()).sum(-1)
    if getattr(head, "bias", None) is not None:
        logits = logits + head.bias[label_ids].float()
    return logits


@contextmanager
def captured_position_ids(model: Any) -> Iterator[list[Tensor | None]]:
    """Collects the position ids that the innermost decoder receives; None stands for 0, 1, 2, …."""
    seen: list[Tensor | None] = []
    decoder = innermost_decoder(model)
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def innermost_decoder(model: Any) -> nn.Module:
    """The language model that the positions go to, below all wrappers."""
    decoder = model.get_decoder()
    while (inner := decoder.get_decoder()) is not decoder:
        decoder = inner
    return decoder  # type: ignore[no-any-return]


def required_inputs(model: Any) -> list[str]:
    """Names of the forward's parameters without a default: BLIP-2 cannot be called without `pixel_values`."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # below peft's wrapper
    parameters = [*inspect.signature(type(inner).forward).parameters.values()][1:]
    return [item.name for item in parameters if item.default is item.empty and item.kind is item.POSITIONAL_OR_KEYWORD]


def label_logits(model: Any, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
    """Raw logit of every supervised token, in one pass.

    Takes the model's inputs and unshifted labels [B, T]; returns [B, T] float32 where entry t belongs to token t and
    was predicted at t - 1. NaN where unsupervised, and at t = 0, which nothing precedes.
    """
    with label_only_head(model, labels), rows_alone(innermost_decoder(model), inputs.get("attention_mask")):
        supervised = model(**inputs, use_cache=False).logits
    logits = torch.full(labels.shape, torch.nan, dtype=torch.float32, device=labels.device)
    logits[:, 1:][labels[:, 1:] != IGNORE_INDEX] = supervised.reshape(-1).float().to(labels.device)
    return logits


def without_padding_mask(model: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs, with a mask of ones in place of one that hides nothing but padding behind the tokens.

    Tokens of a causal decoder never look at what follows them; and with nothing masked torch's attention takes its
    causal kernel, not one that reads a mask [B, 1, T, T]. Left as they are: padding in front, other implementations of
    attention, token types, by which some decoders (PaliGemma, Gemma 3) let tokens look ahead, and rotary frequencies
    that follow a row's length, which the mask tells.
    """
    mask = inputs["attention_mask"]
    implementation = getattr(model.config.get_text_config(), "_attn_implementation", None)
    if implementation != "sdpa" or "token_type_ids" in inputs or not isinstance(mask, Tensor) or mask.dim() != 2:
        return inputs
    if bool((mask[:, 1:] > mask[:, :-1]).any()) or varying_rotary(innermost_decoder(model)):
        return inputs
    return {**inputs, "attention_mask": torch.ones_like(mask)}


def logits_without_image(
    model: Any,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    image_mask: Tensor,
    position_ids: Tensor | None,
    contrast: ContrastSpec,
    contrast_inputs: Mapping[str, Tensor] | None = None,
    read: Reading | None = None,
) -> Tensor:
    """The second pass alone, given the decoder's position ids in the first; what `read` gives, [B, T] by default."""
    first = FirstPass(
        inputs=inputs, labels=labels, image_mask=image_mask, position_ids=position_ids,
        text_config=model.config.get_text_config(), required=required_inputs(model),
    )  # fmt: skip
    second = without_image(contrast.condition, first, contrast_inputs)
    numbers = (read or label_logits)(model, without_padding_mask(model, second.inputs), second.labels)
    logits = torch.full((*numbers.shape[:-2], *labels.shape), torch.nan, dtype=torch.float32, device=labels.device)
    logits.scatter_(-1, second.index.expand(numbers.shape), numbers)
    return logits


@torch.no_grad()
def contrast_logits(
    model: Any,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    image_mask: Tensor,
    contrast: ContrastSpec | None = None,
    contrast_inputs: Mapping[str, Tensor] | None = None,
    read: Reading | None = None,
) -> tuple[Tensor, Tensor]:
    """Logit of every supervised token with and without the image.

    Args:
        model: a transformers image-text-to-text model, in the mode (train or eval) the caller wants.
        inputs: what its forward takes (input_ids, attention_mask [B, T], pixel inputs, …), no labels.
        labels: [B, T] unshifted, IGNORE_INDEX where unsupervised.
        image_mask: [B, T] bool, tokens that stand for images.
        contrast: `drop` by default.
        contrast_inputs: pixel inputs of the perturbed images, which `patch_mask` and `gaussian_blur` need and the
            others refuse: the second pass takes them in place of the same entries of `inputs`.
        read: what is read of a pass, `label_logits` by default; leading dimensions it adds come first in the result.

    Returns two tensors [B, T] float32, NaN where unsupervised or where no kept token precedes. A row without an
    image has the same logits in both. Raises ConfigError for contrast_inputs that do not fit.
    """
    contrast = contrast or ContrastSpec()
    check_contrast_inputs(contrast.condition, inputs, contrast_inputs)
    with captured_position_ids(model) as seen:
        with_image = (read or label_logits)(model, without_padding_mask(model, inputs), labels)
    has_image = image_mask.any(-1, keepdim=True)
    without = with_image
    if bool(has_image.any()):
        without = logits_without_image(model, inputs, labels, image_mask, seen[0], contrast, contrast_inputs, read)
        without = torch.where(has_image, without, with_image)
    defined = defined_tokens(labels, inputs["attention_mask"], image_mask, contrast.condition)
    nothing = with_image.new_tensor(torch.nan)
    return torch.where(defined, with_image, nothing), torch.where(defined, without, nothing)


def delta_logits(
    model: Any,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    image_mask: Tensor,
    contrast: ContrastSpec | None = None,
    contrast_inputs: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """o~ - o of every supervised token, [B, T] float32: `contrast_logits` with image minus without (CAL, Eq. 3)."""
    with_image, without = contrast_logits(model, inputs, labels, image_mask, contrast, contrast_inputs)
    return with_image - without
