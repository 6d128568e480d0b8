"""Measures a part of the rows again, and a part with another sample's image.

The first tells whether the cache is what its reference would measure today: other weights, another tokenizer, template
or image processor, edited rows and images are found. The second, the swap control, tells without labels whether the
reference is fit for the data: how often its mean delta is higher with a sample's own image than with another's.
Exit code: 0 the cache agrees, 1 it does not, 2 refused. A swap control under 0.7 is a warning and changes no exit code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.reading import open_paths, read_batches
from cal_pipeline.inspect.with_model import audit_report
from cal_pipeline.output.row_reader import NumberedRow, read_rows, source_samples
from cal_pipeline.sources.images import DEFAULT_MAX_IMAGE_PIXELS, decode_images
from cal_schemas.errors import STATUS_OK, ConfigError, SampleError
from cal_schemas.opened import AnnotatedDataset

if TYPE_CHECKING:
    from cal_pipeline.inspect.with_model.audit import AuditReport, SwapReport

EXIT_AGREES, EXIT_DIFFERS = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect audit`."""
    flags.add_annotated(parser)
    parser.add_argument(
        "--model_name_or_path", metavar="MODEL",
        help="the reference; not needed where the run report beside the shards still leads to it, or for a hub id",
    )  # fmt: skip
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--fraction", type=float, default=0.01, help="of the ok rows, at least 1 row (default 0.01)")
    parser.add_argument(
        "--swap", type=int, default=512, metavar="N",
        help="samples measured with another sample's image (default 512, 0 for none)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the rows drawn and of who lends images to whom")
    parser.add_argument(
        "--image_folder", type=Path, metavar="DIR", help="where image paths start, if not where they did"
    )
    parser.add_argument("--device", help="cuda or cpu; default cuda where there is one")
    parser.add_argument("--num_devices", type=int, default=1, help="GPUs that one model is spread over (default 1)")
    parser.add_argument("--attn_implementation", help="if not the one that measured, which counts as a difference")
    parser.add_argument("--tokens_per_batch", type=int, help="if not that of the run")
    parser.add_argument("--encode_threads", type=int, default=4, help="threads that decode and encode (default 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")


