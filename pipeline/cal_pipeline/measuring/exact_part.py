"""Computes the first layers of a half precision model in float32, where small differences show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from cal_pipeline.measuring.contrast import innermost_decoder
from cal_pipeline.models.precision import is_quantized

_MOST_LAYERS: Final = 8
"""A decoder whose kinds of layers are not all among so many is checked as far as that."""


@contextmanager
def exact_part(model: Any, inputs: Mapping[str, Any]) -> Iterator[bool]:
    """Makes the model, inside, its towers and first decoder layers, one of each kind at least, in float32.

    Yields whether it is: a model that computes in float32 anyway, is quantised, sharded or spread over devices, does
    not fit a second time, or does not take `inputs` without its other layers, stays whole. Afterwards every number is
    the one it was.
    """
    decoder: Any = innermost_decoder(model)
    layers: Any = getattr(decoder, "layers", None)
    places = {(tensor.device, type(tensor.data)) for tensor in model.parameters()}
    spread = len(places) != 1 or torch.distributed.is_initialized()
    whole = spread or is_quantized(model) or not isinstance(layers, nn.ModuleList)
    if whole or model.dtype == torch.float32 or any(not tensor.numel() for tensor in model.parameters()):
        yield False
        return
    text_config = model.config.get_text_config()
    kinds = list(getattr(text_config, "layer_types", None) or [])
    count = max((kinds.index(kind) + 1 for kind in set(kinds)), default=2)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    before = text_config.dtype
    decoder.layers = layers[: min(max(count, 2), _MOST_LAYERS)]
    try:
        text_config.dtype = torch.float32
        try:
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point() and tensor.dtype != torch.float32:
                    kept.append((tensor, tensor.data))
                    tensor.data = tensor.data.float()
            works = _runs(model, inputs)
        except torch.OutOfMemoryError:
            works = False
        if works:
            yield True
    finally:
        decoder.layers = layers
        text_config.dtype = before
        for tensor, data in kept:
            tensor.data = data
    if not works:
        yield False


def _runs(model: Any, inputs: Mapping[str, Any]) -> bool:
    exact = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
    try:
        with torch.no_grad():
            model(**exact, use_cache=False)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception:  # Later layers may hold what earlier ones hand on; the whole model is tried then.
        return False
    return True
