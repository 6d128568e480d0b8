"""Reads the parser and the flags of transformers out of its files: importing the package takes ten seconds."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

_TYPES: dict[str, type] = {"int": int, "float": float, "bool": bool}


class Declared(NamedTuple):
    """A flag of transformers as its source declares it."""

    type: type
    """int, float or bool; str stands for all else."""
    default: str
    """As it is written; empty for None."""
    help: str


def file_of_transformers(name: str) -> Path:
    """Returns the path of a file in the package, which is not imported."""
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / name


def hf_argument_parser() -> Any:
    """Returns the class HfArgumentParser."""
    spec = importlib.util.spec_from_file_location("_hf_argparser", file_of_transformers("hf_argparser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError:  # Of a version whose parser needs more of the package: slower, and right.
        return importlib.import_module("transformers").HfArgumentParser
    return module.HfArgumentParser


def training_argument_flags() -> dict[str, Declared]:
    """Returns the flags of transformers' TrainingArguments by name."""
    tree = ast.parse(file_of_transformers("training_args.py").read_text(encoding="utf-8"))
    for kind in tree.body:
        if isinstance(kind, ast.ClassDef) and kind.name == "TrainingArguments" and not kind.bases:
            return {
                node.target.id: _declared(node)
                for node in kind.body
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id[0] != "_"
            }
    # Of a version that inherits flags: slower, and right.
    arguments: Any = importlib.import_module("transformers").TrainingArguments
    fields = [field for field in dataclasses.fields(arguments) if field.init]
    return {field.name: Declared(str, "", field.metadata.get("help", "")) for field in fields}


def reporters() -> list[str]:
    """Returns the names that --report_to knows."""
    tree = ast.parse(file_of_transformers("integrations/integration_utils.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INTEGRATION_TO_CALLBACK":
            assert isinstance(node.value, ast.Dict)
            return [ast.literal_eval(name) for name in node.value.keys if name is not None]
    # Of a version that has moved it: slower, and right.
    return [*importlib.import_module("transformers.integrations").integration_utils.INTEGRATION_TO_CALLBACK]


def _declared(node: ast.AnnAssign) -> Declared:
    kind = _TYPES.get(ast.unparse(node.annotation).removesuffix(" | None"), str)
    given = {item.arg: item.value for item in node.value.keywords} if isinstance(node.value, ast.Call) else {}
    try:
        text = ast.literal_eval(given["metadata"])["help"]
    except (KeyError, ValueError):
        text = ""
    default = ast.unparse(given["default"]).strip("'") if "default" in given else "None"
    return Declared(kind, "" if default == "None" else default, text)
