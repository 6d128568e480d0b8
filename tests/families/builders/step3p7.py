"""Step 3.7: tiles of a window that slides over the image, line ends behind rows of them, and the whole image."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import template
from families.family import Family, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN

IMAGE: Final = "<im_patch>"
MARKERS: Final = ("<patch_start>", "<patch_end>", "<patch_newline>", "<im_start>", IMAGE, "<im_end>")


def build(directory: Path) -> None:
    words = chatml_tokenizer(*MARKERS)
    processor = hf.Step3p7Processor(
        hf.Step3p7ImageProcessor(
            size={"height": 32, "width": 32}, patch_size=16, max_image_size=48, vision_patch_size=4
        ),
        words, chat_template=template(IMAGE),
    )  # fmt: skip
    text = text_values(
        words, moe_intermediate_size=32, n_routed_experts=4, num_local_experts=4, num_experts_per_tok=2,
        share_expert_dim=32, sliding_window=8, num_sliding_attention_heads=2,
        layer_types=["sliding_attention", "full_attention"], mlp_layer_types=["dense", "sparse"],
    )  # fmt: skip
    vision = {
        "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 4,
        "mlp_ratio": 2.0, "max_position_embeddings": 64,
    }  # fmt: skip
    config = hf.Step3p7Config(vision_config=vision, text_config=text, image_token_id=words.convert_tokens_to_ids(IMAGE))
    save(directory, hf.Step3p7ForConditionalGeneration, config, processor)


STEP3P7: Final = Family(name="step3p7", build=build, markers=MARKERS)
