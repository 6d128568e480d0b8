"""Measured labels against those of the encoding in training, on rows of a few tokens."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from cal_pipeline.encode import IGNORE_INDEX, EncodedSample
from cal_schemas.errors import AlignmentError
from cal_trainer.alignment import scatter_deltas

NAN = float("nan")
MEASURED = [11, 12, 13]
DELTAS = np.array([0.5, NAN, -2.0], np.float32)


def encoded(*labels: int | None, truncated: bool = False) -> EncodedSample:
    found = torch.tensor([IGNORE_INDEX if label is None else label for label in labels])
    return EncodedSample(
        sequence_inputs={}, image_inputs={}, labels=found, image_mask=found == 0, truncated=truncated
    )  # fmt: skip


def scattered(row: EncodedSample, label_ids: Sequence[int] = MEASURED, deltas: np.ndarray = DELTAS) -> list[float]:
    return scatter_deltas("row-7", row, label_ids, deltas).tolist()


def test_deltas_lie_at_the_supervised_tokens_in_order_and_nan_elsewhere() -> None:
    found = scattered(encoded(None, 11, None, 12, 13))
    np.testing.assert_array_equal(found, [NAN, 0.5, NAN, NAN, -2.0])


def test_a_row_that_was_cut_takes_the_deltas_of_the_labels_that_it_kept() -> None:
    np.testing.assert_array_equal(scattered(encoded(None, 11, 12, truncated=True)), [NAN, 0.5, NAN])
    np.testing.assert_array_equal(scattered(encoded(None, None, truncated=True)), [NAN, NAN])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (encoded(None, 11, 12), r"row-7: 3 supervised tokens were measured, this encoding has 2\. Train with"),
        (encoded(None, None), r"3 supervised tokens were measured, this encoding has 0\. "),
        (encoded(11, 12, 13, 14), r"3 supervised tokens were measured, this encoding has 4\. "),
        (encoded(11, 12, 13, 14, truncated=True), r"measured, this encoding has 4\. "),
        (encoded(11, 9, 13), r"this encoding has 3; the first difference is label 1: 12 measured, 9 now\. Train"),
        (encoded(9, 12, truncated=True), r"has 2; the first difference is label 0: 11 measured, 9 now\. "),
        (encoded(12, 13, truncated=True), r"has 2; the first difference is label 0: 11 measured, 12 now\. "),
    ],
    ids=["fewer", "none", "more", "cut and more", "another", "cut and another", "cut at the start"],
)
def test_other_labels_than_were_measured_are_refused(row: EncodedSample, message: str) -> None:
    with pytest.raises(AlignmentError, match=message):
        scattered(row)
