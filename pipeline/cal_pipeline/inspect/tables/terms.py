"""Types the parts of a condition and writes constants out as SQL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd

from cal_schemas.errors import ConfigError

_ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d.*)?")


class Kind(StrEnum):
    """What is compared with its like only."""

    NUMBER = "a number"
    TEXT = "text"
    TIME = "a time"
    ZONED = "a time with a zone"
    TRUTH = "a truth value"


NUMBER, TEXT, TIME, ZONED, TRUTH = Kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """A part of a condition, written out."""

    sql: str
    kind: Kind
    nullable: bool = True
    """Whether it may be NULL."""
    whole: bool = False
    """A number that is exact: of 64 or 128 bits."""
    constant: int | float | str | bool | None = None
    precision: Any = None
    """NumPy type of a column of floats that are not as exact as 64 bits: constants beside it are rounded to it."""
    zone: str | None = None
    predicate: bool = False
    """A truth value that is no column and no constant."""


def predicate(sql: str, *parts: Term) -> Term:
    """A truth value that is NULL only where one of the parts may be."""
    return Term(sql=sql, kind=TRUTH, nullable=any(part.nullable for part in parts), predicate=True)


def quoted(text: str) -> str:
    """As SQL writes a text."""
    return "'" + text.replace("'", "''") + "'"


def number(value: int | float) -> Term:
    """A constant; ConfigError beyond the floats of 64 bits and the whole numbers of 128."""
    if isinstance(value, float):
        if not np.isfinite(value):
            raise ConfigError("a number leaves the floats of 64 bits")
        sql = f"CAST('{value!r}' AS DOUBLE)"
    elif abs(value) >= 2**127:
        raise ConfigError("a number leaves the whole numbers of 128 bits")
    else:
        sql = f"CAST('{value}' AS {'BIGINT' if -(2**63) <= value < 2**63 else 'HUGEINT'})"
    return Term(sql=sql, kind=NUMBER, nullable=False, whole=isinstance(value, int), constant=value)


def beside(term: Term, other: Term) -> Term:
    """A constant as the column beside it needs it: a text as a time, a number rounded as the column's are."""
    if isinstance(term.constant, str) and other.kind in (TIME, ZONED):
        return _time(term.constant, other.zone)
    if other.precision is not None and isinstance(term.constant, int | float) and term.kind == NUMBER:
        with np.errstate(over="ignore"):
            rounded = float(other.precision(term.constant))
        return number(rounded) if np.isfinite(rounded) else term
    return term


def _time(text: str, zone: str | None) -> Term:
    """The time that a text says, in the zone of the column beside it unless it names its own."""
    try:
        time = pd.Timestamp(text) if _ISO.fullmatch(text) else None
    except ValueError:
        time = None
    if time is None:
        example = "" if zone is None else "+02:00"
        raise ConfigError(f"needs a time such as '2024-05-31' or '2024-05-31T12:30:00{example}' instead of {text!r}")
    if time.tzinfo is None and zone is not None:
        # An hour that a change of the clocks skips or repeats: the one after.
        time = time.tz_localize(zone, ambiguous=False, nonexistent="shift_forward")
    kind = TIME if time.tzinfo is None else ZONED
    if time.tzinfo is not None:
        time = time.tz_convert("UTC").tz_localize(None)
    size = "TIMESTAMP_NS" if time.nanosecond else "TIMESTAMP"
    return Term(sql=f"{size} '{time.isoformat()}'", kind=kind, nullable=False, zone=zone)
