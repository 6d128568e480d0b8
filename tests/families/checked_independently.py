"""The product's numbers of hard rows, alone and in ragged batches, against those of `independent`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.measuring.contrast import contrast_logits
from cal_pipeline.models.special_cases import mask_undefined
from cal_schemas.errors import ConfigError
from cal_schemas.spec import Condition, ContrastSpec
from families import hard_rows, page
from families.case import Case
from families.family import AnyFamily
from families.independent import own_copy, with_image, without_image

TOLERANCE: Final = 1e-4
"""Largest difference over the standard deviation of the logits."""
LONG: Final = "longer than every window"


@dataclass(kw_only=True)
class Numbers:
    """Both passes of every row by the independent way."""

    of_row: dict[tuple[str, Condition], Tensor] = field(default_factory=dict)
    """[2, T] with and without the image, NaN where no delta is defined."""
    hidden_by_windows: int = 0
    """Modules that hide a token of the long row from one behind it in the plain forward."""

    def values(self, condition: Condition = "drop") -> Tensor:
        """[2, N] of all rows' defined ones, in the order of the rows."""
        rows = [numbers for (_, kind), numbers in self.of_row.items() if kind == condition]
        return torch.cat([numbers[:, ~numbers[1].isnan()] for numbers in rows], 1)


def independent_numbers(
    own: Any, rows: Mapping[str, EncodedSample], conditions: Sequence[Condition]
) -> Numbers:  # fmt: skip
    """Takes `own_copy` of a model. A row without an image has the same logits in both passes."""
    found = Numbers()
    for name, row in rows.items():
        shown, seen = with_image(own, row)
        for condition in conditions:
            without = without_image(own, row, seen, condition) if row.image_inputs else shown
            found.of_row[name, condition] = torch.stack([shown.where(~without.isnan(), torch.nan), without])
        if name == LONG:
            causal = torch.ones(row.num_tokens, row.num_tokens, dtype=torch.bool).tril()
            found.hidden_by_windows = sum(bool((causal & ~mask[0, 0]).any()) for mask in seen.visible.values())
    return found


def product_numbers(case: Case, rows: Sequence[EncodedSample], condition: Condition) -> list[Tensor]:
    """[2, T] of every row, measured in one batch as `measure` does it."""
    batch = case.batch(rows).to(case.model.device, case.model.dtype)
    contrast = ContrastSpec(condition=condition)
    both = torch.stack(contrast_logits(case.model, batch.inputs, batch.labels, batch.image_mask, contrast))
    return [both[:, number, : row.num_tokens] for number, row in enumerate(rows)]


def conditions_of(case: Case) -> tuple[Condition, ...]:
    """Those that hide the image and that the family allows."""
    return ("drop",) if mask_undefined(case.model.config.get_text_config()) else ("drop", "mask")


class CheckedIndependently:
    """What `ModelLevel` tests of every family."""

    def test_an_independent_computation_gives_the_same_numbers(
        self, family: AnyFamily, entry: tuple[str, Case], directory: Path
    ) -> None:
        name, case = entry
        rows, conditions, remarks = hard_rows.hard_rows(family, case, directory), conditions_of(case), []
        numbers = independent_numbers(own_copy(case.model), rows, conditions)
        config = case.model.config.get_text_config()
        limited = any(getattr(config, limit, None) for limit in ("sliding_window", "attention_chunk_size"))
        assert limited == bool(numbers.hidden_by_windows), "the long row is no longer than the windows"
        differences = []
        for condition, other in [(kind, "mask" if kind == "drop" else "drop") for kind in conditions]:
            refused: set[str] = set()
            for chosen in _batches(case, rows, refused):
                try:
                    measured = product_numbers(case, [rows[row] for row in chosen], condition)
                except (ConfigError, ValueError) as error:
                    if len(chosen) > 1 or other not in conditions or f"use --contrast {other}" not in str(error):
                        raise
                    refused.update(chosen)
                    remarks.append(f"{chosen[0]} by `{other}` alone")
                    continue
                for row, values in zip(chosen, measured, strict=True):
                    wanted = numbers.of_row[row, condition]
                    assert torch.equal(values.isnan(), wanted.isnan()), f"{condition}, {row}: other tokens are defined"
                    differences.append(float((values - wanted)[~wanted.isnan()].abs().max()))
        spread = float(numbers.values()[0].std())
        assert max(differences) <= TOLERANCE * spread
        if len(rows) < len(hard_rows.ROWS):
            remarks.append(f"{len(rows)} rows")
        page.record(name, independent=page.figure(max(differences)) + f" ({', '.join(remarks)})" * bool(remarks))


def _batches(case: Case, rows: Mapping[str, EncodedSample], refused: Collection[str]) -> Iterator[list[str]]:
    """Names of rows alone; then of all that may share a batch, refused ones aside, with the long one and without."""
    yield from ([name] for name in rows)
    names = {id(row): name for name, row in rows.items()}
    for left_out in (refused, {*refused, LONG}):
        chosen = [row for name, row in rows.items() if name not in left_out]
        for group in dataclasses.replace(case, samples=chosen).groups():
            if len(group) > 1:
                yield [names[id(row)] for row in group]
