"""Families from token ids: a fixed or tiled number of tokens for an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

from families.case import VOCABULARY, Case, Image, pixels, token_samples
from tiny_models import HIDDEN, build

_IMAGE, _MARK = 3, 4
_LAYERS: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 6}
_TEXT: dict[str, Any] = {**_LAYERS, **_IDS, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512}


def _case(model_class: Any, config: Any, image: Callable[[int], Image], **options: Any) -> Case:
    batch_first = options.pop("batch_first", frozenset())
    return Case(model=build(model_class, config), samples=token_samples(image, **options), batch_first=batch_first)


def lfm2_vl() -> Case:
    """Short convolutions beside attention; images as rows of patches."""
    vision = hf.Siglip2VisionConfig(**_LAYERS, patch_size=4, num_patches=16, vision_use_head=False)
    text = hf.Lfm2Config(
        **{**_TEXT, "block_ff_dim": 64, "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]}
    )
    config = hf.Lfm2VlConfig(
        vision_config=vision, text_config=text, image_token_id=_IMAGE, projector_hidden_size=64, downsample_factor=2
    )

    def image(seed: int) -> Image:
        shape = torch.tensor([[4, 4]] if seed % 2 else [[2, 8]])
        inputs = {
            "pixel_values": pixels(seed, 1, 16, 48), "spatial_shapes": shape,
            "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
        }  # fmt: skip
        return Image(ids=[1, *[_IMAGE] * 4, 2], inputs=inputs)

    return _case(hf.Lfm2VlForConditionalGeneration, config, image)


def gemma4() -> Case:
    vision = {
        **_LAYERS, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2,
        "position_embedding_size": 32,
    }  # fmt: skip
    text = {
        **_TEXT, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 8, "use_bidirectional_attention": "vision",
        "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 16,
    }  # fmt: skip
    config = hf.Gemma4Config(
        vision_config=vision, text_config=text, audio_config=None, image_token_id=_IMAGE, video_token_id=7,
        audio_token_id=8, boi_token_id=1, eoi_token_id=2,
    )  # fmt: skip

    def image(seed: int) -> Image:
        grid = torch.cartesian_prod(torch.arange(4), torch.arange(4))[None]
        inputs = {"pixel_values": pixels(seed, 1, 16, 48).sigmoid(), "image_position_ids": grid}
        return Image(ids=[1, *[_IMAGE] * 4, 2], inputs=inputs)

    return _case(hf.Gemma4ForConditionalGeneration, config, image, type_ids="mm_token_type_ids")


def instructblip() -> Case:
    """The Q-Former reads the question too; its ids are batch-first. The output head has a bias (Phi's)."""
    shape = {**_LAYERS, "intermediate_size": 64}
    qformer = {**shape, "vocab_size": VOCABULARY, "encoder_hidden_size": HIDDEN, "hidden_dropout_prob": 0.0,
               "attention_probs_dropout_prob": 0.0}  # fmt: skip
    text = hf.PhiConfig(**{**_TEXT, "num_key_value_heads": 2})
    config = hf.InstructBlipConfig(
        vision_config={**shape, "image_size": 16, "patch_size": 8}, qformer_config=qformer, text_config=text,
        num_query_tokens=4, image_token_index=_IMAGE,
    )  # fmt: skip

    def image(seed: int) -> Image:
        asked = torch.randint(10, 100, (1, 5), generator=torch.Generator().manual_seed(seed))
        inputs = {
            "pixel_values": pixels(seed, 1, 3, 16, 16), "qformer_input_ids": asked,
            "qformer_attention_mask": torch.ones_like(asked),
        }  # fmt: skip
        return Image(ids=[_IMAGE] * 4, inputs=inputs)

    only_one = "the processor puts the tokens of one image before the text"
    case = _case(
        hf.InstructBlipForConditionalGeneration, config, image, two_images=False, text_only=False, image_first=True
    )
    return dataclasses.replace(case, two_images=only_one, text_only="its forward demands an image")
