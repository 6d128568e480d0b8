"""Chooses which parameters train, and at which learning rate: parts of the model by name or by pattern.

`vision_tower` is the image encoder, `language_model` the decoder with its embeddings and output head, `projector` what
stands between them. Any other name is a regular expression, searched for in the parameters' names.

Frozen parts stay in the mode the Trainer sets (train), as in the released code: transformers checkpoints activations
only of modules in train mode, and a frozen decoder under a training projector is where that memory goes. So dropout
in a frozen tower acts; the usual towers and decoders have none, and `active_dropout` tells.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from cal_schemas.errors import ConfigError

Part = Literal["vision_tower", "projector", "language_model"]
PARTS: Final[tuple[Part, ...]] = ("vision_tower", "projector", "language_model")
ALL: Final = "all"
_OTHER_MODALITIES: Final = re.compile(r"(^|\.)(audio_|embed_audio\.|video_tower\.|generation_|vqmodel\.)")
"""Names of what takes audio or videos alone (Video-LLaVA) or makes images (Janus): no image that is shown and no word
passes through it."""
_DROPS: Final = re.compile("dropout|droppath|dropblock|stochasticdepth")
_OF_OTHER_HEADS: Final = re.compile("^(classifier|cls|summary)_")
"""Settings of heads that sort texts into classes; a model that writes text has none, a language model's config may."""

_PROJECTORS: Final = frozenset({
    "multi_modal_projector", "multimodal_projector", "mm_projector", "projector", "image_newline",  # LLaVA and its kin
    "connector",  # Idefics, SmolVLM: its resampler or pixel shuffle with a linear layer
    "aligner",  # Janus
    "vision_projection",  # LightOnOCR, Muse
    "resampler_model",  # Ernie 4.5 VL
    "merger", "merger_list", "deepstack_merger_list",  # Qwen-VL, GLM-V: inside the vision tower, yet trained as this
    "patch_merger",  # HunYuan-VL, likewise
    "perceiver_resampler", "vision_resampler",  # cross-attention resamplers
    "qformer", "query_tokens", "language_projection",  # BLIP-2, InstructBLIP
    "view_separator",  # Deepseek-OCR 2: beside image_newline
    "embed_vision",  # Gemma 3n, Gemma 4
    "layerwise_projectors", "spatial_projectors",  # Granite Vision
    "high_res_vision_neck", "high_res_vision_proj", "high_res_vision_alpha",  # Deepseek-VL's second tower
    "visual_embeddings_table",  # Ovis 2: the vocabulary that its tower's features are mixtures of
    "vision_adapter",  # Muse, before it
})  # fmt: skip
"""Names that transformers gives to what stands between tower and decoder; a module or a bare parameter."""

_NO_DECAY: Final = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""As in `transformers.Trainer.get_decay_parameter_names`, whose layer class is nn.LayerNorm."""


def part_of_each(model: Any) -> dict[str, Part | None]:
    """Parameter name to part, tied parameters under each of their names; None for what belongs to no part.

    Takes a transformers image-text-to-text model, wrapped by peft or not: the names are the (wrapped) model's own.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    modules = {id(module): name for name, module in model.named_modules()}
    decoder, head, tower = model.get_decoder(), model.get_output_embeddings(), model.get_encoder(modality="image")
    # What a model answers when it has no such module is itself, which has a name of no length here.
    modules_of = {"decoder": decoder, "head": head, "tower": tower}
    inside = {key: modules.get(id(module), "") for key, module in modules_of.items()}

    def part(name: str) -> Part | None:
        def under(key: str) -> bool:
            return bool(inside[key]) and name.startswith(inside[key] + ".")

        if under("decoder") or under("head"):
            return "language_model"
        above = name[len(inside["tower"]) + 1 :] if under("tower") else name
        steps = above.split(".")
        # Inside the tower only a direct child counts: some towers merge patches deep within, as a layer like others.
        if not _PROJECTORS.isdisjoint(steps[:1] if under("tower") else steps):
            return "projector"
        return "vision_tower" if under("tower") or "high_res_vision_model" in steps else None

    return {name: part(name) for name in names}


def set_trainable(model: Any, parts: Sequence[str]) -> list[str]:
    """Freezes the model except for `parts`: names of PARTS, `all`, or patterns; returns what trains, by name.

    Parameters that take no part in the loss stay frozen (`unused_parameters`): data parallelism waits in vain for their
    gradients. Raises ConfigError for a part or pattern that matches nothing.
    """
    if not parts:
        raise ConfigError(f"--trainable is empty: nothing would train; give some of {', '.join(PARTS)} or {ALL}")
    selected = {name for part in parts for name in matching(model, part, "--trainable")}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = {id(parameters[name]) for name in selected - unused_parameters(model)}
    if not chosen:
        raise ConfigError(f"--trainable {' '.join(parts)} names only parameters that are not used")
    if fixed := [name for name in selected if not parameters[name].is_floating_point()]:
        raise ConfigError(
            f"--trainable {' '.join(parts)}: {sorted(fixed)[0]} is quantised ({parameters[fixed[0]].dtype}) and cannot "
            "train; load the model unquantised, or train adapters (--lora_r)"
        )
    for parameter in parameters.values():
        parameter.requires_grad_(id(parameter) in chosen)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def matching(model: Any, part: str, flag: str) -> list[str]:
    """Parameter names that a part's name, `all` or a pattern stands for; ConfigError with what there is when none."""
    of_part = part_of_each(model)
    if part == ALL:
        return list(of_part)
    if part in PARTS:
        names = [name for name, owner in of_part.items() if owner == part]
    else:
        try:
            pattern = re.compile(part)
        except re.error as error:
            raise ConfigError(f"{flag} {part}: no part's name, and no regular expression either ({error})") from error
        names = [name for name in of_part if pattern.search(name)]
    if not names:
        raise ConfigError(f"{flag} {part} matches no parameter of {type(model).__name__}; {_inventory(of_part)}")
    return names


