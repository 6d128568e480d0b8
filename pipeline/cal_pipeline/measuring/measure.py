"""Measures encoded samples: batches, the two passes, and what can go wrong in them."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cal_pipeline.encoding.collate import batches_by_tokens, collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.conditions import defined_tokens
from cal_pipeline.measuring.distributions import contrast_columns
from cal_pipeline.measuring.positions import check_positions, learned_positions
from cal_schemas.annotated import MeasuredSample
from cal_schemas.errors import CalError, NonFiniteError, OutOfMemoryError, SampleError
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from cal_schemas.token_columns import EXTRA_COLUMNS, ExtraColumn

_log = logging.getLogger(__name__)


def measure(
    samples: Sequence[EncodedSample],
    *,
    model: Any,
    encoder: Encoder,
    contrast: ContrastSpec,
    tokens_per_batch: int,
    extra_columns: Collection[ExtraColumn] = (),
) -> list[MeasuredSample | SampleError]:
    """Measures samples in batches of at most `tokens_per_batch` tokens; results in the order given.

    A batch that does not fit into the accelerator's memory is halved until it does, and so is every later batch that
    is no smaller; the next call starts with the whole budget again. A single sample that does not fit, that the model's
    forward refuses, or whose logits are not finite, is returned as the SampleError that says so. Text-only samples have
    delta 0 by definition and cost no pass, unless extra columns want their numbers.
    """
    results: dict[int, MeasuredSample | SampleError] = {}
    limit, num_embeddings = learned_positions(model), model.get_input_embeddings().weight.shape[0]
    for index, sample in enumerate(samples):
        if problem := unknown_token(sample, num_embeddings) or check_positions(sample, limit):
            results[index] = problem
    fit = [index for index in range(len(samples)) if index not in results]
    chosen_samples = [samples[index] for index in fit]
    tokens = 1 if encoder.one_by_one else tokens_per_batch
    batches = batches_by_tokens(chosen_samples, tokens, uniform_shape=encoder.uniform_shape_batches is not None)
    queue = [[fit[at] for at in batch] for batch in reversed(batches)]
    budget: float = math.inf
    while queue:
        chosen = queue.pop()
        batch_samples = [samples[index] for index in chosen]
        padded = len(chosen) * max(sample.num_tokens for sample in batch_samples)
        half = len(chosen) // 2
        if padded > budget and half:
            queue += [chosen[half:], chosen[:half]]
            continue
        if not batch_samples[0].image_inputs and not extra_columns:
            results.update(zip(chosen, map(_text_only, batch_samples), strict=True))
            continue
        try:
            outcomes = list(_measure_batch(batch_samples, model, encoder, contrast, extra_columns))
        except torch.OutOfMemoryError:
            if half:
                budget = padded // 2
                queue += [chosen[half:], chosen[:half]]
                _log.warning(
                    "a batch of %d tokens does not fit into the accelerator's memory; going on with at most %d for a "
                    "while: lower --tokens_per_batch (%d) if this repeats", padded, budget, tokens_per_batch,
                )  # fmt: skip
            else:
                tokens = batch_samples[0].num_tokens
                results[chosen[0]] = OutOfMemoryError(f"{tokens} tokens do not fit into the accelerator's memory")
            outcomes = None
        except (torch.AcceleratorError, CalError):
            raise
        except (AttributeError, IndexError, RuntimeError, ValueError) as error:
            # A forward may refuse one row (an image that its tables do not hold): that row says so, not its shard.
            _raise_if_lost()
            if len(chosen) > 1:
                queue += [[index] for index in reversed(chosen)]
            else:
                reason = " ".join(str(error).split())[:300]
                results[chosen[0]] = SampleError(f"the model cannot take this row: {type(error).__name__}: {reason}")
            outcomes = None
        if outcomes is None:
            # Outside the handler: inside it the traceback still holds the failed pass's tensors.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        results.update(zip(chosen, outcomes, strict=True))
    return [results[index] for index in range(len(samples))]


def _raise_if_lost() -> None:
    """Raises if the device is lost, which also speaks as a plain RuntimeError (cuBLAS, cuDNN)."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _measure_batch(
    samples: Sequence[EncodedSample],
    model: Any,
    encoder: Encoder,
    contrast: ContrastSpec,
    extra_columns: Collection[ExtraColumn],
) -> Iterator[MeasuredSample | SampleError]:
    batch = collate(samples, pad_token_id=encoder.pad_token_id, batch_first=encoder.batch_first_inputs)
    # Not the first parameter's dtype: that of a quantised layer is an integer.
    placed = batch.to(model.device, model.dtype)
    contrast_inputs = placed.contrast_inputs if contrast.perturbs else None
    columns = contrast_columns(
        model, placed.inputs, placed.labels, placed.image_mask, contrast, contrast_inputs, extra=extra_columns
    )
    names, values = tuple(columns), torch.stack([*columns.values()]).cpu()
    defined = defined_tokens(batch.labels, batch.inputs["attention_mask"], batch.image_mask, contrast.condition)
    for row, sample in enumerate(samples):
        positions = torch.nonzero(sample.labels != IGNORE_INDEX)[:, 0]
        of_row = values[:, row, positions]
        broken = defined[row, positions] & ~of_row.isfinite()
        if bool(broken.any()):
            of_logits = bool(broken[: len(EXTRA_COLUMNS["logits"])].any())
            what = ", ".join(name for name, column in zip(names, broken, strict=True) if bool(column.any()))
            yield NonFiniteError(
                f"{int(broken.any(0).sum())} of {len(positions)} supervised tokens have non-finite "
                f"{'logits' if of_logits else what}"
            )
            continue
        yield _measured(sample, dict(zip(names, of_row.numpy(), strict=True)))


def _measured(sample: EncodedSample, columns: Mapping[str, np.ndarray]) -> MeasuredSample:
    """One row of both passes' logits, and whatever else was read of them, [N] by name of column."""
    positions = torch.nonzero(sample.labels != IGNORE_INDEX)[:, 0]
    with_image, without = (columns[name] for name in EXTRA_COLUMNS["logits"])
    return MeasuredSample(
        label_ids=sample.labels[positions].numpy().astype(np.int32),
        label_positions=positions.numpy().astype(np.int32),
        delta_logits=with_image - without,
        **columns,
    )


def unknown_token(sample: EncodedSample, num_embeddings: int) -> SampleError | None:
    """Finds a token that the model's embedding has not, which would fail the batch, on CUDA the device.

    Placeholders of images may lie outside: the model replaces them.
    """
    words = sample.sequence_inputs["input_ids"][~sample.image_mask]
    if not len(words) or int(words.max()) < num_embeddings:
        return None
    return SampleError(f"token id {int(words.max())} is beyond the model's {num_embeddings} embeddings")


def _text_only(sample: EncodedSample) -> MeasuredSample:
    zeros = torch.zeros(sample.labels.shape)
    zeros[0] = torch.nan  # Nothing precedes the first token: undefined, as with an image.
    values = zeros[sample.labels != IGNORE_INDEX].numpy()
    return _measured(sample, dict.fromkeys(EXTRA_COLUMNS["logits"], values))
