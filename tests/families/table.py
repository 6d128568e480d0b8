"""Every family of the coverage matrix, by the name it has in docs/models.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from families import mrope, processors, tiles
from families.case import Case

AT_MODEL_LEVEL: Final[dict[str, Callable[[], Case]]] = {
    build.__name__: build
    for build in (
        tiles.llava_onevision, mrope.qwen2_vl, mrope.qwen2_5_vl, mrope.qwen3_vl, mrope.qwen3_5, mrope.glm4v,
        tiles.smolvlm, tiles.internvl, tiles.mistral3, tiles.cohere2_vision, tiles.llama4, tiles.gemma4, tiles.lfm2_vl,
        tiles.instructblip,
    )
}  # fmt: skip
"""Their processors need torchvision (instructblip's is refused): samples are token ids as those would write them."""

REQUIRED: Final = (
    "llava", "vipllava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "idefics2",
    "idefics3", "smolvlm", "internvl", "mistral3", "paligemma", "paligemma2", "gemma3", "aya_vision", "cohere2_vision",
    "llama4", "mllama", "blip_2",
)  # fmt: skip
TRIED: Final = ("instructblip", "gemma4", "deepseek_vl", "lfm2_vl", "qwen3_5", "granite4_vision")
NAMES: Final = (*REQUIRED, *TRIED)

NOT_BUILT: Final = {
    "gemma3n": "its vision tower comes from timm, which needs torchvision",
    "fast_vlm": "its vision tower comes from timm, which needs torchvision",
    "perception_lm": "its vision tower comes from timm, which needs torchvision",
}
"""Families that could not be tried here, and why."""


def make(name: str, directory: Path) -> Case:
    """The family's tiny model and samples; `directory` holds its checkpoint where it has a processor."""
    if name in AT_MODEL_LEVEL:
        return AT_MODEL_LEVEL[name]()
    processors.BUILDERS[name](directory)
    return processors.case(*processors.load(directory, name), name)
