"""Holds every flag of `cal-precompute`. Only cli.py sees this whole; everything below takes the values it needs."""

from __future__ import annotations

import math
import re
from copy import copy
from dataclasses import MISSING, dataclass, fields, make_dataclass
from typing import Any, Literal, get_type_hints

from cal_pipeline.arguments import REQUIRED, EncodingFlags, flag
from cal_pipeline.log_lines import LogFormat
from cal_pipeline.sources.formats import FORMATS
from cal_pipeline.sources.images import DEFAULT_MAX_IMAGE_PIXELS, PILLOW_MAX_PIXELS
from cal_schemas.errors import STATUS_OK, STATUSES, ConfigError
from cal_schemas.metadata import Carry
from cal_schemas.spec import ANOTHER_IMAGE, Dtype, Quantization, own_fields_first
from cal_schemas.storage.locations import location
from cal_schemas.token_columns import EXTRA_COLUMNS, ExtraColumn

_POSITIVE = (
    "rows_per_shard",
    "max_length",
    "max_image_pixels",
    "num_workers",
    "tokens_per_batch",
    "encode_threads",
    "max_tries",
    "shard_timeout_s",
    "start_timeout_s",
    "idle_timeout_s",
    "cpus_per_worker",
    "limit",
)
_NOT_NEGATIVE = ("seed", "save_contrast_images")
_COLLAPSED = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/(?!/)")
_LAST_PORT = 65535
_ADDRESS = re.compile(r".+:\d{1,5}")
JSON_ALONE = "--json says how --status prints: give --status DIRECTORY too"
_KEEP_EMBEDDED_BYTES = 10 * 10**9


def maintenance_config() -> type[Any]:
    """Makes the same flags with nothing required: of --status, --verify and --clean, in a whole command."""
    hints, made = get_type_hints(PrecomputeConfig), []
    for item in map(copy, fields(PrecomputeConfig)):
        if item.default is item.default_factory is MISSING:
            item.default_factory = list
        made.append((item.name, hints[item.name], item))
    return make_dataclass("MaintenanceConfig", made, frozen=True, kw_only=True)


