"""Models whose processors write prompts of their own and take no conversation: from token ids, at model level."""

from __future__ import annotations

from typing import Any, Final

import transformers as hf

from families.case import VOCABULARY, Case, Image, pixels, token_samples
from families.family import LAYERS, FamilyOfIds
from tiny_models import HIDDEN, build

_START, _END, _IMAGE = 1, 2, 3
_TEXT: Final[dict[str, Any]] = {
    **LAYERS, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 6,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip


def got_ocr2() -> Case:
    """SAM's tower, whose convolutions leave 16 tokens."""
    tower = {
        "hidden_size": HIDDEN, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 4, "mlp_dim": 64, "window_size": 4, "global_attn_indexes": [1],
        "num_pos_feats": 16,
    }  # fmt: skip
    config = hf.GotOcr2Config(
        vision_config=tower, text_config=hf.Qwen2Config(**_TEXT), image_token_index=_IMAGE, image_seq_length=16,
        tie_word_embeddings=False,
    )  # fmt: skip

    def image(seed: int) -> Image:
        inputs = {"pixel_values": pixels(seed, 1, 3, 64, 64)}
        return Image(ids=[_IMAGE] * 16, inputs=inputs, before=[_START], after=[_END])

    return Case(model=build(hf.GotOcr2ForConditionalGeneration, config), samples=token_samples(image))


def shieldgemma2() -> Case:
    """Gemma 3 by another name."""
    config = hf.ShieldGemma2Config(
        vision_config={
            "model_type": "siglip_vision_model", **LAYERS, "image_size": 28, "patch_size": 7, "vision_use_head": False,
        },
        text_config={
            "model_type": "gemma3_text", **_TEXT, "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 512, "query_pre_attn_scalar": 16,
        },
        mm_tokens_per_image=4, boi_token_index=_START, eoi_token_index=_END, image_token_index=_IMAGE,
    )  # fmt: skip

    def image(seed: int) -> Image:
        return Image(ids=[_START, *[_IMAGE] * 4, _END], inputs={"pixel_values": pixels(seed, 1, 3, 28, 28)})

    samples = token_samples(image, type_ids="token_type_ids")
    return Case(model=build(hf.Gemma3ForConditionalGeneration, config), samples=samples)


GOT_OCR2: Final = FamilyOfIds(name="got_ocr2", case=got_ocr2, end_to_end="refused: its processor")
SHIELDGEMMA2: Final = FamilyOfIds(name="shieldgemma2", case=shieldgemma2, end_to_end="refused: its processor")
