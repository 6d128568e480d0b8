"""Resumes checkpoints: what the run must have in common with the one that saved it.

A place in the data and an optimizer's state mean something only for the run that they belong to. So every checkpoint
holds the settings that decide the order of samples, their labels and weights, and what the optimizer holds; resuming
under others is refused. Everything else may change: more epochs, logging, saving, evaluation, precision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from cal_pipeline.models.loading import weights_digest
from cal_schemas.errors import ConfigError, FormatError
from cal_schemas.scores import DEFAULT_SCORE
from cal_trainer.data.shards import Shards
from cal_trainer.run.checkpoints import ADAPTERS_NAME, STATE_NAME
from cal_trainer.run.facts import RunFacts

DATE_NAME: Final = "date that the template reads"
_VERSION: Final = 1
_SHARDS_NAMED: Final = 3
_BELONG_TO_A_RUN: Final = (
    "group_by", "streaming", "shuffle_rows", "on_missing", "max_image_pixels", "template", "image_aspect_ratio",
    "processor_kwargs", "max_length", "truncation", "delta_source", "trainable", "lr_multipliers", "lora_r",
    "lora_alpha", "lora_dropout",
)  # fmt: skip
_OF_DELTAS: Final = ("alpha", "beta", "window", "pool")
_RESTORED_BY_THE_OPTIMIZER: Final = (
    "learning_rate", "weight_decay", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon",
)  # fmt: skip
"""A checkpoint's values would win over these in silence."""
_STEP_SIZE: Final = ("per_device_train_batch_size", "gradient_accumulation_steps", "number of processes")


def state_of(facts: RunFacts) -> dict[str, Any]:
    """Makes the state by which a checkpoint is resumed by the same run only."""
    flags, weighting = facts.flags, facts.weighting
    source, streams = flags["delta_source"], flags["streaming"]
    settings = {name: flags[name] for name in (*_BELONG_TO_A_RUN, *_RESTORED_BY_THE_OPTIMIZER)}
    settings |= {
        "processor_backend": None if flags["processor_backend"] == "auto" else flags["processor_backend"],
        "quantization": None if flags["quantization"] == "none" else flags["quantization"],
        # What is rounded on loading differs by the format that it is loaded in.
        "dtype": None if flags["quantization"] == "none" else flags["dtype"],
        "seed": flags["seed"],
        "data_seed": flags["data_seed"],
        "per_device_train_batch_size": flags["per_device_train_batch_size"],
        "gradient_accumulation_steps": flags["gradient_accumulation_steps"],
        "number of processes": flags["world_size"],
        # Workers read row groups of their own only when streaming; one worker and none are the same stream.
        "dataloader_num_workers": max(1, flags["dataloader_num_workers"]) if streams else None,
        "usable rows": facts.num_rows,
        "fingerprint of the measurement": facts.spec.fingerprint() if source == "cached" and facts.spec else None,
        **({} if source == "uniform" else {name: getattr(weighting, name) for name in _OF_DELTAS}),
        # Not named where they are CAL's, as in checkpoints from before there were others.
        "score": None if facts.score == DEFAULT_SCORE or source == "uniform" else facts.score,
        "map": None if weighting.map == "clamp" else weighting.map,
        **{quantile_name(name): text for name, text in facts.quantiles.items()},
        "normalization": weighting.normalization,
        **facts.sources.said(exact=True),
        **{f"contrast {key}": value for key, value in (asdict(facts.contrast) if facts.contrast else {}).items()},
        DATE_NAME: facts.date,
        # A whole checkpoint holds the model, but this one lends its processor, and the card names it; adapters need it.
        "digest of the base model": weights_digest(facts.base),
    }
    exact = weighting.independent_of_the_split and not streams and flags["deepspeed_plugin"] is None
    return run_state(settings=settings, data=facts.shards, exact=exact)


def quantile_name(bound: str) -> str:
    """Names the setting by which a checkpoint remembers which quantile a bound is."""
    return f"quantile of {bound}"


