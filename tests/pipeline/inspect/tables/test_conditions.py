from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_pipeline.inspect.tables.expression import Condition
from cal_schemas.errors import ConfigError

VALUES = {
    "mean_delta": pd.Series([0.1, -1.0, 3.0, np.nan]),
    "tokens": pd.Series([3, 5, 0, 9]),
    "status": pd.Series(["ok", "ok", "too_long", "ok"]),
    "error": pd.Series([None, "note", "long", None], dtype="str"),
    "flag": pd.Series([True, None, False, True], dtype="boolean"),
    "a column": pd.Series([1, 2, 3, 4]),
}


def rows(text: str) -> list[int]:
    condition = Condition(text, list(VALUES))
    return np.flatnonzero(condition({name: VALUES[name] for name in condition.names}, 4)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mean_delta < 0.2", [0, 1]),
        ("not mean_delta < 0.2", [2, 3]),
        ("~(mean_delta < 0.2) & (tokens > 3)", [3]),
        ("-2 < mean_delta <= 0.1 and tokens != 5", [0]),
        ("status == 'ok' or tokens == 0", [0, 1, 2, 3]),
        ("status in ['too_long', 'image_error']", [2]),
        ("status not in ('ok',)", [2]),
        ("error == None", [0, 3]),
        ("error is not None and contains(error, 'on')", [2]),
        ("startswith(status, 'too') or endswith(status, 'ng')", [2]),
        ("isnull(mean_delta)", [3]),
        ("mean_delta != mean_delta", [3]),
        ("abs(mean_delta) * 2 + 1 >= 3", [1, 2]),
        ("(tokens + 1) % 2 == 0", [0, 1, 3]),
        ("tokens / tokens == 1", [0, 1, 3]),
        ("flag", [0, 3]),
        ("`a column` > 3", [3]),
        ("True", [0, 1, 2, 3]),
        ("tokens > 10**0" if False else "tokens > 1e9", []),
    ],
)
def test_conditions_mean_what_they_say(text: str, expected: list[int]) -> None:
    assert rows(text) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("meen_delta < 0", "did you mean mean_delta"),
        ("tokens", "where a condition is needed"),
        ("tokens + 1", "where a condition is needed"),
        ("'ok'", "where a condition is needed"),
        ("status < 3", "compares text with a number"),
        ("status + 'x' == 'okx'", "where a number is needed"),
        ("tokens ** 9 > 1", "is not allowed"),
        ("tokens.__class__ == 1", "is not allowed"),
        ("tokens[0] == 1", "is not allowed"),
        ("__import__('os').system('true')", "is not allowed"),
        ("open('/etc/passwd') == 1", "is no function of conditions"),
        ("(lambda: 1)() == 1", "is not allowed"),
        ("[t for t in (1, 2)] == 1", "no column"),
        ("exec('1') == 1", "is no function of conditions"),
        ("f'{tokens}' == '1'", "is not allowed"),
        ("(tokens := 3) == 3", "is not allowed"),
        ("tokens if tokens else 1", "is not allowed"),
        ("error == 1", "compares text with a number"),
        ("1 / 0 == 1", "divides by zero"),
        ("tokens <", "is no condition"),
        ("tokens = 3", "is no condition"),
        ("import os", "is no condition"),
        ("", "is no condition"),
        ("(" * 3000 + "1" + ")" * 3000, "is no condition"),
        ("not " * 2400 + "flag", ""),
        ("x" * 20_000, "characters"),
        ("tokens\x00 > 3", "is no condition"),
    ],
)
def test_everything_else_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=None) as caught:
        rows(text)
    assert reason in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    try:
        found: Any = rows(text)
    except ConfigError:
        return
    assert set(found) <= {0, 1, 2, 3}
