"""`image_mask` is all that a processor inserted for an image and no word, for every processor built here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from cal_schemas.spec import IGNORE_INDEX
from examples_of import conversation
from families.processors import BUILDERS, TEMPLATES
from tiny_models import build_gemma3, sample_image

MARKERS: dict[str, tuple[str, ...]] = {
    "llava": ("<image>",),
    "llava_next": ("<image>",),
    "vipllava": ("<image>",),
    "gemma3": ("\n\n<start_of_image>", "<image_soft_token>", "<end_of_image>\n\n"),
    "paligemma": ("<image>",),
    "paligemma2": ("<image>",),
    "idefics2": ("<fake_token_around_image>", "<image>"),
    "idefics3": ("<fake_token_around_image>", "<row_1_col_1>", "<global-img>", "<image>"),
    "aya_vision": ("<|START_OF_IMG|>", "TILE_1", "TILE_GLOBAL", "<|IMG_PATCH|>", "<|END_OF_IMG|>"),
    "mllama": ("<|image|>",),
    "blip_2": ("<image>",),
    "deepseek_vl": ("<image_placeholder>",),
    "granite4_vision": ("<image>",),
}
ONE_TURN = ("paligemma", "paligemma2", "blip_2")
QUICK = ("gemma3", "idefics2", "idefics3", "aya_vision")
FAMILIES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in BUILDERS]


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    made: dict[str, Encoder] = {}

    def get(name: str) -> Encoder:
        if name not in made:
            directory = tmp_path_factory.mktemp(name)
            BUILDERS[name](directory)
            made[name] = Encoder(load_processor(directory), template=TEMPLATES.get(name, "auto"))
        return made[name]

    return get


def text(encoder: Encoder, encoded: EncodedSample, chosen: Any) -> str:
    return str(encoder.processor.tokenizer.decode(encoded.sequence_inputs["input_ids"][chosen]))


@pytest.mark.parametrize("name", FAMILIES)
def test_markers_are_image_and_words_are_not(encoder_of: Callable[[str], Encoder], name: str) -> None:
    encoder = encoder_of(name)
    encoded = encoder(conversation("<image>\nWhat is this?", "A red cat on the table."), [sample_image(1, (60, 40))])
    inserted, rest = text(encoder, encoded, encoded.image_mask), text(encoder, encoded, ~encoded.image_mask)
    for marker in MARKERS[name]:
        assert marker in inserted
        assert marker.strip() not in rest
    assert "A red cat on the table." in rest
    if name not in TEMPLATES:  # `plain` shows no question
        assert "What is this?" in rest
    assert "A red cat" in text(encoder, encoded, encoded.labels != IGNORE_INDEX)
    assert not bool((encoded.image_mask & (encoded.labels != IGNORE_INDEX)).any())


# The others' images come first, whatever the text says.
@pytest.mark.parametrize("name", [family for family in FAMILIES if family.values[0] not in ONE_TURN])
def test_images_between_words_and_side_by_side(encoder_of: Callable[[str], Encoder], name: str) -> None:
    encoder = encoder_of(name)
    images = [sample_image(n, (60, 40)) for n in range(3)]
    turns = ("Compare <image> with <image><image>, please.", "The second shows a small dog.")
    encoded = encoder(conversation(*turns), images)
    alone = encoder(conversation("<image>?", "A cat."), images[:1])
    rest = text(encoder, encoded, ~encoded.image_mask)
    words = rest.replace("\n", "").replace(" ", "")
    assert "Comparewith,please." in words
    assert not any(marker.strip() in rest for marker in MARKERS[name])
    runs = int(encoded.image_mask.diff().sum()) // 2
    assert runs in (2, 3), "one image, then two, between which some templates put a newline"
    # Adjacent images may share a marker, so a little less than three times one image.
    assert 2 * int(alone.image_mask.sum()) < int(encoded.image_mask.sum()) <= 3 * int(alone.image_mask.sum()) + 2
    assert text(encoder, encoded, encoded.labels != IGNORE_INDEX).strip().startswith("The second shows a small dog.")


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
