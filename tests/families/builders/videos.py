"""Families made for videos, shown images: LLaVA's descendants and VideoLLaMA 3."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import IMAGE, PATCHES, VIDEO, template
from families.family import LAYERS, Family, chat, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN, train_tokenizer


def _tokenizer() -> hf.PreTrainedTokenizerFast:
    return train_tokenizer(bos="<s>", eos="</s>", pad="<pad>", add_bos=True, special=["<image>", "<video>"])


_TEMPLATE: Final = chat("<image>\n", user="USER: ", assistant="ASSISTANT: ", end="</s>")


def build_llava_next_video(directory: Path) -> None:
    tokenizer = _tokenizer()
    grid = {"image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]}
    processor = hf.LlavaNextVideoProcessor(
        hf.LlavaNextVideoVideoProcessor(),
        hf.LlavaNextImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, **grid),
        tokenizer, chat_template=_TEMPLATE, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    config = hf.LlavaNextVideoConfig(
        vision_config=hf.CLIPVisionConfig(**LAYERS, image_size=16, patch_size=8, projection_dim=HIDDEN),
        text_config=hf.LlamaConfig(**text_values(tokenizer)), image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id, **grid,
    )  # fmt: skip
    save(directory, hf.LlavaNextVideoForConditionalGeneration, config, processor)


def build_video_llava(directory: Path) -> None:
    """Two vision towers, of which images use one; its processor reports no offsets."""
    tokenizer = _tokenizer()
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    processor = hf.VideoLlavaProcessor(
        hf.VideoLlavaImageProcessor(**size), hf.VideoLlavaVideoProcessor(**size), tokenizer, patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=_TEMPLATE,
    )  # fmt: skip
    config = hf.VideoLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**LAYERS, image_size=16, patch_size=8, projection_dim=HIDDEN),
        text_config=hf.LlamaConfig(**text_values(tokenizer)), image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id, image_seq_length=4,
    )  # fmt: skip
    save(directory, hf.VideoLlavaForConditionalGeneration, config, processor)


def build_video_llama_3(directory: Path) -> None:
    """Images of any size, whose patches are merged by a factor of their own."""
    tokenizer = chatml_tokenizer(IMAGE, VIDEO)
    processor = hf.VideoLlama3Processor(
        hf.VideoLlama3ImageProcessor(**PATCHES, merge_size=2), tokenizer, hf.VideoLlama3VideoProcessor(),
        chat_template=template(IMAGE + "\n"),
    )  # fmt: skip
    config = hf.VideoLlama3Config(
        text_config=hf.Qwen2Config(**text_values(tokenizer)).to_dict(), vision_config={**LAYERS, "patch_size": 4},
        image_token_id=processor.image_token_id, video_token_id=processor.video_token_id,
    )  # fmt: skip
    save(directory, hf.VideoLlama3ForConditionalGeneration, config, processor)


LLAVA_NEXT_VIDEO: Final = Family(name="llava_next_video", build=build_llava_next_video, markers=("<image>",))
VIDEO_LLAVA: Final = Family(name="video_llava", build=build_video_llava, markers=("<image>",))
VIDEO_LLAMA_3: Final = Family(name="video_llama_3", build=build_video_llama_3, markers=(IMAGE,))
