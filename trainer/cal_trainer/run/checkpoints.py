"""Finds the checkpoint to go on from: the newest that is whole, whatever an ended run or a full disk cut off."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from cal_schemas.errors import ConfigError

STATE_NAME: Final = "cal_train_state.json"
ADAPTERS_NAME: Final = "adapter_config.json"
_INDEX: Final = ".index.json"
_log = logging.getLogger("cal-train")


def find_checkpoint(wanted: str | bool | None, output_dir: Path) -> Path | None:
    """`--resume_from_checkpoint` as a path: `last` (or true) is the newest whole one in --output_dir.

    Raises ConfigError when there is none, or the one that is named is not whole.
    """
    named = str(wanted)  # In Python True is True.
    if named.lower() in ("none", "false"):
        return None
    if named.lower() in ("last", "true"):
        there = checkpoints(output_dir)
        for path in there:
            if not (fault := _fault(path)):
                return path
            _log.warning("%s is passed over: %s (was the run ended while it saved?)", path, fault)
        raise ConfigError(
            f"--resume_from_checkpoint last: no checkpoint in --output_dir {output_dir}"
            + (" is complete" if there else "")
        )
    if not Path(named).is_dir():
        raise ConfigError(f"--resume_from_checkpoint {named}: no such directory")
    if fault := _fault(Path(named)):
        raise ConfigError(f"--resume_from_checkpoint {named} is incomplete: {fault}")
    return Path(named)


def newest_whole(output_dir: Path) -> Path | None:
    """The checkpoint that `last` would take; None where there is none."""
    return next((path for path in checkpoints(output_dir) if not _fault(path)), None)


def checkpoints(output_dir: Path) -> list[Path]:
    """Those in a directory, whole or not; the newest first."""
    there = [path for path in output_dir.glob("checkpoint-*") if path.name[11:].isdecimal()]
    return sorted(there, key=lambda path: -int(path.name[11:]))


def _fault(checkpoint: Path) -> str:
    """What keeps a checkpoint from being resumed, in words; empty when it is whole."""
    needed = {
        "trainer_state.json": ("trainer_state.json",),
        STATE_NAME: (STATE_NAME,),
        "the model": ("*.safetensors", "pytorch_model*", "global_step*"),
        # Without it transformers would make a model of the size that it takes for usual, and fill that at random.
        "the model's config": ("config.json", ADAPTERS_NAME, "pytorch_model*", "global_step*"),
        "the optimizer": ("optimizer*", "global_step*"),
        "the schedule": ("scheduler.pt", "global_step*"),
        "the state of random numbers": ("rng_state*.pth",),
    }
    lacking = [name for name, globs in needed.items() if not any(any(checkpoint.glob(g)) for g in globs)]
    lacking += _unwritten_parts(checkpoint)
    cut_off = [str(path.relative_to(checkpoint)) for path in sorted(checkpoint.rglob("*")) if _is_cut_off(path)]
    faults = {"it lacks": lacking, "cut off:": cut_off}
    return "; ".join(f"{fault} {', '.join(names)}" for fault, names in faults.items() if names)


def _unwritten_parts(checkpoint: Path) -> Iterator[str]:
    """Names of what is not there: parts of weights that an index counts, and the index that parts belong to."""
    numbered = {part.name.split("-")[0] for part in checkpoint.glob("*-of-*.safetensors")}
    indexes = [f"{name}.safetensors{_INDEX}" for name in sorted(numbered)]
    yield from (index for index in indexes if not (checkpoint / index).is_file())
    for index in checkpoint.glob(f"*{_INDEX}"):
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError):
            continue  # Cut off itself.
        yield from (part for part in sorted(parts) if not (checkpoint / part).is_file())


def _is_cut_off(path: Path) -> bool:
    """True for a file whose end is missing: formats of checkpoints show it without reading the tensors."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="np"):
                pass
        elif path.suffix in (".pt", ".pth", ".bin") and path.is_file():
            zipfile.ZipFile(path).close()  # What torch.save writes is an archive with its index at the end.
    except (ValueError, SafetensorError, zipfile.BadZipFile):
        return True
    return False
