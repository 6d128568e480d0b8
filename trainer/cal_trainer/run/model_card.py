"""Writes the README.md of a trained model: which data, whose deltas, which weights, as the hub reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import yaml

from cal_schemas.scores import DEFAULT_SCORE
from cal_schemas.spec import MeasurementSpec
from cal_trainer.run.facts import RunFacts

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_PACKAGES: Final = ("cal-vlm", "torch", "transformers", "accelerate", "datasets", "peft", "bitsandbytes")
_SOURCES: Final = {
    "cached": "cached: measured before training by the reference below",
    "online": "online: measured in every step with the weights in training",
    "uniform": "uniform: every token weighs 1, no deltas are used",
}
_TRAINING: Final = (
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "num_train_epochs",
    "max_steps", "seed",
)  # fmt: skip


def model_card(facts: RunFacts, *, steps: tuple[int, int], num_unusable: int = 0) -> str:
    """Markdown with the hub's front matter.

    steps: that were taken, and of how many. num_unusable: rows in use that turned out not to be while training, once
    for each epoch that met them.
    """
    flags, source, base_model = facts.flags, facts.flags["delta_source"], str(facts.flags["model_name_or_path"])
    front: dict[str, Any] = {
        "library_name": "peft" if flags["lora_r"] else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["cal", "contrastive-alignment", "vision-language", *(["lora"] if flags["lora_r"] else [])],
    }
    # The hub refuses a base model that is no id of its own, so a directory is named below only.
    if _HUB_ID.fullmatch(base_model) and not Path(base_model).exists():
        front["base_model"] = base_model
    skips = ", ".join(f"{status} {count}" for status, count in sorted(facts.skipped.items()) if count)
    partial = (facts.num_planned or 0) > facts.num_rows + sum(facts.skipped.values())
    data = {
        "data": ", ".join(map(str, (*flags["data_path"], *flags["source_path"]))),
        "rows": f"{facts.num_rows} of {facts.num_planned} planned" if partial else facts.num_rows,
        "of an epoch's rows, by source": facts.sources.said()["mix"],
        "of them not measured, at weight alpha": facts.num_unmeasured or None,
        "skipped rows": f"{sum(facts.skipped.values())} ({skips})" if skips else 0,
        "rows that turned out unusable": num_unusable,
    }
    weights: dict[str, Any] = {"delta source": _SOURCES[source]}
    if facts.contrast is not None:
        weights["contrast"] = facts.contrast.describe()
    if source != "uniform":
        weights |= {"score": facts.score, "map": facts.weighting.map}
        weights |= {field: getattr(facts.weighting, field) for field in ("alpha", "beta", "window", "pool")}
        for name, text in facts.quantiles.items():
            what = "deltas" if facts.score == DEFAULT_SCORE else "scores"
            weights[name] = f"{getattr(facts.weighting, name):.6g} ({text} of the data's {what})"
    weights["sources without deltas"] = facts.sources.said()["uniform_sources"]
    weights["normalization"] = facts.weighting.normalization
    learned = {
        "base model": base_model,
        "trained parts": ", ".join(flags["trainable"]),
        "trained parameters": f"{facts.num_trainable:,}",
        "LoRA": _lora(flags),
        "base quantised to": _quantized(facts),
        "learning rate multipliers": ", ".join(f"{key} {value:g}" for key, value in facts.lr_multipliers.items()),
        **{name: flags[name] for name in _TRAINING},
        "steps taken": f"{steps[0]} of {steps[1]}: stopped early" if steps[0] < steps[1] else steps[0],
    }
    sections = [("Data", data), ("Weights of the tokens", weights)]
    if facts.spec is not None:
        unused = "" if source == "cached" else " (labels only: its deltas were not used)"
        sections.append((f"Measurement in the data{unused}", _measurement(facts.spec)))
    sections += [("Training", learned), ("Versions", versions())]
    body = "\n\n".join(f"## {title}\n\n{_table(rows)}" for title, rows in sections)
    heading = " ".join(Path(flags["output_dir"]).resolve().name.split())
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {heading}\n\n"
        "A vision-language model trained by cal-train with a token-weighted loss: CAL, contrastive alignment "
        f"([arXiv 2405.17871](https://arxiv.org/abs/2405.17871)).\n\n{body}\n"
    )


def write_model_card(facts: RunFacts, *, steps: tuple[int, int], num_unusable: int) -> Path:
    """Writes the README.md of --output_dir, replacing what the Trainer or peft put there.

    Call it on one rank, after the last save: peft writes a card of its own at every one.
    """
    target = Path(facts.flags["output_dir"], "README.md")
    partial = target.with_name("README.md.partial")
    partial.write_text(model_card(facts, steps=steps, num_unusable=num_unusable), encoding="utf-8")
    return partial.replace(target)


def _lora(flags: Mapping[str, Any]) -> str | None:
    if not flags["lora_r"]:
        return None
    alpha = 2 * flags["lora_r"] if flags["lora_alpha"] is None else flags["lora_alpha"]
    return f"r {flags['lora_r']}, alpha {alpha}, dropout {flags['lora_dropout']}"


def _quantized(facts: RunFacts) -> str | None:
    but = f", but {', '.join(facts.unquantized)}" if facts.unquantized else ""
    return facts.quantization and f"{facts.quantization} of {facts.flags['dtype']}{but}"


def _measurement(spec: MeasurementSpec) -> dict[str, Any]:
    revision = f" at {spec.revision}" if spec.revision else ""
    return {
        "fingerprint": spec.fingerprint(),
        "reference": f"{spec.model_id}{revision} (weights {spec.weights_digest})",
        "contrast": spec.contrast.describe(),
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "attention": spec.attn_implementation,
        "reference saw the data": spec.reference_saw_data,
        "template": spec.label.template,
        "images": f"{spec.input.image_processor}, {spec.input.image_aspect_ratio}",
        "max length": f"{spec.input.max_length}, {spec.input.truncation}",
    }


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    installed = {}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _table(rows: Mapping[str, Any]) -> str:
    lines = ["| | |", "|---|---|"]
    for name, value in rows.items():
        if value is None or value == "":
            continue
        # A path may hold what ends a cell or a line.
        cell = " ".join(str(value).split()).replace("|", "\\|")
        lines.append(f"| {name} | {cell} |")
    return "\n".join(lines)
