"""Does what else one could do: plain forwards, and the two passes and the training step as the released code has them.

Written anew after what the released code does, not copied: the vision tower runs once; the decoder runs twice over the
whole sequence, the second time with the image tokens hidden by the attention mask; both passes make float32 logits of
every position over the whole vocabulary, from which the labels' are gathered; the loss reads all of them, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer

from cal_pipeline.measuring.contrast import innermost_decoder
from cal_schemas.spec import IGNORE_INDEX


@torch.no_grad()
def plain_forward(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """One forward with the logits of every position in the model's dtype: the unit of all cost."""
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


@torch.no_grad()
def two_full_forwards(
    model: Any, inputs: dict[str, Tensor], labels: Tensor, image_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Two calls of the whole model, vision tower and all, the second with the image tokens masked."""
    with_image = gathered(model(**inputs, use_cache=False).logits, labels)
    masked = {**inputs, "attention_mask": inputs["attention_mask"] * ~image_mask}
    return with_image, gathered(model(**masked, use_cache=False).logits, labels)


@torch.no_grad()
def released_passes(model: Any, inputs: dict[str, Tensor], labels: Tensor, image_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the supervised tokens [B, T] float32 with and without the image, the released way."""
    with decoder_arguments(model) as seen:
        logits = model(**inputs, use_cache=False).logits.float()
    without = released_second_pass(model, seen[0], inputs["attention_mask"], image_mask)
    return gathered(logits, labels), gathered(without, labels)


@torch.no_grad()
def released_second_pass(model: Any, seen: dict[str, Any], attention_mask: Tensor, image_mask: Tensor) -> Tensor:
    """Float32 logits [B, T, V] of the embedded sequence with the image tokens masked."""
    hidden = innermost_decoder(model)(
        inputs_embeds=seen["inputs_embeds"].detach(),
        position_ids=seen.get("position_ids"),
        attention_mask=attention_mask * ~image_mask,
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.get_output_embeddings()(hidden).float()
    return logits


@contextmanager
def decoder_arguments(model: Any) -> Iterator[list[dict[str, Any]]]:
    """Collects what the innermost decoder is called with."""
    seen: list[dict[str, Any]] = []
    decoder = innermost_decoder(model)
    handle = decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def gathered(logits: Tensor, labels: Tensor) -> Tensor:
    """The labels' logits of [B, T, V]; entry t belongs to token t, NaN where unsupervised."""
    targets = labels[:, 1:]
    rows = logits[:, :-1].gather(-1, targets.clamp(min=0)[..., None])[..., 0].float()
    return F.pad(rows.where(targets != IGNORE_INDEX, torch.nan), (1, 0), value=torch.nan)


class ReleasedTrainer(Trainer):  # type: ignore[misc]
    """Online deltas the released way: clamp to [1, 5], mean of three over the flattened array, weighted mean."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, image_mask = inputs["labels"], inputs["image_mask"]
        forward = {key: value for key, value in inputs.items() if key not in ("labels", "image_mask")}
        base = self.accelerator.unwrap_model(model)
        with decoder_arguments(base) as seen:
            logits = model(**forward, use_cache=False).logits.float()
        without = released_second_pass(base, seen[0], forward["attention_mask"], image_mask)
        with torch.no_grad():
            # Token id 0 stands for the unsupervised.
            targets = labels[:, 1:].clamp(min=0)[..., None]
            deltas = (logits[:, :-1].gather(-1, targets) - without[:, :-1].gather(-1, targets))[..., 0]
            flat = deltas.clamp(1.0, 5.0).reshape(1, 1, -1)
            weights = F.avg_pool1d(flat, 3, stride=1, padding=1, count_include_pad=False).view(-1)
            weights = weights * (labels[:, 1:] != IGNORE_INDEX).view(-1)
        nll = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=IGNORE_INDEX
        )
        return (nll * weights).sum() / (weights.sum() + 1e-6)
