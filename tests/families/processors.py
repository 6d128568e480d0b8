"""Families whose processors work without torchvision too: those of tiny_models and more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import transformers as hf

from families.family import LAYERS as _LAYERS
from families.family import Family, chat, save
from tiny_models import (
    HIDDEN,
    build_gemma3,
    build_idefics3,
    build_llava,
    build_llava_next,
    build_paligemma,
    text_config_values,
    train_tokenizer,
)

ONE_IMAGE: Final = "its processor puts the tokens of exactly one image before the text"


def build_vipllava(directory: Path) -> None:
    """Image features from two layers, side by side."""
    tokenizer = train_tokenizer(bos="<s>", eos="</s>", pad="<pad>", special=["<image>"], add_bos=True)
    pixels = hf.CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    processor = hf.LlavaProcessor(
        pixels, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat("<image>\n", user="###Human: ", assistant="###Assistant: ", end="</s>"),
    )  # fmt: skip
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_LAYERS, image_size=42, patch_size=14, projection_dim=HIDDEN),
        text_config=hf.LlamaConfig(**text_config_values(tokenizer)), image_token_index=processor.image_token_id,
        image_seq_length=9, vision_feature_layers=(-2, 1), vision_feature_layer=(-2, 1),
    )  # fmt: skip
    save(directory, hf.VipLlavaForConditionalGeneration, config, processor)


def build_idefics2(directory: Path) -> None:
    """Five tiles of 4 latents each; adjacent images share a marker. Its processor reports no offsets."""
    tokenizer = train_tokenizer(bos="<s>", eos="</s>", pad="<unk>", add_bos=True)
    pixels = hf.Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=True)
    template = chat("<image>", user="User:", assistant="Assistant:", end="<end_of_utterance>\n")
    processor = hf.Idefics2Processor(pixels, tokenizer, image_seq_len=4, chat_template=template)
    config = hf.Idefics2Config(
        vision_config={**_LAYERS, "image_size": 32, "patch_size": 8},
        perceiver_config={
            "hidden_size": HIDDEN, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
            "resampler_head_dim": 16, "num_key_value_heads": 1,
        },
        text_config=hf.MistralConfig(**text_config_values(tokenizer), sliding_window=None),
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    save(directory, hf.Idefics2ForConditionalGeneration, config, processor)


def build_paligemma2(directory: Path) -> None:
    """PaliGemma over Gemma 2: soft-capped logits, one sliding layer."""
    tokenizer = train_tokenizer(bos="<bos>", eos="<eos>", pad="<pad>", special=["<image>"], add_bos=False)
    pixels = hf.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pixels.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(pixels, tokenizer)
    text = hf.Gemma2Config(
        **text_config_values(tokenizer), query_pre_attn_scalar=16, sliding_window=512,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**_LAYERS, image_size=28, patch_size=14, vision_use_head=False),
        text_config=text, image_token_index=processor.image_token_id, projection_dim=HIDDEN, hidden_size=HIDDEN,
    )  # fmt: skip
    save(directory, hf.PaliGemmaForConditionalGeneration, config, processor)


def build_aya_vision(directory: Path) -> None:
    """Tiles named in plain text (TILE_1) between special tokens."""
    special = [
        "<image>",
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE",
        "TILE_GLOBAL",
    ]
    tokenizer = train_tokenizer(
        bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>", special=special, add_bos=True
    )
    pixels = hf.GotOcr2ImageProcessorPil(
        size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    template = chat("<image>", begin="<BOS_TOKEN>", user="<USER>", assistant="<CHATBOT>", end="<|END_OF_TURN_TOKEN|>")
    processor = hf.AyaVisionProcessor(
        pixels, tokenizer, patch_size=4, img_size=16, downsample_factor=2, chat_template=template
    )
    text = hf.Cohere2Config(
        **text_config_values(tokenizer), sliding_window=512, layer_types=["sliding_attention", "full_attention"]
    )
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**_LAYERS, image_size=16, patch_size=4, vision_use_head=False),
        text_config=text, image_token_index=processor.image_token_id, vision_feature_layer=-1,
    )  # fmt: skip
    save(directory, hf.AyaVisionForConditionalGeneration, config, processor)


def build_mllama(directory: Path) -> None:
    """Llama 3.2 Vision: one token for an image, whose tiles enter by cross-attention."""
    special = ["<|image|>", "<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = train_tokenizer(bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<pad>", special=special, add_bos=True)
    pixels = hf.MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=2)

    def header(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    template = chat(
        "<|image|>", begin="<|begin_of_text|>", user=header("user"), assistant=header("assistant"), end="<|eot_id|>"
    )
    processor = hf.MllamaProcessor(pixels, tokenizer, chat_template=template)
    values = text_config_values(tokenizer)
    del values["head_dim"]
    config = hf.MllamaConfig(
        vision_config={
            **_LAYERS, "attention_heads": 2, "num_global_layers": 1, "image_size": 16, "patch_size": 8,
            "max_num_tiles": 2, "vision_output_dim": 2 * HIDDEN, "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        text_config={**values, "num_hidden_layers": 3, "cross_attention_layers": [1],
                     "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        image_token_index=processor.image_token_id,
    )  # fmt: skip
    save(directory, hf.MllamaForConditionalGeneration, config, processor)


def build_blip_2(directory: Path) -> None:
    """A Q-Former's 4 queries before OPT, whose learned positions count real tokens."""
    tokenizer = train_tokenizer(bos="</s>", eos="<eos>", pad="<pad>", add_bos=True)
    pixels = hf.BlipImageProcessorPil(size={"height": 16, "width": 16})
    processor = hf.Blip2Processor(pixels, tokenizer, num_query_tokens=4)
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    shape = {**_LAYERS, "encoder_hidden_size": HIDDEN}
    text = hf.OPTConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, word_embed_proj_dim=HIDDEN, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=256, dropout=0.0, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = hf.Blip2Config(
        vision_config={**_LAYERS, "image_size": 16, "patch_size": 8},
        qformer_config={**shape, "vocab_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        text_config=text, num_query_tokens=4, image_token_index=image_token_id,
    )  # fmt: skip
    save(directory, hf.Blip2ForConditionalGeneration, config, processor)


def build_deepseek_vl(directory: Path) -> None:
    named = {"image_token": "<image_placeholder>"}
    tokenizer = train_tokenizer(
        bos="<|begin|>", eos="<|end|>", pad="<pad>", special=[*named.values()], add_bos=True, named=named
    )
    pixels = hf.DeepseekVLImageProcessorPil(size={"height": 16, "width": 16}, min_size=4)
    template = chat("<image_placeholder>", begin="<|begin|>", user="User: ", assistant="Assistant: ", end="<|end|>")
    processor = hf.DeepseekVLProcessor(pixels, tokenizer, chat_template=template, num_image_tokens=4)
    config = hf.DeepseekVLConfig(
        vision_config=hf.SiglipVisionConfig(**_LAYERS, image_size=16, patch_size=8, vision_use_head=False),
        text_config=hf.LlamaConfig(**text_config_values(tokenizer)), image_token_id=processor.image_token_id,
    )  # fmt: skip
    save(directory, hf.DeepseekVLForConditionalGeneration, config, processor)


def build_granite4_vision(directory: Path) -> None:
    """LLaVA-NeXT's tiles through window Q-Formers, whose features enter several layers of the decoder."""
    tokenizer = train_tokenizer(bos="<s>", eos="<|end|>", pad="<pad>", special=["<image>"], add_bos=False)
    grid = {"image_grid_pinpoints": [[32, 64], [64, 32]]}
    pixels = hf.LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, **grid)
    template = chat("<image>\n", user="<|user|>\n", assistant="<|assistant|>\n", end="<|end|>\n")
    processor = hf.Granite4VisionProcessor(
        pixels,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        chat_template=template,
    )
    wide = {**_LAYERS, "hidden_size": 64}  # its Q-Formers have heads of 64
    config = hf.Granite4VisionConfig(
        vision_config=hf.SiglipVisionConfig(**wide, image_size=32, patch_size=4, vision_use_head=False),
        text_config={**text_config_values(tokenizer), "model_type": "granite4_vision_text"},
        qformer_config={**wide, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "vocab_size": 8},
        image_token_index=processor.image_token_id, vision_feature_select_strategy="full", downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0], [-1, 1]], spatial_target_layers=[0, 1, 0, 1], projector_dropout=0.0, **grid,
    )  # fmt: skip
    save(directory, hf.Granite4VisionForConditionalGeneration, config, processor)


