"""Maps the tensor names of the published Mini-Gemini layout, and of its towers' checkpoints, to ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from cal_schemas.errors import ConfigError

Rules = Sequence[tuple[str, str | None]]
"""A pattern over the whole name and its replacement; None: known, and of no use here."""

_AUX: Final = "model.aux_vision_tower."
_CONVNEXT: Final[Rules] = (
    (r"stem\.0\.(weight|bias)", _AUX + r"embeddings.patch_embeddings.\1"),
    (r"stem\.1\.(weight|bias)", _AUX + r"embeddings.layernorm.\1"),
    (r"stages\.(\d+)\.downsample\.([01])\.(weight|bias)", _AUX + r"encoder.stages.\1.downsampling_layer.\2.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(weight|bias)", _AUX + r"encoder.stages.\1.layers.\2.dwconv.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm\.(weight|bias)", _AUX + r"encoder.stages.\1.layers.\2.layernorm.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.(weight|bias)", _AUX + r"encoder.stages.\1.layers.\2.pwconv\3.\4"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.gamma", _AUX + r"encoder.stages.\1.layers.\2.layer_scale_parameter"),
)

PUBLISHED: Final[Rules] = (
    (r".+\.position_ids|.+\.rotary_emb\.inv_freq", None),  # Buffers that old versions of transformers saved.
    (r"model\.vision_tower\.vision_tower\.vision_model\.(.+)", r"model.vision_tower.\1"),
    *((r"model\.vision_tower_aux\.vision_" + pattern, target) for pattern, target in _CONVNEXT),
    (r"model\.vlm_uni_query_projector\.([01])\.(weight|bias)", r"model.patch_info_mining.query.\1.\2"),
    (r"model\.vlm_uni_aux_projector\.([01])\.(weight|bias)", r"model.patch_info_mining.key.\1.\2"),
    (r"model\.vlm_uni_val_projector\.([01])\.(weight|bias)", r"model.patch_info_mining.value.\1.\2"),
    (r"model\.mm_projector\.0\.(weight|bias)", r"model.multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(weight|bias)", r"model.multi_modal_projector.linear_2.\1"),
    (r"model\.((?:embed_tokens|layers|norm)\..+)", r"model.language_model.\1"),
    (r"lm_head\.weight", r"lm_head.weight"),
)
CLIP: Final[Rules] = (
    (r".+\.position_ids", None),
    (r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)", r"model.vision_tower.\1"),
    # The text tower of a whole CLIP, and what joins the two.
    (r"text_model\..+|(?:text|visual)_projection\.weight|logit_scale", None),
)
OPEN_CLIP: Final[Rules] = (
    *((r"visual\.trunk\." + pattern, target) for pattern, target in _CONVNEXT),
    # The pooled head of the image, and the text tower.
    (r"visual\.(?:trunk\.)?(?:head|norm_pre)\..+", None),
    (r"(?:text|transformer|token_embedding|ln_final)\..+", None),
    (r"positional_embedding|text_projection|logit_scale|logit_bias|attn_mask", None),
)


def rename(names: Collection[str], rules: Rules, source: str) -> tuple[dict[str, str], list[str]]:
    """(name in the source -> name here, names known to be of no use).

    Raises ConfigError naming what no rule knows, and two names that would become one.
    """
    renamed: dict[str, str] = {}
    useless, unknown = [], []
    for name in names:
        for pattern, target in rules:
            if match := re.fullmatch(pattern, name):
                if target is None:
                    useless.append(name)
                else:
                    renamed[name] = match.expand(target)
                break
        else:
            unknown.append(name)
    if unknown:
        raise ConfigError(
            f"{source} holds {len(unknown)} tensors that no part of Mini-Gemini is made of: {_some(unknown)}; is it "
            "the published layout (mgm, mgm_gemma; CLIP; OpenCLIP's ConvNeXt)?"
        )
    if len(set(renamed.values())) < len(renamed):
        twice = [name for name, target in renamed.items() if list(renamed.values()).count(target) > 1]
        raise ConfigError(f"{source} holds tensors that mean the same parameter: {_some(twice)}")
    return renamed, useless


def check_complete(shapes: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> None:
    """ConfigError naming parameters without a tensor, tensors without a parameter, and shapes that differ."""
    problems = []
    if missing := [name for name in expected if name not in shapes]:
        problems.append(f"no tensor for {len(missing)} parameters: {_some(missing)}")
    if extra := [name for name in shapes if name not in expected]:
        problems.append(f"{len(extra)} tensors the config has no place for: {_some(extra)}")
    for name in sorted(shapes.keys() & expected.keys()):
        if tuple(shapes[name]) != tuple(expected[name]):
            shape = tuple(shapes[name])
            problems.append(f"{name} is {shape} in the checkpoint, {tuple(expected[name])} by the configs")
            break
    if problems:
        raise ConfigError("the checkpoints do not make a whole Mini-Gemini: " + "; ".join(problems))


def _some(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(sorted(names)[:limit]) + (f", … ({len(names) - limit} more)" if len(names) > limit else "")
