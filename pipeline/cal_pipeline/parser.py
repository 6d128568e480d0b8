"""Parses the command lines of all programs: short pages of help, mistyped names named, completion for shells."""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, NoReturn

from cal_pipeline.config_file import DASHES, unknown_flag
from cal_pipeline.help_page import NUMBERS, WIDTH, Formatter, in_lines, spelled_once
from cal_pipeline.transformers_source import hf_argument_parser
from cal_schemas.errors import ConfigError

ADVANCED, TRANSFORMERS = "advanced", "transformers' TrainingArguments"
_HIDDEN = (ADVANCED, TRANSFORMERS)
"""Groups that only --help-all shows."""
_GROUPS = ("model", "data", "encoding", "measurement", "weights", "training", "output", "running", "options", *_HIDDEN)
_PACKAGES = ("torch", "transformers")
_NO_FLAG = re.compile(r"^-$|^-[\d.]|\s")
"""A value that begins with a dash, as argparse tells it from a flag."""
_TWICE = re.compile(r"(--\w+)/--[\w-]+")
"""A flag with underscores and the same with dashes, as argparse names it."""
_FILES_FIRST = """ &&
        ( -z "$current_action_compgen" || "$current_action_is_positional" = true )"""
"""Where a script of shtab offers files in place of the next flag, behind one that takes several."""
_HfArgumentParser: Any = hf_argument_parser()


