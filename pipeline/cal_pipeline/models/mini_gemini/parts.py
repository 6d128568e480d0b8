"""Makes the configs, the processor and the fresh parts of a Mini-Gemini from other checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import CLIPVisionConfig, GemmaConfig, LlamaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from cal_pipeline.models.mini_gemini.configuration import MiniGeminiConfig
from cal_pipeline.models.mini_gemini.modeling import MiniGeminiForConditionalGeneration, PatchInfoMining
from cal_pipeline.models.mini_gemini.processor import MiniGeminiImageProcessor, MiniGeminiProcessor
from cal_pipeline.models.mini_gemini.tensor_files import Piece, read_json
from cal_pipeline.models.mini_gemini.text import chat_template, load_tokenizer
from cal_schemas.errors import ConfigError

_TEXT_CONFIGS: Final = {"llama": LlamaConfig, "gemma": GemmaConfig}
_AUX: Final = "model.aux_vision_tower."
AUX_SIZE: Final = 768
"""Side of the high-resolution image, in pixels; twice that for HD."""


def make_config(
    source: Mapping[str, Any], language: str, vision: Path, pieces: Mapping[str, Piece], *, hd: bool
) -> MiniGeminiConfig:
    """The language model's config from the source's, CLIP's own, the ConvNeXt's from the shapes of its tensors."""
    text_class = _TEXT_CONFIGS[language]
    known = {*text_class().to_dict(), "rope_theta", "rope_scaling"}
    known -= {"model_type", "architectures", "transformers_version", "dtype", "torch_dtype"}
    clip = read_json(vision / "config.json")
    clip = clip.get("vision_config", clip)
    tied = source.get("tie_word_embeddings", text_class().tie_word_embeddings)
    dtype = source.get("torch_dtype") or source.get("dtype")
    return MiniGeminiConfig(
        text_config=text_class(**{key: value for key, value in source.items() if key in known}),
        vision_config=CLIPVisionConfig(**{k: v for k, v in clip.items() if k in CLIPVisionConfig().to_dict()}),
        aux_vision_config={
            **_convnext({name.removeprefix(_AUX): p.shape for name, p in pieces.items() if name.startswith(_AUX)}),
            "image_size": 2 * AUX_SIZE if hd else source.get("image_size_aux", AUX_SIZE),
        },
        image_grid=2 if hd else source.get("image_grid", 1),
        image_global=hd or source.get("image_global", False),
        vision_feature_layer=source.get("mm_vision_select_layer", -2),
        tie_word_embeddings=tied,
        **({"dtype": dtype} if dtype else {}),
    )  # fmt: skip


def _convnext(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Reads the ConvNeXt's config off names and shapes of tensors: OpenCLIP's checkpoints come without one."""
    layers = [name.split(".") for name in shapes if name.endswith(".layer_scale_parameter")]
    if not layers or "embeddings.patch_embeddings.weight" not in shapes:
        raise ConfigError("--aux_vision holds no ConvNeXt (visual.trunk.stem, visual.trunk.stages)")
    stages = range(1 + max(int(parts[2]) for parts in layers))
    return {
        "model_type": "convnext",
        "depths": [sum(int(parts[2]) == stage for parts in layers) for stage in stages],
        "hidden_sizes": [shapes[f"encoder.stages.{stage}.layers.0.layer_scale_parameter"][0] for stage in stages],
        "patch_size": shapes["embeddings.patch_embeddings.weight"][-1],
    }


def make_processor(
    config: MiniGeminiConfig, language: str, vision: Path, tokenizer: Path, *, pad: bool
) -> MiniGeminiProcessor:
    """The processor, with CLIP's colours, the config's sizes, and the template of the language model."""
    clip = read_json(vision / "preprocessor_config.json")
    if missing := {"image_mean", "image_std"} - clip.keys():
        raise ConfigError(f"{vision / 'preprocessor_config.json'} does not say {', '.join(sorted(missing))}")
    side = config.aux_vision_config.image_size
    images = MiniGeminiImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_pad=pad,
        image_mean=clip["image_mean"], image_std=clip["image_std"],
        low_res_size=config.vision_config.image_size, image_grid=config.image_grid, image_global=config.image_global,
    )  # fmt: skip
    return MiniGeminiProcessor(
        images, load_tokenizer(tokenizer, language), patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default", chat_template=chat_template(language),
    )  # fmt: skip


def parameter_shapes(config: MiniGeminiConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter that a checkpoint of this config holds: a tied head is not saved."""
    with torch.device("meta"):
        model = MiniGeminiForConditionalGeneration(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    named = model.named_parameters(remove_duplicate=False)
    return {name: tuple(parameter.shape) for name, parameter in named if name not in tied}


def fresh_tensors(config: MiniGeminiConfig, seed: int) -> dict[str, torch.Tensor]:
    """Projector and patch info mining as pretraining starts them: torch's own initial values, float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "multi_modal_projector": LlavaMultiModalProjector(config),
            "patch_info_mining": PatchInfoMining(config),
        }
    named = ((part, module.state_dict()) for part, module in parts.items())
    return {f"model.{part}.{name}": tensor for part, state in named for name, tensor in state.items()}
