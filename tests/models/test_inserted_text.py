"""`image_mask` is all that a processor inserted for an image and no word, for processors that need no torchvision."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from cal_schemas.spec import IGNORE_INDEX
from examples_of import conversation
from families.inserted_text import (
    check_images_between_words_and_side_by_side,
    check_markers_are_image_and_words_are_not,
    text,
)
from families.processors import BY_NAME
from tiny_models import build_gemma3, sample_image

QUICK = ("gemma3", "idefics2", "idefics3", "aya_vision")
FAMILIES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in BY_NAME]


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    made: dict[str, Encoder] = {}

    def get(name: str) -> Encoder:
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            BY_NAME[name].build(directory)
            made[name] = Encoder(load_processor(directory), template=BY_NAME[name].template)
        return made[name]

    return get


@pytest.mark.parametrize("name", FAMILIES)
def test_markers_are_image_and_words_are_not(encoder_of: Callable[[str], Encoder], name: str) -> None:
    check_markers_are_image_and_words_are_not(BY_NAME[name], encoder_of(name))


# The others' images come first, whatever the text says.
@pytest.mark.parametrize("name", [family for family in FAMILIES if not BY_NAME[str(family.values[0])].one_turn])
def test_images_between_words_and_side_by_side(encoder_of: Callable[[str], Encoder], name: str) -> None:
    check_images_between_words_and_side_by_side(BY_NAME[name], encoder_of(name))


def test_the_words_that_pan_and_scan_inserts_are_image_too(tmp_path: Path) -> None:
    build_gemma3(tmp_path)
    processor = load_processor(tmp_path)
    plain = Encoder(processor)
    scanning = load_processor(tmp_path)
    scanning.images_kwargs = {**scanning.images_kwargs, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16}
    sample = conversation("<image>\nWhat is this?", "A red cat on the table.")
    images = [sample_image(1, (120, 40))]
    without, encoded = plain(sample, images), Encoder(scanning)(sample, images)
    inserted = text(plain, encoded, encoded.image_mask)
    assert "Here is the original image" in inserted
    assert "crops to help you see better" in inserted
    assert len(encoded.image_inputs["pixel_values"]) > 1
    assert set(encoded.image_inputs) == {"pixel_values"}
    # Newlines beside an image may be one token with its own.
    rest = [text(plain, item, ~item.image_mask).replace("\n", "") for item in (encoded, without)]
    assert rest[0] == rest[1]
    assert (
        encoded.labels[encoded.labels != IGNORE_INDEX].tolist()
        == without.labels[without.labels != IGNORE_INDEX].tolist()
    )
