"""Defines the flags of `cal-train` beyond transformers' own; only planning.py and training.py see them whole."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, fields
from os import PathLike
from typing import Any, Literal

from cal_pipeline.arguments import ContrastFlags, EncodingFlags, flag
from cal_pipeline.config_file import INFINITE
from cal_pipeline.log_lines import LogFormat
from cal_pipeline.sources.images import DEFAULT_MAX_IMAGE_PIXELS
from cal_schemas.errors import ConfigError
from cal_schemas.maps import Map, Quantile, check_score
from cal_schemas.presets import PRESETS, Preset
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score
from cal_schemas.spec import ANOTHER_IMAGE, ContrastSpec, Dtype, Quantization, own_fields_first
from cal_schemas.weighting import Normalization, Pool
from cal_trainer.source_flags import parse_shares, parse_weights

Source = Literal["cached", "online", "uniform"]
GroupBy = Literal["none", "length", "modality_length"]
OnMissing = Literal["error", "uniform"]
DEFAULT_SHUFFLE_ROWS = 1024
Resolvable = Literal["score", "map", "alpha", "beta", "window", "pool", "normalization", "contrast"]
_OF_DELTAS = ("score", "map", "alpha", "beta", "window", "pool")
_QUANTILE = re.compile(r"q(.+)")


def parse_bound(flag: str, text: object) -> float | Quantile:
    """Reads a number, `inf`, or `q` and a share: nine tenths of the deltas do not exceed `q0.9`; else ConfigError."""
    quantile = _QUANTILE.fullmatch(str(text).strip())
    try:
        value = float(quantile[1] if quantile else INFINITE.get(str(text).lower(), str(text)))
    except ValueError as error:
        raise ConfigError(
            f"--{flag} {text}: expected a number, inf, or a quantile of the deltas such as q0.5"
        ) from error
    if not quantile:
        return value
    if not 0.0 < value < 1.0:
        raise ConfigError(f"--{flag} {text}: a quantile's share is above 0 and below 1")
    return Quantile(value)


def _agree(flag: str, given: Any, wanted: Any) -> bool:
    """Whether a flag does what a preset means: of its map the number may be another."""
    if flag == "map":
        return Map.parse(given).name == Map.parse(wanted).name
    return parse_bound(flag, given) == float(wanted) if flag in ("alpha", "beta") else bool(given == wanted)


@own_fields_first
@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(EncodingFlags):
    """Flags in groups: model, data, weights, encoding, what is trained."""

    model_name_or_path: str | None = flag(None, "model to train: a directory or a hub id", "model")
    dtype: Dtype = flag("float32", "of the weights; --bf16 autocasts on top of it", "model")
    attn_implementation: str = flag("sdpa", "attention, as in transformers")
    quantization: Quantization = flag("none", "of what LoRA adapters train on", "model")
    revision: str | None = flag(None, "revision of the model on the hub", "model")
    trust_remote_code: bool = flag(False, "run code that comes with the model")
    log_format: LogFormat = flag("text", "of standard error: lines for people, or JSON objects, one a line")
    assemble: list[str] = flag(
        [], "vision=DIR language=DIR: save an untrained LLaVA made of them in --output_dir, and stop"
    )

    data_path: list[str] = flag([], "annotated shards: one or more directories of the same measurement", "data")
    crossfit: bool = flag(
        False, "--data_path is of several references, each of which measured rows that it was not trained on"
    )
    partial: bool = flag(False, "train on what is there where shards or rows are missing")
    source_path: list[str] = flag([], "raw data: joined to the annotated shards by key, or alone", "data")
    image_folder: list[str] = flag([], "where image paths start; default as measured", "data")
    on_missing: OnMissing = flag("error", "source rows that were not measured: stop, or weigh their tokens alpha")
    streaming: bool = flag(False, "read shards where they are, without a memory-mapped copy", "data")
    shuffle_rows: int = flag(DEFAULT_SHUFFLE_ROWS, "rows that streaming shuffles among")
    eval_path: str | None = flag(None, "annotated shards or raw data to evaluate on, uniform weights", "data")
    eval_image_folder: str | None = flag(None, "where image paths of --eval_path start; default as measured")
    max_image_pixels: int = flag(DEFAULT_MAX_IMAGE_PIXELS, "as in cal-precompute")
    cache_dir: str | None = flag(None, "of datasets: where the Arrow copy is kept")
    group_by: GroupBy = flag("none", "which samples share a batch", "data")
    mix: list[str] = flag([], "rows by source: a.json=0.7 b.json=0.3", "data", metavar="NAME=SHARE")

    delta_source: Source = flag("cached", "cached deltas, online ones, or weight 1", "weights")
    preset: Preset | None = flag(None, "a paper's weights: cal, released, vig, vppo, …", "weights", metavar="NAME")
    score: Score | None = flag(None, "what weights are made of; default delta_logit", "weights", metavar="NAME")
    map: str | None = flag(None, "of scores to weights; default clamp", "weights", metavar="NAME[=X]")
    alpha: str | None = flag(
        None, "lower bound of the clamp, or a quantile of the cached deltas, e.g. q0.5; default 1", "weights"
    )
    beta: str | None = flag(
        None, "upper bound of the clamp, may be inf or a quantile such as q0.9; default 5", "weights"
    )
    window: int | None = flag(None, "tokens averaged, odd; default 3", "weights")
    pool: Pool | None = flag(None, "which tokens are neighbours; default span", "weights")
    normalization: Normalization | None = flag(
        None, "what the weighted sum is divided by; default step, with online micro_batch", "weights"
    )
    uniform_sources: list[str] = flag(
        [], "sources whose tokens all weigh 1, whatever their deltas; NAME=1.5: 1.5", metavar="NAME"
    )
    stop_on_nan: bool = flag(True, "stop, and save nothing, once the loss or a weight is NaN")
    drift_every: int = flag(0, "log how far the model's own deltas are from the cached ones", "weights")

    trainable: list[str] = flag(
        ["projector", "language_model"],
        "vision_tower, projector, language_model, all, or regular expressions of parameter names",
        "training",
    )
    lr_multipliers: list[str] = flag([], "parts that learn at another rate, e.g. vision_tower=0.1", "training")
    lora_r: int = flag(0, "rank of LoRA adapters in the language model; 0 trains it in full", "training")
    lora_alpha: int | None = flag(None, "default 2 * lora_r")
    lora_dropout: float = flag(0.0, "of the adapters")

    def __post_init__(self) -> None:
        for item in fields(self):
            # From Python one path may stand without its list, as behind a flag and in `precompute`.
            if item.default_factory is not MISSING and isinstance(alone := getattr(self, item.name), str | PathLike):
                object.__setattr__(self, item.name, [str(alone)])
        if self.assemble:
            return
        if "device" in self.processor_settings():
            raise ConfigError(
                "--processor_kwargs device is of cal-precompute's workers: loading processes of a training share no GPU"
            )
        if not self.model_name_or_path:
            raise ConfigError("--model_name_or_path is required")
        if not self.data_path and not self.source_path:
            raise ConfigError("--data_path is required (or --source_path for raw data)")
        if self.delta_source == "cached" and not self.data_path:
            raise ConfigError(
                "--delta_source cached needs a measurement: give the annotated shards with --data_path (cal-precompute "
                "writes them), or use --delta_source online or uniform"
            )
        if self.streaming and self.source_path:
            raise ConfigError(
                "--streaming reads annotated shards in their own order, and --source_path is joined through a "
                "memory-mapped copy: leave one out, or run cal-precompute with --carry images"
            )
        if self.streaming and self.group_by != "none":
            raise ConfigError(
                f"--group_by {self.group_by} needs to know all rows at once, which --streaming does not: leave one out"
            )
        if self.on_missing != "error" and not self.source_path:
            missing = f"--on_missing {self.on_missing} is about source rows that the annotated shards lack"
            raise ConfigError(f"{missing}: give --source_path")
        parse_shares(self.mix)
        parse_weights(self.uniform_sources)
        if len(self.image_folder) > 1 and not self.source_path:
            raise ConfigError(f"{len(self.image_folder)} --image_folder for one --data_path: give one, or none to use "
                              "those that each shard was measured with")  # fmt: skip
        if self.crossfit and not self.data_path and not self.eval_path:
            raise ConfigError("--crossfit is about the references of annotated shards: give --data_path")
        if self.partial and not self.data_path and not self.eval_path:
            raise ConfigError("--partial is about annotated shards that are not whole: give --data_path")
        if self.eval_image_folder and not self.eval_path:
            raise ConfigError("--eval_image_folder is of the data to evaluate on: give --eval_path too")
        if self.drift_every < 0:
            raise ConfigError(f"--drift_every {self.drift_every} may not be negative")
        for name in ("lora_alpha", "lora_dropout"):
            if getattr(self, name) and not self.lora_r:
                raise ConfigError(f"--{name} is of LoRA adapters: give --lora_r too")
        if self.quantization != "none" and not self.lora_r:
            raise ConfigError(
                f"--quantization {self.quantization}: quantised weights cannot train, adapters on top of them can: "
                "give --lora_r (16, say), or leave --quantization out"
            )
        if self.shuffle_rows != DEFAULT_SHUFFLE_ROWS and not self.streaming:
            raise ConfigError("--shuffle_rows is of --streaming; mapped data is shuffled as a whole")
        for name in (item.name for item in fields(ContrastFlags)):
            if self.delta_source != "online" and getattr(self, name) is not None:
                raise ConfigError(f"--{name} is of online deltas; --delta_source {self.delta_source} measures nothing")
        if self.preset == "released" and self.delta_source != "online":
            raise ConfigError(
                f"--preset released recomputes deltas for unsupervised tokens too, which --delta_source "
                f"{self.delta_source} cannot: use --delta_source online, or --preset cal"
            )
        rule, score = self.rule(), SCORES[self.resolved("score")]
        for name, wanted in self._preset_values().items():
            if (given := getattr(self, name)) is not None and not _agree(name, given, wanted):
                raise ConfigError(f"--preset {self.preset} means --{name} {wanted}, got --{name} {given}")
        check_score(self.resolved("score"), rule)
        if self.delta_source == "online" and rule.needs:
            raise ConfigError(
                f"--map {rule} depends on the scores of all {rule.needs}, and online ones are not known before the "
                "training: use --delta_source cached"
            )
        if rule.needs and score.of_training:
            raise ConfigError(
                f"--map {rule} depends on the scores of all {rule.needs}, and score {self.resolved('score')} = "
                f"{score.equation} changes with the model in training: use top_share or batch_share"
            )
        for name, bound in self.bounds().items():
            if isinstance(bound, Quantile) and self.delta_source == "online":
                raise ConfigError(
                    f"--{name} {bound} is a quantile of the data's deltas, and online deltas are not known before the "
                    "training: give a number, or use --delta_source cached"
                )
            if isinstance(bound, Quantile) and self.delta_source == "uniform":
                raise ConfigError(f"--{name} {bound} has no effect: with --delta_source uniform every token weighs 1")
            if isinstance(bound, Quantile) and rule.name != "clamp":
                raise ConfigError(
                    f"--{name} {bound} is a quantile of scores, and map {rule} bounds weights: give a number"
                )
            if isinstance(bound, Quantile) and score.of_training:
                raise ConfigError(
                    f"--{name} {bound} is a quantile of measured scores, and score {self.resolved('score')} changes "
                    "with the model in training: give a number"
                )
        contrast = self.contrast_spec()
        if self.delta_source == "online" and self.resolved("pool") == "released" and contrast.condition == "drop":
            raise ConfigError(
                "pool 'released' averages the deltas of all tokens, those of the image included, which contrast 'drop' "
                f"takes out: give --contrast mask (the authors' code; --preset released), {ANOTHER_IMAGE}"
            )
        measured = self.delta_source, self.resolved("score"), rule.name
        if self.drift_every and measured != ("cached", DEFAULT_SCORE, "clamp"):
            raise ConfigError(
                "--drift_every compares clamped deltas with the cached ones: use it with --delta_source cached, "
                "--score delta_logit and --map clamp"
            )

    def _preset_values(self) -> dict[str, Any]:
        return {} if self.preset is None else PRESETS[self.preset].flags

    def rule(self) -> Map:
        """The map; ConfigError for one that is none."""
        return Map.parse(self.resolved("map"))

    def bounds(self) -> dict[str, float | Quantile]:
        """Alpha and beta: numbers, or quantiles yet to be taken from the data; ConfigError for what is neither."""
        return {name: parse_bound(name, self.resolved(name)) for name in ("alpha", "beta")}

    def contrast_spec(self) -> ContrastSpec:
        """What online deltas contrast with; ConfigError for a parameter that is missing, or of another condition."""
        return self.contrast_with(self.resolved("contrast"))

    def resolved(self, name: Resolvable) -> Any:
        """The flag's value: given, else the preset's, else the default of this delta source, or of the map."""
        given = getattr(self, name)
        given = self._preset_values().get(name) if given is None else given
        if given is not None:
            return given
        if name in ("alpha", "beta", "window"):
            return self.rule().settings(alpha=None, beta=None, window=None)[name]
        online = self.delta_source == "online"
        defaults = {
            "score": DEFAULT_SCORE, "map": "clamp", "pool": "span", "contrast": "drop",
            "normalization": "micro_batch" if online else "step",
        }  # fmt: skip
        return defaults[name]

    def without_effect(self) -> list[str]:
        """Flags that were given and change nothing in this run: those of the deltas, where every token weighs 1."""
        if self.delta_source != "uniform":
            return []
        names = (*_OF_DELTAS, "uniform_sources")
        given = [f"--{name}" for name in names if getattr(self, name) not in (None, [])]
        return given if self.preset is None else [*given, f"--preset {self.preset} (but for its normalization)"]
