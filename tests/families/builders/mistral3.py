"""Mistral 3: Pixtral's rows of patches, a break token behind each, an end token behind the last."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.family import LAYERS, Family, save, text_values
from tiny_models import train_tokenizer

MARKERS: Final = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")


def processor() -> hf.PixtralProcessor:
    """Pixtral's, with Mistral's tokens and template."""
    tokenizer = train_tokenizer(
        bos="<s>", eos="</s>", pad="<pad>", add_bos=False, special=["[INST]", "[/INST]", *MARKERS]
    )
    template = (
        "{{ bos_token }}{% for m in messages %}{% set parts = m['content'] if m['content'] is not string else "
        "[{'type': 'text', 'text': m['content']}] %}{{ '[INST]' if m['role'] == 'user' }}{% for part in parts %}"
        "{{ '[IMG]' if part['type'] == 'image' else part['text'] }}{% endfor %}"
        "{{ '[/INST]' if m['role'] == 'user' else eos_token }}{% endfor %}"
    )
    return hf.PixtralProcessor(
        hf.PixtralImageProcessor(patch_size=4, size={"longest_edge": 32}), tokenizer, patch_size=4,
        spatial_merge_size=2, chat_template=template,
    )  # fmt: skip


def build(directory: Path) -> None:
    made = processor()
    tokenizer = made.tokenizer
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**LAYERS, head_dim=16, image_size=32, patch_size=4),
        text_config=hf.MistralConfig(**text_values(tokenizer), sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2,
    )  # fmt: skip
    save(directory, hf.Mistral3ForConditionalGeneration, config, made)


MISTRAL3: Final = Family(name="mistral3", build=build, markers=MARKERS)