def run_state(*, settings: Mapping[str, Any], data: Mapping[str, Shards], exact: bool) -> dict[str, Any]:
    """Makes what a checkpoint remembers of its run.

    Args:
        settings: by flag, or by a name of several words; JSON values. The step's size is the product of
            `per_device_train_batch_size`, `gradient_accumulation_steps` and `number of processes`.
        data: shards by flag (`data_path`, `source_path`).
        exact: whether a step's gradient and the order of samples depend on the product of these three alone, so that
            the split may change: mapped data, normalization step, sample or count.
    """
    kept = dict(settings)
    if exact:
        sizes = [int(kept.pop(name)) for name in _STEP_SIZE]
        kept["samples in a step"] = sizes[0] * sizes[1] * sizes[2]
    # Infinity is no JSON. What is no flag has a name in words.
    shown = {
        name if " " in name else f"--{name}": str(value) if isinstance(value, float) and math.isinf(value) else value
        for name, value in kept.items()
    }
    return {"version": _VERSION, "settings": shown, "data": {flag: dict(shards) for flag, shards in data.items()}}


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Puts the state into a checkpoint that is about to be written, in whose place an older one may be.

    That one is not whole from here on: if the writing is cut off, the two would be mixed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    (folder / STATE_NAME).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def saved_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings of the run that saved it; none where they cannot be read, which `check_state` refuses."""
    try:
        return dict(json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def check_state(checkpoint: Path, present: Mapping[str, Any]) -> None:
    """ConfigError unless the run goes on as the checkpoint's began: names every difference with both values."""
    try:
        saved = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
        settings, data, version = saved["settings"], saved["data"], saved["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{checkpoint / STATE_NAME} cannot be read: {error!r}. {_way_out(checkpoint)}") from error
    if version != _VERSION:
        raise ConfigError(f"{checkpoint} is of version {version}, this program resumes {_VERSION}. "
                          f"{_way_out(checkpoint)}")  # fmt: skip
    # Values of this run take the same way through JSON: a tuple is a list there.
    now = json.loads(json.dumps(present))
    differing = [
        f"{name} was {_shown(settings.get(name))}, is {_shown(now['settings'].get(name))}"
        for name in dict.fromkeys([*settings, *now["settings"]])
        if settings.get(name) != now["settings"].get(name)
    ]
    for flag in dict.fromkeys([*data, *now["data"]]):
        differing += _shard_differences(flag, data.get(flag, {}), now["data"].get(flag, {}))
    if differing:
        raise ConfigError(f"{checkpoint} cannot be resumed by this run: {'; '.join(differing)}. {_way_out(checkpoint)}")


def _way_out(checkpoint: Path) -> str:
    adapters = (checkpoint / ADAPTERS_NAME).is_file()
    model = "what they were merged into, docs/training.md section 9" if adapters else checkpoint
    return (
        "Its place in the data and its optimizer belong to the run that saved it: give the values of that run, or "
        f"start a new one from its {'adapters' if adapters else 'weights'} (--model_name_or_path {model}, another "
        "--output_dir)"
    )


def _shown(value: Any) -> str:
    return "not given" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shard_differences(flag: str, there: Shards, here: Shards) -> list[str]:
    differences = []
    for name in dict.fromkeys([*there, *here]):
        if name not in here:
            differences.append(f"--{flag}: {name} ({there[name][0]} rows) is no longer there")
        elif name not in there:
            differences.append(f"--{flag}: {name} ({here[name][0]} rows) is new")
        elif list(there[name]) != list(here[name]):
            rows, size = zip(there[name], here[name], strict=True)
            differences.append(f"--{flag}: {name} had {rows[0]} rows in {size[0]} bytes, has {rows[1]} in {size[1]}")
    if not differences and list(there) != list(here):
        was, now = next(pair for pair in zip(there, here, strict=True) if pair[0] != pair[1])
        differences.append(f"--{flag}: the shards come in another order: {now} stands where {was} was")
    more = len(differences) - _SHARDS_NAMED
    return [*differences[:_SHARDS_NAMED], f"and {more} more shards"] if more > 0 else differences


def go_by_flags(state: TrainerState, arguments: TrainingArguments, schedule: Any) -> None:
    """What may change takes this run's values, once the Trainer has put the checkpoint's in their place.

    Those are the intervals of logging, saving and evaluating, and the learning rate of the first step: the one that the
    old schedule had for it, 0 where that was at its end.
    """
    state.compute_steps(arguments, state.max_steps)
    if isinstance(schedule, LambdaLR):
        shares = [share(schedule.last_epoch) for share in schedule.lr_lambdas]
        rates = [base * share for base, share in zip(schedule.base_lrs, shares, strict=True)]
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates


def load_checkpoint(model: Any, checkpoint: str) -> None:
    """Weights of a checkpoint into the model, through `from_pretrained`.

    transformers 5.23 saves many vision-language models under other parameter names than they have in memory, and its
    Trainer loads them back by name: nothing would match, and training would go on from the wrong weights with no more
    than a log line. Raises FormatError when a parameter is missing.
    """
    loaded, info = type(model).from_pretrained(checkpoint, dtype=model.dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise FormatError(f"{checkpoint} has no weights for {len(missing)} parameters ({missing[0]}, …)")
    model.load_state_dict(loaded.state_dict())