def _inventory(of_part: Mapping[str, Part | None]) -> str:
    counts = Counter(owner for owner in of_part.values() if owner)
    tops = sorted({".".join(name.split(".")[:2]) for name in of_part})
    parts = ", ".join(f"{part} ({count} tensors)" for part, count in counts.items())
    return f"there are the parts {parts} and all; names begin with {', '.join(tops)}"


def unused_parameters(model: Any) -> set[str]:
    """Names of parameters that no image and no word passes through: of other modalities, and some of the vision tower.

    The latter are those that `vision_feature_layer` leaves behind the last hidden state in use.
    """
    unused = {name for name, owner in part_of_each(model).items() if owner is None and _OTHER_MODALITIES.search(name)}
    layers = getattr(model.config, "vision_feature_layer", None)
    # A tower of timm has no count of layers and gives its last state alone (FastVLM).
    num_layers = getattr(model.config.vision_config, "num_hidden_layers", None) if layers is not None else None
    if layers is None or num_layers is None:
        return unused
    # hidden_states[0] is the embedding and hidden_states[i] what layer i - 1 gives.
    last = max(layer % (num_layers + 1) for layer in ([layers] if isinstance(layers, int) else layers))
    for name, owner in part_of_each(model).items():
        layer = re.search(r"\.encoder\.layers\.(\d+)\.", name)
        behind = re.search(r"\.(post_layernorm|head)\.", name)
        if owner == "vision_tower" and ((layer and int(layer[1]) >= last) or behind):
            unused.add(name)
    return unused


def parse_lr_multipliers(items: Sequence[str]) -> dict[str, float]:
    """`["vision_tower=0.1", "projector=2"]` to numbers; a pattern may hold `=`, the last one counts."""
    multipliers: dict[str, float] = {}
    for item in items:
        part, equals, number = item.rpartition("=")
        try:
            value = float(number) if equals and part else math.nan
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ConfigError(f"--lr_multipliers {item}: expected PART=NUMBER with a positive number; to freeze a part "
                              "leave it out of --trainable")  # fmt: skip
        if part in multipliers:
            raise ConfigError(f"--lr_multipliers names {part} twice")
        multipliers[part] = value
    return multipliers


def parameter_groups(
    model: Any, learning_rate: float, weight_decay: float, multipliers: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Groups what trains for a torch optimizer: `params`, `lr`, `weight_decay`; and `parameter_names`, `multiplier`.

    Without decay are biases and norms, as in transformers. Schedulers scale every group's own `lr`. Raises ConfigError
    when a multiplier matches nothing that trains, or two match the same parameter.
    """
    trainable = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen: dict[int, str] = {}
    for part in multipliers or {}:
        matched = {id(parameters[name]) for name in matching(model, part, "--lr_multipliers")} & set(trainable)
        if not matched:
            raise ConfigError(f"--lr_multipliers {part}: nothing of it trains; name it in --trainable too")
        for key in matched:
            if key in chosen:
                raise ConfigError(f"--lr_multipliers {chosen[key]} and {part} both match {trainable[key]}: "
                                  "which one counts is unclear")  # fmt: skip
            chosen[key] = part
    # It also names what a module declares and does not have, as torch's MultiheadAttention does (Aria).
    names = set(get_parameter_names(model, [nn.LayerNorm], _NO_DECAY)) & parameters.keys()
    decayed = {id(parameters[name]) for name in names}
    groups: dict[tuple[str | None, bool], dict[str, Any]] = {}
    for key, name in trainable.items():
        part_name = chosen.get(key)
        multiplier = (multipliers or {})[part_name] if part_name else 1.0
        decay = weight_decay if key in decayed else 0.0
        start: dict[str, Any] = {"params": [], "lr": learning_rate * multiplier, "weight_decay": decay}
        start |= {"parameter_names": [], "multiplier": multiplier}
        group = groups.setdefault((part_name, key in decayed), start)
        group["params"].append(parameters[name])
        group["parameter_names"].append(name)
    return list(groups.values())


def active_dropout(model: Any) -> list[str]:
    """Names what drops in train mode: modules that drop with a rate above 0, and such config settings.

    Modules that drop values or paths are known by their class's name. Online deltas contrast two passes of the training
    forward, so they are refused with any.
    """
    modules = [name for name, module in model.named_modules() if _drops(module)]
    return modules + [f"config.{name}" for name in _dropout_settings(model.config)]


def _drops(module: nn.Module) -> bool:
    rates = [value for value in vars(module).values() if isinstance(value, int | float) and not isinstance(value, bool)]
    return bool(_DROPS.search(type(module).__name__.lower())) and any(rate > 0 for rate in rates)


def _dropout_settings(config: Any, prefix: str = "") -> Iterator[str]:
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from _dropout_settings(value, f"{prefix}{name}.")
        elif _OF_OTHER_HEADS.match(name):
            continue
        elif name.endswith(("dropout", "dropout_rate")) and isinstance(value, float) and value > 0:
            yield prefix + name
