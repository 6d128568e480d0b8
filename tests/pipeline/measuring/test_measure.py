"""Which rows of a measurement share a pass, and what becomes of those that no image belongs to."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.perturbation import encode_with_contrast
from cal_pipeline.measuring.contrast import contrast_logits
from cal_pipeline.measuring.measure import measure
from cal_schemas.annotated import MeasuredSample
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from cal_schemas.token_columns import EXTRA_COLUMNS
from conftest import Family
from examples_of import conversation
from tiny_models import sample_image


@pytest.mark.parametrize("extra", [(), ("logits",), ("logits", "logprobs"), ("kl", "entropy", "rank")])
def test_without_an_image_every_delta_is_zero_but_that_of_the_first_token_which_nothing_precedes(
    llava: Family, extra: Any
) -> None:
    encoded = llava.encoder(conversation("Hello?", "Hi."), [])
    ids = encoded.sequence_inputs["input_ids"]
    (row,) = measure(
        [replace(encoded, labels=ids)], model=llava.model, encoder=llava.encoder, contrast=ContrastSpec(),
        tokens_per_batch=512, extra_columns=extra,
    )  # fmt: skip
    assert isinstance(row, MeasuredSample)
    assert row.label_ids.tolist() == ids.tolist()
    assert row.label_positions.tolist() == list(range(len(ids)))
    np.testing.assert_array_equal(row.delta_logits, [np.nan, *[0.0] * (len(ids) - 1)])
    np.testing.assert_array_equal(row.logits_with_image[1:], row.logits_without_image[1:])
    for kind in ("logprobs", "kl", "entropy", "rank"):
        for name in EXTRA_COLUMNS[kind]:
            values = getattr(row, name)
            assert (len(values) == 0) == (kind not in extra)
            np.testing.assert_array_equal(np.isnan(values), [True, *[False] * (len(ids) - 1)] if len(values) else [])
            assert kind != "kl" or not values[1:].any()


def test_rows_without_an_image_cost_no_pass_however_many_batches_they_are(llava: Family) -> None:
    sample = llava.encoder(conversation("Hello?", "Hi."), [])
    handle = llava.model.register_forward_pre_hook(lambda *_: pytest.fail("a pass was run"))
    try:
        results = measure(
            [sample] * 3, model=llava.model, encoder=llava.encoder, contrast=ContrastSpec(), tokens_per_batch=1
        )
    finally:
        handle.remove()
    assert all(isinstance(row, MeasuredSample) for row in results)


@pytest.mark.parametrize(
    ("known", "rows"), [({}, [3]), ({"uniform_shape_batches": "why"}, [2, 1]), ({"one_by_one": "why"}, [1, 1, 1])]
)
def test_rows_share_a_pass_unless_their_numbers_would_depend_on_it(
    llava: Family, known: dict[str, str], rows: list[int]
) -> None:
    encoder = copy.copy(llava.encoder)
    for name, reason in known.items():
        setattr(encoder, name, reason)
    one, two = conversation("<image>\nWhat?", "A cat."), conversation("<image><image>\nWhat?", "Dogs.")
    samples = [encoder(one, [sample_image(1)]), encoder(two, [sample_image(n) for n in (2, 3)])]
    samples.append(encoder(one, [sample_image(4)]))
    assert sorted(rows_of_passes(llava.model, encoder, samples), reverse=True) == rows


def test_half_of_a_batch_that_did_not_fit_is_tried_as_it_is(llava: Family) -> None:
    samples = [llava.encoder(conversation("<image>\nWhat?", "A cat."), [sample_image(1)])] * 4
    limit = 2 * samples[0].num_tokens
    assert rows_of_passes(llava.model, llava.encoder, samples, limit=limit) == [4, 2, 2]


def rows_of_passes(model: Any, encoder: Encoder, samples: list[EncodedSample], limit: int = 100_000) -> list[int]:
    """How many rows each pass with images had, where one of more than `limit` tokens does not fit."""
    seen: list[int] = []

    def watch(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if "pixel_values" in kwargs:
            seen.append(len(kwargs["input_ids"]))
        if kwargs["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    handle = model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        measure(samples, model=model, encoder=encoder, contrast=ContrastSpec(), tokens_per_batch=100_000)
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    "contrast",
    [ContrastSpec(), ContrastSpec(condition="mask"), ContrastSpec(condition="gaussian_blur", blur_sigma=10.0)],
    ids=lambda contrast: contrast.condition,
)
def test_the_numbers_of_a_row_are_those_of_the_two_passes(llava: Family, contrast: ContrastSpec) -> None:
    asked = conversation("<image>\nWhat?", "A red cat.")
    sample = encode_with_contrast(llava.encoder, contrast, asked, [sample_image(1)], "key")
    (row,) = measure([sample], model=llava.model, encoder=llava.encoder, contrast=contrast, tokens_per_batch=512)
    batch = collate([sample], pad_token_id=llava.encoder.pad_token_id, batch_first=llava.encoder.batch_first_inputs)
    with_image, without = contrast_logits(
        llava.model, batch.inputs, batch.labels, batch.image_mask, contrast, batch.contrast_inputs or None
    )
    assert isinstance(row, MeasuredSample)
    chosen = sample.labels != IGNORE_INDEX
    np.testing.assert_allclose(row.logits_with_image, with_image[0][chosen], atol=1e-5)
    np.testing.assert_allclose(row.logits_without_image, without[0][chosen], atol=1e-5)
    np.testing.assert_array_equal(row.delta_logits, row.logits_with_image - row.logits_without_image)
    assert float(np.abs(row.delta_logits).min()) > 0
