"""Writes conditions out as SQL of our own: of what DuckDB parsed only what is known here to be harmless, and typed.

Columns, numbers, texts, comparisons, arithmetic and a few functions pass; queries, parameters and every other function
do not, whatever they would do. Numbers, texts, times and truth values never mix. Where Python's grammar, which
conditions had before, meant something else, the new spelling is asked for: no condition changes its meaning in silence.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from cal_pipeline.inspect.tables.condition_text import is_plain, parsed, shortened, unquoted
from cal_schemas.errors import ConfigError


class Kind(StrEnum):
    """What is compared with its like only."""

    NUMBER = "a number"
    TEXT = "text"
    TIME = "a time"
    ZONED = "a time with a zone"
    TRUTH = "a truth value"


NUMBER, TEXT, TIME, ZONED, TRUTH = Kind
_TIMES = (TIME, ZONED)
_FUNCTIONS: Mapping[str, tuple[Sequence[Kind], Kind]] = {
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
_HELP = (
    "columns, numbers, 'texts', comparisons, + - * /, AND, OR, NOT, IN (...), BETWEEN, LIKE, ILIKE, IS [NOT] NULL, "
    "IS [NOT] TRUE, IS DISTINCT FROM, coalesce, " + ", ".join(name for name in _FUNCTIONS if name[0].isalpha())
)
_COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_DISTINCT_FROM": "IS DISTINCT FROM",
    "COMPARE_NOT_DISTINCT_FROM": "IS NOT DISTINCT FROM",
}
_COMPARED_TWICE = "a comparison of comparisons: join them with AND and OR, or write (...) IS TRUE"
_ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d.*)?")
_NO_PLACE = 2**63
"""DuckDB's place of what it wrote itself is above."""


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


