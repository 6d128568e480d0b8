"""Builds dataclasses from command lines: flags, and `--config file.yaml` that flags override.

Programs answer --help, a typo and a wrong path before they import torch, transformers, datasets or Ray, which takes ten
seconds: this module and the configs need none of them, and each `cli.py` imports the rest after that, once. From
transformers come the parser and the names of its flags, both read out of its files without importing the package.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin, get_type_hints

from cal_pipeline.config_file import flags_of, read_values, unknown_flag
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


def flag(default: _Default, text: str) -> _Default:
    """Declares a dataclass field that is a flag, with its default and what --help says."""
    given: Any = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    declared: _Default = dataclasses.field(metadata={"help": text}, **given)
    return declared


@own_fields_first
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ContrastFlags(ContrastParameters):
    """Holds the flags that cal-precompute and cal-train share: what the pass without the image sees."""

    contrast: Condition | None = flag(
        None,
        "without the image: its tokens dropped (the paper; default) or masked (released code), or another "
        "image: parts of it painted over (patch_mask) or all of it blurred (gaussian_blur)",
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

    template: Template = flag("auto", "auto is the model's chat template")
    image_aspect_ratio: AspectRatio = flag("native", "native leaves the image to the processor")
    processor_kwargs: dict[str, Any] | str | None = flag(
        None,
        'JSON of settings in place of those of the model\'s processor, e.g. {"max_pixels": 401408}',
    )
    processor_backend: ProcessorBackend = flag("auto", "what resizes images; auto is torchvision where it is installed")
    max_length: int = flag(2048, "longest encoding, in tokens, image tokens included")
    truncation: Truncation = flag("drop", "what happens to a longer row: status too_long, or its end is cut")

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


def _file_of_transformers(name: str) -> Path:
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).with_name(name)


def _hf_argument_parser() -> Any:
    spec = importlib.util.spec_from_file_location("_hf_argparser", _file_of_transformers("hf_argparser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError:  # Of a version whose parser needs more of the package: slower, and right.
        return importlib.import_module("transformers").HfArgumentParser
    return module.HfArgumentParser


def training_argument_types() -> dict[str, type]:
    """Reads the names of the flags of transformers' TrainingArguments, with int and float; str stands for all else."""
    numbers: dict[str, type] = {"int": int, "float": float}
    tree = ast.parse(_file_of_transformers("training_args.py").read_text(encoding="utf-8"))
    for kind in tree.body:
        if isinstance(kind, ast.ClassDef) and kind.name == "TrainingArguments" and not kind.bases:
            return {
                node.target.id: numbers.get(ast.unparse(node.annotation).removesuffix(" | None"), str)
                for node in kind.body
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_"
            }
    # Of a version that inherits flags: slower, and right.
    arguments: Any = importlib.import_module("transformers").TrainingArguments
    return {field.name: str for field in dataclasses.fields(arguments) if field.init}


_HfArgumentParser: Any = _hf_argument_parser()


def add_version(parser: argparse.ArgumentParser) -> None:
    """Adds --version, which prints the project's version and exits."""
    try:
        version = importlib.metadata.version("cal-vlm")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    parser.add_argument("--version", action="version", version=f"cal-vlm {version}", help="show the version and exit")


class _Parser(_HfArgumentParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


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
    others: Mapping[str, type] | None = None,
) -> list[Any]:
    """Builds one instance of each dataclass from one command line.

    A YAML file given with `--config` is expanded to flags in front of the user's own, so both take the same path:
    same names, same types, same checks, and what is typed wins; a typed flag that the file lacks also wins over those
    that `replaces` lists for it. `others` are flags that may be there, of which only numbers are looked at. Raises
    ConfigError with one line that names the flag.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(kinds, prog=program, description=description, allow_abbrev=False)
    add_version(parser)
    parser.add_argument("--config", type=Path, default=None, help="YAML file of the flags below; flags override it")
    flags = [field.name for kind in kinds for field in dataclasses.fields(kind) if field.init]
    others = others or {}
    for name, taken in others.items():
        starts = ("", "no_") if taken is str else ("",)
        spellings = (form for start in starts for form in (start + name, (start + name).replace("_", "-")))
        parser.add_argument(
            *(f"--{form}" for form in dict.fromkeys(spellings)), type=taken, nargs="*", help=argparse.SUPPRESS
        )
    flags += others
    _validate_lists(given, kinds)
    namespace, unknown = parser.parse_known_args(_with_file(given, kinds, others, replaces or {}))
    if unknown:
        raise ConfigError(unknown_flag(unknown[0].split("=")[0], flags))
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


def chosen(kind: type[Any], names: Sequence[str], argv: Sequence[str] | None = None) -> set[str]:
    """Returns those of these flags of `kind` that the command line or its `--config` file sets to something true.

    The rest of the line is not looked at: what such a flag asks for may need less of it. Raises ConfigError.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    fields, hints = dataclasses.fields(kind), get_type_hints(kind)
    wanted = [(item.name, hints[item.name], flag(item.default, "")) for item in fields if item.name in names]
    parser = _Parser(dataclasses.make_dataclass("Chosen", wanted), add_help=False, allow_abbrev=False)
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