def run(arguments: argparse.Namespace) -> int:
    """0 the cache agrees, 1 it does not."""
    if not 0.0 < arguments.fraction <= 1.0:
        raise ConfigError(f"--fraction is a share of the rows, above 0 and at most 1, got {arguments.fraction}")
    for name in ("num_devices", "encode_threads", "tokens_per_batch"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ConfigError(f"--{name} must be positive, got {value}")
    if arguments.swap < 0 or arguments.seed < 0:
        raise ConfigError(f"--swap and --seed are not negative, got {arguments.swap} and {arguments.seed}")
    target = flags.new_file(arguments.json, ".json") if arguments.json else None
    session = Session(open_paths(arguments.annotated), arguments)
    report = session.audit()
    audit_report.print_audit(report)
    swap = session.swap() if arguments.swap else None
    if swap is not None:
        audit_report.print_swap(swap)
    if target:
        figures = {"model": str(session.directory), **audit_report.figures(report, swap)}
        target.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return EXIT_AGREES if report.passed else EXIT_DIFFERS


class Session:
    """Opened shards with their reference model loaded."""

    def __init__(self, dataset: AnnotatedDataset, arguments: argparse.Namespace) -> None:
        self.dataset, self.arguments, self.spec = dataset, arguments, dataset.spec
        self.ok, self.num_images = count_rows(dataset)
        if not self.ok.any():
            raise ConfigError(
                f"{arguments.annotated[0]}: none of the {dataset.num_rows} rows has deltas, so there is nothing to "
                "measure again"
            )
        # Torch and the models' code take seconds to import: after what can be refused without them.
        from transformers.utils.logging import disable_progress_bar

        from cal_pipeline.encoding.identity import rebuild_encoder
        from cal_pipeline.inspect.with_model import audit
        from cal_pipeline.inspect.with_model.resolve_reference import find_reference
        from cal_pipeline.measuring.load_check import check_model
        from cal_pipeline.models.loading import check_architecture, load_processor, load_reference, weights_digest
        from cal_pipeline.models.quantization import flag_of
        from cal_schemas.spec import Dtype

        disable_progress_bar()  # of loading: what is printed here is the report
        if self.spec.dtype not in get_args(Dtype):
            raise ConfigError(f"the deltas were measured in {self.spec.dtype!r}, which this version does not know")
        trust = arguments.trust_remote_code
        self.directory = find_reference(
            arguments.annotated, self.spec, arguments.model_name_or_path, trust_remote_code=trust
        )
        check_architecture(self.directory, trust_remote_code=trust)
        self.encoder = rebuild_encoder(self.spec, load_processor(self.directory, trust_remote_code=trust))
        attention = arguments.attn_implementation or self.spec.attn_implementation
        self.differences = audit.spec_differences(
            self.spec, self.encoder, weights_digest(self.directory), attn_implementation=attention
        )
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

    def audit(self) -> AuditReport:
        """Measures the drawn rows again."""
        from cal_pipeline.inspect.with_model.audit import AuditReport, compare, draw
        from cal_pipeline.inspect.with_model.remeasure import WINDOW_ROWS
        from cal_pipeline.models.precision import watched

        candidates = np.flatnonzero(self.ok)
        count = max(1, math.ceil(self.arguments.fraction * len(candidates)))
        drawn = draw(candidates, count, np.random.default_rng([self.arguments.seed, 0]))
        rows = flags.counted(self.dataset.num_rows, "row")
        say(f"{rows}, {len(candidates):,} with deltas; measuring {len(drawn):,} of them again with {self.directory} in "
            f"{self.spec.dtype}{f', {self.spec.quantization} weights' if self.spec.quantization else ''}")  # fmt: skip
        report = AuditReport(dtype=self.spec.dtype, spec_differences=self.differences)
        stored = read_rows(self.dataset, drawn, self.arguments.image_folder)
        while window := list(islice(stored, WINDOW_ROWS)):
            pairs = [(row, row) for row in window]
            outcomes, report.precision = watched(self.model, partial(self._measure, pairs))
            report.comparisons += [
                compare(row, outcome, report.precision) for row, outcome in zip(window, outcomes, strict=True)
            ]
        return report

    def swap(self) -> SwapReport | None:
        """Measures drawn samples with their own and with another's images; None when no two images differ."""
        from cal_pipeline.inspect.with_model.audit import draw, swap_partners, swap_report
        from cal_pipeline.inspect.with_model.remeasure import WINDOW_ROWS

        rng = np.random.default_rng([self.arguments.seed, 1])
        drawn = draw(np.flatnonzero(self.ok & (self.num_images > 0)), self.arguments.swap, rng)
        rows = list(read_rows(self.dataset, drawn, self.arguments.image_folder))
        pairs: list[tuple[NumberedRow, NumberedRow]] = []
        for number in sorted({len(row.sample.images) for row in rows}):
            alike = [row for row in rows if len(row.sample.images) == number]
            partners = swap_partners([picture_digest(row) for row in alike], rng)
            pairs += [(alike[own], alike[lender]) for own, lender in partners]
        if not pairs:
            samples = flags.counted(len(rows), "sample")
            say(f"Swap control: not possible, no two of {samples} with images show different ones")
            return None
        say(f"Swap control: measuring {flags.counted(len(pairs), 'sample')} with their own and with another's image")
        own, other = [], []
        for start in range(0, len(pairs), WINDOW_ROWS):
            window = pairs[start : start + WINDOW_ROWS]
            own += self._measure([(row, row) for row, _ in window])
            other += self._measure(window)
        return swap_report(own, other)

    def _measure(self, pairs: Sequence[tuple[NumberedRow, NumberedRow]]) -> list[Any]:
        """Each row's words with the images of the row beside it."""
        from cal_pipeline.inspect.with_model.remeasure import ToMeasure, measure_again

        return measure_again(
            [
                ToMeasure(sample=row.sample, sample_key=row.annotated.sample_key, pictures=pictures_of(lender))
                for row, lender in pairs
            ],
            model=self.model,
            encoder=self.encoder,
            spec=self.spec,
            tokens_per_batch=self.arguments.tokens_per_batch or self.dataset.metadata[0].tokens_per_batch,
            encode_threads=self.arguments.encode_threads,
        )


def pictures_of(row: NumberedRow) -> Any:
    """Its decoded images, or the SampleError that says why not."""
    try:
        return decode_images(row.image_files(), DEFAULT_MAX_IMAGE_PIXELS)
    except SampleError as error:
        return error


def picture_digest(row: NumberedRow) -> str:
    """Names the images of a row: equal ones are no swap. A row whose images are gone stands for itself."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in row.image_files():
            digest.update(hashlib.blake2b(file, digest_size=16).digest())
    except SampleError:
        return f"row {row.number}"
    return digest.hexdigest()


def count_rows(dataset: AnnotatedDataset) -> tuple[np.ndarray, np.ndarray]:
    """(ok [R] bool, images [R] int64) of every row, from the source where the shards do not say; reads no pixels."""
    ok, images = [np.empty(0, bool)], [np.empty(0, np.int64)]
    for batch in read_batches(dataset, ["status", "images.list.element.path"]):
        ok.append(np.array(batch.data.column("status").to_pylist()) == STATUS_OK)
        if "images" in batch.data.schema.names:
            images.append(batch.data.column("images").value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    if "images" not in dataset.schema.names:
        for path, metadata in zip(dataset.files, dataset.metadata, strict=True):
            images.append(np.fromiter((len(sample.images) for sample in source_samples(path, metadata)), np.int64))
    return np.concatenate(ok), np.concatenate(images)


def say(text: str) -> None:
    """A line of progress, at once."""
    print(text, flush=True)  # noqa: T201
