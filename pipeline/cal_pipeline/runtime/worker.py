"""Holds what one worker process does: loads a model and an encoder, and annotates shards. No Ray in here."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from cal_pipeline.annotate import AnnotateOptions, annotate_shard
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec, label_spec, rebuild_encoder
from cal_pipeline.log_lines import LogFormat
from cal_pipeline.measuring.load_check import check_model
from cal_pipeline.models.directory import model_directory
from cal_pipeline.models.loading import load_reference, weights_digest
from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.output.store import Store
from cal_pipeline.runtime.faults import fault_of
from cal_pipeline.sources.shard import Shard
from cal_schemas.errors import ConfigError, StoreError, SurroundingsError
from cal_schemas.redaction import redacted
from cal_schemas.spec import Dtype, MeasurementSpec, Quantization

_STORE_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_MAX_ATTEMPTS",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "STORAGE_EMULATOR_HOST",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ENDPOINT",
    "HF_ENDPOINT",
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """Holds everything a worker needs to start, on whatever node."""

    model_name_or_path: str
    dtype: Dtype
    quantization: Quantization
    trust_remote_code: bool
    device: str
    num_devices: int
    spec: MeasurementSpec
    store: Store
    options: AnnotateOptions
    redo: frozenset[str]
    environment: tuple[tuple[str, str], ...] = ()
    """Of the driver: which object store is meant. Credentials do not travel; every node has its own."""
    log_format: LogFormat = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Says how an attempt ended: data, not an exception, so that the driver decides."""

    kind: Literal["done", "retry", "stop", "refuse"]
    """The last two, as the one before, are words of the table of faults."""
    report: ShardReport | None = None
    message: str = ""
    surroundings: bool = False
    """Whether not the shard is at fault but what it is read from or written to, which takes longer to come back."""


class Worker:
    """Holds a loaded reference, and annotates shards with it, one at a time."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        for name, value in settings.environment:
            os.environ.setdefault(name, value)
        settings.store.check_there()
        # Our own limits decide; pillow's chatter about odd metadata would fill the log of a week-long run.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        directory = model_directory(
            settings.model_name_or_path, settings.spec.revision, trust_remote_code=settings.trust_remote_code
        )
        if (digest := weights_digest(directory)) != settings.spec.weights_digest:
            raise ConfigError(
                f"{platform.node()} has other weights of {settings.spec.model_id} than the driver (digest {digest}, "
                f"driver {settings.spec.weights_digest}): name a --revision, or copy the same files to every node"
            )
        self._encoder = rebuild_encoder(settings.spec, directory, trust_remote_code=settings.trust_remote_code)
        check_same_encoding(settings.spec, self._encoder)
        self._model = load_reference(
            directory,
            dtype=settings.dtype,
            attn_implementation=settings.spec.attn_implementation,
            device=settings.device,
            num_devices=settings.num_devices,
            quantization=settings.quantization,
            trust_remote_code=settings.trust_remote_code,
        )
        self_check(self._model, self._encoder, settings.spec)

    def run(self, shard: Shard) -> Outcome:
        """Annotates one shard; a fault that only a fresh process gets over (a lost device) is raised."""
        settings = self._settings
        try:
            report = annotate_shard(
                shard,
                encoder=self._encoder,
                model=self._model,
                spec=settings.spec,
                store=settings.store,
                options=settings.options,
                redo=settings.redo,
            )
        except BaseException as error:
            fault = fault_of(error)
            if fault.in_shard == "end":
                raise
            if fault.kind is Exception:
                _log.exception("shard %s", shard.name)
                if torch.cuda.is_available():
                    # A lost device also speaks as a plain RuntimeError (cuBLAS, cuDNN); if it is lost, this raises.
                    torch.cuda.synchronize()
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
            message = fault.worker_says.format(shard=shard.name, kind=type(error).__name__, error=error, where=where)
            message = redacted(message)
            assert fault.in_shard is not None
            surroundings = isinstance(error, SurroundingsError | StoreError)
            return Outcome(kind=fault.in_shard, message=message, surroundings=surroundings)
        return Outcome(kind="done", report=report)


def store_environment() -> tuple[tuple[str, str], ...]:
    """Returns the variables of this process that name an object store, without the passwords of their URLs."""
    return tuple((name, redacted(os.environ[name])) for name in _STORE_VARIABLES if name in os.environ)


def check_same_encoding(spec: MeasurementSpec, encoder: Encoder) -> None:
    """Raises ConfigError when this machine would encode differently from the one that planned the run."""
    for name, planned, here in (
        ("label", spec.label, label_spec(encoder)),
        ("input", spec.input, input_spec(encoder)),
    ):
        if planned != here:
            raise ConfigError(
                f"{platform.node()} would make other {name}s than the driver planned: {here} here, {planned} planned "
                "(is torchvision installed on one of them only, or another version of transformers?)"
            )


def self_check(model: Any, encoder: Encoder, spec: MeasurementSpec) -> None:
    """Runs `check_model` for what this measurement asks of the model, and lets the encoder pad with what it has."""
    encoder.pad_within(model.get_input_embeddings().weight.shape[0])
    check_model(model, encoder, spec.contrast, spec.model_id)


def library_versions() -> tuple[tuple[str, str], ...]:
    """Returns the versions of what can change a delta, for the file's metadata."""
    names = ("cal-vlm", "torch", "transformers", "tokenizers", "pillow", "torchvision", "numpy", "pyarrow")
    versions = []
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append((name, importlib.metadata.version(name)))
    return tuple(versions)
