"""Shards of several references as one measurement: each measured rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cal_schemas.errors import FormatError
from cal_schemas.spec import MeasurementSpec, digest_json

if TYPE_CHECKING:
    from cal_schemas.annotated import ShardMetadata
    from cal_schemas.locations import Location

REFERENCE_FIELDS = ("model_id", "revision", "weights_digest")
"""Of a spec: which model measured, and nothing else."""


def crossfit_spec(specs: Sequence[MeasurementSpec]) -> MeasurementSpec:
    """Names every reference, sorted, whatever the order of the shards; of one reference it is its own spec.

    The specs may differ in `REFERENCE_FIELDS` only.
    """
    each = sorted(set(specs), key=lambda spec: (spec.model_id, spec.revision or "", spec.weights_digest))
    if len(each) == 1:
        return each[0]
    return replace(
        each[0],
        model_id="cross-fit of " + " and ".join(spec.model_id for spec in each),
        revision=" and ".join(spec.revision for spec in each if spec.revision) or None,
        weights_digest=digest_json([spec.weights_digest for spec in each]),
    )


def refuse_measured_twice(files: Sequence[Location], metadata: Sequence[ShardMetadata]) -> None:
    """Raises FormatError for source rows that two shards hold: in a cross-fit each row has one reference."""
    first: dict[tuple[str, int], Location] = {}
    for file, item in zip(files, metadata, strict=True):
        place = (item.source.uri, item.source.row_start)
        if place in first:
            raise FormatError(
                f"{first[place]} and {file} both measured {item.source.uri} from row {item.source.row_start}: "
                "in a cross-fit each reference measures the part that it was not trained on"
            )
        first[place] = file
