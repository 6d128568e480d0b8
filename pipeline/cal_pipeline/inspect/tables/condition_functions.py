"""Knows the functions of conditions: what they take, and how they are written as SQL."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cal_pipeline.inspect.tables.terms import NUMBER, TEXT, TRUTH, Kind, Term, number
from cal_schemas.errors import ConfigError

FUNCTIONS: Mapping[str, tuple[Sequence[Kind], Kind]] = {
    **dict.fromkeys(("+", "-", "*", "/", "mod"), ((NUMBER, NUMBER), NUMBER)),
    **dict.fromkeys(("abs", "round", "floor", "ceil"), ((NUMBER,), NUMBER)),
    **dict.fromkeys(("lower", "upper", "trim"), ((TEXT,), TEXT)),
    "length": ((TEXT,), NUMBER),
    **dict.fromkeys(("contains", "starts_with", "ends_with", "regexp_matches"), ((TEXT, TEXT), TRUTH)),
    **dict.fromkeys(("~~", "!~~", "~~*", "!~~*"), ((TEXT, TEXT), TRUTH)),
}
"""Name -> kinds of its arguments, kind of its value."""
_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "abs": abs,
}
"""Done here where all values are constants: beside a column of 32-bit floats the outcome is rounded, too."""
_LIKE = {"~~": "LIKE", "!~~": "NOT LIKE", "~~*": "ILIKE", "!~~*": "NOT ILIKE"}


def call(name: str, given: Sequence[tuple[Term, str]]) -> Term:
    """A function's value; `given` are its arguments, each with the text that it was written as."""
    kinds, result = FUNCTIONS[name]
    terms = [term for term, _ in given]
    sign = name in "+-" and len(terms) == 1
    if len(terms) != len(kinds) and not sign:
        raise ConfigError(f"{name} takes {len(kinds)} values, got {len(terms)}")
    for (term, written), kind in zip(given, kinds, strict=False):
        if term.kind != kind:
            raise ConfigError(f"{written!r} is {term.kind}, where {kind} is needed")
    if name in ("/", "mod") and terms[1].constant == 0:
        raise ConfigError("divides by zero")
    if name in _ARITHMETIC and all(term.constant is not None for term in terms):
        try:
            return number(_ARITHMETIC[name](*([0] if sign else []), *(term.constant for term in terms)))
        except OverflowError as error:
            raise ConfigError("a number leaves the floats of 64 bits") from error
    whole = (result == NUMBER and name != "/" and all(term.whole for term in terms)) or name == "length"
    sqls = [f"CAST({term.sql} AS DOUBLE)" if name == "/" else term.sql for term in terms]
    if name[0].isalpha():
        sql = f"{name}({', '.join(sqls)})"
    else:
        # -x is 0 - x: there is no zero below zero, by which something could be divided.
        sql = f"({f' {_LIKE.get(name, name)} '.join(['CAST(0 AS BIGINT)', *sqls] if sign else sqls)})"
    nullable = any(term.nullable for term in terms) or name == "mod" or (result == NUMBER and not whole)
    return Term(sql=sql, kind=result, nullable=nullable, whole=whole, predicate=result == TRUTH)


def defined(term: Term) -> Term:
    """A function's value, NULL where it is no number, which to DuckDB is the largest one.

    Once around all arithmetic, which hands such values on: DuckDB makes two of what nullif tests, at every level.
    """
    if term.kind != NUMBER or term.whole or term.constant is not None:
        return term
    return replace(term, sql=f"nullif({term.sql}, CAST('nan' AS DOUBLE))")
