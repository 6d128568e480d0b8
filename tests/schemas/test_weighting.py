import math

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
