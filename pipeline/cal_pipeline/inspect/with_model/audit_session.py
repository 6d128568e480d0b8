"""Audits opened shards: loads their reference and measures drawn rows again, with their own and with other images."""

from __future__ import annotations

import argparse
import hashlib
import math
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import get_args

import numpy as np
from transformers.utils.logging import disable_progress_bar

from cal_pipeline.encoding.identity import input_spec, label_spec, rebuild_encoder
from cal_pipeline.inspect.flags import say
from cal_pipeline.inspect.progress import shown_progress
from cal_pipeline.inspect.with_model.audit import (
    AuditReport,
    SwapReport,
    compare,
    draw,
    swap_partners,
    swap_report,
)
from cal_pipeline.inspect.with_model.remeasure import WINDOW_ROWS, measure_again
from cal_pipeline.inspect.with_model.resolve_reference import resolve_reference
from cal_pipeline.measuring.load_check import check_model
from cal_pipeline.models.loading import check_architecture, load_reference, weights_digest
from cal_pipeline.models.precision import watched
from cal_pipeline.models.quantization import flag_of
from cal_pipeline.output.row_reader import NumberedRow, numbered_rows
from cal_schemas.counted import counted
from cal_schemas.errors import ConfigError, SampleError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.spec import Dtype


class AuditSession:
    """Opened shards with their reference model loaded."""

    def __init__(
        self, dataset: AnnotatedDataset, arguments: argparse.Namespace, *, ok: np.ndarray, num_images: np.ndarray
    ) -> None:
        self.dataset, self.arguments, self.spec = dataset, arguments, dataset.spec
        self.ok, self.num_images = ok, num_images
        disable_progress_bar()  # of loading: what is printed here is the report
        if self.spec.dtype not in get_args(Dtype):
            raise ConfigError(f"the deltas were measured in {self.spec.dtype!r}, which this version does not know")
        trust = arguments.trust_remote_code
        self.directory = resolve_reference(
            arguments.annotated, self.spec, arguments.model_name_or_path, trust_remote_code=trust
        )
        check_architecture(self.directory, trust_remote_code=trust)
        self.encoder = rebuild_encoder(self.spec, self.directory, trust_remote_code=trust)
        attention = arguments.attn_implementation or self.spec.attn_implementation
        now = replace(
            self.spec,
            label=label_spec(self.encoder),
            input=input_spec(self.encoder),
            weights_digest=weights_digest(self.directory),
            attn_implementation=attention,
        )
        self.differences = list(self.spec.differences(now))
        self.model = load_reference(
            self.directory,
            dtype=self.spec.dtype,  # type: ignore[arg-type]
            attn_implementation=attention,
            device=arguments.device,
            num_devices=arguments.num_devices,
            quantization=flag_of(self.spec.quantization),
            trust_remote_code=trust,
        )
        # Also finds out whether rows may share a batch.
        check_model(self.model, self.encoder, self.spec.contrast, self.spec.model_id)
        self._measure = partial(
            measure_again,
            model=self.model,
            encoder=self.encoder,
            spec=self.spec,
            tokens_per_batch=arguments.tokens_per_batch or dataset.metadata[0].tokens_per_batch,
            encode_threads=arguments.encode_threads,
        )

    def audit(self) -> AuditReport:
        """Measures the drawn rows again."""
        candidates = np.flatnonzero(self.ok)
        count = max(1, math.ceil(self.arguments.fraction * len(candidates)))
        drawn = draw(candidates, count, np.random.default_rng([self.arguments.seed, 0]))
        rows = counted(self.dataset.num_rows, "row")
        say(f"{rows}, {len(candidates):,} with deltas; measuring {len(drawn):,} of them again with {self.directory} in "
            f"{self.spec.dtype}{f', {self.spec.quantization} weights' if self.spec.quantization else ''}")  # fmt: skip
        report = AuditReport(dtype=self.spec.dtype, spec_differences=self.differences)
        stored = numbered_rows(self.dataset, drawn, self.arguments.image_folder)
        with shown_progress("rows measured", len(drawn)) as advance:
            while window := list(islice(stored, WINDOW_ROWS)):
                pairs = [(row, row) for row in window]
                outcomes, report.precision = watched(self.model, partial(self._measure, pairs))
                report.comparisons += [
                    compare(row, outcome, report.precision) for row, outcome in zip(window, outcomes, strict=True)
                ]
                advance(len(window))
        return report

    def swap(self) -> SwapReport | None:
        """Measures drawn samples with their own and with another's images; None when no two images differ."""
        rng = np.random.default_rng([self.arguments.seed, 1])
        drawn = draw(np.flatnonzero(self.ok & (self.num_images > 0)), self.arguments.swap, rng)
        rows = list(numbered_rows(self.dataset, drawn, self.arguments.image_folder))
        pairs: list[tuple[NumberedRow, NumberedRow]] = []
        for number in sorted({len(row.sample.images) for row in rows}):
            alike = [row for row in rows if len(row.sample.images) == number]
            partners = swap_partners([image_digest(row) for row in alike], rng)
            pairs += [(alike[own], alike[lender]) for own, lender in partners]
        if not pairs:
            samples = counted(len(rows), "sample")
            say(f"Swap control: not possible, no two of {samples} with images show different ones")
            return None
        say(f"Swap control: measuring {counted(len(pairs), 'sample')} with their own and with another's image")
        own, other = [], []
        with shown_progress("samples measured", len(pairs)) as advance:
            for start in range(0, len(pairs), WINDOW_ROWS):
                window = pairs[start : start + WINDOW_ROWS]
                own += self._measure([(row, row) for row, _ in window])
                other += self._measure(window)
                advance(len(window))
        return swap_report(own, other)


def image_digest(row: NumberedRow) -> str:
    """Names the images of a row: equal ones are no swap. A row whose images are gone stands for itself."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in row.image_files():
            digest.update(hashlib.blake2b(file, digest_size=16).digest())
    except SampleError:
        return f"row {row.number}"
    return digest.hexdigest()
