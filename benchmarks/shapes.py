"""Builds models and batches of the shapes that benchmarks share: random weights from configs, nothing is downloaded.

The named models have their published sizes, with LLaVA's classes around the decoder (Qwen2.5-VL has its own). `cpu` is
narrow and keeps what matters for the ratios: a vision tower of a few per cent, a head about as large as the decoder.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import transformers as hf
from torch import Tensor

from cal_schemas.spec import IGNORE_INDEX

PAD_TOKEN, IMAGE_TOKEN = 2, 4
"""As in the tokenizer of `workload`."""
FIRST_WORD = 8
SYSTEM_TOKENS = 8
"""Text before the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Of a model, and of the samples it is given."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    decoder: Literal["llama", "gemma", "qwen2_5_vl"] = "llama"
    head_dim: int | None = None
    tied: bool = False
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int
    tile_tokens: int
    """Image tokens of one pass of the vision tower; more of them are more tiles."""
    image_tokens: int
    text_tokens: int
    supervised_tokens: int
    batch: int = 1

    def __post_init__(self) -> None:
        if self.decoder != "qwen2_5_vl":
            assert self.image_tokens % self.tile_tokens == 0, (self.image_tokens, self.tile_tokens)
        assert self.supervised_tokens + SYSTEM_TOKENS <= self.text_tokens

    @property
    def num_tokens(self) -> int:
        return self.image_tokens + self.text_tokens

    @property
    def width_of_heads(self) -> int:
        return self.head_dim or self.hidden // self.heads

    def with_image_tokens(self, image_tokens: int) -> Shape:
        """One tile up to the tile's size, several beyond."""
        tile = self.tile_tokens if image_tokens % self.tile_tokens == 0 else image_tokens
        return replace(self, image_tokens=image_tokens, tile_tokens=tile)


_VICUNA = {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "intermediate": 11008, "vocabulary": 32064}
_CLIP_L = {"vision_hidden": 1024, "vision_layers": 24, "vision_heads": 16, "vision_intermediate": 4096}
_TEXT = {"text_tokens": 250, "supervised_tokens": 150}
SHAPES = {
    "tiny": Shape(
        hidden=64, layers=2, heads=2, kv_heads=2, intermediate=192, vocabulary=2_000,
        vision_hidden=32, vision_layers=2, vision_heads=2, vision_intermediate=64,
        tile_tokens=16, image_tokens=16, text_tokens=48, supervised_tokens=32, batch=2,
    ),
    "cpu": Shape(
        hidden=512, layers=4, heads=8, kv_heads=8, intermediate=1536, vocabulary=32_000,
        vision_hidden=128, vision_layers=3, vision_heads=2, vision_intermediate=512,
        tile_tokens=576, image_tokens=576, text_tokens=128, supervised_tokens=96,
    ),
    "llava15-7b": Shape(**_VICUNA, **_CLIP_L, **_TEXT, tile_tokens=576, image_tokens=576, batch=8),
    "llavanext-7b": Shape(**_VICUNA, **_CLIP_L, **_TEXT, tile_tokens=576, image_tokens=2880, batch=2),
    "qwen25vl-3b": Shape(
        hidden=2048, layers=36, heads=16, kv_heads=2, intermediate=11008, vocabulary=151_936, decoder="qwen2_5_vl",
        tied=True, vision_hidden=1280, vision_layers=32, vision_heads=16, vision_intermediate=3420,
        tile_tokens=1024, image_tokens=1024, **_TEXT, batch=4,
    ),
    "gemma-2b-vocab": Shape(
        hidden=2048, layers=18, heads=8, kv_heads=1, head_dim=256, intermediate=16384, vocabulary=256_000,
        decoder="gemma", tied=True, vision_hidden=1152, vision_layers=27, vision_heads=16, vision_intermediate=4304,
        tile_tokens=256, image_tokens=256, **_TEXT, batch=8,
    ),
}  # fmt: skip
PATCH = 14
QWEN_WINDOW, QWEN_FULL_ATTENTION = 8 * PATCH, (7, 15, 23, 31)
"""Pixels of a side; layers of the tower that see all of the image."""


def add_shape_flags(parser: ArgumentParser, default: str = "cpu") -> None:
    parser.add_argument("--shape", choices=SHAPES, default=default)
    parser.add_argument("--image_tokens", type=int, help="instead of the shape's own")
    parser.add_argument("--vocabulary", type=int, help="instead of the shape's own")
    parser.add_argument("--layers", type=int, help="of the decoder, instead of the shape's own")
    parser.add_argument("--batch", type=int, help="samples, instead of the shape's own")


