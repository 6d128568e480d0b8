"""Loads a reference model or the model to be trained, and names its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from cal_pipeline.models.checkpoint import raw_header, validate_adapters
from cal_pipeline.models.directory import cache_hint
from cal_pipeline.models.mini_gemini import registry
from cal_pipeline.models.processor_settings import with_settings
from cal_pipeline.models.quantization import (
    accept_maps,
    check_quantization,
    multiply_as_asked,
    quantization_config,
    resolve_quantization,
)
from cal_pipeline.models.special_cases import REFUSED_MODELS
from cal_schemas.choices import check_choice
from cal_schemas.errors import ConfigError
from cal_schemas.spec import Dtype, ProcessorBackend, Quantization, digest_json

_MIB = 2**20
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_PICKLES = ("*.bin", "*.pt*", "*.ckpt", "*.pkl")
_WAYS_OUT = {
    "torchvision": "Install torchvision.",
    "does not support an attention implementation": "Ask for --attn_implementation eager.",
    "remote_code": "If you trust its code, pass --trust_remote_code.",
}
"""Words of a library's reason to what helps."""
_Loaded = TypeVar("_Loaded")

registry.register()  # Whoever loads a model here may load one of ours.


def weights_digest(directory: Path) -> str:
    """Names a model without reading its weights whole, 32 hex digits.

    Sha256 over its config (without the version of the library that wrote it) and every safetensors file's name, size,
    header, first and last MiB. Raises ConfigError when there are no such files: pickled weights are not loaded.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        others = sorted(file.name for kind in _PICKLES for file in directory.glob(kind))
        raise ConfigError(f"{directory} has no *.safetensors weights" + (f", only {', '.join(others)}, which may run "
                          "code when loaded: convert them with save_pretrained" if others else ""))  # fmt: skip
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config.pop("transformers_version", None)
    digest = hashlib.sha256(digest_json(config).encode())
    for file in files:
        size = file.stat().st_size
        header = raw_header(file)
        with file.open("rb") as stream:
            stream.seek(8 + len(header))
            first = stream.read(_MIB)
            stream.seek(max(0, size - _MIB))
            last = stream.read(_MIB)
        for part in (file.name.encode(), str(size).encode(), header, first, last):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _or_config_error(what: str, load: Callable[[], _Loaded]) -> _Loaded:
    try:
        return load()
    except ConfigError:
        raise
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = shorten(str(error), 400, placeholder=" …")
        hint = next((f" {way_out}" for part, way_out in _WAYS_OUT.items() if part in reason.lower()), cache_hint(error))
        raise ConfigError(f"cannot load {what}: {type(error).__name__}: {reason}{hint}") from error


def load_processor(
    directory: Path,
    *,
    kwargs: Mapping[str, Any] | None = None,
    backend: ProcessorBackend = "auto",
    trust_remote_code: bool = False,
) -> Any:
    """The model's own processor, with other settings where some are given (`with_settings`).

    Raises ConfigError with the reason when it cannot be had.
    """
    check_choice("backend", backend, ProcessorBackend)

    def load() -> Any:
        try:
            processor = AutoProcessor.from_pretrained(directory, trust_remote_code=trust_remote_code)
        except OSError as error:
            if any((directory / name).exists() for name in _PROCESSORS):
                raise
            raise ConfigError(
                f"{directory} holds no processor, neither {' nor '.join(_PROCESSORS)}: copy what is no weights from "
                "the model that it was made of"
            ) from error
        if not kwargs and (backend == "auto" or backend == getattr(processor.image_processor, "backend", None)):
            return processor
        return with_settings(processor, directory, kwargs or {}, backend, trust_remote_code=trust_remote_code)

    return _or_config_error(f"the processor of {directory}", load)


def load_config(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The model's config; ConfigError with the reason when it cannot be had, as in a directory of adapters alone."""
    validate_adapters(directory)
    return _or_config_error(
        f"the config of {directory}", lambda: AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    )


