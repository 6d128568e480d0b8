"""SmolVLM2: Idefics3's tiles with markers of rows and columns, and one of the whole image."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.family import LAYERS, Family, chat, save, text_values
from tiny_models import train_tokenizer

_NAMED: Final = {
    "fake_image_token": "<fake_token_around_image>", "image_token": "<image>", "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}  # fmt: skip


def build(directory: Path) -> None:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = train_tokenizer(
        bos="<|im_start|>", eos="<end_of_utterance>", pad="<pad>", add_bos=False,
        special=[*tiles, *(token for token in _NAMED.values() if token != "<end_of_utterance>")], named=_NAMED,
    )  # fmt: skip
    template = chat("<image>", begin="<|im_start|>", user="User:", assistant="Assistant:", end="<end_of_utterance>\n")
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}), tokenizer,
        hf.SmolVLMVideoProcessor(), image_seq_len=4, chat_template=template,
    )  # fmt: skip
    config = hf.SmolVLMConfig(
        vision_config={**LAYERS, "image_size": 16, "patch_size": 4},
        text_config=hf.LlamaConfig(**text_values(tokenizer)), image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id, scale_factor=2,
    )  # fmt: skip
    save(directory, hf.SmolVLMForConditionalGeneration, config, processor)


SMOLVLM: Final = Family(
    name="smolvlm",
    build=build,
    markers=("<fake_token_around_image>", "<row_1_col_1>", "<global-img>", "<image>"),
)
