"""Checks a model's directory before anything is loaded from it: adapters in the way, missing and renamed weights.

Only the headers of the safetensors files are read. transformers then loads tensors without content, so its own renaming
and conversion of weights decides what is missing, as it does later.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as logging_of_transformers

from cal_schemas.errors import ConfigError

_ADAPTERS = "adapter_config.json"
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LONGEST_HEADER = 2**30
_MERGE = "merge them (peft: merge_and_unload, then save_pretrained into a new directory) and name the result"
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_log = logging.getLogger(__name__)


def validate_adapters(directory: Path, *, trains: bool = False) -> None:
    """ConfigError for adapters without a model's weights, naming their base, and for adapters beside whole weights.

    transformers applies the latter on top of what it loads, also where they were merged into it. What is trained on top
    would be saved as adapters alone, and lost: then it is one also where the config names a model of other weights.
    """
    if not (directory / _ADAPTERS).is_file():
        return
    base = _value_in(directory / _ADAPTERS, "base_model_name_or_path")
    gone = " (no such directory)" if Path(str(base)).is_absolute() and not Path(str(base)).is_dir() else ""
    of = f"of {base}{gone}" if base else "of a model that it does not name"
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"{directory} holds adapters ({_ADAPTERS}) {of} and no model: name the model they were trained on, or "
            f"{_MERGE}"
        )
    if whole := [name for name in (_WHOLE, _INDEX) if (directory / name).is_file()]:
        raise ConfigError(
            f"{directory} holds adapters ({_ADAPTERS}) beside whole weights ({whole[0]}), and transformers would apply "
            f"them on top: if these weights have them already, move {_ADAPTERS} and adapter_model.safetensors away; "
            f"else {_MERGE}"
        )
    if not _value_in(directory / "config.json", "transformers_weights"):
        # With a config.json beside them transformers never looks for the model that they name.
        raise ConfigError(f"{directory} holds adapters ({_ADAPTERS}) {of} and none of its weights: {_MERGE}")
    if trains:
        raise ConfigError(
            f"{directory} holds adapters ({_ADAPTERS}) of another model: what is trained would be saved as adapters "
            f"alone; {_MERGE}"
        )


def _value_in(file: Path, key: str) -> Any:
    """The value under a key of a JSON file; None also where it is not to be read, of which loading complains."""
    try:
        return json.loads(file.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):
        return None


def raw_header(file: Path) -> bytes:
    """The header of a safetensors file, as bytes; ConfigError for a file that is none."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(size, _LONGEST_HEADER):
            raise ConfigError(f"{file} is no safetensors file (header of {length} bytes in a file of {size})")
        return stream.read(length)


def _header(file: Path) -> dict[str, Any]:
    """Names to dtype, shape and data_offsets; ConfigError also for a file that is cut off."""
    raw = raw_header(file)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        wanted = 8 + len(raw) + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{file} is no safetensors file: its header cannot be read ({error})") from error
    if (size := file.stat().st_size) < wanted:
        raise ConfigError(f"{file} is cut off: {size} bytes of the {wanted} that its header tells of; copy it again")
    return header


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers reads the weights from; ConfigError naming one that the index has and nobody else."""
    if (directory / _WHOLE).is_file():
        return [directory / _WHOLE]
    index = directory / _INDEX
    if not index.is_file():
        there = ", ".join(sorted(path.name for path in directory.glob("*.safetensors"))[:3]) or "no *.safetensors"
        raise ConfigError(f"{directory} has neither {_WHOLE} nor {_INDEX} (but {there}): save it with save_pretrained")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is no index of weights: {error}") from error
    if gone := [name for name in names if not (directory / name).is_file()]:
        raise ConfigError(f"{directory} lacks {len(gone)} of the {len(names)} files of weights in its index: "
                          f"{_some(gone)}; copy them too")  # fmt: skip
    return [directory / name for name in names]


def check_weights(directory: Path, meta_model: Any) -> None:
    """ConfigError naming weights that the files lack, have under other names, or in other shapes.

    `meta_model` is the model without its weights. Does not look into adapters alone, quantised weights, pickles and
    formats that cannot be loaded without content: loading does.
    """
    config = meta_model.config
    if (directory / _ADAPTERS).is_file() or getattr(config, "quantization_config", None) is not None:
        return
    if getattr(config, "transformers_weights", None) or not any(directory.glob("*.safetensors")):
        return
    weights = {
        name: torch.empty(entry["shape"], dtype=_DTYPES.get(entry["dtype"], torch.float32), device="meta")
        for file in weight_files(directory)
        for name, entry in _header(file).items()
    }
    try:
        with _quiet():
            _, info = type(meta_model).from_pretrained(
                None, config=config, state_dict=weights, device_map="meta", ignore_mismatched_sizes=True,
                output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # Whatever some conversion does not like in tensors without content.
        _log.info("%s: weights are checked when they are loaded (%s)", directory, error)
        return
    if missing := sorted(info["missing_keys"]):
        others = sorted(info["unexpected_keys"])
        renamed = f"; the files have {len(others)} that the model has no place for ({_some(others)})" if others else ""
        raise ConfigError(
            f"{directory} has no weights for {len(missing)} parameters ({_some(missing)}), which would be random"
            f"{renamed}: were they saved under other names, or is this another model's config.json?"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise ConfigError(
            f"{directory} has {len(mismatched)} weights of other shapes than its config.json asks for: {name} is "
            f"{list(stored)}, the model's is {list(wanted)}"
        )
    if lora := sorted(name for name in info["unexpected_keys"] if ".lora_" in name):
        raise ConfigError(
            f"{directory} has adapters among its weights ({_some(lora)}), which would be left out without a trace: "
            f"{_MERGE}"
        )
    if unused := sorted(info["unexpected_keys"]):
        _log.warning(
            "%s: %d weights of the files are of no use to the model: %s", directory, len(unused), _some(unused)
        )


def check_image_tokens(processor: Any, meta_model: Any) -> None:
    """ConfigError where LLaVA's processor counts other tokens for an image than the model's vision tower makes."""
    tower = next((module for module in meta_model.modules() if hasattr(module, "num_positions")), None)
    counted = getattr(processor, "num_additional_image_tokens", None)
    if meta_model.config.model_type not in ("llava", "llava_next") or tower is None or counted is None:
        return
    counts, makes = (owner.vision_feature_select_strategy == "default" for owner in (processor, meta_model.config))
    made = tower.num_positions - tower.num_patches - makes + counts
    if counted != made:
        raise ConfigError(
            f"{type(processor).__name__} counts {counted} tokens for an image beside its patches, the vision tower "
            f"makes {made}: write num_additional_image_tokens {made} into processor_config.json"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' bar and table: one line of our own says the same."""
    verbosity, bar = logging_of_transformers.get_verbosity(), logging_of_transformers.is_progress_bar_enabled()
    logging_of_transformers.set_verbosity_error()
    logging_of_transformers.disable_progress_bar()
    try:
        yield
    finally:
        logging_of_transformers.set_verbosity(verbosity)
        if bar:
            logging_of_transformers.enable_progress_bar()


def _some(names: Iterable[str]) -> str:
    first, *more = names
    return f"{first}, …" if more else first
