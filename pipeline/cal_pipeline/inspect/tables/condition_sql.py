"""Writes conditions out as SQL of our own: of what DuckDB parsed only what is known here to be harmless, and typed.

Columns, numbers, texts, comparisons, arithmetic and a few functions pass; queries, parameters and every other function
do not, whatever they would do. Numbers, texts, times and truth values never mix. Where Python's grammar, which
conditions had before, meant something else, the new spelling is asked for: no condition changes its meaning in silence.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from cal_pipeline.inspect.tables.condition_functions import FUNCTIONS, call, defined
from cal_pipeline.inspect.tables.condition_text import is_plain, parsed, shortened, unquoted
from cal_pipeline.inspect.tables.terms import (
    NUMBER,
    TEXT,
    TIME,
    TRUTH,
    ZONED,
    Term,
    beside,
    number,
    predicate,
    quoted,
)
from cal_schemas.errors import ConfigError

_TIMES = (TIME, ZONED)
_HELP = (
    "columns, numbers, 'texts', comparisons, + - * /, AND, OR, NOT, IN (...), BETWEEN, LIKE, ILIKE, IS [NOT] NULL, "
    "IS [NOT] TRUE, IS DISTINCT FROM, coalesce, "
    + ", ".join([*(name for name in FUNCTIONS if name[0].isalpha()), "quantile"])
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
_NO_PLACE = 2**63
"""DuckDB's place of what it wrote itself is above."""


