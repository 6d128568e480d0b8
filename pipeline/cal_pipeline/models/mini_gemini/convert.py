"""Converts checkpoints of other layouts to one Mini-Gemini in Hugging Face's; `cal-convert-mgm` says which."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig

from cal_pipeline.models.mini_gemini import registry
from cal_pipeline.models.mini_gemini import tensor_names as keys
from cal_pipeline.models.mini_gemini.configuration import MiniGeminiConfig
from cal_pipeline.models.mini_gemini.modeling import MiniGeminiForConditionalGeneration
from cal_pipeline.models.mini_gemini.parts import (
    fresh_tensors,
    make_config,
    make_processor,
    parameter_shapes,
)
from cal_pipeline.models.mini_gemini.processor import MiniGeminiProcessor
from cal_pipeline.models.mini_gemini.tensor_files import Piece, load, read_json, tensors_of, write_checkpoint
from cal_schemas.errors import CalError, ConfigError

_PUBLISHED: Final = {"mgm": "llama", "mgm_gemma": "gemma"}
_UNTRAINED: Final = {"llama": "llama", "gemma": "gemma"}
_HEAD, _EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


def convert(
    source: Path, *, output: Path, vision: Path | None = None, aux_vision: Path | None = None,
    tokenizer: Path | None = None, untrained: bool = False, hd: bool = False, seed: int = 0, dry_run: bool = False,
) -> None:  # fmt: skip
    """Writes `output`, which appears complete or not at all; the source's tensors win over the towers' own.

    Raises ConfigError, before anything is written, for folders that are no such checkpoints and for every tensor that
    is missing, left over or of another shape.
    """
    registry.register()
    if output.exists():
        raise ConfigError(f"--output {output} exists already: name another, or remove it")
    described = read_json(source / "config.json")
    kind = described.get("model_type")
    if kind == MiniGeminiConfig.model_type:
        if not hd or untrained:
            raise ConfigError(f"{source} is a {kind} already; --hd makes it one of larger images")
        config, processor, pieces = _enlarged(source)
        useless: list[str] = []
        fresh: Mapping[str, torch.Tensor] = {}
    else:
        languages = _UNTRAINED if untrained else _PUBLISHED
        if kind not in languages:
            wanted = " or ".join(languages)
            raise ConfigError(f"{source} holds a {kind!r} model; {wanted} is wanted {_with(untrained)} --untrained")
        if vision is None or aux_vision is None:
            raise ConfigError(f"a {kind} is converted with both of its towers: give --vision and --aux_vision")
        pieces, useless = plan(source, vision, aux_vision, untrained=untrained)
        try:
            config = make_config(described, languages[kind], vision, pieces, hd=hd)
        except CalError:
            raise
        except (ValueError, TypeError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"the configs of {source} and its towers make no Mini-Gemini: {reason}") from error
        fresh = fresh_tensors(config, seed) if untrained else {}
        pad = described.get("image_aspect_ratio", "pad") == "pad"
        processor = make_processor(config, languages[kind], vision, tokenizer or source, pad=pad)
        config.image_token_index = processor.image_token_id
        useless += _drop_tied_head(config, pieces, source)
    shapes = {name: tuple(tensor.shape) for name, tensor in fresh.items()}
    keys.check_complete({name: piece.shape for name, piece in pieces.items()} | shapes, parameter_shapes(config))
    summary = f"{len(pieces) + len(fresh)} tensors, {len(useless)} of the sources not used"
    if dry_run:
        _print_plan(pieces, fresh, useless)
        print(f"{summary}; every parameter has its tensor. Nothing was written to {output}")  # noqa: T201
        return
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_checkpoint(pieces, fresh, partial)
    config.architectures = [MiniGeminiForConditionalGeneration.__name__]
    config.save_pretrained(partial)
    ids = {name: getattr(config.text_config, name) for name in ("bos_token_id", "eos_token_id")}
    GenerationConfig(**ids, pad_token_id=processor.tokenizer.pad_token_id).save_pretrained(partial)
    processor.save_pretrained(partial)
    partial.rename(output)
    print(f"{summary} -> {output}")  # noqa: T201


def plan(source: Path, vision: Path, aux_vision: Path, *, untrained: bool) -> tuple[dict[str, Piece], list[str]]:
    """Name here -> its tensor in the sources, and those that are of no use; reads headers only."""
    pieces: dict[str, Piece] = {}
    useless: list[str] = []
    # In this order: what the source holds overlays the towers' checkpoints, as the released loader does.
    for folder, rules in ((vision, keys.CLIP), (aux_vision, keys.OPEN_CLIP), (source, keys.PUBLISHED)):
        # Towers and language models are published as pickles, Mini-Gemini is not.
        tensors = tensors_of(folder, pickled=untrained or folder is not source)
        renamed, unused = keys.rename(tensors, rules, str(folder))
        useless += [f"{folder}: {name}" for name in unused]
        towers = {new: pieces[new] for new in renamed.values() if new in pieces}
        useless += [f"{piece.file}: {piece.name} (the source has its own)" for piece in towers.values()]
        pieces.update({new: tensors[old] for old, new in renamed.items()})
    return pieces, useless


def _enlarged(source: Path) -> tuple[MiniGeminiConfig, MiniGeminiProcessor, dict[str, Piece]]:
    """A Mini-Gemini of ours with HD's images: the same weights see a grid of crops and the whole."""
    config = MiniGeminiConfig.from_pretrained(source)
    if config.image_grid != 1:
        raise ConfigError(f"{source} has a grid of {config.image_grid} already")
    small, large = config.aux_vision_config.image_size, 2 * config.aux_vision_config.image_size
    config.aux_vision_config.image_size = large
    values = config.to_dict()
    values.update(image_grid=2, image_global=True)
    processor = MiniGeminiProcessor.from_pretrained(source)
    images = processor.image_processor
    if images.size["shortest_edge"] != small:
        raise ConfigError(f"{source}: the processor's images have {images.size['shortest_edge']} pixels, not {small}")
    settings = {**images.to_dict(), "image_grid": 2, "image_global": True}
    settings.update(size={"shortest_edge": large}, crop_size={"height": large, "width": large})
    processor.image_processor = type(images).from_dict(settings)
    return MiniGeminiConfig(**values), processor, tensors_of(source)


def _drop_tied_head(config: MiniGeminiConfig, pieces: dict[str, Piece], source: Path) -> list[str]:
    if not config.tie_word_embeddings or _HEAD not in pieces:
        return []
    head, embedding = (load(pieces[name].file, [pieces[name].name])[pieces[name].name] for name in (_HEAD, _EMBEDDING))
    if not torch.equal(head, embedding):
        raise ConfigError(f"{source}: {_HEAD} differs from the embedding that its config ties it to")
    del pieces[_HEAD]
    return [f"{source}: {_HEAD} (the embedding once more)"]


def _print_plan(pieces: Mapping[str, Piece], fresh: Mapping[str, Any], useless: Sequence[str]) -> None:
    for name, piece in sorted(pieces.items()):
        print(f"{piece.file}: {piece.name} -> {name} {list(piece.shape)}")  # noqa: T201
    for name, tensor in sorted(fresh.items()):
        print(f"fresh -> {name} {list(tensor.shape)}")  # noqa: T201
    for name in sorted(useless):
        print(f"not used: {name}")  # noqa: T201


def _with(flag: bool) -> str:
    return "with" if flag else "without"
