"""Measures a part of the rows again, and a part with another sample's image.

    cal-inspect audit annotated/
    cal-inspect audit annotated/ --fraction 0.1 --swap 0
    cal-inspect audit annotated/ --model_name_or_path llava-hf/llava-1.5-7b-hf --json audit.json

The first tells whether the cache is what its reference would measure today: other weights, another tokenizer, template
or image processor, edited rows and images are found. The second, the swap control, tells without labels whether the
reference is fit for the data: how often its mean delta is higher with a sample's own image than with another's.
Exit code: 0 the cache agrees, 1 it does not, 2 refused. A swap control under 0.7 is a warning and changes no exit code.
"""

from __future__ import annotations

import argparse
import json
import logging

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.page.audit_result import kept_audit
from cal_pipeline.inspect.tables.named_rows import named_rows
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.samples import count_rows
from cal_schemas.errors import CalError, ConfigError
from cal_schemas.storage.locations import Location

_log = logging.getLogger(__name__)
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
        "--swap", type=flags.at_least(0), default=512, metavar="N",
        help="samples measured with another sample's image (default 512, 0 for none)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=flags.at_least(0), default=0, help="of the rows drawn and of who lends images to whom"
    )
    flags.add_ids_from(parser)
    flags.add_image_folder(parser)
    parser.add_argument("--device", help="cuda or cpu; default cuda where there is one")
    positive = flags.at_least(1)
    parser.add_argument(
        "--num_devices", type=positive, default=1, help="GPUs that one model is spread over (default 1)"
    )
    parser.add_argument("--attn_implementation", help="if not the one that measured, which counts as a difference")
    parser.add_argument("--tokens_per_batch", type=positive, help="if not that of the run")
    parser.add_argument("--encode_threads", type=positive, default=4, help="threads that decode and encode (default 4)")
    parser.add_argument("--json", type=flags.place, metavar="FILE", help="also write the figures to this file")


def run(arguments: argparse.Namespace) -> int:
    """0 the cache agrees, 1 it does not."""
    if not 0.0 < arguments.fraction <= 1.0:
        raise ConfigError(f"--fraction is a share of the rows, above 0 and at most 1, got {arguments.fraction}")
    target = flags.new_file(arguments.json, ".json") if arguments.json else None
    dataset = open_paths(arguments.annotated)
    ok, num_images = count_rows(dataset)
    ok &= named_rows(dataset, arguments.ids_from)
    if not ok.any():
        raise ConfigError(
            f"{arguments.annotated[0]}: none of the {dataset.num_rows} rows has deltas, so there is nothing to measure "
            "again"
        )
    # Torch and the models' code take seconds to import: after what can be refused without them.
    from cal_pipeline.inspect.with_model import audit_report
    from cal_pipeline.inspect.with_model.audit_session import AuditSession

    session = AuditSession(dataset, arguments, ok=ok, num_images=num_images)
    report = session.audit()
    audit_report.print_audit(report)
    swap = session.swap() if arguments.swap else None
    if swap is not None:
        audit_report.print_swap(swap)
    figures = {
        "model": str(session.directory),
        "fingerprint": dataset.spec.fingerprint(),
        **audit_report.figures(report, swap),
    }
    text = json.dumps(figures, indent=1, allow_nan=False) + "\n"
    if target:
        flags.write_text(target, text)
    _keep(kept_audit(arguments.annotated), text)
    return EXIT_AGREES if report.passed else EXIT_DIFFERS


def _keep(place: Location | None, text: str) -> None:
    """Keeps the result beside the shards for `cal-inspect page`; where that cannot be written the audit stands."""
    if place is None:
        return
    try:
        flags.write_text(flags.new_file(place), text)
    except CalError as error:
        _log.warning("not kept for cal-inspect page (keep it with --json FILE, show it with --audit FILE): %s", error)
