"""Loads models in 8 or 4 bits, through transformers and bitsandbytes."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig
from transformers.quantizers import HfQuantizer

from cal_schemas.errors import ConfigError
from cal_schemas.spec import Quantization


def flag_of(recorded: str | None) -> Quantization:
    """The `--quantization` that a spec's value stands for: none where the checkpoint brings its own."""
    return recorded if recorded in ("8bit", "4bit") else "none"  # type: ignore[return-value]


def resolve_quantization(quantization: Quantization, config: Any) -> str | None:
    """The spec's record: the flag's value, a checkpoint's own method (`bitsandbytes-4bit`, `fp8`, …), or None.

    Takes the checkpoint's config. ConfigError for a flag on top of the checkpoint's own, which transformers ignores.
    """
    own = next(
        (own for part in (config, config.get_text_config()) if (own := getattr(part, "quantization_config", None))),
        None,
    )
    if own is None:
        return None if quantization == "none" else quantization
    values = own if isinstance(own, dict) else own.to_dict()
    method = getattr(values.get("quant_method"), "value", None) or values.get("quant_method") or "unknown"
    bits = values.get("bits") or next((bits for bits in (8, 4) if values.get(f"load_in_{bits}bit")), None)
    name = f"{method}-{bits}bit" if bits else str(method)
    if quantization != "none":
        raise ConfigError(
            f"--quantization {quantization}: the checkpoint is quantised as it is stored ({name}), and stays so: leave "
            "the flag out"
        )
    return name


def check_quantization(quantization: Quantization, device: str) -> None:
    """ConfigError where bitsandbytes is missing, or has no kernels for this kind of device (`cuda`, `cpu`)."""
    if quantization == "none":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"--quantization {quantization} needs bitsandbytes, which is not installed: "
            "pip install 'cal-vlm[quantized]'"
        )
    supported = getattr(importlib.import_module("bitsandbytes"), "supported_torch_devices", {"cuda"})
    if device not in supported:
        raise ConfigError(
            f"--quantization {quantization} cannot run on {device}: this bitsandbytes has kernels for "
            f"{', '.join(sorted(supported))} only; use a GPU (cal-precompute: --gpus_per_worker 1), or a newer "
            "bitsandbytes"
        )


def quantization_config(
    quantization: Quantization, dtype: torch.dtype, unquantized: Sequence[str] = ()
) -> BitsAndBytesConfig | None:
    """The argument of `from_pretrained`; None leaves the weights as they are.

    4 bits are NF4 with products in `dtype`; 8 bits are LLM.int8 with products in float16.

    unquantized: names of all modules that stay as they are; default `unquantized_by_default`.
    """
    names = {"llm_int8_skip_modules": list(unquantized) or None}
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, **names)
    if quantization == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, **names)
    return None


def unquantized_by_default(model: Any) -> list[str]:
    """Names of the modules that transformers never quantises, the output head first of all.

    Label logits are read from its rows.
    """
    return sorted(HfQuantizer.get_modules_to_not_convert(model))


def accept_maps(model: Any) -> None:
    """Lets layers of 8 bits take inputs of any shape [..., C]: bitsandbytes knows two and three dimensions only.

    The maps of a ConvNeXt have four.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            module.forward = partial(_by_rows, module.forward)


def multiply_as_asked(model: Any) -> None:
    """Lets 4-bit layers multiply in the dtype that was asked for, whatever the processor.

    In eval mode bitsandbytes packs them for a CPU with avx512_bf16, for good: it rounds the scales of the weights, and
    multiplies in bfloat16 in every later pass, those of a training too, through which no gradient comes. Only layers of
    32 rows by 64 columns can be packed, and batches of more than a few rows are slower so in bfloat16.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


def _by_rows(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return forward(inputs.flatten(0, -2)).reshape(*inputs.shape[:-1], -1)
