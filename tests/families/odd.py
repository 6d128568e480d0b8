"""Families that general rules would measure wrongly without a word. Their processors need torchvision or more.

Each is a model in float32 and samples as its processor would write them; `Case.samples` are ragged.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import transformers as hf

from families.case import VOCABULARY, Case, Image, pixels, token_samples
from tiny_models import HIDDEN, build

_START, _END, _IMAGE, _VIDEO = 1, 2, 3, 4
_LAYERS: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
_TEXT: dict[str, Any] = {
    **_LAYERS, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 6,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
_GRIDS = ((4, 4), (4, 6))


def _grid_image(seed: int, values: int = 96) -> Image:
    """Patches in a row; 2 x 2 make a token."""
    grid = torch.tensor([[1, *_GRIDS[seed % 2]]])
    patches = int(grid.prod())
    return Image(
        ids=[_IMAGE] * (patches // 4), inputs={"pixel_values": pixels(seed, patches, values), "image_grid_thw": grid},
        before=[_START], after=[_END],
    )  # fmt: skip


def ernie4_5_vl_moe() -> Case:
    """Tokens of images, the markers around them too, go to experts of their own, by an input [B, T]."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}
    text = {
        **_TEXT, "num_hidden_layers": 4, "moe_intermediate_size": [32, 16], "moe_k": 2, "moe_num_experts": 4,
        "moe_num_shared_experts": 1, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "rope_parameters": rope,
    }  # fmt: skip
    text.pop("head_dim")
    config = hf.Ernie4_5_VLMoeConfig(
        text_config=text,
        vision_config={"depth": 2, "hidden_size": HIDDEN, "num_heads": 2, "patch_size": 4, "intermediate_size": 64},
        image_start_token_id=_START, image_end_token_id=_END, image_token_id=_IMAGE, video_start_token_id=6,
        video_end_token_id=7, video_token_id=_VIDEO, tie_word_embeddings=False,
    )  # fmt: skip

    def image(seed: int) -> Image:
        return _grid_image(seed, 48)

    samples = []
    for sample in token_samples(image, type_ids="mm_token_type_ids"):
        ids = sample.sequence_inputs["input_ids"]
        experts = torch.isin(ids, torch.tensor([_IMAGE, _START, _END])).long()
        sequence = {**sample.sequence_inputs, "moe_mm_token_type_ids": experts}
        samples.append(dataclasses.replace(sample, sequence_inputs=sequence))
    return Case(model=build(hf.Ernie4_5_VLMoeForConditionalGeneration, config), samples=samples)


def minimax_m3_vl() -> Case:
    """Sparse attention whose indexer compares position ids with places of keys."""
    text = {
        **_TEXT, "dense_intermediate_size": 64, "shared_intermediate_size": 32, "num_local_experts": 4,
        "num_experts_per_tok": 2, "rotary_dim": 8, "index_n_heads": 1, "index_head_dim": 16, "index_block_size": 8,
        "index_topk_blocks": 2, "layer_types": ["minimax_m3_sparse", "full_attention"],
        "mlp_layer_types": ["dense", "sparse"],
    }  # fmt: skip
    config = hf.MiniMaxM3VLConfig(
        text_config=text, vision_config={**_LAYERS, "patch_size": 4, "image_size": 32}, image_token_index=_IMAGE,
        video_token_index=_VIDEO, projector_hidden_size=HIDDEN,
    )  # fmt: skip
    return Case(model=build(hf.MiniMaxM3SparseForConditionalGeneration, config), samples=token_samples(_grid_image))


def inkling() -> Case:
    """Attention by distance in the row, whatever the position ids; convolutions in every layer."""
    text = {
        **_TEXT, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 1, "swa_head_dim": 16,
        "sliding_window_size": 8, "d_rel": 4, "rel_extent": 256, "layer_types": ["hybrid_sliding", "hybrid"],
        "mlp_layer_types": ["dense", "sparse"], "moe_intermediate_size": 32, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "logits_mup_width_multiplier": 1.0, "route_scale": 1.0,
    }  # fmt: skip
    config = hf.InklingConfig(
        text_config=text, image_token_id=_IMAGE, audio_token_id=_VIDEO, image_bos_token_id=_START, audio_bos_token_id=2,
        vision_config={
            "text_hidden_size": HIDDEN, "patch_size": 4, "hidden_size": HIDDEN, "num_hidden_layers": 2,
            "num_attention_heads": 2, "temporal_patch_size": 2,
        },
        audio_config={"n_mel_bins": 4, "mel_vocab_size": 8, "text_hidden_size": HIDDEN},
    )  # fmt: skip

    def image(seed: int) -> Image:
        count = 4 + seed % 3
        return Image(ids=[_IMAGE] * count, inputs={"pixel_values": pixels(seed, count, 2, 4, 4, 3)}, before=[_START])

    return Case(model=build(hf.InklingForConditionalGeneration, config), samples=token_samples(image))


