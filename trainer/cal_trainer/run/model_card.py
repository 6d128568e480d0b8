"""The README.md of a trained model: which data, whose deltas, which weights, as the hub reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from cal_schemas.spec import ContrastSpec, MeasurementSpec
from cal_trainer.objective.weighting import Weighting

Source = Literal["cached", "online", "uniform"]
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_PACKAGES: Final = ("cal-vlm", "torch", "transformers", "accelerate", "datasets", "peft")
_SOURCES: Final[Mapping[Source, str]] = {
    "cached": "cached: measured before training by the reference below",
    "online": "online: measured in every step with the weights in training",
    "uniform": "uniform: every token weighs 1, no deltas are used",
}


def model_card(
    *,
    name: str,
    base_model: str,
    data_path: Sequence[str | Path],
    num_rows: int,
    skipped: Mapping[str, int],
    delta_source: Source,
    weighting: Weighting,
    trainable: Sequence[str],
    quantiles: Mapping[str, str] | None = None,
    spec: MeasurementSpec | None = None,
    contrast: ContrastSpec | None = None,
    num_trainable: int | None = None,
    lora: Mapping[str, Any] | None = None,
    lr_multipliers: Mapping[str, float] | None = None,
    training: Mapping[str, Any] | None = None,
    num_unusable: int = 0,
) -> str:
    """Markdown with the hub's front matter.

    Args:
        name: of the model, its heading.
        base_model: hub id or directory that training started from.
        data_path: what was trained on.
        num_rows: rows in use; the skipped ones are not among them.
        skipped: rows by status that were left out.
        delta_source: where the deltas came from.
        weighting: how they became weights; not shown for `uniform`.
        trainable: parts or patterns.
        quantiles: by name, the bounds that were taken from the data's deltas (`q0.5`).
        spec: the measurement in the data; None when there is none.
        contrast: of online deltas.
        num_trainable: parameters that trained.
        lora: settings of the adapters (`r`, `alpha`, …), when there are any.
        lr_multipliers: by part.
        training: further facts by name, such as the learning rate.
        num_unusable: rows in use that turned out not to be while training, once for each epoch that met them.
    """
    front: dict[str, Any] = {
        "library_name": "peft" if lora else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["cal", "contrastive-alignment", "vision-language", *(["lora"] if lora else [])],
    }
    # The hub refuses a base model that is no id of its own, so a directory is named below only.
    if _HUB_ID.fullmatch(base_model) and not Path(base_model).exists():
        front["base_model"] = base_model
    skips = ", ".join(f"{status} {count}" for status, count in sorted(skipped.items()) if count)
    data = {
        "data": ", ".join(str(path) for path in data_path),
        "rows": num_rows,
        "skipped rows": f"{sum(skipped.values())} ({skips})" if skips else 0,
        "rows that turned out unusable": num_unusable,
    }
    weights: dict[str, Any] = {"delta source": _SOURCES[delta_source]}
    if delta_source == "online" and contrast is not None:
        weights["contrast"] = contrast.describe()
    if delta_source != "uniform":
        fields = ("alpha", "beta", "window", "pool", "normalization")
        weights |= {field: getattr(weighting, field) for field in fields}
        for name, text in (quantiles or {}).items():
            weights[name] = f"{getattr(weighting, name):.6g} ({text} of the data's deltas)"
    learned = {
        "base model": base_model,
        "trained parts": ", ".join(trainable),
        "trained parameters": None if num_trainable is None else f"{num_trainable:,}",
        "LoRA": ", ".join(f"{key} {value}" for key, value in lora.items()) if lora else None,
        "learning rate multipliers": ", ".join(f"{key} {value:g}" for key, value in (lr_multipliers or {}).items()),
        **(training or {}),
    }
    sections = [("Data", data), ("Weights of the tokens", weights)]
    if spec is not None:
        sections.append(("Measurement in the data" + ("" if delta_source == "cached" else " (labels only: its deltas "
                         "were not used)"), _measurement(spec)))  # fmt: skip
    sections += [("Training", learned), ("Versions", versions())]
    body = "\n\n".join(f"## {title}\n\n{_table(rows)}" for title, rows in sections)
    heading = " ".join(name.split())
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {heading}\n\n"
        "A vision-language model trained by cal-train with a token-weighted loss: CAL, contrastive alignment "
        f"([arXiv 2405.17871](https://arxiv.org/abs/2405.17871)).\n\n{body}\n"
    )


def write_model_card(output_dir: Path, **facts: Any) -> Path:
    """Writes README.md, replacing what the Trainer or peft put there; takes the arguments of `model_card`.

    Call it on one rank, after the last save: peft writes a card of its own at every one.
    """
    target = output_dir / "README.md"
    partial = output_dir / "README.md.partial"
    partial.write_text(model_card(**{"name": output_dir.resolve().name, **facts}), encoding="utf-8")
    return partial.replace(target)


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
        "pictures": f"{spec.input.image_processor}, {spec.input.image_aspect_ratio}",
        "max length": f"{spec.input.max_length}, {spec.input.truncation}",
    }


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _table(rows: Mapping[str, Any]) -> str:
    lines = ["| | |", "|---|---|"]
    for name, value in rows.items():
        if value is None or value == "":
            continue
        # A path may hold what ends a cell or a line.
        cell = " ".join(str(value).split()).replace("|", "\\|")
        lines.append(f"| {name} | {cell} |")
    return "\n".join(lines)