def _family(build: Callable[[Path], None], *markers: str, **facts: Any) -> Family:
    return Family(name=build.__name__.removeprefix("build_"), build=build, markers=markers, **facts)


FAMILIES: Final = tuple(
    _family(build, *markers, **facts)
    for build, markers, facts in (
        (build_llava, ("<image>",), {}),
        (build_llava_next, ("<image>",), {}),
        (build_gemma3, ("\n\n<start_of_image>", "<image_soft_token>", "<end_of_image>\n\n"), {}),
        (build_paligemma, ("<image>",), {"one_turn": True}),
        (
            build_idefics3,
            ("<fake_token_around_image>", "<row_1_col_1>", "<global-img>", "<image>"),
            {},
        ),
        (build_vipllava, ("<image>",), {}),
        (build_idefics2, ("<fake_token_around_image>", "<image>"), {"found_by": "text"}),
        # Gemma 2 soft-caps its attention, which sdpa does not.
        (build_paligemma2, ("<image>",), {"one_turn": True, "attention": "eager"}),
        (
            build_aya_vision,
            ("<|START_OF_IMG|>", "TILE_1", "TILE_GLOBAL", "<|IMG_PATCH|>", "<|END_OF_IMG|>"),
            {},
        ),
        (build_mllama, ("<|image|>",), {"found_by": "text", "rows_of_a_step": 1}),
        (
            build_blip_2,
            ("<image>",),
            {"found_by": "count", "one_turn": True, "one_image": ONE_IMAGE, "template": "plain"},
        ),
        (build_deepseek_vl, ("<image_placeholder>",), {}),
        (build_granite4_vision, ("<image>",), {}),
    )
)
BY_NAME: Final = {family.name: family for family in FAMILIES}
BUILDERS: Final[dict[str, Callable[[Path], None]]] = {family.name: family.build for family in FAMILIES}