def check_architecture(directory: Path, *, trust_remote_code: bool = False) -> None:
    """ConfigError unless the directory's config is a model this project can use as a reference; loads no weights."""
    config = load_config(directory, trust_remote_code=trust_remote_code)
    if type(config) not in AutoModelForImageTextToText._model_mapping and not trust_remote_code:
        raise ConfigError(f"{directory} holds a {config.model_type!r} model, which is not an image-text-to-text model")
    if reason := REFUSED_MODELS.get(config.model_type):
        raise ConfigError(f"{directory} holds a {config.model_type!r} model, which cannot be used: {reason}")
    if config.is_encoder_decoder or getattr(config.get_text_config(), "is_encoder_decoder", False):
        raise ConfigError(
            f"{directory} holds an encoder-decoder model ({config.model_type}); CAL needs a decoder-only one"
        )


def brings_code(directory: Path) -> bool:
    """Says whether the directory's model is of a class of its own, which --trust_remote_code runs."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return AutoModelForImageTextToText.__name__ in (config.get("auto_map") or {})


def load_meta_model(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """The model without its weights: parameters have names and shapes, and take neither time nor memory."""
    config = load_config(directory, trust_remote_code=trust_remote_code)

    def build() -> Any:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)

    return _or_config_error(f"a model from the config of {directory}", build)


def load_reference(
    directory: Path | str,
    *,
    dtype: Dtype = "bfloat16",
    attn_implementation: str = "sdpa",
    device: str | None = None,
    num_devices: int = 1,
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
) -> Any:
    """A model in eval mode, from safetensors only.

    Args:
        directory: where the model's files are (see `model_directory`).
        dtype: of weights and activations.
        attn_implementation: as in transformers; refused when the model falls back to another.
        device: `cuda` where there is one, unless named.
        num_devices: above 1 the layers are spread over so many visible GPUs (`device_map="auto"`).
        quantization: of the linear layers but the head, see `quantization`.
        trust_remote_code: run code that comes with the model.

    Raises ConfigError when the model cannot be had, or lacks weights that would be left random.
    """
    check_choice("dtype", dtype, Dtype)
    check_choice("quantization", quantization, Quantization)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this worker was promised a GPU, but torch sees none (is it a CPU build of torch?)")
    check_quantization(quantization, device.split(":")[0])
    model = load_model(
        directory,
        dtype=dtype,
        attn_implementation=attn_implementation,
        device_map="auto" if num_devices > 1 else device,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )
    offloaded = sorted({str(place) for place in getattr(model, "hf_device_map", {}).values()} & {"cpu", "disk"})
    if offloaded and device != "cpu":
        raise ConfigError(f"{directory} does not fit on {num_devices} GPUs (parts went to {', '.join(offloaded)})")
    return model.eval()


def load_model(
    directory: Path | str,
    *,
    dtype: Dtype,
    attn_implementation: str,
    device_map: str | None,
    quantization: Quantization = "none",
    compute_dtype: Dtype | None = None,
    unquantized: Sequence[str] = (),
    trust_remote_code: bool,
) -> Any:
    """The model of either program, from safetensors only; `device_map=None` leaves placing it to the trainer.

    compute_dtype: of products with 4-bit weights; default `dtype`. unquantized: see `quantization_config`.

    Raises ConfigError when it cannot be had, lacks weights that would be left random, runs another attention than asked
    for, or has no output head.
    """
    resolve_quantization(quantization, load_config(Path(directory), trust_remote_code=trust_remote_code))
    quantized = quantization_config(quantization, getattr(torch, compute_dtype or dtype), unquantized)
    model, info = _or_config_error(
        f"the model {directory}",
        lambda: AutoModelForImageTextToText.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            device_map=device_map,
            # Left out, not None: a checkpoint may bring a quantisation of its own.
            **({} if quantized is None else {"quantization_config": quantized}),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        ),
    )
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"{directory} has no weights for {len(missing)} parameters ({missing[0]}, …): they would be random"
        )
    used = model.config.get_text_config()._attn_implementation
    if used != attn_implementation:
        raise ConfigError(
            f"{directory} runs attention {used!r}, not {attn_implementation!r}: ask for --attn_implementation {used}"
        )
    if model.get_output_embeddings() is None:
        raise ConfigError(
            f"{type(model).__name__} has no output head over the vocabulary, which label logits are read from"
        )
    if not model.get_output_embeddings().weight.is_floating_point():
        raise ConfigError(
            f"{directory}: its output head is quantised, and label logits are read from the head's rows; keep the head "
            "out of the quantisation (llm_int8_skip_modules)"
        )
    accept_maps(model)
    multiply_as_asked(model)
    return model
