"""`cal-inspect audit`: measures a part of a cache again, and tries the reference with swapped pictures."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cal_schemas.annotated import AnnotatedDataset, open_annotated
from cal_schemas.errors import ConfigError, SampleError

EXIT_AGREES, EXIT_DIFFERS = 0, 1
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the subcommand."""
    parser.add_argument("path", type=Path, help="annotated directory or shard")
    parser.add_argument("--model_name_or_path", help="the reference, where the run report does not lead to it any more")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--fraction", type=float, default=0.01, help="of the ok rows, measured again (at least 1 row)")
    parser.add_argument("--swap", type=int, default=512, help="samples measured with another's picture; 0 for none")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn rows and of who lends pictures to whom")
    parser.add_argument("--image_folder", type=Path, help="where image paths start, if not where they did")
    parser.add_argument("--device", help="cuda or cpu; cuda where there is one")
    parser.add_argument("--num_devices", type=int, default=1, help="GPUs that one model is spread over")
    parser.add_argument("--attn_implementation", help="if not the one that measured (that is a difference, too)")
    parser.add_argument("--tokens_per_batch", type=int, help="if not that of the run")
    parser.add_argument("--encode_threads", type=int, default=4)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def run(arguments: argparse.Namespace) -> int:
    """Exit code: 0 the cache agrees, 1 it does not; a swap control under 0.7 is a warning. ConfigError otherwise."""
    if not 0.0 < arguments.fraction <= 1.0:
        raise ConfigError(f"--fraction is a share of the rows, above 0 and at most 1, got {arguments.fraction}")
    for name in ("num_devices", "encode_threads", "tokens_per_batch"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ConfigError(f"--{name} must be positive, got {value}")
    if arguments.swap < 0:
        raise ConfigError(f"--swap is a number of samples, got {arguments.swap}")
    dataset = open_annotated(arguments.path)
    session = _Session(dataset, arguments)
    report = session.audit()
    swap = session.swap() if arguments.swap else None
    if arguments.json:
        arguments.json.write_text(json.dumps(_figures(report, swap, session), indent=1) + "\n", encoding="utf-8")
    return EXIT_AGREES if report.passed else EXIT_DIFFERS


class _Session:
    """An opened directory with its reference model loaded."""

    def __init__(self, dataset: AnnotatedDataset, arguments: argparse.Namespace) -> None:
        # Torch and the model's code are loaded here, not by `cal-inspect --help`.
        from cal_pipeline import audit, remeasure
        from cal_pipeline.loading import load_processor, load_reference, weights_digest
        from cal_pipeline.origin import find_reference

        self.dataset, self.arguments, self.spec = dataset, arguments, dataset.spec
        self.counts = remeasure.count_rows(dataset)
        if not self.counts.ok.any():
            raise ConfigError(
                f"{arguments.path}: none of its {dataset.num_rows} rows has deltas, so there is nothing to measure again"
            )
        audit.tolerance_of(self.spec.dtype)
        trust = arguments.trust_remote_code
        self.directory = find_reference(
            arguments.path, self.spec, arguments.model_name_or_path, trust_remote_code=trust
        )
        self.encoder = remeasure.rebuild_encoder(
            self.spec, load_processor(self.directory, trust_remote_code=trust)
        )
        attention = arguments.attn_implementation or self.spec.attn_implementation
        self.differences = audit.spec_differences(self.spec, self.encoder, weights_digest(self.directory))
        if attention != self.spec.attn_implementation:
            self.differences.append(("attn_implementation", self.spec.attn_implementation, attention))
        self.model = load_reference(
            self.directory,
            dtype=self.spec.dtype,  # type: ignore[arg-type]
            attn_implementation=attention,
            device=arguments.device,
            num_devices=arguments.num_devices,
            trust_remote_code=trust,
        )

    def _measure(self, rows: list[Any], pictures: list[Any]) -> list[Any]:
        from cal_pipeline.remeasure import measure_again

        return measure_again(
            list(zip(rows, pictures, strict=True)),
            model=self.model,
            encoder=self.encoder,
            spec=self.spec,
            tokens_per_batch=self.arguments.tokens_per_batch or self.dataset.metadata[0].tokens_per_batch,
            encode_threads=self.arguments.encode_threads,
        )

    def _pictures(self, sample: Any) -> Any:
        from cal_pipeline.images import DEFAULT_MAX_IMAGE_PIXELS
        from cal_pipeline.remeasure import decode_pictures

        try:
            return decode_pictures(sample, DEFAULT_MAX_IMAGE_PIXELS)
        except SampleError as error:
            return error

    def audit(self) -> Any:
        """Measures the drawn rows again and prints how they compare."""
        from cal_pipeline.audit import AuditReport, Comparison, compare, draw, windows
        from cal_pipeline.remeasure import WINDOW_ROWS, read_stored

        report = AuditReport(dtype=self.spec.dtype, spec_differences=self.differences)
        candidates = np.flatnonzero(self.counts.ok)
        drawn = draw(
            candidates,
            max(1, math.ceil(self.arguments.fraction * len(candidates))),
            np.random.default_rng([self.arguments.seed, 0]),
        )
        print(f"{self.arguments.path}: {self.dataset.num_rows} rows, {len(candidates)} with deltas; measuring "
              f"{len(drawn)} of them again with {self.directory} ({self.spec.dtype})", flush=True)  # fmt: skip
        for window in windows(read_stored(self.dataset, drawn.tolist(), self.arguments.image_folder), WINDOW_ROWS):
            readable = [row for row in window if not isinstance(row, SampleError)]
            outcomes = iter(
                self._measure([row.sample for row in readable], [self._pictures(row.sample) for row in readable])
            )
            for row in window:
                if isinstance(row, SampleError):
                    report.comparisons.append(Comparison(number=-1, sample_id="", verdict="unmeasurable",
                                                         reason=f"{row.status}: {row}"))  # fmt: skip
                else:
                    report.comparisons.append(compare(row, next(outcomes), self.spec.dtype))
        _print_audit(report)
        return report

    def swap(self) -> Any:
        """Measures drawn samples with their own and with another's pictures and prints how well the means part."""
        from cal_pipeline.audit import draw, picture_digest, swap_partners, swap_report
        from cal_pipeline.remeasure import WINDOW_ROWS, read_stored

        rng = np.random.default_rng([self.arguments.seed, 1])
        drawn = draw(np.flatnonzero(self.counts.ok & (self.counts.num_images > 0)), self.arguments.swap, rng)
        rows = read_stored(self.dataset, drawn.tolist(), self.arguments.image_folder)
        samples = [row.sample for row in rows if not isinstance(row, SampleError)]
        pairs = []
        for count in sorted({len(sample.images) for sample in samples}):
            places = [at for at, sample in enumerate(samples) if len(sample.images) == count]
            for own, lender in swap_partners([picture_digest(samples[at]) for at in places], rng):
                pairs.append((places[own], places[lender]))
        if not pairs:
            print(f"Swap control: not possible, {len(samples)} samples with pictures hold no two different ones")
            return None
        print(f"Swap control: measuring {len(pairs)} samples with their own and with another's picture", flush=True)
        own, other = [], []
        for start in range(0, len(pairs), WINDOW_ROWS):
            chosen = pairs[start : start + WINDOW_ROWS]
            mine = [samples[at] for at, _ in chosen]
            own += self._measure(mine, [self._pictures(sample) for sample in mine])
            other += self._measure(mine, [self._pictures(samples[lender]) for _, lender in chosen])
        report = swap_report(own, other)
        _print_swap(report, len(drawn))
        return report


def _print_audit(report: Any) -> None:
    from cal_pipeline.audit import tolerance_of

    for name, stored, now in report.spec_differences:
        print(f"DIFFERS  {name}: the cache was made with {stored!r}, here it is {now!r}")
    found = Counter(item.verdict for item in report.comparisons)
    compared = [item for item in report.comparisons if item.num_tokens]
    tokens = sum(item.num_tokens for item in compared)
    if compared:
        kind, tolerance = tolerance_of(report.dtype)
        largest = max(item.max_difference for item in compared)
        rms = math.sqrt(sum(item.squared for item in compared) / tokens)
        print(f"{tokens} deltas of {len(compared)} rows compared: largest difference {largest:.2g}, rms {rms:.2g} logits "
              f"(tolerance {tolerance:g} on the {kind} of each row, for {report.dtype})")  # fmt: skip
    bad = [item for item in report.comparisons if item.verdict != "agrees"]
    bad.sort(key=lambda item: (item.verdict, -item.max_difference))
    for item in bad[:_SHOWN]:
        print(f"DIFFERS  row {item.number} {item.sample_id}: {item.verdict}: {item.reason}")
    if len(bad) > _SHOWN:
        print(f"         … and {len(bad) - _SHOWN} more: " + ", ".join(f"{n} {v}" for v, n in sorted(found.items())))
    if report.passed:
        print(f"The cache agrees: {found['agrees']} of {len(report.comparisons)} rows are what is measured today.")
    elif bad:
        print(f"THE CACHE DOES NOT AGREE: {len(bad)} of {len(report.comparisons)} rows differ.")
    else:
        print("THE CACHE DOES NOT AGREE: it was made with something else, though the rows drawn come out the same.")


def _print_swap(report: Any, drawn: int) -> None:
    from cal_pipeline.audit import FEW_SAMPLES, FIT_AUC

    count = len(report.own)
    if not count:
        print(f"Swap control: none of {report.skipped} samples can be measured with another's picture")
        return
    print(f"  mean delta: own picture {report.own.mean():.3f}, another's {report.other.mean():.3f} logits, {count} samples"
          + (f" ({report.skipped} skipped)" if report.skipped else "")
          + f"\n  AUC {report.auc:.3f} (a random sample with its own picture is above a random one with another's)"
          f"\n  wins {report.win_share:.3f} (the same sample is higher with its own picture)")  # fmt: skip
    if report.auc < FIT_AUC:
        print(f"WARNING: a swap control under {FIT_AUC} says that this reference hardly tells the right picture from a "
              "wrong one on this data: its deltas are mostly noise here. Is it trained for such pictures, and are "
              "--template and --image_aspect_ratio those it was trained with?")  # fmt: skip
    if count < FEW_SAMPLES:
        print(f"WARNING: {count} samples give a rough figure; some hundred are better")


def _figures(report: Any, swap: Any, session: _Session) -> dict[str, Any]:
    compared = [item for item in report.comparisons if item.num_tokens]
    return {
        "path": str(session.arguments.path),
        "model": str(session.directory),
        "passed": report.passed,
        "spec_differences": [list(map(str, item)) for item in report.spec_differences],
        "rows": len(report.comparisons),
        "tokens": sum(item.num_tokens for item in compared),
        "max_difference": max((item.max_difference for item in compared), default=None),
        "verdicts": Counter(item.verdict for item in report.comparisons),
        "differing": [asdict(item) for item in report.comparisons if item.verdict != "agrees"],
        "swap": None
        if swap is None or not len(swap.own)
        else {
            "samples": len(swap.own),
            "skipped": swap.skipped,
            "auc": swap.auc,
            "win_share": swap.win_share,
            "mean_own": float(swap.own.mean()),
            "mean_other": float(swap.other.mean()),
        },
    }