class Writer:
    """Writes a condition out over columns whose SQL is given, and collects which of them it names.

    Args:
        text: the condition.
        columns: name -> the column as a term. Names are exact: upper and lower case are two names.
        others: names of columns whose values are not compared.

    Raises ConfigError, in one line, for whatever is not allowed.
    """

    def __init__(self, text: str, columns: Mapping[str, Term], others: Collection[str] = ()) -> None:
        self.text, self.columns, self.others = text, columns, others
        self.names: dict[str, None] = {}
        self.quantiles: dict[str, tuple[str, float]] = {}
        """Name in the condition's SQL -> SQL of a number of every sample, share of all samples."""
        self._python_unequal = "!=" in unquoted(text)
        tree = parsed(text, columns)
        try:
            self.condition = self._condition(tree)
        except RecursionError:
            raise ConfigError(f"{shortened(text)}: nested too deeply") from None
        except ConfigError as error:
            raise ConfigError(f"{shortened(text)}: {error}") from None

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
            raise ConfigError(
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
                return predicate(f"({word.join(part.sql for part in parts)})", *parts)
            case "OPERATOR", "OPERATOR_NOT":
                return self._not(node)
            case "OPERATOR", ("OPERATOR_IS_NULL" | "OPERATOR_IS_NOT_NULL") as kind:
                words = "IS NULL" if kind == "OPERATOR_IS_NULL" else "IS NOT NULL"
                return predicate(f"({self._term(node['children'][0]).sql} {words})")
            case "OPERATOR", "COMPARE_IN":
                return self._among(node)
            case "OPERATOR", "OPERATOR_COALESCE":
                return self._coalesce(node)
            case "BETWEEN", _:
                value, low, high = (self._term(node[name]) for name in ("input", "lower", "upper"))
                if any(term.predicate for term in (value, low, high)):
                    raise ConfigError(_COMPARED_TWICE)
                return predicate(f"({self._compared('>=', value, low)} AND {self._compared('<=', value, high)})",
                                  value, low, high)  # fmt: skip
            case "COMPARISON", kind if kind in _COMPARISONS:
                return self._comparison(node, _COMPARISONS[kind])
            case "FUNCTION", _:
                return defined(self._function(node))
        raise ConfigError(f"{self._source(node)!r} is not allowed in a condition, which may hold {_HELP}")

    def _constant(self, node: Any) -> Term:
        kind, text = node["literal"]["kind"], node["literal"].get("text", "")
        exact = partial(Term, nullable=False)
        if kind == "STRING":
            return exact(sql=quoted(text), kind=TEXT, constant=text)
        if kind == "BOOLEAN":
            return exact(sql=text, kind=TRUTH, constant=text == "true")
        if kind in ("INTEGER", "NUMERIC"):
            return number((int if kind == "INTEGER" else float)(text.replace("_", "")))
        raise ConfigError("NULL is compared with nothing: write IS NULL or IS NOT NULL")

    def _column(self, node: Any) -> Term:
        path = node["column_names"]
        name = ".".join(path)
        in_quotes = self._source(node).startswith('"')
        in_one_line = repr(name)[1:-1]
        text = f"; a text stands in single quotes: {quoted(in_one_line)}" if in_quotes else ""
        if len(path) > 1:
            raise ConfigError(f'no column {name!r} without quotes: a name with a dot is written "{in_one_line}"')
        if name not in self.columns and name in self.others:
            raise ConfigError(f"no column {name!r} with one value a row: it holds lists, structs or bytes")
        if name not in self.columns:
            own = f"source_{name}"
            cased = [column for column in self.columns if column.lower() == name.lower()]
            close = [own] if own in self.columns else cased or difflib.get_close_matches(name, self.columns, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise ConfigError(f"no column {name!r}{text}{hint} There are {', '.join(self.columns)}")
        if in_quotes and is_plain(name):
            # Before, this was a text.
            raise ConfigError(f"the column {name} is written without quotes{text}")
        self.names[name] = None
        return self.columns[name]

    def _not(self, node: Any) -> Term:
        part = self._condition(node["children"][0])
        if part.nullable:
            raise ConfigError(
                "NOT is only for what has a value in every row, and this may lack one: write (...) IS NOT TRUE, which "
                "takes rows without a value, or (...) IS FALSE, which does not"
            )
        return predicate(f"(NOT {part.sql})", part)

    def _among(self, node: Any) -> Term:
        value, *items = (self._term(part) for part in node["children"])
        if any(term.predicate for term in (value, *items)):
            raise ConfigError(_COMPARED_TWICE)
        comparisons = [self._compared("=", value, item) for item in items]
        if value.kind == TEXT or all(item.whole for item in (value, *items)):
            sql = f"({value.sql} IN ({', '.join(item.sql for item in items)}))"
        else:  # DuckDB would make floats of whole numbers where one of the items is a float.
            sql = f"({' OR '.join(comparisons)})"
        return predicate(sql, value, *items)

    def _coalesce(self, node: Any) -> Term:
        terms = [self._term(part) for part in node["children"]]
        if len({(term.kind, term.zone) for term in terms}) > 1:
            raise ConfigError(f"coalesce mixes {', '.join(dict.fromkeys(term.kind for term in terms))}")
        return Term(
            sql=f"coalesce({', '.join(term.sql for term in terms)})", kind=terms[0].kind, zone=terms[0].zone,
            nullable=all(term.nullable for term in terms), whole=all(term.whole for term in terms),
            predicate=terms[0].kind == TRUTH,
        )  # fmt: skip

    def _comparison(self, node: Any, operation: str) -> Term:
        left, right = node["left"], node["right"]
        if left["class"] == "CAST" and int(left["query_location"]) > _NO_PLACE:  # x IS [NOT] TRUE
            return predicate(f"({self._condition(left['child']).sql} {operation} {self._term(right).sql})")
        one, other = self._term(left), self._term(right)
        if one.predicate or other.predicate:
            raise ConfigError(_COMPARED_TWICE)
        if operation == "<>" and self._python_unequal and (one.nullable or other.nullable):
            raise ConfigError(
                "!= is only for what has a value in every row, and this may lack one: write IS DISTINCT FROM, which "
                "takes rows without a value, or <>, which does not"
            )
        sql = self._compared(operation, one, other)
        return predicate(sql) if "DISTINCT" in operation else predicate(sql, one, other)

    def _compared(self, operation: str, left: Term, right: Term) -> str:
        left, right = beside(left, right), beside(right, left)
        if left.kind != right.kind:
            if left.kind in _TIMES and right.kind in _TIMES:
                raise ConfigError("compares a time that has a zone with one that has none")
            raise ConfigError(f"compares {left.kind} with {right.kind}")
        return f"({left.sql} {operation} {right.sql})"

    def _function(self, node: Any) -> Term:
        name, arguments = node["function_name"], node.get("arguments", [])
        extra = node["schema"] or node["filter"] or node["distinct"] or node["order_bys"]["orders"]
        if name not in (*FUNCTIONS, "quantile") or extra or any(item["name"] for item in arguments):
            raise ConfigError(f"{name} is no function of conditions, which may hold {_HELP}")
        parts = [item["expression"] for item in arguments]
        terms = [self._function(part) if part["class"] == "FUNCTION" else self._term(part) for part in parts]
        given = [(term, self._source(part)) for term, part in zip(terms, parts, strict=True)]
        return self._quantile(given) if name == "quantile" else call(name, given)

    def _quantile(self, given: Sequence[tuple[Term, str]]) -> Term:
        """The value's quantile over all samples, which whoever evaluates puts in its place."""
        needed = "quantile takes a number of every sample and a share: quantile(mean_delta, 0.1)"
        if len(given) != 2:
            raise ConfigError(f"{needed}; got {len(given)} values")
        (value, written), (share, written_share) = given
        if value.kind != NUMBER or value.constant is not None or any(name in value.sql for name in self.quantiles):
            raise ConfigError(f"{needed}; {written!r} is no such number")
        if not isinstance(share.constant, int | float) or not 0 <= share.constant <= 1:
            raise ConfigError(f"{needed}; {written_share!r} is no share from 0 to 1")
        name = f"quantile{len(self.quantiles)}"
        self.quantiles[name] = (defined(value).sql, float(share.constant))
        return Term(sql=name, kind=NUMBER)
