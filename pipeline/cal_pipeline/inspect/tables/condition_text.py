"""Reads the text of a condition: refuses what is spelled as before, and lets DuckDB parse the rest.

Until this version conditions had Python's grammar.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from functools import cache
from typing import Any

import duckdb

from cal_schemas.errors import ConfigError

_MAX_LENGTH = 10_000
_QUOTED = re.compile(r"""[eE]'(?:\\.|''|[^'\\])*'|'(?P<text>(?:''|[^'])*)'|"(?:""|[^"])*\"""")
_OLD_SPELLINGS = {
    r"`": 'a column whose name is no plain word stands in double quotes: "a.b"',
    r"\[": "write IN ('a', 'b')",
    r"\bNone\b": "write IS NULL or IS NOT NULL",
    r"--|/\*|#": "no comments; a minus before a minus stands in parentheses",
    r"&": "write AND",
    r"(?<!\|)\|(?!\|)": "write OR",
    r"(?<!!)~": "write (...) IS NOT TRUE, which takes rows without a value, or (...) IS FALSE, which does not",
    r"%": "write mod(a, b), whose sign is that of a",
    r"\bisnull\s*\(": "write x IS NULL",
    r"\bstartswith\s*\(": "write starts_with(x, 'text')",
    r"\bendswith\s*\(": "write ends_with(x, 'text')",
    r"[$;?]": "one expression, without parameters",
}
"""What stands outside of quotes -> what to write."""


@cache
def _database() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        config={
            "enable_external_access": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "allow_persistent_secrets": False,
            "temp_directory": "",
            "memory_limit": "1GB",
            "threads": 1,
            "async_threads": 0,
            "lock_configuration": True,
        }
    )


def connection() -> duckdb.DuckDBPyConnection:
    """To a database in memory that reaches no file, no network, no extension and no second thread, and stays so."""
    return _database().cursor()


def parsed(text: str, columns: Collection[str] = ()) -> Any:
    """DuckDB's tree of an expression; ConfigError when it is none, with a hint where a column is a word of SQL."""
    if not text.strip():
        raise ConfigError(f'{text!r} is no condition; write one like "mean_delta < 0.2"')
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"a condition of {len(text)} characters; at most {_MAX_LENGTH} are read")
    try:
        given = connection().execute("SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT ({text}\n)"]).fetchall()
        answer = json.loads(given[0][0])
    except (duckdb.Error, UnicodeError, RecursionError) as error:
        answer = {"error_message": f"{type(error).__name__}: {error}"}
    if "statements" not in answer:
        reason = " ".join(str(answer["error_message"]).split())
        if int(answer.get("position", 0)) >= len(f"SELECT ({text}".encode(errors="replace")):
            reason = "it ends too early"  # DuckDB complains of the bracket that was put around it.
        words = re.findall(r"\w+", _QUOTED.sub(" ", text))
        if name := next((word for word in words if word in columns and not is_plain(word)), ""):
            reason += f'; the column is written "{name}", in double quotes'
        raise ConfigError(f'{shortened(text)} is no condition: {reason}; write one like "mean_delta < 0.2"')
    nodes = [statement["node"] for statement in answer["statements"]]
    plain = {"type", "select_list", "from_table", "cte_map", "aggregate_handling"}
    if (
        len(nodes) != 1
        or nodes[0]["type"] != "SELECT_NODE"
        or len(nodes[0]["select_list"]) != 1
        or nodes[0]["from_table"]["type"] != "EMPTY"
        or any(value for name, value in nodes[0].items() if name not in plain)
    ):
        raise ConfigError(f"{shortened(text)} is no condition: one expression is needed, and no query")
    return nodes[0]["select_list"][0]


def shortened(text: str) -> str:
    """As a message quotes it."""
    return repr(text if len(text) < 80 else text[:77] + "...")


def unquoted(text: str) -> str:
    """The text with a blank for everything in quotes; ConfigError for what stands there as before."""

    def blank(found: re.Match[str]) -> str:
        inner = found["text"]
        if inner and ("\\" in inner or "''" in inner):
            raise ConfigError(f"{shortened(text)}: {found[0]} holds a backslash or a quote, which SQL reads otherwise "
                              r"than before: write E'...', with \' and \\ inside")  # fmt: skip
        return " "

    outside = _QUOTED.sub(blank, text)
    for pattern, spelling in _OLD_SPELLINGS.items():
        if found := re.search(pattern, outside):
            raise ConfigError(f"{shortened(text)}: {found[0].strip()!r} is not SQL as conditions take it: {spelling}")
    return outside


def is_plain(name: str) -> bool:
    """Whether SQL reads the name as a column without quotes."""
    try:
        return bool(parsed(name).get("column_names") == [name])
    except ConfigError:
        return False
