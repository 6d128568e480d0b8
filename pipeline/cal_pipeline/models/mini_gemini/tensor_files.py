"""Reads and writes the tensors of a checkpoint folder by name, file by file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cal_schemas.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One tensor of a checkpoint: which file holds it, under which name."""

    file: Path
    name: str
    shape: tuple[int, ...]


def read_json(file: Path) -> dict[str, Any]:
    """A file's object; ConfigError naming the file when it cannot be read."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error


def tensors_of(folder: Path, *, pickled: bool = False) -> dict[str, Piece]:
    """Every tensor of a folder by its name; reads headers only.

    `pickled` also takes torch's own files where there are no safetensors; no code is run from them. Raises ConfigError
    when there are no weights, a file is none, or two files hold the same name.
    """
    files = _files(folder, "model.safetensors.index.json", "*.safetensors")
    if not files and pickled:
        files = _files(folder, "pytorch_model.bin.index.json", "*.bin")
    if not files:
        if others := _files(folder, "pytorch_model.bin.index.json", "*.bin"):
            raise ConfigError(
                f"{folder} has {others[0].name} and no *.safetensors, which are read here: convert it first"
            )
        kinds = "*.safetensors or *.bin" if pickled else "*.safetensors"
        raise ConfigError(f"{folder} is no folder with weights ({kinds}); download it beforehand, with hf download")
    tensors: dict[str, Piece] = {}
    for file in files:
        for name, shape in _shapes(file).items():
            if name in tensors:
                raise ConfigError(f"{name} is in both {tensors[name].file} and {file}: leave one of them")
            tensors[name] = Piece(file=file, name=name, shape=shape)
    return tensors


def load(file: Path, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """The named tensors of one file, or all."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in names or opened.keys()}
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # Unpickling may raise anything.
        raise ConfigError(f"{file} is no plain file of tensors: {type(error).__name__}: {error}") from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    return tensors if names is None else {name: tensors[name] for name in names}


def write_checkpoint(pieces: Mapping[str, Piece], fresh: Mapping[str, torch.Tensor], directory: Path) -> None:
    """Sharded safetensors with their index: `pieces` by their new names, one file for each file they are read from.

    `fresh` are tensors that no file holds; they get a file of their own. Memory: the largest source file.
    """
    by_file: dict[Path, list[str]] = {}
    for name, piece in pieces.items():
        by_file.setdefault(piece.file, []).append(name)
    count = len(by_file) + bool(fresh)
    index: dict[str, str] = {}
    size = 0

    def save(number: int, tensors: Mapping[str, torch.Tensor]) -> int:
        target = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file(dict(tensors), directory / target, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, target))
        return sum(tensor.nbytes for tensor in tensors.values())

    for number, (file, names) in enumerate(sorted(by_file.items()), start=1):
        loaded = load(file, [pieces[name].name for name in names])
        size += save(number, {name: loaded[pieces[name].name].clone().contiguous() for name in names})
    if fresh:
        size += save(count, fresh)
    whole = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def _files(folder: Path, index: str, pattern: str) -> list[Path]:
    """The weight files of a folder: those its index names, else all of the pattern."""
    if not (folder / index).is_file():
        return sorted(folder.glob(pattern))
    named = {folder / Path(name).name for name in read_json(folder / index).get("weight_map", {}).values()}
    if absent := sorted(str(file) for file in named if not file.is_file()):
        raise ConfigError(f"{folder / index} names {absent[0]}, which is not there")
    return sorted(named)


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in load(file).items()}
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises a class of its own.
        raise ConfigError(f"{file} is no safetensors file: {error}") from error
