"""Names what of an encoder decides ids, labels and pixels, as parts of the measurement spec; and the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cal_pipeline.encoding import templates
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from cal_pipeline.models.processor_settings import available_backend
from cal_schemas.spec import InputSpec, LabelSpec, MeasurementSpec, digest_json


def label_spec(encoder: Encoder) -> LabelSpec:
    """Digests of all that decides the labels."""
    tokenizer = json.loads(encoder.processor.tokenizer.backend_tokenizer.to_str())
    for setting in ("truncation", "padding"):  # State of the last call, not part of the tokenizer.
        tokenizer.pop(setting, None)
    source = "" if encoder.template != "auto" else templates.chat_template(encoder.processor) or "suffix"
    return LabelSpec(
        tokenizer_digest=digest_json(tokenizer),
        chat_template_digest=digest_json(source),
        template=encoder.template,
        date=encoder.date,
    )


def input_spec(encoder: Encoder) -> InputSpec:
    """Digests and settings of all that decides the pixels and the length."""
    image_processor = encoder.processor.image_processor
    settings = {
        key: value for key, value in image_processor.to_dict().items() if not key.endswith("_type") and key != "device"
    }
    # Names with an underscore are what a processor remembers of its last row (HyperCLOVA X's), not settings.
    layout = {
        key: value
        for key, value in vars(encoder.processor).items()
        if isinstance(value, bool | int | float | str | type(None)) and key != "chat_template" and key[0] != "_"
    }
    return InputSpec(
        image_processor=type(image_processor).__name__.removesuffix("Pil").removesuffix("Fast"),
        image_processor_backend=str(getattr(image_processor, "backend", "unknown")),
        image_processor_digest=digest_json(_json_ready({"image": settings, "layout": layout})),
        image_aspect_ratio=encoder.image_aspect_ratio,
        max_length=encoder.max_length,
        truncation=encoder.truncation,
        processor_kwargs=json.dumps(encoder.processor_kwargs, sort_keys=True) if encoder.processor_kwargs else None,
    )


def rebuild_encoder(spec: MeasurementSpec, directory: Path, *, trust_remote_code: bool = False) -> Encoder:
    """An encoder with the settings of a stored measurement, on the processor of whatever model is given.

    Images are resized by the backend of the measurement where it is installed, and on its device only there. Raises
    ConfigError.
    """
    kwargs = json.loads(spec.input.processor_kwargs or "{}")
    backend = available_backend(spec.input.image_processor_backend)
    here = {name: value for name, value in kwargs.items() if name != "device" or backend == "torchvision"}
    return Encoder(
        load_processor(directory, kwargs=here, backend=backend, trust_remote_code=trust_remote_code),
        template=spec.label.template,  # type: ignore[arg-type]
        image_aspect_ratio=spec.input.image_aspect_ratio,  # type: ignore[arg-type]
        max_length=spec.input.max_length,
        truncation=spec.input.truncation,  # type: ignore[arg-type]
        date=spec.label.date,
        processor_kwargs=kwargs,
    )


def _json_ready(value: Any) -> Any:
    """Settings of a processor as plain JSON values; anything exotic by its repr."""
    if isinstance(value, Mapping):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(item) for item in value]
    return value if isinstance(value, bool | int | float | str | type(None)) else repr(value)
