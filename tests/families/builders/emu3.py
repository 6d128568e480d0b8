"""Emu3: images become tokens of a codebook, by a coder with batch norms."""

from __future__ import annotations

from typing import Any, Final

import torch
import transformers as hf

from families.case import VOCABULARY, Case, Image, pixels, token_samples
from families.family import LAYERS, FamilyOfIds
from tiny_models import build

_TEXT: Final[dict[str, Any]] = {**LAYERS, "vocab_size": VOCABULARY, "pad_token_id": 0, "num_key_value_heads": 1}


def emu3() -> Case:
    """Batch norms where images become tokens."""
    vocabulary = {f"<|visual token {number:06d}|>": 20 + number for number in range(32)}
    config = hf.Emu3Config(
        vq_config={
            "codebook_size": 32, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "num_res_blocks": 1,
            "channel_multiplier": [1, 1], "attn_resolutions": [], "hidden_size": 32, "temporal_downsample_factor": 1,
        },
        text_config={**_TEXT, "head_dim": 16, "max_position_embeddings": 512, "attention_dropout": 0.0},
        vocabulary_map={**vocabulary, "<image>": 3, "<|extra_200|>": 4},
    )  # fmt: skip

    def image(seed: int) -> Image:
        inputs = {"pixel_values": pixels(seed, 1, 3, 16, 16), "image_sizes": torch.tensor([[16, 16]])}
        return Image(ids=[1, *[3] * 72, 2], inputs=inputs)

    return Case(model=build(hf.Emu3ForConditionalGeneration, config), samples=token_samples(image))


EMU3: Final = FamilyOfIds(
    name="emu3", case=emu3, end_to_end="no: its processor was not tried", parts=("language_model",)
)
