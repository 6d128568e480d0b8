"""Which rows: a condition in text over the columns of a row and of `sample_frame`, read by a parser of its own.

Python's grammar, and of it only comparisons, arithmetic, `and or not`, `in`, constants, column names and a few named
functions; nothing is ever evaluated as Python. What the operators do is in `operations`.
"""

from __future__ import annotations

import ast
import difflib
import operator
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cal_pipeline.inspect.tables import operations
from cal_pipeline.inspect.tables.operations import kind_of
from cal_schemas.errors import ConfigError

_FUNCTIONS = "abs(x), isnull(column), contains(column, 'text'), startswith(column, 'text'), endswith(column, 'text')"
_TEXT_OR_QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`([^`]*)`""")
"""A backtick inside of a text is a character of it."""
_MAX_LENGTH = 10_000


class Condition:
    """A parsed condition.

    Args:
        text: e.g. `status == 'ok' and share_negative > 0.3`; a column whose name is no word stands in backticks.
        columns: names that may occur.

    Raises ConfigError with the place and the reason: no condition, something that is not allowed here, or an unknown
    column, naming those there are.
    """

    def __init__(self, text: str, columns: Sequence[str]) -> None:
        self.text = text
        if len(text) > _MAX_LENGTH:
            raise ConfigError(f"a condition of {len(text)} characters; at most {_MAX_LENGTH} are read")
        aliases: dict[str, str] = {}

        def alias(found: re.Match[str]) -> str:
            if found[1] is None:
                return found[0]
            return aliases.setdefault(found[1], f"_quoted_{len(aliases)}_")

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # Of what is refused below, and of backslashes in texts.
                tree = ast.parse(_TEXT_OR_QUOTED.sub(alias, text).strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
            raise ConfigError(f'{text!r} is no condition: {reason}; write one like "mean_delta < 0.2"') from error
        self._tree = tree.body
        self._real = {short: name for name, short in aliases.items()}
        names = {
            self._real.get(node.id, node.id): None
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and not self._is_function(node, tree)
        }
        for name in names:
            if name not in columns:
                own = f"source_{name}"
                close = [own] if own in columns else difflib.get_close_matches(name, columns, n=1)
                hint = f"; did you mean {close[0]}?" if close else "."
                raise ConfigError(f"{text!r}: no column {name!r}{hint} There are {', '.join(columns)}")
        self.names = tuple(names)

    @staticmethod
    def _is_function(name: ast.Name, tree: ast.AST) -> bool:
        return any(isinstance(node, ast.Call) and node.func is name for node in ast.walk(tree))

    def __call__(self, values: Mapping[str, pd.Series], rows: int) -> np.ndarray:
        """[rows] bool; `values` holds a Series for each of `names`. Raises ConfigError where types do not fit."""
        try:
            with np.errstate(all="ignore"):
                result = self._value(self._tree, values)
        except RecursionError as error:
            raise ConfigError(f"{self.text[:80]!r}...: nested too deeply") from error
        # A condition without a column is one truth value.
        return np.broadcast_to(self._boolean(result, self._tree, rows), rows)

    def _value(self, node: ast.expr, values: Mapping[str, pd.Series]) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.Name():
                return values[self._real.get(node.id, node.id)]
            case ast.BoolOp():
                parts = [self._condition(part, values) for part in node.values]
                join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
                result = parts[0]
                for part in parts[1:]:
                    result = join(result, part)
                return result
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
                left, right = self._condition(node.left, values), self._condition(node.right, values)
                return left & right if isinstance(node.op, ast.BitAnd) else left | right
            case ast.UnaryOp(op=ast.Not() | ast.Invert()):
                return ~self._condition(node.operand, values)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                operand = self._number(node.operand, values)
                negative = isinstance(node.op, ast.USub)
                return self._within(node, operations.computed, "Sub", 0, operand) if negative else operand
            case ast.BinOp() if (name := type(node.op).__name__) in operations.ARITHMETIC:
                left, right = self._number(node.left, values), self._number(node.right, values)
                return self._within(node, operations.computed, name, left, right)
            case ast.Compare():
                return self._comparison(node, values)
            case ast.Call(func=ast.Name(), keywords=[]):
                return self._call(node, values)
        raise ConfigError(
            f"{self._source(node)!r} is not allowed in a condition: it may hold columns, numbers, texts, comparisons, "
            f"+ - * / %, and, or, not, in [...], and {_FUNCTIONS}"
        )

    def _comparison(self, node: ast.Compare, values: Mapping[str, pd.Series]) -> Any:
        result: Any = True
        left = self._value(node.left, values)
        for kind, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(kind, ast.In | ast.NotIn):
                alone = len(node.ops) == 1 and isinstance(left, pd.Series)
                if not alone or not isinstance(right_node, ast.List | ast.Tuple | ast.Set):
                    raise ConfigError(f"{self._source(node)!r}: write `column in ['a', 'b']`")
                items = [self._value(item, values) for item in right_node.elts]
                found = self._within(node, operations.among, left, items)
                return ~found if isinstance(kind, ast.NotIn) else found
            right = self._value(right_node, values)
            result = result & self._compared(node, kind, left, right)
            left = right
        return result

    def _compared(self, node: ast.Compare, kind: ast.cmpop, left: Any, right: Any) -> Any:
        if left is None or right is None:
            other = right if left is None else left
            if not isinstance(other, pd.Series) or type(kind) not in (ast.Eq, ast.NotEq, ast.Is, ast.IsNot):
                raise ConfigError(f"{self._source(node)!r}: None goes with == and !=, and a column")
            return other.isna() if isinstance(kind, ast.Eq | ast.Is) else other.notna()
        if type(kind).__name__ not in operations.COMPARISONS:
            raise ConfigError(f"{self._source(node)!r}: `is` goes with None only")
        return self._within(node, operations.compared, type(kind).__name__, left, right)

    def _call(self, node: ast.Call, values: Mapping[str, pd.Series]) -> Any:
        assert isinstance(node.func, ast.Name)
        name, arguments = node.func.id, node.args
        if name == "abs" and len(arguments) == 1:
            return abs(self._number(arguments[0], values))
        if (
            name == "isnull"
            and len(arguments) == 1
            and isinstance(column := self._value(arguments[0], values), pd.Series)
        ):
            return column.isna()
        if name in ("contains", "startswith", "endswith") and len(arguments) == 2:
            column, text = (self._value(item, values) for item in arguments)
            if isinstance(column, pd.Series) and kind_of(column) == operations.TEXT and isinstance(text, str):
                strings = column.astype("str").str
                found = strings.contains(text, regex=False) if name == "contains" else getattr(strings, name)(text)
                return found.where(column.notna(), False).astype(bool)
        raise ConfigError(f"{self._source(node)!r} is no function of conditions; there are {_FUNCTIONS}")

    def _number(self, node: ast.expr, values: Mapping[str, pd.Series]) -> Any:
        return self._within(node, operations.number, self._value(node, values))

    def _condition(self, node: ast.expr, values: Mapping[str, pd.Series]) -> Any:
        value = self._value(node, values)
        rows = len(next(iter(values.values()))) if values else 1
        return self._boolean(value, node, rows)

    def _boolean(self, value: Any, node: ast.expr, rows: int) -> np.ndarray:
        if isinstance(value, bool | np.bool_):
            return np.full(rows, bool(value))
        if isinstance(value, np.ndarray) and value.dtype == bool:
            return value
        if isinstance(value, pd.Series) and kind_of(value) == operations.TRUTH:
            return np.asarray(value.where(value.notna(), False).astype(bool))
        raise ConfigError(
            f"{self._source(node)!r} is {kind_of(value)}, where a condition is needed, such as mean_delta < 0.2"
        )

    def _within(self, node: ast.expr, operation: Callable[..., Any], *operands: Any) -> Any:
        try:
            return operation(*operands)
        except ConfigError as error:
            raise ConfigError(f"{self._source(node)!r} {error}") from error

    def _source(self, node: ast.expr) -> str:
        text = ast.unparse(node)
        for short, name in self._real.items():
            text = text.replace(short, f"`{name}`")
        return text if len(text) < 80 else text[:77] + "..."