class Writer:
    """Writes a condition out over columns whose SQL is given, and collects which of them it names.

    Args:
        text: the condition.
        columns: name -> the column as a term. Names are exact: upper and lower case are two names.

    Raises ConfigError, in one line, for whatever is not allowed.
    """

    def __init__(self, text: str, columns: Mapping[str, Term]) -> None:
        self.text, self.columns = text, columns
        self.names: dict[str, None] = {}
        self._python_unequal = "!=" in unquoted(text)
        try:
            self.condition = self._condition(parsed(text, columns))
        except RecursionError as error:
            raise ConfigError(f"{shortened(text)}: nested too deeply") from error

    def _refusal(self, reason: str) -> ConfigError:
        return ConfigError(f"{shortened(self.text)}: {reason}")

    def _source(self, node: Any) -> str:
        start = int(node.get("query_location", _NO_PLACE)) - len("SELECT (")
        encoded = self.text.encode()
        length = int(node.get("query_location_length", 0))
        if start < 0 or start >= len(encoded) or not length:
            return "that"
        return encoded[start : start + length].decode("utf-8", "replace")

    def _condition(self, node: Any) -> Term:
        term = self._term(node)
        if term.kind != TRUTH:
            raise self._refusal(
                f"{self._source(node)!r} is {term.kind}, where a condition is needed, such as mean_delta < 0.2"
            )
        return term

    def _term(self, node: Any) -> Term:
        match node["class"], node["type"]:
            case "CONSTANT", _:
                return self._constant(node)
            case "COLUMN_REF", _:
                return self._column(node)
            case "CONJUNCTION", kind:
                parts = [self._condition(part) for part in node["children"]]
                word = " AND " if kind == "CONJUNCTION_AND" else " OR "
                return _predicate(f"({word.join(part.sql for part in parts)})", *parts)
            case "OPERATOR", "OPERATOR_NOT":
                return self._not(node)
            case "OPERATOR", ("OPERATOR_IS_NULL" | "OPERATOR_IS_NOT_NULL") as kind:
                words = "IS NULL" if kind == "OPERATOR_IS_NULL" else "IS NOT NULL"
                return _predicate(f"({self._term(node['children'][0]).sql} {words})")
            case "OPERATOR", "COMPARE_IN":
                return self._among(node)
            case "OPERATOR", "OPERATOR_COALESCE":
                return self._coalesce(node)
            case "BETWEEN", _:
                value, low, high = (self._term(node[name]) for name in ("input", "lower", "upper"))
                return _predicate(f"({self._compared('>=', value, low)} AND {self._compared('<=', value, high)})",
                                  value, low, high)  # fmt: skip
            case "COMPARISON", kind if kind in _COMPARISONS:
                return self._comparison(node, _COMPARISONS[kind])
            case "FUNCTION", _:
                return self._function(node)
        raise self._refusal(f"{self._source(node)!r} is not allowed in a condition, which may hold {_HELP}")

    def _constant(self, node: Any) -> Term:
        kind, text = node["literal"]["kind"], node["literal"].get("text", "")
        exact = partial(Term, nullable=False)
        if kind == "STRING":
            return exact(sql=_quoted(text), kind=TEXT, constant=text)
        if kind == "BOOLEAN":
            return exact(sql=text, kind=TRUTH, constant=text == "true")
        if kind in ("INTEGER", "NUMERIC"):
            return self._number((int if kind == "INTEGER" else float)(text.replace("_", "")))
        raise self._refusal("NULL is compared with nothing: write IS NULL or IS NOT NULL")

    def _number(self, value: int | float) -> Term:
        exact = partial(Term, kind=NUMBER, nullable=False, constant=value)
        if isinstance(value, float):
            if not np.isfinite(value):
                raise self._refusal("a number leaves the floats of 64 bits")
            return exact(sql=_double(value))
        if abs(value) >= 2**127:
            raise self._refusal("a number leaves the whole numbers of 128 bits")
        size = "BIGINT" if -(2**63) <= value < 2**63 else "HUGEINT"
        return exact(sql=f"CAST({_quoted(str(value))} AS {size})", whole=True)

    def _column(self, node: Any) -> Term:
        path = node["column_names"]
        name = ".".join(path)
        quoted = self._source(node).startswith('"')
        text = f"; a text stands in single quotes: {_quoted(name)}" if quoted else ""
        if len(path) > 1:
            raise self._refusal(f'no column {name!r} without quotes: a name with a dot is written "{name}"')
        if name not in self.columns:
            own = f"source_{name}"
            cased = [column for column in self.columns if column.lower() == name.lower()]
            close = [own] if own in self.columns else cased or difflib.get_close_matches(name, self.columns, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise self._refusal(f"no column {name!r}{text}{hint} There are {', '.join(self.columns)}")
        if quoted and is_plain(name):
            # Before, this was a text.
            raise self._refusal(f"the column {name} is written without quotes{text}")
        self.names[name] = None
        return self.columns[name]

    def _not(self, node: Any) -> Term:
        part = self._condition(node["children"][0])
        if part.nullable:
            raise self._refusal(
                "NOT does not take rows without a value, as it did before: write (...) IS NOT TRUE, which does, or "
                "(...) IS FALSE"
            )
        return _predicate(f"(NOT {part.sql})", part)

    def _among(self, node: Any) -> Term:
        value, *items = (self._term(part) for part in node["children"])
        if any(term.predicate for term in (value, *items)):
            raise self._refusal(_COMPARED_TWICE)
        comparisons = [self._compared("=", value, item) for item in items]
        if value.kind == TEXT or all(item.whole for item in (value, *items)):
            sql = f"({value.sql} IN ({', '.join(item.sql for item in items)}))"
        else:  # DuckDB would make floats of whole numbers where one of the items is a float.
            sql = f"({' OR '.join(comparisons)})"
        return _predicate(sql, value, *items)

    def _coalesce(self, node: Any) -> Term:
        terms = [self._term(part) for part in node["children"]]
        if len({(term.kind, term.zone) for term in terms}) > 1:
            raise self._refusal(f"coalesce mixes {', '.join(dict.fromkeys(term.kind for term in terms))}")
        return Term(
            sql=f"coalesce({', '.join(term.sql for term in terms)})", kind=terms[0].kind, zone=terms[0].zone,
            nullable=all(term.nullable for term in terms), whole=all(term.whole for term in terms),
            predicate=terms[0].kind == TRUTH,
        )  # fmt: skip

    def _comparison(self, node: Any, operation: str) -> Term:
        left, right = node["left"], node["right"]
        if left["class"] == "CAST" and int(left["query_location"]) > _NO_PLACE:  # x IS [NOT] TRUE
            return _predicate(f"({self._condition(left['child']).sql} {operation} {self._term(right).sql})")
        one, other = self._term(left), self._term(right)
        if one.predicate or other.predicate:
            raise self._refusal(_COMPARED_TWICE)
        if operation == "<>" and self._python_unequal and (one.nullable or other.nullable):
            raise self._refusal(
                "!= does not take rows without a value, as it did before: write IS DISTINCT FROM, which does, or <>"
            )
        sql = self._compared(operation, one, other)
        return _predicate(sql) if "DISTINCT" in operation else _predicate(sql, one, other)

    def _compared(self, operation: str, left: Term, right: Term) -> str:
        left, right = self._beside(left, right), self._beside(right, left)
        if left.kind != right.kind:
            if left.kind in _TIMES and right.kind in _TIMES:
                raise self._refusal("compares a time that has a zone with one that has none")
            raise self._refusal(f"compares {left.kind} with {right.kind}")
        return f"({left.sql} {operation} {right.sql})"

    def _beside(self, term: Term, other: Term) -> Term:
        """A constant as the column beside it needs it: a text as a time, a number rounded as the column's are."""
        if isinstance(term.constant, str) and other.kind in _TIMES:
            return self._time(term.constant, other.zone)
        if other.precision is not None and isinstance(term.constant, int | float) and term.kind == NUMBER:
            with np.errstate(over="ignore"):
                rounded = float(other.precision(term.constant))
            return replace(term, sql=_double(rounded)) if np.isfinite(rounded) else term
        return term

    def _time(self, text: str, zone: str | None) -> Term:
        """The time that a text says, in the zone of the column beside it unless it names its own."""
        try:
            time = pd.Timestamp(text) if _ISO.fullmatch(text) else None
        except ValueError:
            time = None
        if time is None:
            example = "" if zone is None else "+02:00"
            raise self._refusal(
                f"needs a time such as '2024-05-31' or '2024-05-31T12:30:00{example}' instead of {text!r}"
            )
        if time.tzinfo is None and zone is not None:
            # An hour that a change of the clocks skips or repeats: the one after.
            time = time.tz_localize(zone, ambiguous=False, nonexistent="shift_forward")
        kind: Kind = TIME if time.tzinfo is None else ZONED
        if time.tzinfo is not None:
            time = time.tz_convert("UTC").tz_localize(None)
        size = "TIMESTAMP_NS" if time.nanosecond else "TIMESTAMP"
        return Term(sql=f"{size} '{time.isoformat()}'", kind=kind, nullable=False, zone=zone)

    def _function(self, node: Any) -> Term:
        name, arguments = node["function_name"], node.get("arguments", [])
        extra = node["schema"] or node["filter"] or node["distinct"] or node["order_bys"]["orders"]
        if name not in _FUNCTIONS or extra or any(item["name"] for item in arguments):
            raise self._refusal(f"{name} is no function of conditions, which may hold {_HELP}")
        kinds, result = _FUNCTIONS[name]
        terms = [self._term(item["expression"]) for item in arguments]
        if len(terms) != len(kinds) and not (name in "+-" and len(terms) == 1):
            raise self._refusal(f"{name} takes {len(kinds)} values, got {len(terms)}")
        for term, kind, item in zip(terms, kinds, arguments, strict=False):
            if term.kind != kind:
                raise self._refusal(f"{self._source(item['expression'])!r} is {term.kind}, where {kind} is needed")
        if name in ("/", "mod") and terms[1].constant == 0:
            raise self._refusal("divides by zero")
        if name in _ARITHMETIC and all(term.constant is not None for term in terms):
            try:
                return self._number(_ARITHMETIC[name](*([0] if name in "+-" and len(terms) == 1 else []),
                                                      *(term.constant for term in terms)))  # fmt: skip
            except OverflowError as error:
                raise self._refusal("a number leaves the floats of 64 bits") from error
        written = [term.sql for term in terms]
        whole = (result == NUMBER and name != "/" and all(term.whole for term in terms)) or name == "length"
        if name == "/":
            written = [f"CAST({sql} AS DOUBLE)" for sql in written]
        if not name[0].isalpha():
            word = {"~~": "LIKE", "!~~": "NOT LIKE", "~~*": "ILIKE", "!~~*": "NOT ILIKE"}.get(name, name)
            # -x is 0 - x: there is no zero below zero, by which something could be divided.
            sql = f"({f' {word} '.join(written if len(written) == 2 else ['CAST(0 AS BIGINT)', *written])})"
        else:
            sql = f"{name}({', '.join(written)})"
        if result == NUMBER and not whole:  # What is no number is undefined; to DuckDB it is the largest one.
            sql = f"nullif({sql}, CAST('nan' AS DOUBLE))"
        nullable = any(term.nullable for term in terms) or name == "mod" or (result == NUMBER and not whole)
        return Term(sql=sql, kind=result, nullable=nullable, whole=whole, predicate=result == TRUTH)


def _predicate(sql: str, *parts: Term) -> Term:
    return Term(sql=sql, kind=TRUTH, nullable=any(part.nullable for part in parts), predicate=True)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _double(value: float) -> str:
    return f"CAST('{value!r}' AS DOUBLE)"
