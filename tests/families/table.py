"""Every family of docs/models.md: what transformers calls an image-text-to-text model, and what became of each."""

from __future__ import annotations

from typing import Final

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from cal_pipeline.models.special_cases import REFUSED_MODELS
from families import processors, tiles
from families.family import AnyFamily, FamilyOfIds, RefusedFamily, discovered

OF_IDS: Final[dict[str, FamilyOfIds]] = {
    "instructblip": FamilyOfIds(name="instructblip", case=tiles.instructblip, end_to_end="refused: its processor"),
}

_FOUND: Final = discovered()
REFUSED_BY_CHECKS: Final = {name: family for name, family in _FOUND.items() if isinstance(family, RefusedFamily)}
"""Refused by general rules, with a tiny checkpoint that shows it."""
ALL: Final[dict[str, AnyFamily]] = {
    **processors.BY_NAME, **OF_IDS,
    **{name: family for name, family in _FOUND.items() if not isinstance(family, RefusedFamily)},
}  # fmt: skip
NAMES: Final = tuple(sorted(ALL))
"""Families with a model and samples. One that a module of `builders` defines needs no entry here."""


def row_name(model_type: str) -> str:
    """As docs/models.md writes the name of a config."""
    return model_type.replace("-", "_").replace(".", "_")


ENCODER_DECODERS: Final = (
    "florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder",
)  # fmt: skip
"""Refused by their configs."""
WITHOUT_IMAGES: Final = ("evolla",)
"""Refused since transformers lists it and gives it no image-text-to-text class: it reads proteins."""
REFUSED: Final = {row_name(name) for name in (*REFUSED_MODELS, *ENCODER_DECODERS, *WITHOUT_IMAGES, *REFUSED_BY_CHECKS)}
NOT_TRIED: Final = {row_name(name) for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} - REFUSED - ALL.keys()
ROWS: Final = tuple(sorted({*NAMES, *REFUSED, *NOT_TRIED}))
