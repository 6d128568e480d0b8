"""Computes what a LLaVA-type model does with an image: where its words attend to, and the words nearest to its patches.

T tokens of the encoding, n image tokens, P patches of the whole image, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.contrast import innermost_decoder
from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX

Queries = Literal["answer", "text"]


def query_mask(encoded: EncodedSample, queries: Queries) -> Tensor:
    """[T] bool: the text tokens whose attention is looked at.

    `answer` are the supervised tokens, `text` all tokens that stand behind the first image token and for no image.
    """
    if queries == "answer":
        return encoded.labels != IGNORE_INDEX
    behind = encoded.image_mask.cumsum(0) > 0
    return behind & ~encoded.image_mask


@torch.no_grad()
def image_attention(
    model: Any, encoder: Encoder, encoded: EncodedSample, queries: Queries = "answer"
) -> tuple[np.ndarray, float]:
    """Attention from text tokens to image tokens, summed over layers (CAL, Fig. 5).

    Entry k is sum over layers of the mean over heads and over the query tokens q of A[layer, head, q, image token k]:
    the row of a query is that of the token itself. Returns ([n] float64, share): `share` is the part of all attention
    that goes to the image, between 0 and 1. The model must run eager attention. Holds one layer's matrix at a time.
    """
    batch = collate([encoded], pad_token_id=encoder.pad_token_id, batch_first=encoder.batch_first_inputs)
    placed = batch.to(model.device, model.dtype)
    asked = torch.nonzero(query_mask(encoded, queries))[:, 0]
    image = torch.nonzero(encoded.image_mask)[:, 0]
    layers: list[Tensor] = []
    with _attention_rows(model, layers, asked, image):
        model(**placed.inputs, use_cache=False)
    if not layers:
        raise ConfigError(f"no attention was seen in {type(innermost_decoder(model)).__name__}")
    total = torch.stack(layers).sum(0).double().cpu().numpy()
    return total, float(total.sum() / len(layers))


@contextmanager
def _attention_rows(model: Any, layers: list[Tensor], asked: Tensor, image: Tensor) -> Iterator[None]:
    """Collects [n] float32 of every layer; a layer's whole matrix is let go at once."""

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        attention = output[1]
        if attention is None:
            raise ConfigError("the model gives no attention weights: load it with eager attention")
        rows = attention[0][:, asked.to(attention.device)][:, :, image.to(attention.device)]
        layers.append(rows.float().mean(dim=(0, 1)).cpu())

    with ExitStack() as hooks:
        for layer in innermost_decoder(model).layers:  # type: ignore[union-attr]
            hooks.enter_context(layer.self_attn.register_forward_hook(keep))
        yield


@torch.no_grad()
def patch_words(
    model: Any, encoded: EncodedSample, *, vocabulary: Tensor, top: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The vocabulary words nearest to each patch of the whole image, after the projector (CAL, Fig. 6).

    Nearest by the cosine of the projected patch and the row of the input embedding. `vocabulary` holds the token ids
    that may be named. Returns (ids [P, top] int64, cosines [P, top] float32), best first, patches row by row.
    """
    features: list[Tensor] = []
    pixels = {
        key: value.to(model.device, model.dtype) if value.is_floating_point() else value
        for key, value in encoded.image_inputs.items()
    }
    projector = model.model.multi_modal_projector
    with projector.register_forward_hook(lambda module, inputs, output: features.append(output)):
        model.get_image_features(**pixels)
    # The first image of the first call: of tiles that is the whole image.
    patches = features[0][0].float()
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    # Without the class token, where a model keeps it in front, and without crops that follow.
    patches = patches[len(patches) % (side * side) :][: side * side]
    embeddings = model.get_input_embeddings().weight[vocabulary.to(model.device)].float()
    best = (nn.functional.normalize(patches, dim=-1) @ nn.functional.normalize(embeddings, dim=-1).T).topk(top, dim=-1)
    ids = vocabulary.to(best.indices.device)[best.indices]
    return ids.cpu().numpy(), best.values.cpu().numpy()


def nameable_words(model: Any, tokenizer: Any) -> Tensor:
    """[V'] int64: ids that spell something: no special tokens, blanks, or rows that pad the embedding."""
    rows = model.get_input_embeddings().weight.shape[0]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    texts = tokenizer.batch_decode([[token] for token in range(min(rows, len(tokenizer)))])
    return torch.tensor([
        token
        for token, text in enumerate(texts)
        if token not in special and text.strip() and text.strip().isprintable() and "\ufffd" not in text
    ])  # fmt: skip
