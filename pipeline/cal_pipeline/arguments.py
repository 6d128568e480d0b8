"""Builds dataclasses from command lines: flags, and `--config file.yaml` that flags override.

Programs answer --help, a typo and a wrong path before they import torch, transformers, datasets or Ray, which takes ten
seconds: this module and the configs need none of them, and each `cli.py` imports the rest after that, once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

from cal_pipeline.config_file import flags_of, read_values
from cal_pipeline.parser import ADVANCED, TRANSFORMERS, Parser
from cal_pipeline.transformers_source import Declared
from cal_schemas.errors import ConfigError
from cal_schemas.spec import (
    AspectRatio,
    Condition,
    ContrastParameters,
    ContrastSpec,
    ProcessorBackend,
    Template,
    Truncation,
    own_fields_first,
)

_Config = TypeVar("_Config")
_Default = TypeVar("_Default")
REQUIRED: Any = dataclasses.MISSING
"""In place of a default, of a flag that must be given."""


def flag(default: _Default, text: str, group: str = ADVANCED, **more: Any) -> _Default:
    """Declares a dataclass field that is a flag, with its default and what --help says; which may be REQUIRED.

    `group` is where --help shows it: advanced ones are left to --help-all. `more` is as in argparse (`choices`, …).
    """
    given: Any = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    declared: _Default = dataclasses.field(metadata={"help": text, "group": group, **more}, **given)
    return declared


@own_fields_first
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ContrastFlags(ContrastParameters):
    """Holds the flags that cal-precompute and cal-train share: what the pass without the image sees."""

    contrast: Condition | None = flag(
        None,
        "without the image: its tokens dropped (the paper; default) or masked (released code), or another "
        "image: parts of it painted over (patch_mask) or all of it blurred (gaussian_blur)",
        group="measurement",
    )

    def contrast_spec(self) -> ContrastSpec:
        """Returns the flags as one value; ConfigError for a parameter that is missing, or of another condition."""
        return self.contrast_with(self.contrast or "drop")

    def contrast_with(self, condition: Condition) -> ContrastSpec:
        """Returns the same where the condition comes from elsewhere."""
        parameters = {item.name: getattr(self, item.name) for item in dataclasses.fields(ContrastParameters)}
        return ContrastSpec(condition=condition, **parameters)


@own_fields_first
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EncodingFlags(ContrastFlags):
    """Holds the flags, also of both programs, by which a sample becomes tokens and pixels."""

    template: Template = flag("auto", "auto is the model's chat template", group="encoding")
    image_aspect_ratio: AspectRatio = flag("native", "native leaves the image to the processor", group="encoding")
    processor_kwargs: dict[str, Any] | str | None = flag(
        None,
        'JSON of settings in place of those of the model\'s processor, e.g. {"max_pixels": 401408}',
    )
    processor_backend: ProcessorBackend = flag("auto", "what resizes images; auto is torchvision where it is installed")
    max_length: int = flag(2048, "longest encoding, in tokens, image tokens included", group="encoding")
    truncation: Truncation = flag(
        "drop", "what happens to a longer row: status too_long, or its end is cut", group="encoding"
    )

    def processor_settings(self) -> dict[str, Any]:
        """Returns --processor_kwargs as a mapping, empty where there are none; ConfigError for what is no object."""
        text = self.processor_kwargs or "{}"
        try:
            value = json.loads(text) if isinstance(text, str) else text
        except ValueError as error:
            raise ConfigError(f"--processor_kwargs {text} is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise ConfigError(f"--processor_kwargs {text}: expected a JSON object of names and values")
        if empty := next((name for name, setting in value.items() if setting is None), None):
            raise ConfigError(f"--processor_kwargs {empty} has no value; leave it out for that of the model")
        return value


def parse_config(kind: type[_Config], argv: Sequence[str] | None = None, *, program: str, description: str) -> _Config:
    """Builds `kind` from the command line (sys.argv by default); see `parse_configs`."""
    (config,) = parse_configs([kind], argv, program=program, description=description)
    return config  # type: ignore[no-any-return]


def parse_configs(
    kinds: Sequence[type[Any]],
    argv: Sequence[str] | None = None,
    *,
    program: str,
    description: str,
    replaces: Mapping[str, Sequence[str]] | None = None,
    others: Mapping[str, Declared] | None = None,
) -> list[Any]:
    """Builds one instance of each dataclass from one command line.

    A YAML file given with `--config` is expanded to flags in front of the user's own, so both take the same path:
    same names, same types, same checks, and what is typed wins; a typed flag that the file lacks also wins over those
    that `replaces` lists for it. `others` are flags that may be there, of which only numbers are looked at. Raises
    ConfigError with one line that names the flag.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(kinds, prog=program, description=description)
    parser.add_argument("--config", type=Path, default=None, help="YAML file of flags; those that are typed go first")
    parser.add_program_flags()
    own = {field.name for kind in kinds for field in dataclasses.fields(kind) if field.init}
    others = {name: declared for name, declared in (others or {}).items() if name not in own}
    for name, declared in others.items():
        _add_other(parser.group(TRANSFORMERS), name, declared)
    _validate_lists(given, kinds)
    types = {name: declared.type for name, declared in others.items()}
    namespace = parser.parse_args(_with_file(given, kinds, types, replaces or {}))
    built = []
    for kind in kinds:
        names = [field.name for field in dataclasses.fields(kind) if field.init]
        try:
            built.append(kind(**{name: getattr(namespace, name) for name in names}))
        except ConfigError:
            raise
        except (ValueError, TypeError, ImportError, OSError) as error:  # what TrainingArguments raises
            raise ConfigError(" ".join(str(error).split())) from error
    return built


