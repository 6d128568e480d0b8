"""What the operators of a condition do with columns: whole numbers stay exact, times are read, kinds never mix.

Arithmetic is done in 64 bits; whole numbers that do not fit are refused and never wrap around. Of an undefined value
(NaN, null) every comparison is false but `!=`. All raise ConfigError: its message goes on where the operation ends.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cal_schemas.errors import ConfigError

ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mult": operator.mul,
    "Div": operator.truediv,
    "Mod": operator.mod,
}
COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": operator.lt,
    "LtE": operator.le,
    "Gt": operator.gt,
    "GtE": operator.ge,
}
NUMBER, TEXT, TIME, TRUTH = "a number", "text", "a time", "a truth value"
_ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d.*)?")


def kind_of(value: Any) -> str:
    """Of a column or a constant, in words."""
    if isinstance(value, pd.Series | np.ndarray):
        if pd.api.types.is_bool_dtype(value.dtype):
            return TRUTH
        if pd.api.types.is_numeric_dtype(value.dtype):
            return NUMBER
        return TIME if pd.api.types.is_datetime64_any_dtype(value.dtype) else TEXT
    if isinstance(value, bool | np.bool_):
        return TRUTH
    if isinstance(value, int | float):
        return NUMBER
    return TEXT if isinstance(value, str) else TIME if isinstance(value, pd.Timestamp) else "nothing"


def number(value: Any) -> Any:
    """A number, or a column of Int64, UInt64 or float64, ready for `computed`; truth values are 0 and 1."""
    if kind_of(value) not in (NUMBER, TRUTH):
        raise ConfigError(f"is {kind_of(value)}, where a number is needed")
    if not isinstance(value, pd.Series | np.ndarray):
        return value
    column = pd.Series(value)
    kind = str(column.dtype)
    return column.astype("float64" if "float" in kind.lower() else "UInt64" if kind.lower() == "uint64" else "Int64")


def computed(name: str, left: Any, right: Any) -> Any:
    """The operation of ARITHMETIC on what `number` gives; a rest of dividing by a column's 0 is undefined."""
    operation = ARITHMETIC[name]
    if name in ("Div", "Mod") and not isinstance(right, pd.Series) and right == 0:
        raise ConfigError("divides by zero")
    if name == "Mod" and isinstance(right, pd.Series):
        right = right.where(right != 0)
    try:
        found = operation(left, right)
        if isinstance(found, pd.Series) and pd.api.types.is_integer_dtype(found.dtype):
            about = operation(*(x.astype("float64") if isinstance(x, pd.Series) else float(x) for x in (left, right)))
            least, most = (0.0, 2.0**64) if str(found.dtype) == "UInt64" else (-(2.0**63), 2.0**63)
            if ((about < least) | (about >= most)).any():
                raise OverflowError
    except OverflowError as error:
        raise ConfigError("leaves the whole numbers of 64 bits: multiply by 1.0 first for floats") from error
    return found


def compared(name: str, left: Any, right: Any) -> Any:
    """The operation of COMPARISONS: bool, or a column of them; a text beside a time is read as one."""
    if TIME in (kind_of(left), kind_of(right)):
        left, right = _time(left, right), _time(right, left)
        if (_zone(left) is None) != (_zone(right) is None):
            raise ConfigError("compares a time that has a zone with one that has none")
    kinds = [kind_of(left), kind_of(right)]
    if kinds[0] != kinds[1]:
        raise ConfigError(f"compares {kinds[0]} with {kinds[1]}")
    try:
        found = COMPARISONS[name](left, right)
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise ConfigError(f"cannot be compared: {error}") from error
    return found.fillna(name == "NotEq").astype(bool) if isinstance(found, pd.Series) else found


def among(column: pd.Series, items: Sequence[Any]) -> np.ndarray:
    """[rows] bool: equal to one of the items, as `compared` takes it; None is what is undefined."""
    if kind_of(column) == TEXT and all(isinstance(item, str) for item in items):
        return np.asarray(column.isin(list(items)), bool)  # Thousands of ids are looked up, not compared.
    found = np.zeros(len(column), bool)
    for item in items:
        found |= np.asarray(column.isna() if item is None else compared("Eq", column, item), bool)
    return found


def _zone(value: Any) -> Any:
    return getattr(value.dtype if isinstance(value, pd.Series) else value, "tz", None)


def _time(value: Any, other: Any) -> Any:
    """A text as the time it says, in the zone of the column beside it unless it names its own."""
    if not isinstance(value, str):
        return value
    zone = _zone(other)
    try:
        time = pd.Timestamp(value) if _ISO.fullmatch(value) else None
    except ValueError:
        time = None
    if time is None:
        example = "" if zone is None else "+02:00"
        raise ConfigError(f"needs a time such as '2024-05-31' or '2024-05-31T12:30:00{example}' instead of {value!r}")
    # An hour that a change of the clocks skips or repeats: the one after.
    return time if time.tzinfo or zone is None else time.tz_localize(zone, ambiguous=False, nonexistent="shift_forward")
