"""Command lines from dataclasses: flags, and `--config file.yaml` that flags override."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from cal_schemas.errors import ConfigError

_Config = TypeVar("_Config")


class _Parser(HfArgumentParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def parse_config(kind: type[_Config], argv: Sequence[str] | None = None, *, program: str, description: str) -> _Config:
    """Builds `kind` from the command line (sys.argv by default).

    A YAML file given with `--config` is expanded to flags in front of the user's own, so both take the same path:
    same names, same types, same checks, and what is typed wins. Raises ConfigError with one line that names the flag.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(kind, prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=None, help="YAML file of the flags below; flags override it")
    flags = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    found = parser.parse_known_args([*_required_stand_ins(kind), *given])[0].config
    from_file = [] if found is None else _yaml_flags(found, flags)
    namespace, unknown = parser.parse_known_args([*from_file, *given])
    if unknown:
        raise ConfigError(_unknown(unknown[0].split("=")[0], flags))
    values = {name: value for name, value in vars(namespace).items() if name != "config"}
    return kind(**values)


def _required_stand_ins(kind: type[Any]) -> list[str]:
    """Values for required flags while only `--config` is looked for: the file may be what provides them."""
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return [part for name in required for part in (f"--{name}", "x")]


def _yaml_flags(path: Path, flags: Sequence[str]) -> list[str]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected `flag: value` lines, got a {type(values).__name__}")
    expanded: list[str] = []
    for name, value in values.items():
        if name not in flags:
            raise ConfigError(f"--config {path}: {_unknown(str(name), flags)}")
        if value is None:
            continue
        if isinstance(value, dict):
            raise ConfigError(f"--config {path}: {name} is a mapping, expected a value or a list")
        items = value if isinstance(value, list) else [value]
        # One token with `=`, so that a value may begin with a dash; lists need separate ones.
        expanded += [f"--{name}", *map(_text, items)] if isinstance(value, list) else [f"--{name}={_text(value)}"]
    return expanded


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unknown(flag: str, flags: Sequence[str]) -> str:
    close = difflib.get_close_matches(flag.lstrip("-").replace("-", "_"), flags, n=1)
    return f"unknown flag {flag}" + (f"; did you mean --{close[0]}?" if close else "; --help lists them")
