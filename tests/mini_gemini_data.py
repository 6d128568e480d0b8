"""Mini-Gemini checkpoints for tests, converted from the tiny ones of the authors' layout in tests/goldens/mgm."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file, save_file
from torch import Tensor

from cal_pipeline.models.mini_gemini.convert import convert

GOLDENS: Final = Path(__file__).parent / "goldens" / "mgm"
KINDS: Final = ("llama", "gemma")


def source(kind: str) -> dict[str, Path]:
    """Arguments of `convert` that name the golden checkpoint of a decoder and its towers."""
    folder = GOLDENS / f"{kind}_small"
    return {
        "source": folder, "vision": folder / "clip", "aux_vision": folder / "openclip",
        "tokenizer": GOLDENS / f"tok_{kind}.model",
    }  # fmt: skip


def build_mini_gemini(directory: Path, kind: str = "llama", **options: Any) -> Path:
    """A whole tiny Mini-Gemini: 16 image tokens of 56 pixels, mined from images of 128."""
    convert(**{**source(kind), "output": directory, **options})
    return directory


def build_mini_gemini_hd(directory: Path, kind: str = "llama") -> Path:
    """Its HD twin: 80 image tokens, mined from 256 pixels."""
    small = build_mini_gemini(directory.with_name(f"{directory.name}-small"), kind)
    convert(small, output=directory, hd=True)
    return directory


def stripped_source(kind: str, folder: Path) -> Path:
    """The golden checkpoint without its towers, in two files with an index: how a large one is published."""
    folder.mkdir(parents=True)
    given = source(kind)["source"]
    shutil.copy(given / "config.json", folder)
    tensors = {key: value for key, value in load_file(given / "model.safetensors").items() if "vision_tower" not in key}
    save_parts(tensors, folder)
    return folder


def save_parts(tensors: dict[str, Tensor], folder: Path) -> None:
    """Two safetensors files, no index."""
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = folder / f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, file, metadata={"format": "pt"})


MINI_GEMINI: Final[dict[str, Callable[[Path], Path]]] = {
    "mini_gemini": build_mini_gemini,
    "mini_gemini_gemma": partial(build_mini_gemini, kind="gemma"),
    "mini_gemini_hd": build_mini_gemini_hd,
}
"""As tiny_models.FAMILIES; `family` of conftest.py builds either."""
