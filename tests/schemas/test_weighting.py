import math
from typing import Any

import pytest

from cal_schemas.errors import ConfigError
from cal_schemas.weighting import check_weighting


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (1.0, 5.0), (1.0, math.inf)])
def test_a_floor_below_the_ceiling_is_taken(alpha: float, beta: float) -> None:
    check_weighting(alpha=alpha, beta=beta, window=1)


@pytest.mark.parametrize(
    ("alpha", "beta"), [(-1.0, 5.0), (5.0, 1.0), (math.inf, math.inf), (math.nan, 1.0), (1.0, math.nan)]
)
def test_any_other_floor_or_ceiling_is_refused_with_both(alpha: float, beta: float) -> None:
    with pytest.raises(ConfigError, match=rf"got {alpha} and {beta}"):
        check_weighting(alpha=alpha, beta=beta, window=3)


@pytest.mark.parametrize("window", [0, -1, 2])
def test_a_window_without_a_middle_is_refused(window: int) -> None:
    with pytest.raises(ConfigError, match=rf"odd and positive.*got {window}"):
        check_weighting(alpha=1.0, beta=5.0, window=window)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pool": "Span"}, "pool must be one of span, joined, released, got 'Span'"),
        ({"pool": None}, "pool must be one of span, joined, released, got None"),
        ({"alpha": "q0.5"}, r"alpha must be a number, got 'q0.5' \(a quantile such as q0.5 is for cal-train"),
        ({"beta": None}, "beta must be a number, got None"),
        ({"window": "3"}, "window must be a whole number of tokens, got '3'"),
        ({"window": 3.0}, "window must be a whole number of tokens, got 3.0"),
    ],
)
def test_what_is_no_number_and_no_pool_is_refused_with_what_is_taken(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_weighting(**{"alpha": 1.0, "beta": 5.0, "window": 3, **wrong})
