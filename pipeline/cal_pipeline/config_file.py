"""Expands the YAML file of --config to flags, so that both take the same path."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from cal_schemas.errors import ConfigError

_NULL = ("", "~", "null", "Null", "NULL")
"""Written for "the default"."""
INFINITE = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf"}
"""YAML's way to write what the flags call inf."""
DASHES = ("-", "\N{EN DASH}", "\N{EM DASH}")
"""What flags begin with; the latter two where text programs made them of two dashes."""
_REPLACED = {
    "warmup_ratio": "--warmup_steps below 1 is that share of all steps",
    "evaluation_strategy": "it is --eval_strategy now",
    "group_by_length": "use --group_by length",
    "no_cuda": "it is --use_cpu now",
    "load_in_4bit": "use --quantization 4bit",
    "load_in_8bit": "use --quantization 8bit",
    **dict.fromkeys(("quantization_bit", "quant_bits"), "use --quantization 4bit or 8bit"),
    "overwrite_output_dir": "a run without --resume_from_checkpoint begins anew wherever it writes",
    **dict.fromkeys(
        ("split", "subset", "dataset_name", "dataset_config", "dataset_split"),
        "a data set of the Hub and its split are one name, org/name:split or org/name:configuration/split",
    ),
}
"""What does the work of flags that transformers 4, other trainers and `load_dataset` have and scripts still give."""


class _Loader(yaml.BaseLoader):
    """Leaves every value as it is written, for the flags to interpret; refuses a key that is there twice.

    safe_load would make `no` a boolean, `0123` an octal number and `2e-5` a string, and of two values take the last.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Constructs it; ConstructorError with both places otherwise."""
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in lines:
                said = f"{key.value} is there twice, in lines {lines[key.value]} and {line}"
                raise yaml.constructor.ConstructorError(None, None, said)
            lines[key.value] = line
        return super().construct_mapping(node, deep=deep)


def read_values(path: Path) -> dict[str, Any]:
    """Reads the file, every value as it is written; ConfigError for what is no YAML of flags."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        at, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        reason = f"line {at.line + 1}, column {at.column + 1}: {problem}" if at else " ".join(str(error).split())
        raise ConfigError(f"--config {path} is no YAML: {reason}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected `flag: value` lines, got a {type(values).__name__}")
    return values


def flags_of(values: Mapping[str, Any], kinds: Sequence[type[Any]], others: Mapping[str, type]) -> list[str]:
    """Spells values as a command line for the fields of the dataclasses, and for `others`, which have these types.

    A mapping becomes JSON where its flag takes one. Raises ConfigError naming the flag.
    """
    hints = {**others, **{name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}}
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    expanded: list[str] = []
    for name, value in values.items():
        if name not in names and name not in others:
            raise ConfigError(unknown_flag(f"--{name}", [*names, *others]))
        taken = {get_origin(part) or part for part in (hints.get(name), *get_args(hints.get(name)))}
        if isinstance(value, str) and float in taken:
            value = INFINITE.get(value.lower(), value)
        if isinstance(value, dict) and (name in others or dict in taken):
            value = json.dumps(_interpreted(value))
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise ConfigError(f"{name} is a mapping or nested, expected a value or a list of values")
        if isinstance(value, str):
            # One token with `=`, so that a value may begin with a dash; lists need separate ones.
            expanded += [] if value in _NULL else [f"--{name}={value}"]
        elif items:
            expanded += [f"--{name}", *items]
    return expanded


def _interpreted(value: Any) -> Any:
    """A mapping of `_Loader`, its words made the numbers and truths that JSON has for them.

    What is no JSON is read as YAML, which knows `no`, `.5` and `.inf`, and the other way round `2e-5`.
    """
    if isinstance(value, dict):
        return {name: _interpreted(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_interpreted(item) for item in value]
    if value in _NULL:
        return None
    for read in (json.loads, yaml.safe_load):
        try:
            if isinstance(known := read(value), bool | int | float):
                return known
        except (ValueError, yaml.YAMLError):
            continue
    return value


def unknown_flag(flag: str, flags: Sequence[str]) -> str:
    """Says that there is no such flag, and which one may be meant."""
    if not flag.startswith(DASHES):
        return f"unexpected argument {flag!r}: it belongs to no flag"
    name = flag.lstrip("".join(DASHES)).replace("-", "_")
    if name in _REPLACED:
        return f"unknown flag {flag}: {_REPLACED[name]}"
    close = [other for other in flags if name and other.startswith(name)][:3] or difflib.get_close_matches(
        name, flags, n=1
    )
    meant = " or ".join(f"--{other}" for other in close)
    return f"unknown flag {flag}; " + (f"did you mean {meant}?" if close else "--help-all lists them")