class Parser(_HfArgumentParser):  # type: ignore[misc]
    """Parses the flags of dataclasses, and others that are added; raises ConfigError for what is wrong.

    A field's metadata may name the `group` of its flag, else it is an advanced one.

    Args:
        kinds: the dataclasses.
        description: paragraphs; those that are indented are examples, and end the page of --help.
        add_help: whether there is a page of help.
        partial: others parse the rest of the line, whose flags are no mistakes here.
    """

    def __init__(
        self, kinds: Any = (), *, description: str | None = None, add_help: bool = True, partial: bool = False,
        **given: Any,
    ) -> None:  # fmt: skip
        self._given: Sequence[str] = ()
        self._partial = partial
        super().__init__(kinds, **{**given, "add_help": False, "allow_abbrev": False, "formatter_class": Formatter})
        paragraphs = (description or "").split("\n\n")
        self.paragraphs = [" ".join(text.split()) for text in paragraphs if not text.startswith("    ")]
        commands = "\n".join(text for text in paragraphs if text.startswith("    "))
        self.examples = [" ".join(line.split()) for line in commands.splitlines() if line.strip()]
        if add_help:
            self.add_argument("-h", "--help", action=_Help, nargs=0, help="show this page and exit")
            self.add_argument(
                "--help-all", "--help_all", action=_Help, nargs=0, const=True, help="the same with all flags"
            )

    def group(self, title: str) -> Any:
        """Returns the group of flags with this title, made where there is none."""
        there = (group for group in self._action_groups if group.title == title)
        return next(there, None) or self.add_argument_group(title)

    def add_program_flags(self) -> None:
        """Adds --version and --print_completion."""
        self.add_argument("--version", action=_Version, nargs=0, help="show versions and exit")
        self.add_argument(
            "--print_completion", "--print-completion", action=_Completion, choices=("bash", "zsh"),
            help="print what completes flags in a shell, and exit",
        )  # fmt: skip

    def _parse_dataclass_field(self, parser: Any, field: Any) -> None:
        declared = copy(field)
        metadata = dict(field.metadata)
        group = self.group(metadata.pop("group", ADVANCED))
        declared.metadata = metadata
        _HfArgumentParser._parse_dataclass_field(group, declared)
        if declared.default is True:
            group._group_actions[-1].help = argparse.SUPPRESS  # --no_… is in the line of its flag

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; ConfigError for what is wrong."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._given, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; ConfigError for what is wrong."""
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise ConfigError(unknown_flag(unknown[0].split("=")[0], self._names()))
        return namespace

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError: for a mistyped flag first, without which others may be missing."""
        names = self._names()
        known = {"-h", *(f"--{name}" for name in names)}
        for word in () if self._partial else self._given:
            if word == "--":
                break
            flag = word.split("=")[0]
            spelled = flag[:2] + flag[2:].replace("-", "_")
            if word.startswith(DASHES) and spelled not in known and not _NO_FLAG.search(word):
                raise ConfigError(unknown_flag(flag, names))
        once = _TWICE.sub(r"\1", message)
        raise ConfigError(f"{once} ({self.prog} --help tells more)")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        close = difflib.get_close_matches(str(value), choices, n=1)
        meant = f"did you mean {close[0]}? There are" if close else "choose from"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}; {meant} {', '.join(choices)}")

    def _names(self) -> list[str]:
        """Names of all flags, also of subcommands, without dashes in front."""
        words = (word for parser in self.with_subcommands() for word in parser._option_string_actions)
        return list(dict.fromkeys(word.lstrip("-").replace("-", "_") for word in words if word != "-h"))

    def with_subcommands(self) -> Iterator[Parser]:
        """Yields itself and the parsers of its subcommands."""
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser.with_subcommands()

    def format_help(self, *, everything: bool = False) -> str:
        """Returns the page of help: the flags in groups, how many more there are, examples."""
        formatter = self._get_formatter()
        formatter.add_usage(self._usage(formatter), [], [])
        for text in self.paragraphs:
            formatter.add_text(text)
        hidden = []
        for group in sorted(self._action_groups, key=_place):
            shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
            if shown and group.title in _HIDDEN and not everything:
                hidden.append(f"{len(shown)} {group.title}")
                continue
            formatter.start_section(group.title)
            formatter.add_arguments(shown)
            formatter.end_section()
        if hidden:
            formatter.add_text(f"{self.prog} --help-all shows more flags: {', '.join(hidden)}.")
        page: str = formatter.format_help()
        if self.examples:
            page += "\nexamples:\n" + "\n".join(in_lines(example) for example in self.examples) + "\n"
        return page

    def _usage(self, formatter: Any) -> str:
        words = [self.prog]
        words += [formatter._format_action_invocation(action) for action in self._actions if action.required
                  and action.option_strings]  # fmt: skip
        words += [
            "[FLAGS]",
            *(formatter._format_args(action, action.dest) for action in self._get_positional_actions()),
        ]
        lines = textwrap.fill(
            " ".join(words), WIDTH - 2, initial_indent=" " * len("usage: "), subsequent_indent=" " * 11,
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
        return lines.lstrip().replace("%", "%%")


def _place(group: Any) -> int:
    """Where a group stands: positional arguments and subcommands first."""
    return _GROUPS.index(group.title) if group.title in _GROUPS else -1


class _Help(argparse.Action):
    def __call__(self, parser: Any, *_: Any) -> None:
        parser._print_message(parser.format_help(everything=bool(self.const)), sys.stdout)
        parser.exit()


class _Version(argparse.Action):
    def __call__(self, parser: Any, *_: Any) -> None:
        try:
            version = importlib.metadata.version("cal-vlm")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        others = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
        parser._print_message(f"cal-vlm {version} ({others}, Python {sys.version.split()[0]})\n", sys.stdout)
        parser.exit()


class _Completion(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, shell: Any, *_: Any) -> None:
        try:
            import shtab
        except ModuleNotFoundError as error:
            raise ConfigError("shtab is missing: pip install 'cal-vlm[completion]'") from error
        for action in (action for part in parser.with_subcommands() for action in part._actions):
            action.option_strings = spelled_once(action.option_strings)
            if action.option_strings and action.nargs in ("?", "*"):  # Truths, and transformers' flags of one value.
                action.nargs = 0 if action.nargs == "?" or action.metavar == "" else None
            if action.nargs != 0 and action.choices is None and action.type not in NUMBERS:
                action.complete = shtab.FILE  # What is neither of a few words nor a number may be a path.
        parser._print_message(shtab.complete(parser, shell).replace(_FILES_FIRST, ""), sys.stdout)
        parser.exit()
