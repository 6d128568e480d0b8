"""Measures from Python, a notebook for example, as `cal-precompute` does from a shell."""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Never

import numpy as np

from cal_pipeline.arguments import parse_config
from cal_pipeline.cli import measure
from cal_pipeline.config_file import unknown_flag
from cal_pipeline.console import printing
from cal_pipeline.log_lines import LogLines, log_to
from cal_pipeline.runtime.config import PrecomputeConfig, maintenance_config
from cal_pipeline.runtime.faults import RunAbortedError, fault_of
from cal_pipeline.runtime.result import PrecomputeResult
from cal_pipeline.runtime.signals import Interruption
from cal_schemas.errors import CalError, ConfigError

_OTHER_JOBS = ("status", "verify", "clean")
_SAVE_IT = 'save it, by frame.to_parquet("data.parquet") or dataset.save_to_disk("data"), and give the path'


def precompute(*unnamed: Never, **flags: Any) -> PrecomputeResult:
    """Runs what `cal-precompute` runs, with its flags as keywords; returns when all is measured.

    `cal-precompute --help-all` says what each flag means. A list flag takes a list or one value, a path a string or a
    Path, `processor_kwargs` a dict; `config` names a YAML file of flags. `--status`, `--verify` and `--clean` are for a
    shell. Log, progress and report are printed as the program prints them, and the same call again goes on where an
    earlier one ended.

    Raises CalError where the program refuses or stops (exit code 2), with its words, and KeyboardInterrupt when it is
    interrupted, after its workers have ended. A run that ends with shards or too many rows failed (exit code 1)
    returns and says so: see `PrecomputeResult.complete`.
    """
    if unnamed:
        named = "model_name_or_path=..., data_path=..., output_dir=..."
        raise ConfigError(f"precompute() takes keywords alone, got {len(unnamed)} without: precompute({named})")
    try:
        config = _config_of(flags)
    except ConfigError as error:  # A new one: what argparse raised on the way helps nobody.
        raise ConfigError(str(error).replace("cal-precompute --help tells", "help(precompute) tells")) from None
    interruption = Interruption(ends_process=False)
    try:
        with printing(), _logging(LogLines(config.log_format)), interruption:
            return measure(config, interruption, own_process=False)
    except CalError:
        raise
    except KeyboardInterrupt as error:
        if interruption.number in (signal.SIGTERM, signal.SIGHUP):  # Meant for whoever called, not for the run alone.
            signal.raise_signal(interruption.number)
        said = [interruption.message, *map(str, error.args), "call it again to go on"]
        raise KeyboardInterrupt("; ".join(said)) from None
    except Exception as error:
        fault = fault_of(error)
        if fault.in_driver != "stop":
            raise
        raise RunAbortedError(fault.driver_says.format(error=error)) from error


_signature = inspect.signature(PrecomputeConfig)
precompute.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=[flag for name, flag in _signature.parameters.items() if name not in (*_OTHER_JOBS, "json")],
    return_annotation=PrecomputeResult,
)


def _config_of(flags: Mapping[str, Any]) -> PrecomputeConfig:
    words = _command_line(flags)
    given = parse_config(maintenance_config(), words, program="cal-precompute", description="")  # Nothing is required.
    if asked := next((name for name in _OTHER_JOBS if getattr(given, name)), None):
        raise ConfigError(f"{asked}: precompute() measures; `cal-precompute --{asked}` is another job, for a shell")
    return parse_config(PrecomputeConfig, words, program="cal-precompute", description="")


def _command_line(flags: Mapping[str, Any]) -> list[str]:
    """Spells keywords as the command line that asks for the same, so that both take the same path."""
    names = ["config", *(field.name for field in fields(PrecomputeConfig))]
    words: list[str] = []
    for name, value in flags.items():
        if name not in names:
            raise ConfigError(unknown_flag(f"--{name}", names))
        if value is None:
            continue
        items = [_as_typed(name, item) for item in (value if isinstance(value, list | tuple) else [value])]
        # One word where it can be, so that a value may begin with a dash.
        words += [f"--{name}={items[0]}"] if len(items) == 1 else [f"--{name}", *items] if items else []
    return words


def _as_typed(name: str, value: Any) -> str:
    """A value as one types it; ConfigError for what no flag takes."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | os.PathLike | int | float):
        return str(value)
    if isinstance(value, Mapping) and name == "processor_kwargs":
        try:
            return json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name} cannot be written as JSON: {error}") from error
    # Its type alone: a frame would be shown whole.
    hint = f"; {_SAVE_IT}" if name == "data_path" else ""
    raise ConfigError(
        f"{name} is of type {type(value).__name__}: expected a string, a path, a number, a truth, or a list of "
        f"them{hint}"
    )


@contextmanager
def _logging(lines: LogLines) -> Iterator[None]:
    """Logs as the program does, and leaves logging as it was."""
    root, hook = logging.getLogger(), sys.excepthook
    handlers, level = root.handlers[:], root.level
    log_to(sys.stderr, lines)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "IProgress not found")  # Bars for notebooks, which nobody has asked for.
            yield
    finally:
        root.handlers[:], sys.excepthook = handlers, hook
        root.setLevel(level)
        if lines.log_format == "json":
            logging.captureWarnings(False)