def shape_of(flags: Namespace) -> tuple[str, Shape]:
    """The name of what the flags ask for, and the shape itself."""
    shape, name = SHAPES[flags.shape], flags.shape
    for flag in ("image_tokens", "vocabulary", "layers", "batch"):
        value = getattr(flags, flag)
        if value is not None:
            shape = shape.with_image_tokens(value) if flag == "image_tokens" else replace(shape, **{flag: value})
            name += f"-{flag.removesuffix('_tokens')}{value}"
    return name, shape


def build_model(shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A model in eval mode whose weights are drawn anew, from a fixed seed."""
    torch.manual_seed(0)
    model_class, config = _configs(shape)
    config.dtype = dtype
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return model_class(config).eval()
    finally:
        torch.set_default_dtype(before)


def _configs(shape: Shape) -> tuple[type[Any], Any]:
    text: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": shape.tied,
        "pad_token_id": PAD_TOKEN,
    }
    if shape.head_dim:
        text["head_dim"] = shape.head_dim
    if shape.decoder == "qwen2_5_vl":
        half = shape.width_of_heads // 2
        sections = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
        vision = {
            "depth": shape.vision_layers,
            "hidden_size": shape.vision_hidden,
            "num_heads": shape.vision_heads,
            "intermediate_size": shape.vision_intermediate,
            "out_hidden_size": shape.hidden,
            "patch_size": PATCH,
            "window_size": QWEN_WINDOW,
            "fullatt_block_indexes": list(QWEN_FULL_ATTENTION),
        }
        config = hf.Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, image_token_id=IMAGE_TOKEN, vision_start_token_id=5,
            vision_end_token_id=6, video_token_id=7, tie_word_embeddings=shape.tied,
        )  # fmt: skip
        return hf.Qwen2_5_VLForConditionalGeneration, config
    vision_config = hf.CLIPVisionConfig(
        hidden_size=shape.vision_hidden, intermediate_size=shape.vision_intermediate, projection_dim=64,
        num_hidden_layers=shape.vision_layers, num_attention_heads=shape.vision_heads, image_size=_side(shape),
        patch_size=PATCH,
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=vision_config,
        text_config=hf.GemmaConfig(**text) if shape.decoder == "gemma" else hf.LlamaConfig(**text),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=shape.tile_tokens,
        tie_word_embeddings=shape.tied,
    )
    return hf.LlavaForConditionalGeneration, config


def _side(shape: Shape) -> int:
    side = math.isqrt(shape.tile_tokens)
    assert side * side == shape.tile_tokens, f"{shape.tile_tokens} tokens are no square tile"
    return side * PATCH


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledBatch:
    """What the two passes take; entries as in `cal_pipeline.encoding.collate.Batch`."""

    inputs: dict[str, Tensor]
    labels: Tensor
    image_mask: Tensor
    deltas: Tensor
    """[B, T] float32, drawn; NaN where unsupervised."""


def build_batch(shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LabelledBatch:
    """Equal rows of text, image, text; the last tokens are supervised."""
    generator = torch.Generator().manual_seed(1)
    size = shape.batch, shape.num_tokens
    input_ids = torch.randint(FIRST_WORD, shape.vocabulary, size, generator=generator)
    image_mask = torch.zeros(size, dtype=torch.bool)
    image_mask[:, SYSTEM_TOKENS : SYSTEM_TOKENS + shape.image_tokens] = True
    input_ids[image_mask] = IMAGE_TOKEN
    labels = torch.full(size, IGNORE_INDEX)
    labels[:, -shape.supervised_tokens :] = input_ids[:, -shape.supervised_tokens :]
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if shape.decoder == "qwen2_5_vl":
        grid = _grid(shape.image_tokens)
        inputs["pixel_values"] = torch.randn(
            shape.batch * grid[0] * grid[1], 3 * 2 * PATCH * PATCH, generator=generator
        ).to(dtype)
        inputs["image_grid_thw"] = torch.tensor([[1, *grid]] * shape.batch)
        inputs["mm_token_type_ids"] = image_mask.long()
    else:
        tiles = shape.batch * shape.image_tokens // shape.tile_tokens
        side = _side(shape)
        inputs["pixel_values"] = torch.randn(tiles, 3, side, side, generator=generator).to(dtype)
    deltas = torch.randn(size, generator=generator) * 4
    return LabelledBatch(
        inputs={key: value.to(device) for key, value in inputs.items()},
        labels=labels.to(device),
        image_mask=image_mask.to(device),
        deltas=torch.where(labels == IGNORE_INDEX, torch.nan, deltas).to(device),
    )


def _grid(image_tokens: int) -> tuple[int, int]:
    """Patches, height and width, of an image with so many merged tokens, as square as it gets."""
    height = next(side for side in range(math.isqrt(image_tokens), 0, -1) if image_tokens % side == 0)
    return 2 * height, 2 * image_tokens // height