def molmo2() -> Case:
    """An input holds indices into the patches of one call of the processor."""
    vision = {**_LAYERS, "num_key_value_heads": 2, "head_dim": 16, "image_size": [16, 16], "patch_size": 4}
    adapter = {
        "hidden_size": HIDDEN, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 64, "text_hidden_size": HIDDEN, "vision_feature_layer": [1, 0],
    }  # fmt: skip
    config = hf.Molmo2Config(
        vision_config=vision, adapter_config=adapter, text_config={**_TEXT, "additional_vocab_size": 8},
        image_start_token_id=_START, low_res_image_start_token_id=_END, image_end_token_id=7, image_patch_id=_IMAGE,
        frame_start_token_id=8, frame_end_token_id=9,
    )  # fmt: skip
    quarter = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])

    def image(seed: int) -> Image:
        """The whole image and one crop, 4 tokens each."""
        inputs = {
            "pixel_values": pixels(seed, 2, 16, 48), "image_token_pooling": torch.cat([quarter, quarter + 16]),
            "image_grids": torch.tensor([[2, 2, 2, 2]]), "image_num_crops": torch.tensor([2]),
        }  # fmt: skip
        return Image(ids=[_END, *[_IMAGE] * 4, 7, _START, *[_IMAGE] * 4, 7], inputs=inputs)

    samples = token_samples(image, type_ids="mm_token_type_ids", two_images=False)
    return Case(model=build(hf.Molmo2ForConditionalGeneration, config), samples=samples)


def hunyuan_vl() -> Case:
    """Positions of an image count the images of the whole batch."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2, 2]}
    vision = {
        "hidden_size": HIDDEN, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
        "out_hidden_size": HIDDEN, "patch_size": 4, "img_max_token_num": 64, "max_image_size": 64, "min_image_size": 8,
        "text_hidden_size": HIDDEN,
    }  # fmt: skip
    config = hf.HunYuanVLConfig(
        text_config={**_TEXT, "rope_parameters": rope}, vision_config=vision, image_token_id=_IMAGE, im_start_id=_START,
        im_end_id=_END, im_newline_id=7,
    )  # fmt: skip

    def image(seed: int) -> Image:
        height, width = _GRIDS[seed % 2]
        return Image(
            ids=[_IMAGE] * ((height // 2) * (width // 2 + 1) + 2), before=[_START], after=[_END],
            inputs={
                "pixel_values": pixels(seed, height * width, 48), "image_grid_thw": torch.tensor([[1, height, width]]),
            },
        )  # fmt: skip

    samples = token_samples(image, type_ids="mm_token_type_ids")
    return Case(model=build(hf.HunYuanVLForConditionalGeneration, config), samples=samples)


def minicpmv4_6() -> Case:
    """All patches of a call lie side by side in one row of pixels."""
    config = hf.MiniCPMV4_6Config(
        text_config={"model_type": "qwen3", **_TEXT},
        vision_config={**_LAYERS, "image_size": 32, "patch_size": 4, "insert_layer_id": 0}, image_token_id=_IMAGE,
        video_token_id=_VIDEO, insert_layer_id=0,
    )  # fmt: skip

    def image(seed: int) -> Image:
        inputs = {"pixel_values": pixels(seed, 1, 3, 4, 4 * 64), "target_sizes": torch.tensor([[8, 8]])}
        return Image(ids=[_START, *[_IMAGE] * 4, _END], inputs=inputs)

    samples = token_samples(image, two_images=False)
    return Case(
        model=build(hf.MiniCPMV4_6ForConditionalGeneration, config), samples=samples,
        batch_first=frozenset({"pixel_values"}),
    )  # fmt: skip


def dots3_note(window: int = 8) -> Case:
    """Windows in some layers, an indexer over all keys in the others."""
    heads = {"num_attention_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "v_head_dim": 16}
    text = {
        **_TEXT, **heads, "num_key_value_heads": 2, "moe_intermediate_size": 32, "n_routed_experts": 4, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 2, "qk_rope_head_dim": 8, "index_topk": 64, "index_head_dim": 16,
        "index_n_heads": 2, "sliding_window": window, "layer_types": ["sliding_attention", "indexed_attention"],
        "shared_experts_intermediate_size": 32, "first_k_dense_replace": 1, "swa_num_key_value_heads": 2,
        "swa_head_dim": 16, **{f"swa_{name}": value for name, value in heads.items()},
    }  # fmt: skip
    vision = {
        **_LAYERS, "patch_size": 4, "moe_intermediate_size": 32, "mlp_layer_types": ["dense", "dense"],
        "adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN,
    }  # fmt: skip
    audio = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "feature_size": 16, "downsample_hidden_size": 8, "adapter_input_size": 32, "adapter_out_dim": HIDDEN,
    }  # fmt: skip
    config = hf.Dots3NoteConfig(
        text_config=text, vision_config=vision, audio_config=audio, image_token_id=_IMAGE, video_token_id=_VIDEO,
        audio_token_id=7,
    )  # fmt: skip
    return Case(
        model=build(hf.Dots3NoteForConditionalGeneration, config),
        samples=token_samples(lambda seed: _grid_image(seed, 48)),
    )