@own_fields_first
@dataclass(frozen=True, kw_only=True, slots=True)
class PrecomputeConfig(EncodingFlags):
    """Flags in groups: what is measured with, on what, how, where to, and on which machines."""

    model_name_or_path: str = flag(REQUIRED, "reference model: a directory or a hub id", "model")
    output_dir: str = flag(
        REQUIRED, "annotated shards go here, local or s3://, gs://, az://; rerun the same command to resume", "output"
    )
    data_path: list[str] = flag(
        REQUIRED,
        "files, directories, globs, a-{00..99}.tar, also s3://, gs://, az://, or org/name:split of the Hub; of "
        f"{', '.join(FORMATS)}",
        "data",
    )

    revision: str | None = flag(None, "revision of the model on the hub", "model")
    dtype: Dtype = flag("bfloat16", "of the reference; float32 is reproducible bit by bit", "model")
    attn_implementation: str = flag("sdpa", "attention of the reference: sdpa, eager, flash_attention_2")
    quantization: Quantization = flag("none", "of the reference: 8bit or 4bit through bitsandbytes, or none", "model")
    trust_remote_code: bool = flag(False, "run code that comes with the model", "model")
    reference_saw_data: Literal["yes", "no", "unknown"] = flag(
        "unknown",
        "whether the reference was trained on these samples: such deltas favour what it memorised",
        "measurement",
    )

    image_folder: list[str] = flag([], "where image paths start: none, one for all data paths, or one for each", "data")
    data_format: str = flag("auto", "auto goes by the file name", "data", choices=["auto", *FORMATS])
    rows_per_shard: int = flag(4096, "a file that is no Parquet is split into shards of so many rows", "output")
    limit: int | None = flag(None, "subset: only the first so many rows", "data")
    sample: float | None = flag(None, "subset: a random fraction of the rows", "data")
    seed: int = flag(0, "of --sample")

    max_image_pixels: int = flag(DEFAULT_MAX_IMAGE_PIXELS, "a larger image is an image_error")

    save_contrast_images: int = flag(0, "write so many images and their perturbed forms into .cal/contrast_images")
    extra_columns: str | None = flag(
        None,
        "also store, of both passes (comma-separated): logits; logprobs, kl, entropy, rank (need the whole vocabulary)",
        "output",
    )
    carry: Literal["auto", Carry] = flag(
        "auto",
        "what of the sample goes along: the bytes of all images, of embedded ones, paths alone, or neither images "
        "nor messages",
        "output",
    )
    redo_status: str | None = flag(
        None, "measure rows of these statuses again (comma-separated), e.g. image_error", "running"
    )

    num_workers: int = flag(1, "processes that hold a model each", "running")
    gpus_per_worker: float | None = flag(
        None, "a fraction shares a GPU, 2 or more spread one model; default 1 or 0", "running"
    )
    cpus_per_worker: float = flag(1.0, "CPUs that Ray sets aside for a worker")
    tokens_per_batch: int = flag(16384, "padded tokens of a batch, image tokens included", "running")
    encode_threads: int = flag(4, "threads of a worker that decode and encode samples")
    ray_address: str | None = flag(
        None, "an existing Ray cluster (also RAY_ADDRESS); default starts Ray here", "running"
    )
    max_error_fraction: float = flag(
        0.5, "stop when more than this share of the run's rows is not ok; 1 never stops", "running"
    )
    max_tries: int = flag(3, "of a shard, and of starting a worker")
    shard_timeout_s: float = flag(3600.0, "a shard that takes longer counts as hung")
    start_timeout_s: float = flag(1800.0, "a worker that takes longer to load its model counts as hung")
    idle_timeout_s: float = flag(600.0, "give up when no worker can be placed for so long")
    dry_run: bool = flag(False, "check model, data and output, list what is done and pending, do nothing", "running")
    verbose: bool = flag(False, "with --dry_run: list every shard")

    log_format: LogFormat = flag("text", "of standard error and of workers' logs: lines for people, or JSON objects")
    metrics_address: str = flag("127.0.0.1:0", "host:port of metrics for Prometheus; port 0 is any that is free")

    status: str | None = flag(
        None, "say how far the run is that writes to this directory (no other flag counts)", "running"
    )
    json: bool = flag(False, "with --status: as JSON")
    verify: bool = flag(
        False,
        "read every shard of --output_dir and say what is wrong; --data_path counts where .cal holds no plan",
        "running",
    )
    clean: bool = flag(False, "remove what dead runs left behind in --output_dir, never a final shard")

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            # NaN is not positive either; only a time limit may be infinite.
            if value is not None and (not value > 0 or (value == math.inf and not name.endswith("_timeout_s"))):
                raise ConfigError(f"--{name} must be positive, got {value}")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name} must not be negative, got {getattr(self, name)}")
        for name, paths in (
            ("output_dir", [self.output_dir]), ("data_path", self.data_path), ("image_folder", self.image_folder),
        ):  # fmt: skip
            if not all(paths):
                raise ConfigError(f"--{name} is empty")
            for path in paths:
                if _COLLAPSED.match(str(path)):
                    raise ConfigError(f"--{name} {path}: a URL has two slashes after its colon")
                try:
                    location(path)
                except ConfigError as error:
                    raise ConfigError(f"--{name} {error}") from error
        if not _ADDRESS.fullmatch(self.metrics_address) or int(self.metrics_address.rpartition(":")[2]) > _LAST_PORT:
            raise ConfigError(f"--metrics_address {self.metrics_address}: expected host:port, as 127.0.0.1:9464")
        if self.json:
            raise ConfigError(JSON_ALONE)
        if self.verbose and not self.dry_run:
            raise ConfigError("--verbose says how much --dry_run lists: give that too")
        if self.limit is not None and self.sample is not None:
            raise ConfigError("--limit and --sample are two ways to take a subset: give one")
        if self.max_image_pixels > PILLOW_MAX_PIXELS:
            raise ConfigError(
                f"--max_image_pixels {self.max_image_pixels}: pillow opens no image over {PILLOW_MAX_PIXELS} pixels"
            )
        if not 0 <= self.max_error_fraction <= 1:
            raise ConfigError(f"--max_error_fraction is a fraction from 0 to 1, got {self.max_error_fraction}")
        if self.sample is not None and not 0 < self.sample <= 1:
            raise ConfigError(f"--sample is a fraction above 0 and up to 1, got {self.sample}")
        gpus = self.gpus_per_worker
        if gpus is not None and not (0 <= gpus <= 1 or (gpus > 1 and gpus % 1 == 0)):
            raise ConfigError(f"--gpus_per_worker is a fraction of one GPU or a whole number of them, got {gpus}")
        self.extra()
        self.processor_settings()
        contrast = self.contrast_spec()
        if self.save_contrast_images and not contrast.perturbs:
            raise ConfigError(
                f"--save_contrast_images writes perturbed images, and --contrast {contrast.condition} makes none: use "
                + ANOTHER_IMAGE
            )
        if unknown := sorted(self.redo_statuses() - set(STATUSES)) or sorted(self.redo_statuses() & {STATUS_OK}):
            raise ConfigError(f"--redo_status {unknown[0]}: expected some of {', '.join(STATUSES[1:])}")

    def extra(self) -> tuple[ExtraColumn, ...]:
        """Names what is stored beside the deltas; ConfigError for a name that is none."""
        wanted = [part.strip() for part in (self.extra_columns or "").split(",") if part.strip()]
        if unknown := [name for name in wanted if name not in EXTRA_COLUMNS]:
            raise ConfigError(f"--extra_columns {unknown[0]}: expected some of {', '.join(EXTRA_COLUMNS)}")
        return tuple(name for name in EXTRA_COLUMNS if name in wanted)

    def redo_statuses(self) -> frozenset[str]:
        """Returns the statuses whose rows are measured again; empty in a normal run."""
        return frozenset(part.strip() for part in (self.redo_status or "").split(",") if part.strip())

    def resolved_carry(self, embedded_bytes: int) -> tuple[Carry, str]:
        """Returns what `--carry` comes to for a source that embeds so many bytes of images, and why, in words."""
        if self.carry != "auto":
            return self.carry, f"--carry {self.carry}"
        size = f"{embedded_bytes / 1e6:.1f} MB of embedded images"
        if embedded_bytes > _KEEP_EMBEDDED_BYTES:
            return "none", f"--carry auto: {size} are not copied; the output is a sidecar of the source"
        if embedded_bytes:
            return "embedded", f"--carry auto: {size} are copied; those named by path stay where they are"
        return "paths", "--carry auto: the images stay where they are, rows hold their paths"
