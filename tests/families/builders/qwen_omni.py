"""The thinkers of Qwen's omni-modal models: what reads images, videos and sound and writes text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import transformers as hf

from families.builders.qwen import IMAGE, PATCHES, TOWER, VIDEO, template, text
from families.builders.qwen_moe import EXPERTS
from families.family import Family, chatml_tokenizer, save
from tiny_models import HIDDEN

START, END = "<|vision_bos|>", "<|vision_eos|>"
_NAMED: Final = {
    "image_token": IMAGE, "video_token": VIDEO, "audio_token": "<|AUDIO|>", "vision_bos_token": START,
    "vision_eos_token": END, "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip
_SOUND: Final[dict[str, Any]] = {
    "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32,
    "max_source_positions": 32, "output_dim": HIDDEN, "n_window": 4,
}  # fmt: skip


def _processor(processor_class: Any, words: hf.PreTrainedTokenizerFast) -> Any:
    return processor_class(
        hf.Qwen2VLImageProcessor(**PATCHES), hf.Qwen2VLVideoProcessor(), hf.WhisperFeatureExtractor(feature_size=16),
        words, chat_template=template(START + IMAGE + END),
    )  # fmt: skip


def _ids(words: hf.PreTrainedTokenizerFast, suffix: str) -> dict[str, int]:
    """`suffix` is what this family calls the ids of the three tokens that stand for content."""
    return {
        f"image_token_{suffix}": words.image_token_id, f"video_token_{suffix}": words.video_token_id,
        f"audio_token_{suffix}": words.audio_token_id, "vision_start_token_id": words.vision_bos_token_id,
        "vision_end_token_id": words.vision_eos_token_id, "audio_start_token_id": words.audio_bos_token_id,
        "audio_end_token_id": words.audio_eos_token_id,
    }  # fmt: skip


def build_qwen2_5_omni_thinker(directory: Path) -> None:
    words = chatml_tokenizer(**_NAMED)
    vision = {**TOWER, "window_size": 16, "fullatt_block_indexes": [1]}
    config = hf.Qwen2_5OmniThinkerConfig(
        text_config=text(words), vision_config=vision, audio_config=_SOUND, **_ids(words, "index")
    )
    save(directory, hf.Qwen2_5OmniThinkerForConditionalGeneration, config, _processor(hf.Qwen2_5OmniProcessor, words))


def build_qwen3_omni_moe_thinker(directory: Path) -> None:
    """Features of several vision layers enter several layers of a mixture of experts."""
    words = chatml_tokenizer(**_NAMED)
    vision = {**TOWER, "depth": 3, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    config = hf.Qwen3OmniMoeThinkerConfig(
        text_config=text(words, head_dim=16, **EXPERTS), vision_config=vision,
        audio_config={**_SOUND, "downsample_hidden_size": 16}, **_ids(words, "id"),
    )  # fmt: skip
    save(directory, hf.Qwen3OmniMoeThinkerForConditionalGeneration, config, _processor(hf.Qwen3OmniMoeProcessor, words))


QWEN2_5_OMNI_THINKER: Final = Family(
    name="qwen2_5_omni_thinker", build=build_qwen2_5_omni_thinker, markers=(IMAGE,), around=(START, END)
)
QWEN3_OMNI_MOE_THINKER: Final = Family(
    name="qwen3_omni_moe_thinker", build=build_qwen3_omni_moe_thinker, markers=(IMAGE,), around=(START, END)
)
