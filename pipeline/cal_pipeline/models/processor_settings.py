"""Gives a processor other settings than its directory holds: those of --processor_kwargs and --processor_backend."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.utils import is_torchvision_available

from cal_schemas.errors import ConfigError
from cal_schemas.spec import ProcessorBackend

_OF_A_CALL = ("return_tensors", "data_format", "input_data_format", "disable_grouping")
"""What an image processor takes beside settings: how a result is handed over, which is not the user's to say."""


def available_backend(recorded: str) -> ProcessorBackend:
    """Returns the backend that a measurement names where this machine has it, else `auto`."""
    if recorded == "pil" or (recorded == "torchvision" and is_torchvision_available()):
        return recorded  # type: ignore[return-value]
    return "auto"


def with_settings(
    processor: Any, directory: Path, kwargs: Mapping[str, Any], backend: ProcessorBackend, *, trust_remote_code: bool
) -> Any:
    """Returns the directory's processor made anew with these settings; its tokenizer stays.

    A setting goes to the image processor and to the processor around it, whichever has it: all image processors take
    `image_seq_length`, by which the processor writes image tokens. `device` is where the torchvision backend resizes; a
    machine without that device (the driver of a cluster) resizes on the CPU.

    Raises ConfigError for a name that neither takes, one that is taken and ignored, or a backend that is not there.
    """
    before, kind = processor.image_processor, type(processor)
    accepted = _accepted(before)
    # Counts and switches of the processor itself, as LLaVA's patch_size; never its words (tokens, template).
    own = [name for name in inspect.signature(kind.__init__).parameters
           if isinstance(getattr(processor, name, None), int | float)]  # fmt: skip
    for name in kwargs:
        if name not in accepted and name not in own:
            near = get_close_matches(name, [*accepted, *own], n=3) or [*accepted, *own]
            raise ConfigError(
                f"--processor_kwargs {name}: {type(before).__name__} has no such setting; it has {', '.join(near)}"
            )
    settings = {name: value for name, value in kwargs.items() if name in accepted}
    device = settings.pop("device", None)
    if backend != "auto":
        settings["backend"] = backend

    def made(**settings: Any) -> Any:
        return AutoImageProcessor.from_pretrained(directory, trust_remote_code=trust_remote_code, **settings)

    image_processor = made(**settings)
    there = getattr(image_processor, "backend", "unknown")
    if backend not in ("auto", there):
        raise ConfigError(
            f"--processor_backend {backend}: {type(before).__name__} is here with {there} alone"
            + (": install torchvision" if backend == "torchvision" and not is_torchvision_available() else "")
        )
    now = image_processor.to_dict()
    for name, value in settings.items():
        # A value may be held under another name, as Qwen's max_pixels in size, and be the directory's own already.
        if isinstance(value, int | float) and now.get(name) != value:
            other = not value if isinstance(value, bool) else value + 1
            if made(**{**settings, name: other}).to_dict() == now:
                raise ConfigError(f"--processor_kwargs {name} {value!r} changes nothing of {type(before).__name__}")
    if device is not None:
        if there != "torchvision":
            raise ConfigError(f"--processor_kwargs device {device}: the {there} backend works on the CPU alone")
        if torch.device(device).type != "cuda" or torch.cuda.is_available():
            image_processor.device = device
    parts = [image_processor if name == "image_processor" else getattr(processor, name)
             for name in kind.get_attributes()]  # fmt: skip
    described, _ = kind.get_processor_dict(directory)
    return kind.from_args_and_dict(parts, described, **{name: value for name, value in kwargs.items() if name in own})


def _accepted(image_processor: Any) -> list[str]:
    """Names the settings that an image processor has, those that a checkpoint's own code declares by having them."""
    declared = getattr(getattr(type(image_processor), "valid_kwargs", None), "__annotations__", {})
    held = (name for name in image_processor.to_dict() if not name.startswith("_") and not name.endswith("_type"))
    return [name for name in dict.fromkeys((*declared, *held)) if name not in _OF_A_CALL]
