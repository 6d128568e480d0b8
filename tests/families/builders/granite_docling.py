"""Granite Docling: Idefics3's tiles, features of several vision layers entering several layers of the decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.family import LAYERS, Family, chat, save, text_values
from tiny_models import HIDDEN, train_tokenizer


def build(directory: Path) -> None:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = train_tokenizer(
        bos="<|start_of_role|>", eos="<|end_of_text|>", pad="<pad>", add_bos=False,
        special=[*tiles, "<|end_of_role|>", "<fake_token_around_image>", "<global-img>", "<image>"],
    )  # fmt: skip
    template = chat(
        "<image>", user="<|start_of_role|>user<|end_of_role|>", assistant="<|start_of_role|>assistant<|end_of_role|>",
        end="<|end_of_text|>\n",
    )  # fmt: skip
    processor = hf.GraniteDoclingProcessor(
        hf.GraniteDoclingImageProcessor(size={"height": 16, "width": 16}, min_patches=1, max_patches=4), tokenizer,
        image_seq_len=4, chat_template=template,
    )  # fmt: skip
    vision = {
        **LAYERS, "image_size": 16, "patch_size": 4, "out_hidden_size": HIDDEN, "scale_factor": 2,
        "deepstack_visual_indexes": [0, 1, 1], "use_fine_route": False,
    }  # fmt: skip
    config = hf.GraniteDoclingConfig(
        text_config=text_values(
            tokenizer, logits_scaling=1.0, embedding_multiplier=1.0, residual_multiplier=1.0, attention_multiplier=0.25
        ),
        vision_config=vision, image_token_id=processor.image_token_id, pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )  # fmt: skip
    save(directory, hf.GraniteDoclingForConditionalGeneration, config, processor)


GRANITE_DOCLING: Final = Family(
    name="granite_docling",
    build=build,
    markers=("<fake_token_around_image>", "<row_1_col_1>", "<global-img>", "<image>"),
)
