"""Proves, when a model and its encoder are loaded, all that rows rely on."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Sequence
from typing import Any, Final

import torch

from cal_pipeline.encoding.collate import Batch, collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.contrast import label_logits
from cal_pipeline.measuring.exact_part import exact_part
from cal_pipeline.measuring.row_check import Collate, check_places, config_error_with, dependence
from cal_pipeline.measuring.self_check import check_long, check_reference, encode_question, encode_questions
from cal_pipeline.models.special_cases import mask_undefined
from cal_schemas.errors import ConfigError
from cal_schemas.spec import ContrastSpec

_LONGEST: Final = 4096
"""Tokens of the longest row that is tried; wider windows than that are taken on trust."""
_REACH: Final = re.compile("window|attention_chunk|topk|budget|block_size")
"""Settings of a decoder that say beyond how many tokens a layer no longer sees or chooses all."""
_log = logging.getLogger(__name__)


def check_model(model: Any, encoder: Encoder, contrast: ContrastSpec, name: str) -> None:
    """ConfigError naming the model where its numbers are not what they claim to be, on questions that are made here.

    Where they are a row's own only if it is alone in its batch, `encoder.one_by_one` says why afterwards. A long row
    for which there is no memory is left out.
    """
    samples = encode_questions(encoder, name, contrast)
    if long := _long_question(encoder, name, contrast, reach(model.config.get_text_config(), encoder.max_length)):
        samples.append(long)

    def collated(rows: Sequence[EncodedSample]) -> Batch:
        return collate(rows, pad_token_id=encoder.pad_token_id, batch_first=encoder.batch_first_inputs)

    fits = True
    try:
        encoder.one_by_one = check_samples(model, samples, collated, contrast, name)
    except torch.OutOfMemoryError:
        if torch.distributed.is_initialized():  # All ranks run the same passes.
            raise
        fits = False
    if not fits:  # Outside the handler: inside it the traceback still holds the tensors.
        _make_room()
        if long:
            _log.warning("%s: two rows of %d tokens do not fit into memory; tried on short ones", name, long.num_tokens)
        encoder.one_by_one = check_samples(model, samples[:2], collated, contrast, name)
    if encoder.one_by_one:
        _log.warning("%s: rows are measured one at a time: %s", name, encoder.one_by_one)


def check_samples(
    model: Any, samples: Sequence[EncodedSample], collated: Collate, contrast: ContrastSpec, name: str
) -> str | None:
    """`check_model` on two samples with different images, a third one may be long; why rows must be measured alone.

    In half precision the model's first layers are tried in float32 (`exact_part`), which shows what rounding would
    hide; then the whole as it is, which shows what its own kernels and its own head do.
    """
    short = samples[:2]

    def placed(rows: Sequence[EncodedSample]) -> Batch:
        # Not the first parameter: that of a quantised layer is an integer.
        parameter = next(item for item in model.parameters() if item.is_floating_point())
        return collated(rows).to(parameter.device, parameter.dtype)

    def prove() -> str | None:
        if contrast.condition == "drop" and mask_undefined(model.config.get_text_config()):
            check_places(model, placed(samples[-1:]), name)
        dependent = dependence(model, [samples[0], samples[-1]], placed, contrast, name)
        for rows in [[sample] for sample in short] if dependent and dependent.fails else [short]:
            check_reference(model, placed(rows), contrast, name)
        for sample in samples[2:]:
            check_long(model, placed([sample]), contrast, name)
        return dependent.reason if dependent else None

    kind = type(model).__name__
    with torch.no_grad(), config_error_with(f"{name}: {kind} does not take a plain question: its forward"):
        first = placed(short[:1])
        label_logits(model, first.inputs, first.labels)
    with config_error_with(
        f"{name}: try another --contrast than {contrast.condition} with {kind}: a pass over a plain question"
    ):
        reason, exact = None, False
        try:
            with exact_part(model, first.inputs) as exact:
                reason = prove() if exact else None
        except torch.OutOfMemoryError:  # In float32 it takes more than the whole as it is.
            exact = False
        if not exact:
            _make_room()
            return prove()
        check_reference(model, placed(short[:1] if reason else short), contrast, name)
        return reason


def _make_room() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reach(text_config: Any, max_length: int) -> int:
    """Tokens beyond which some layer sees or chooses no longer all, as far as rows reach; 0 where none does."""
    if getattr(text_config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return 0  # Others take no masks of windows: that concerns a run's long rows, if it has any.
    limits = [value for name, value in vars(text_config).items() if _REACH.search(name) and type(value) is int]
    return max((value for value in limits if value < min(max_length, _LONGEST)), default=0)


def _long_question(encoder: Encoder, name: str, contrast: ContrastSpec, beyond: int) -> EncodedSample | None:
    """A question of more tokens than that, or None where the plain ones are, or where --max_length forbids."""
    once, twice = (encode_question(encoder, name, contrast, 1, times).num_tokens for times in (1, 2))
    # A prefix that looks ahead takes no masks of windows (PaliGemma 2): such a row says so when it comes.
    looks_ahead = "suffix" in inspect.signature(type(encoder.processor).__call__).parameters
    if not beyond or once > beyond or looks_ahead:
        return None
    times = 2 + -(-max(0, beyond + 1 - twice) // (twice - once))
    try:
        return encode_question(encoder, name, contrast, 1, times)
    except ConfigError:
        return None
