"""Formats pages of help: what a flag, its values, its default and an example look like."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

WIDTH = 80
NUMBERS: dict[Any, str] = {int: "N", float: "X"}
"""What stands for a number."""


class Formatter(argparse.HelpFormatter):
    """Writes a flag once, with what it takes in a word, and its default where there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(shutil.get_terminal_size().columns, WIDTH) - 2)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return NUMBERS.get(action.type, action.dest.rsplit("_")[-1].upper())

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == "?" and action.const is True:
            return ""
        if action.nargs in ("+", "*"):  # The latter are transformers', nearly all of which take one value.
            (metavar,) = self._metavar_formatter(action, default_metavar)(1)
            return f"{metavar} ..." if action.nargs == "+" else metavar
        return super()._format_args(action, default_metavar)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return self._format_args(action, action.dest)
        names = spelled_once(action.option_strings)
        if action.nargs == "?" and action.default is True:
            names = [f"--[no_]{action.dest}"]
        return f"{', '.join(names)} {self._format_args(action, self._get_default_metavar_for_optional(action))}".strip()

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        says_nothing = action.default in (None, [], False, "False", argparse.SUPPRESS) or action.nargs == 0
        if says_nothing or "default" in text:
            return text
        return f"{text} (default: {' '.join(action.default) if isinstance(action.default, list) else '%(default)s'})"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def spelled_once(names: Iterable[str]) -> list[str]:
    """The names without those that only have dashes in place of underscores, or the other way round."""
    spelled: dict[str, str] = {}
    for name in names:
        spelled.setdefault(name.replace("_", "-"), name)
    return list(spelled.values())


def in_lines(example: str) -> str:
    """A command in lines that a shell takes for one."""
    lines = [""]
    for part in re.split(r" (?=--)", example):
        if lines[-1] and len(lines[-1]) + len(part) > WIDTH - 8:
            lines.append("")
        lines[-1] += f" {part}" if lines[-1] else part
    return "  " + " \\\n      ".join(lines)
