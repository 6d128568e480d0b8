"""Makes the inputs of the second pass, which does not see the image.

B batch, T padded tokens, K tokens of the second pass. Text keeps the position ids it had beside the image: closing
the gap would measure a shift of position, not the loss of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cal_pipeline.encoding.encoded import token_aligned
from cal_pipeline.models.special_cases import mask_undefined
from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX, PERTURBING, Condition


@dataclass(frozen=True, kw_only=True, slots=True)
class WithoutImage:
    """Model inputs of the second pass and where its tokens were in the first."""

    inputs: dict[str, Any]
    labels: Tensor
    """[B, K]."""
    index: Tensor
    """[B, K] int64: token k of the second pass is token index[b, k] of the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstPass:
    """The pass with the image: its inputs, and where its tokens were."""

    inputs: Mapping[str, Tensor]
    """input_ids and attention_mask [B, T] among them."""
    labels: Tensor
    """[B, T]."""
    image_mask: Tensor
    """[B, T] bool."""
    position_ids: Tensor | None
    """As the decoder received them: [B, T], [1, T], [R, B, T] for R rotary sections, or None where it counts itself."""
    text_config: Any
    """Of the decoder; its sliding window decides whether explicit masks are needed."""
    required: Collection[str] = ()
    """Image inputs without which the forward cannot be called."""

    def positions(self) -> Tensor:
        """[B, T] or [R, B, T] of every token."""
        position_ids = self.position_ids
        if position_ids is None:
            # Over the real tokens: so counts OPT, and rotary decoders, which count from the row's start, see
            # differences.
            position_ids = (self.inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
        return position_ids.expand(*position_ids.shape[:-2], *self.labels.shape)

    def every_token(self) -> Tensor:
        """[B, T] int64: the index of a second pass that has all tokens of the first."""
        batch, length = self.labels.shape
        return torch.arange(length, device=self.labels.device).expand(batch, length)

    def places(self) -> Tensor:
        """[B, T] int64: where every token stands in its row, the first real one at 0, padding before it below."""
        return self.every_token() - self.inputs["attention_mask"].argmax(-1, keepdim=True)


def without_image(
    condition: Condition, first: FirstPass, contrast_inputs: Mapping[str, Tensor] | None = None
) -> WithoutImage:
    """Inputs of the pass that does not see the image.

    Args:
        condition: see ContrastSpec.
        first: the pass that sees it.
        contrast_inputs: pixel inputs of the perturbed images, for the conditions that show those.

    Raises ConfigError where the condition has no meaning for this decoder, ValueError where it has none for a row.
    """
    if condition in PERTURBING:
        # The model makes the same positions of the same ids and image sizes as in the first pass.
        inputs = {**first.inputs, **(contrast_inputs or {})}
        return WithoutImage(inputs=inputs, labels=first.labels, index=first.every_token())
    return _TOKENS[condition](first)


def _masked(first: FirstPass) -> WithoutImage:
    if reason := mask_undefined(first.text_config):
        raise ConfigError(f"contrast 'mask' is not defined for this model: {reason}; use --contrast drop")
    attention_mask = first.inputs["attention_mask"] * ~first.image_mask
    limit = attention_limit(first.text_config)
    if limit is not None and first.labels.shape[1] > limit:
        _check_masked(first, attention_mask.bool(), limit)
    inputs = {**first.inputs, "attention_mask": attention_mask, "position_ids": first.positions()}
    return WithoutImage(inputs=inputs, labels=first.labels, index=first.every_token())


def _check_masked(first: FirstPass, kept: Tensor, limit: int) -> None:
    """Raises where hiding an image moves windows or chunks, or leaves a row that is read nothing to see.

    flash attention packs what is shown, so that a window reaches further back. Chunks begin at the first token that is
    shown. A row of an image that fills the window or chunk before it sees nothing: `sdpa` then adds nothing, `eager`
    the mean over all columns, those of the image too.
    """
    config, places, window = first.text_config, first.places(), sliding_window(first.text_config)
    implementation = getattr(config, "_attn_implementation", None) or ""
    if implementation.startswith("flash"):
        raise ConfigError(
            f"contrast 'mask' over attention of {limit} tokens is not exact under {implementation!r}, which counts "
            "them without the image's: use --attn_implementation sdpa"
        )
    if window is None and bool((places.gather(1, kept.long().argmax(-1, keepdim=True)) > 0).any()):
        raise ValueError(
            f"contrast 'mask': the row begins with an image, and its chunks of {limit} tokens would begin behind that: "
            "use --contrast drop"
        )
    if implementation != "eager":
        return
    back = limit - 1 if window else places % limit
    starts = (first.every_token() - back).clamp(min=0)
    before = kept.long().cumsum(-1)
    seen = before - (before - kept.long()).gather(1, starts)
    if bool(((first.labels[:, 1:] != IGNORE_INDEX) & (before > seen)[:, :-1] & (seen == 0)[:, :-1]).any()):
        raise ValueError(
            f"contrast 'mask': an image fills the {limit} tokens that a layer sees before a supervised token; "
            "eager attention then looks at all tokens: use --attn_implementation sdpa, or --contrast drop"
        )


def _dropped(first: FirstPass) -> WithoutImage:
    inputs, length = first.inputs, first.labels.shape[1]
    kept = inputs["attention_mask"].bool() & ~first.image_mask
    count = kept.sum(-1)
    index = torch.sort(kept, dim=-1, descending=True, stable=True).indices[:, : int(count.max())]
    real = torch.arange(index.shape[1], device=kept.device) < count[:, None]
    # A row's padding repeats its first token, which no logit is read for: a dropped one would ask for its image.
    index = torch.where(real, index, index[:, :1])
    dropped: dict[str, Any] = {key: inputs[key].gather(1, index) for key in token_aligned(inputs)}
    # As no token stands for these they add nothing.
    dropped |= {key: inputs[key] for key in first.required if key in inputs and key not in dropped}
    dropped["attention_mask"] = real.to(inputs["attention_mask"].dtype)
    positions = first.positions()
    dropped["position_ids"] = positions.gather(-1, index.expand(*positions.shape[:-1], index.shape[1]))
    limit = attention_limit(first.text_config)
    if limit is not None and length > limit:
        types = dropped.get("token_type_ids")
        if types is not None and bool(types[real].any()):
            raise ValueError(
                f"contrast 'drop' over attention of {limit} tokens is not exact where a question looks ahead "
                "(PaliGemma 2): use --contrast mask"
            )
        dropped["attention_mask"] = _limited_masks(first.places().gather(1, index), real, limit, first.text_config)
    labels = torch.where(real, first.labels.gather(1, index), IGNORE_INDEX)
    return WithoutImage(inputs=dropped, labels=labels, index=index)


_TOKENS: dict[Condition, Callable[[FirstPass], WithoutImage]] = {"drop": _dropped, "mask": _masked}
"""Of each condition that shows no image: its way with the image's tokens."""


def check_contrast_inputs(
    condition: Condition, inputs: Mapping[str, Tensor], contrast_inputs: Mapping[str, Tensor] | None
) -> None:
    """ConfigError unless the perturbed images are there for the conditions that show them, and for no other.

    They must be inputs of the first pass, of the same shape: ids, positions and labels are reused.
    """
    if condition not in PERTURBING:
        if contrast_inputs is not None:
            raise ConfigError(f"contrast {condition!r} removes the image and takes no contrast_inputs")
        return
    if contrast_inputs is None:
        raise ConfigError(
            f"contrast {condition!r} needs contrast_inputs: the pixel inputs of the perturbed images "
            "(perturbation.encode_with_contrast and collate make them)"
        )
    for key, value in contrast_inputs.items():
        if key not in inputs or key == "input_ids":
            images = sorted(set(inputs) - token_aligned(inputs))
            raise ConfigError(f"contrast_inputs has {key!r}, which is no image input of the first pass ({images})")
        if value.shape != inputs[key].shape:
            raise ConfigError(
                f"contrast_inputs[{key!r}] has the shape {list(value.shape)}, the image itself "
                f"{list(inputs[key].shape)}: both passes must have the same tokens"
            )


def defined_tokens(labels: Tensor, attention_mask: Tensor, image_mask: Tensor, condition: Condition = "drop") -> Tensor:
    """[B, T] bool: supervised tokens with at least one kept token before them; elsewhere no delta exists.

    Where another image is shown instead of none, its tokens are kept too.
    """
    kept = attention_mask.bool() if condition in PERTURBING else attention_mask.bool() & ~image_mask
    kept = kept.long()
    before = kept.cumsum(-1) - kept
    return (labels != IGNORE_INDEX) & (before > 0)


def sliding_window(text_config: Any) -> int | None:
    """The decoder's attention window, or None when every layer sees everything."""
    window = getattr(text_config, "sliding_window", None)
    layer_types = getattr(text_config, "layer_types", None)
    if not window or (layer_types and "sliding_attention" not in layer_types):
        return None
    return None if getattr(text_config, "use_sliding_window", True) is False else int(window)


def attention_limit(text_config: Any) -> int | None:
    """Tokens of the decoder's window, or of its chunks where it has those (Llama 4); None where it has neither."""
    return sliding_window(text_config) or getattr(text_config, "attention_chunk_size", None)


def _limited_masks(places: Tensor, real: Tensor, limit: int, text_config: Any) -> Any:
    """Additive masks [B, 1, K, K] that count a window or chunks in the tokens of the first pass, given their places.

    Dropping tokens would otherwise let a window of the same width reach further back than it did with the image.
    """
    implementation = getattr(text_config, "_attn_implementation", None)
    if implementation not in ("sdpa", "eager"):
        raise ConfigError(
            f"contrast 'drop' over attention of {limit} tokens needs explicit masks, which attention "
            f"{implementation!r} does not take: use --attn_implementation sdpa"
        )
    queries, keys = places[:, :, None], places[:, None, :]
    causal = (queries >= keys) & real[:, None, :]
    # A padded query must see something, else its softmax is undefined; nobody reads it.
    causal |= torch.eye(places.shape[1], dtype=torch.bool, device=places.device)
    close = queries - keys < limit if sliding_window(text_config) else queries // limit == keys // limit
    dtype = getattr(text_config, "dtype", None) or torch.float32

    def additive(allowed: Tensor) -> Tensor:
        hidden = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return hidden.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]

    full, near = additive(causal), additive(causal & close)
    kinds = getattr(text_config, "layer_types", None)
    if not kinds:
        return near
    # Decoders ask by the type of their layers; recurrent ones look at padding alone.
    limited = {"sliding_attention", "chunked_attention", *(kind for kind in kinds if "sliding" in kind)}
    masks = {kind: near if kind in limited else full for kind in ("full_attention", *limited, *kinds)}
    return {**masks, "linear_attention": real.long()}
