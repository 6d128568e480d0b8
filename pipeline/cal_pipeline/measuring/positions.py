"""Finds rows longer than a decoder's table of learned positions, before a forward asks for what is not in it."""

from __future__ import annotations

import logging
import re
from typing import Any

from torch import nn

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.measuring.contrast import innermost_decoder
from cal_schemas.errors import TooLongError

_log = logging.getLogger(__name__)
_NAME = re.compile(r"(^|_)(pos|positions?|wpe)(_|$)")


def learned_positions(model: Any) -> int | None:
    """The number of tokens a row may have where a decoder looks positions up in a table (OPT, GPT-2); else None."""
    decoder, tower = innermost_decoder(model), model.get_encoder(modality="image")
    # Idefics' decoder holds its vision tower, whose table is of patches. A model without a tower answers with itself.
    patches = set() if tower is model or decoder in tower.modules() else set(tower.modules())
    sizes = [
        # OPT leaves the first entries of its table unused.
        module.num_embeddings - int(getattr(module, "offset", 0))
        for name, module in decoder.named_modules()
        if module not in patches and isinstance(module, nn.Embedding) and _NAME.search(name.rsplit(".", 1)[-1])
    ]
    return min(sizes, default=None)


def longest_row(model: Any, max_length: int) -> int:
    """`max_length`, lowered to what the table holds: a longer row would end a training run."""
    limit = learned_positions(model)
    if limit is None or max_length <= limit:
        return max_length
    _log.warning("--max_length %d is lowered to %d: the model has no more learned positions", max_length, limit)
    return limit


def check_positions(sample: EncodedSample, limit: int | None) -> TooLongError | None:
    """The status of a row that the table cannot hold: an index error on a CPU, the loss of the device on CUDA."""
    if limit is None or sample.num_tokens <= limit:
        return None
    error = TooLongError(f"{sample.num_tokens} tokens, and the model has {limit} learned positions")
    error.num_tokens = sample.num_tokens
    return error
