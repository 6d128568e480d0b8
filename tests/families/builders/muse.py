"""Muse Glimmer and Muse Spark: sliding windows, every last layer without rotary positions, capped logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN

IMAGE, START, END, VIDEO = "<|patch|>", "<|image_start|>", "<|image_end|>", "<|video|>"
_OTHERS: Final = (
    "<|vid_frame_separator|>", "<|vid_start|>", "<|vid_end|>", "<|audio|>", "<|soft_audio_start|>",
    "<|soft_audio_end|>",
)  # fmt: skip
PATCHES: Final = {"patch_size": 4, "max_image_tokens": 16}
VISION: Final = {**LAYERS, "patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8}


def _tokenizer() -> hf.PreTrainedTokenizerFast:
    return chatml_tokenizer(IMAGE, START, END, VIDEO, *_OTHERS)


def _text(words: hf.PreTrainedTokenizerFast) -> dict[str, Any]:
    # The published multiplier is for 6656 hidden values: these logits would hardly differ.
    return text_values(
        words, sliding_window=8, layer_types=["sliding_attention", "full_attention"], output_multiplier=1.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip


def _of_both(words: hf.PreTrainedTokenizerFast) -> dict[str, Any]:
    names = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    found = {name: int(words.convert_tokens_to_ids(token)) for name, token in names.items()}
    return {**found, "vision_config": VISION, "out_hidden_size": 4 * HIDDEN, "projector_hidden_size": HIDDEN}


def build_glimmer(directory: Path) -> None:
    words = _tokenizer()
    processor = hf.MuseGlimmerProcessor(
        hf.MuseGlimmerImageProcessor(**PATCHES), hf.MuseGlimmerVideoProcessor(), words,
        chat_template=template(f"{IMAGE}\n"),
    )  # fmt: skip
    config = hf.MuseGlimmerConfig(text_config=_text(words), **_of_both(words))
    save(directory, hf.MuseGlimmerForConditionalGeneration, config, processor)


def build_spark(directory: Path) -> None:
    """A dense layer and one of experts, and a tower for sound that these rows leave out."""
    words = _tokenizer()
    audio = {"patch_sizes": [4, 4], "hidden_sizes": [8, 16], "depths": [1, 1], "num_hidden_layers": 2,
             "out_hidden_size": HIDDEN}  # fmt: skip
    processor = hf.MuseSparkProcessor(
        hf.MuseGlimmerImageProcessor(**PATCHES), hf.MuseGlimmerVideoProcessor(), words,
        hf.MuseSparkFeatureExtractor(), chat_template=template(f"{IMAGE}\n"),
    )  # fmt: skip
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
               "moe_hidden_size": HIDDEN, "mlp_layer_types": ["dense", "sparse"]}  # fmt: skip
    config = hf.MuseSparkConfig(
        text_config={**_text(words), **experts}, audio_config=audio,
        audio_token_id=words.convert_tokens_to_ids("<|audio|>"), **_of_both(words),
    )  # fmt: skip
    save(directory, hf.MuseSparkForConditionalGeneration, config, processor)


MUSE_GLIMMER: Final = Family(name="muse_glimmer", build=build_glimmer, markers=(START, IMAGE, END))
MUSE_SPARK: Final = Family(name="muse_spark", build=build_spark, markers=(START, IMAGE, END))
