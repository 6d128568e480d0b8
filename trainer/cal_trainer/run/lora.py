"""Adds LoRA adapters to the language model, through peft; other parts train in full and are saved with them.

The wrapped model needs no unwrapping beyond accelerate's: it answers `get_output_embeddings`, `get_decoder`,
`get_encoder` and `config` for the model inside, whose modules are its own.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from cal_schemas.errors import ConfigError
from cal_trainer.run.parameters import ALL, PARTS, part_of_each, unused_parameters

_log = logging.getLogger(__name__)


def add_lora(
    model: Any,
    *,
    r: int,
    alpha: int | None = None,
    dropout: float = 0.0,
    target: Sequence[str] = (),
    trainable: Sequence[str] = ("language_model",),
) -> Any:
    """The model as a `peft.PeftModel` with fresh adapters; the base is frozen. Takes the place of `set_trainable`.

    Args:
        model: a transformers image-text-to-text model.
        r: rank.
        alpha: the adapters' output is scaled by alpha / r; default 2 r, as LLaVA's LoRA scripts have it.
        dropout: in front of the adapters; online deltas are refused with any.
        target: last names of the language model's linear layers (`q_proj`, `v_proj`, …); all but the head by default.
        trainable: parts by name. `language_model` trains by adapters; the others train in full, as copies that peft
            saves whole. A bare parameter (LLaVA-NeXT's `image_newline`) cannot be saved by peft and stays frozen.

    Raises ConfigError when peft is missing, a number makes no sense, or a target or part matches nothing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(f"--lora_r needs peft (pip install 'cal-vlm[lora]'): {error}") from error
    alpha = 2 * r if alpha is None else alpha
    if r < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ConfigError(f"LoRA takes r >= 1, alpha > 0 and 0 <= dropout < 1, got r {r}, alpha {alpha}, "
                          f"dropout {dropout}")  # fmt: skip
    parts = list(PARTS) if ALL in trainable else list(trainable)
    if unknown := [part for part in parts if part not in PARTS]:
        raise ConfigError(f"--trainable {unknown[0]} with --lora_r: adapters go with whole parts only, some of "
                          f"{', '.join(PARTS)}")  # fmt: skip
    if "language_model" not in parts:
        raise ConfigError("--lora_r adapts the language model: name language_model in --trainable, or drop --lora_r")
    whole = [part for part in parts if part != "language_model"]
    owners = part_of_each(model)
    for name, parameter in model.named_parameters():
        if owners[name] in whole and not parameter.is_floating_point():
            raise ConfigError(
                f"--trainable {owners[name]}: {name} is quantised ({parameter.dtype}) and cannot train; adapters "
                "of the language model can (--trainable language_model)"
            )
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=_targets(model, target),
        modules_to_save=_whole_modules(model, whole) or None,
        # No task type: the plain PeftModel hands every input, the image's too, to the model as it came.
        task_type=None,
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 under the old name; both mean activation checkpointing.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        wrapped = get_peft_model(model, config)
    owners, unused = part_of_each(wrapped), unused_parameters(wrapped)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and (owners[name] not in parts or name in unused):
            parameter.requires_grad_(False)
    return wrapped


def _targets(model: Any, wanted: Sequence[str]) -> str:
    """A regular expression, which peft matches against whole module names, for linear layers of the decoder only."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    there = {name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    if missing := [name for name in wanted if name not in there]:
        raise ConfigError(f"LoRA target {missing[0]} is no linear layer of the language model; there are "
                          f"{', '.join(sorted(there))}")  # fmt: skip
    names = "|".join(re.escape(name) for name in sorted(set(wanted) or there))
    return rf"{re.escape(prefix)}\.(?:.*\.)?(?:{names})"


def _whole_modules(model: Any, parts: Sequence[str]) -> list[str]:
    """Names of the outermost modules that hold exactly these parts' parameters, or more where one is inside another."""
    owners = part_of_each(model)
    modules = dict(model.named_modules())
    whole: set[str] = set()
    for part in parts:
        names = [name for name, owner in owners.items() if owner == part]
        if not names:
            raise ConfigError(f"--trainable {part}: {type(model).__name__} has no such part")
        for name in names:
            path, outermost = name.split("."), ""
            for depth in range(1, len(path)):
                module = ".".join(path[:depth])
                inside = {owners[f"{module}.{child}"] for child, _ in modules[module].named_parameters()}
                if inside == {part} or (part == "vision_tower" and inside == {"vision_tower", "projector"}
                                        and modules[module] is model.get_encoder(modality="image")):  # fmt: skip
                    outermost = module
                    break
            if outermost:
                whole.add(outermost)
            else:
                _log.warning("%s is a bare parameter, which adapters cannot be saved with: it stays frozen", name)
    return sorted(name for name in whole if not any(name.startswith(other + ".") for other in whole))
