from __future__ import annotations

import math

import numpy as np

from cal_schemas.ranks import ranks, spearman


def test_equal_values_share_the_mean_of_their_places() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4.0, 1.0, 4.0, 2.0, 4.0]


def test_the_rank_correlation_is_that_of_the_formula_by_differences() -> None:
    one, other = np.array([0.1, 40.0, 2.0, 3.0]), np.array([5.0, 9.0, 8.0, 7.0])
    # Places 1 4 2 3 and 1 4 3 2.
    assert math.isclose(spearman(one, other), 1 - 6 * (0 + 0 + 1 + 1) / (4 * (16 - 1)))
    assert math.isclose(spearman(one, -one), -1.0)


def test_nothing_is_said_of_a_constant_or_of_one_value() -> None:
    assert math.isnan(spearman(np.ones(3), np.arange(3.0)))
    assert math.isnan(spearman(np.ones(1), np.ones(1)))
