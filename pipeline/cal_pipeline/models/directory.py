"""Finds a model's directory: the path that was given, or a snapshot from the hub. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants

from cal_schemas.errors import ConfigError
from cal_schemas.storage.hf_errors import translated

_CONFIGS = ("config.json", "adapter_config.json")
"""Of a model, and of adapters, about which the program has more to say."""
_FILES = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]


def model_directory(model_name_or_path: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Path:
    """Returns the directory of a model's files: the path itself, or the hub's snapshot (fetched once, no pickles).

    Raises ConfigError where there is neither.
    """
    return _fetched(model_name_or_path, revision, [*_FILES, "*.py"] if trust_remote_code else _FILES)


def validate_model(model_name_or_path: str, revision: str | None = None) -> None:
    """Raises ConfigError, as `model_directory` does, for a model that is not there; fetches its config alone."""
    directory = _fetched(model_name_or_path, revision, [*_CONFIGS])
    if not any((directory / name).exists() for name in _CONFIGS):
        raise ConfigError(f"--model_name_or_path {model_name_or_path} holds no model: no config.json")


def _fetched(model_name_or_path: str, revision: str | None, wanted: list[str]) -> Path:
    if Path(model_name_or_path).is_dir():
        return Path(model_name_or_path)
    refuse_path("--model_name_or_path", model_name_or_path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_name_or_path, revision=revision, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"--model_name_or_path {model_name_or_path}: no such directory, and the hub did not give it: "
            f"{what_hub_said(f'hf://{model_name_or_path}', error)}{cache_hint(error)}"
        ) from error


def refuse_path(option: str, name: str) -> None:
    """Raises ConfigError for what can only be a path, of which the hub would say that it is none of its names."""
    if name.startswith(("/", ".", "~")) or (name.count("/") > 1 and "://" not in name):
        raise ConfigError(f"{option} {name}: no such directory")


def what_hub_said(uri: str, error: Exception) -> str:
    """Returns why the hub did not give a model or a file of one: its answer in words, or what happened without one."""
    behind: BaseException | None = error
    while behind is not None:
        if (answer := getattr(behind, "response", None)) is not None:
            return str(translated(uri, answer, constants.ENDPOINT, 1))
        behind = behind.__cause__
    return str(error).splitlines()[0].removeprefix("Got: ")


def cache_hint(error: Exception) -> str:
    """Returns the way out where an error is about the directory that models and their code are fetched into."""
    place = Path(str(getattr(error, "filename", None) or "."))
    home = Path(constants.HF_HOME)
    if not (place.is_absolute() and (place.is_relative_to(home) or home.is_relative_to(place))):
        return ""
    return f" Set HF_HOME (now {home}) to a directory that can be written to."
