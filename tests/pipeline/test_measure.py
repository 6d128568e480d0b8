"""What becomes of rows that no picture belongs to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cal_pipeline.measure import MeasuredSample, measure
from cal_schemas.spec import ContrastSpec
from conftest import Family
from examples_of import conversation


@pytest.mark.parametrize("extra", [(), ("logits",), ("logits", "logprobs")])
def test_without_a_picture_every_delta_is_zero_but_that_of_the_first_token_which_nothing_precedes(
    llava: Family, extra: Any
) -> None:
    encoded = llava.encoder(conversation("Hello?", "Hi."), [])
    ids = encoded.sequence_inputs["input_ids"]
    (found,) = measure(
        [replace(encoded, labels=ids)], model=llava.model, encoder=llava.encoder, contrast=ContrastSpec(),
        tokens_per_batch=512, extra_columns=extra,
    )  # fmt: skip
    assert isinstance(found, MeasuredSample)
    assert found.label_ids.tolist() == ids.tolist()
    assert found.label_positions.tolist() == list(range(len(ids)))
    np.testing.assert_array_equal(found.delta_logits, [np.nan, *[0.0] * (len(ids) - 1)])
    np.testing.assert_array_equal(found.logits_with_image[1:], found.logits_without_image[1:])
    assert (found.logprobs_with_image is None) == ("logprobs" not in extra)
