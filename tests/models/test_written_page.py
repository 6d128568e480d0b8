"""Last in this folder: docs/models.md says what the tests beside this one have just measured."""

import os
from pathlib import Path

import pytest
from transformers import AutoConfig

from cal_pipeline.models.loading import check_architecture
from cal_pipeline.models.special_cases import (
    PREFIX_PROCESSORS,
    REFUSED_MODELS,
    REFUSED_PROCESSORS,
    UNIFORM_SHAPE_BATCHES,
)
from cal_schemas.errors import ConfigError
from families import page
from families.table import ENCODER_DECODERS, NAMES, REFUSED, ROWS, WITHOUT_IMAGES

_PARTS = {"vision-encoder-decoder": {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}}}


def test_the_committed_page_has_every_family_and_every_special_case() -> None:
    assert [row[0] for row in page.committed_rows()] == [f"`{name}`" for name in ROWS]
    assert set(NAMES).isdisjoint(REFUSED)
    text = page.PAGE.read_text(encoding="utf-8")
    for table in (REFUSED_MODELS, REFUSED_PROCESSORS, PREFIX_PROCESSORS, UNIFORM_SHAPE_BATCHES):
        assert all(f"`{name}`: {reason}" in text for name, reason in table.items())


@pytest.mark.full
def test_the_page_is_what_was_measured() -> None:
    """A whole run writes the page; it fails when more than figures changed, so that the new page is looked at."""
    before = page.committed_rows()
    if missing := page.unmeasured():
        assert page.RECORD not in os.environ, f"{page.RECORD} is set, and these were not measured: {missing}"
        # A part of the matrix says nothing of the page; `make test-full` and CI set RECORD and so never come here.
        pytest.skip("written by a run of all of tests/models (families.page.RECORD: in parts)")
    page.write()
    changed = [row[0] for row, old in zip(page.rows(), before, strict=False) if not page.alike(row, old)]
    assert len(before) == len(page.rows()), "docs/models.md was written for the first time or has other families"
    assert not changed, f"docs/models.md has new rows for {changed}: look at them and commit it"


@pytest.mark.full
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders_are_refused_by_their_configs(name: str, tmp_path: Path) -> None:
    AutoConfig.for_model(name, **_PARTS.get(name, {})).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        check_architecture(tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", WITHOUT_IMAGES)
def test_models_without_images_are_refused_by_their_configs(name: str, tmp_path: Path) -> None:
    AutoConfig.for_model(name).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is not an image-text-to-text model"):
        check_architecture(tmp_path)
