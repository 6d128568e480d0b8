"""`image_mask` is all that a processor inserted for an image and no word."""

from __future__ import annotations

from typing import Any

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_schemas.spec import IGNORE_INDEX
from examples_of import conversation
from families.family import Family
from tiny_models import sample_image


def text(encoder: Encoder, encoded: EncodedSample, chosen: Any) -> str:
    """The chosen tokens, decoded."""
    return str(encoder.processor.tokenizer.decode(encoded.sequence_inputs["input_ids"][chosen]))


def check_markers_are_image_and_words_are_not(family: Family, encoder: Encoder) -> None:
    encoded = encoder(conversation("<image>\nWhat is this?", "A red cat on the table."), [sample_image(1, (60, 40))])
    inserted, rest = text(encoder, encoded, encoded.image_mask), text(encoder, encoded, ~encoded.image_mask)
    for marker in family.markers:
        assert marker in inserted
        assert marker.strip() not in rest
    assert "A red cat on the table." in rest
    if family.template == "auto":  # `plain` shows no question
        assert "What is this?" in rest
    assert "A red cat" in text(encoder, encoded, encoded.labels != IGNORE_INDEX)
    assert not bool((encoded.image_mask & (encoded.labels != IGNORE_INDEX)).any())


def check_images_between_words_and_side_by_side(family: Family, encoder: Encoder) -> None:
    images = [sample_image(n, (60, 40)) for n in range(3)]
    turns = ("Compare <image> with <image><image>, please.", "The second shows a small dog.")
    encoded = encoder(conversation(*turns), images)
    apart = encoder(conversation("<image> or <image>?", "A cat."), images[:2])
    rest = text(encoder, encoded, ~encoded.image_mask)
    for around in family.around:
        rest = rest.replace(around, "")
    words = rest.replace("\n", "").replace(" ", "")
    assert "Comparewith,please." in words
    assert not any(marker.strip() in rest for marker in family.markers)
    runs = int(encoded.image_mask.diff().sum()) // 2
    assert runs in (2, 3), "one image, then two, between which some templates put a newline"
    # Adjacent images may share a marker, so a little less than half as much again.
    two, three = int(apart.image_mask.sum()), int(encoded.image_mask.sum())
    assert two < three <= two * 3 / 2 + 2
    assert text(encoder, encoded, encoded.labels != IGNORE_INDEX).strip().startswith("The second shows a small dog.")
