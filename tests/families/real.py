"""Tests of a family that goes through its own processor: those of `ModelLevel`, the text inserted, and end to end."""

from __future__ import annotations

from pathlib import Path

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from families import page
from families.case import Case
from families.end_to_end import check_files_to_checkpoint
from families.family import Family
from families.inserted_text import (
    check_images_between_words_and_side_by_side,
    check_markers_are_image_and_words_are_not,
)
from families.model_level import ModelLevel


class RealFamily(ModelLevel):
    """A subclass says `FAMILY = …`; see `families.builders` for how one is built."""

    def test_markers_are_image_and_words_are_not(
        self, family: Family, entry: tuple[str, Case], directory: Path
    ) -> None:
        check_markers_are_image_and_words_are_not(family, Encoder(load_processor(directory), template=family.template))

    def test_images_between_words_and_side_by_side(
        self, family: Family, entry: tuple[str, Case], directory: Path
    ) -> None:
        if not family.one_turn:  # The others' images come first, whatever the text says.
            check_images_between_words_and_side_by_side(family, Encoder(load_processor(directory)))

    def test_files_to_deltas_to_a_trained_checkpoint(
        self, family: Family, entry: tuple[str, Case], directory: Path, tmp_path: Path
    ) -> None:
        check_files_to_checkpoint(family, directory, tmp_path)
        page.record(family.name, end_to_end="yes")