def _add_other(group: Any, name: str, declared: Declared) -> None:
    form = name.replace("_", "-")
    number = declared.type if declared.type in (int, float) else str
    group.add_argument(
        *dict.fromkeys((f"--{name}", f"--{form}")), type=number, nargs="*", help=declared.help,
        default=declared.default or None, metavar="" if declared.type is bool else None,
    )  # fmt: skip
    if number is str:
        group.add_argument(*dict.fromkeys((f"--no_{name}", f"--no-{form}")), nargs="*", help=argparse.SUPPRESS)


def chosen(kind: type[Any], names: Sequence[str], argv: Sequence[str] | None = None) -> set[str]:
    """Returns those of these flags of `kind` that the command line or its `--config` file sets to something true.

    The rest of the line is not looked at: what such a flag asks for may need less of it. Raises ConfigError.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    fields, hints = dataclasses.fields(kind), get_type_hints(kind)
    wanted = [(item.name, hints[item.name], flag(item.default, "")) for item in fields if item.name in names]
    parser = Parser(dataclasses.make_dataclass("Chosen", wanted), add_help=False, partial=True)
    namespace = parser.parse_known_args(_with_file(given, [kind], {}, {}))[0]
    return {name for name in names if getattr(namespace, name)}


def _validate_lists(given: Sequence[str], kinds: Sequence[type[Any]]) -> None:
    """Raises ConfigError for a list flag that is given twice: argparse would keep the last and drop the others."""
    typed = _typed(given)
    for kind in kinds:
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if get_origin(hints[field.name]) is list and typed.count(field.name) > 1:
                raise ConfigError(
                    f"--{field.name} is given {typed.count(field.name)} times: list all values after one flag"
                )


def _typed(given: Sequence[str]) -> list[str]:
    return [part.split("=")[0].lstrip("-").replace("-", "_") for part in given if part.startswith("--")]


def _with_file(
    given: Sequence[str], kinds: Sequence[type[Any]], others: Mapping[str, type], replaces: Mapping[str, Sequence[str]]
) -> list[str]:
    """Returns the command line behind the flags of its --config, which may be what provides the required ones."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    try:
        path: Path | None = parser.parse_known_args(given)[0].config
    except argparse.ArgumentError as error:
        raise ConfigError(str(error)) from error
    if path is None:
        return list(given)
    values, typed = read_values(path), _typed(given)
    for other in (other for name in typed if name not in values for other in replaces.get(name, ())):
        values.pop(other, None)
    try:
        return [*flags_of(values, kinds, others), *given]
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from error
