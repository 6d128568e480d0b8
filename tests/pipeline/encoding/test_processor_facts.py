"""A processor as the encoder calls it."""

from typing import Any

import pytest

from cal_pipeline.encoding.labels import encode_prefixed, encode_rendered, encode_suffix
from cal_pipeline.encoding.processor_facts import ProcessorFacts
from cal_pipeline.encoding.templates import Rendered
from cal_schemas.errors import SampleError
from cal_schemas.sample import Turn
from conftest import Family
from tiny_models import sample_image

IMAGE = sample_image(1, (60, 40))


@pytest.fixture
def facts(llava: Family) -> ProcessorFacts:
    return ProcessorFacts(llava.encoder.processor, takes_suffix=False, images_kwargs={})


def tokens(facts: ProcessorFacts, text: str, **options: Any) -> list[str]:
    ids = facts.process(text, [], **options).output["input_ids"][0]
    return list(facts.processor.tokenizer.convert_ids_to_tokens(ids.tolist()))


def test_a_rendered_text_gets_one_bos_whether_the_template_wrote_it_or_not(facts: ProcessorFacts) -> None:
    bos = facts.processor.tokenizer.bos_token
    assert tokens(facts, f"{bos}A cat.").count(bos) == 2, "what the tokenizer adds of itself"
    for text in (f"{bos}A cat.", "A cat."):
        ids = facts.process_rendered(text, []).output["input_ids"][0].tolist()
        assert ids.count(facts.processor.tokenizer.bos_token_id) == 1


def test_the_processor_keeps_its_own_tokenizer_and_its_text_is_reported(facts: ProcessorFacts) -> None:
    before = facts.processor.tokenizer
    processed = facts.process(f"{facts.image_token}Look.", [IMAGE])
    assert facts.processor.tokenizer is before
    assert processed.given.endswith("Look.")
    assert processed.given.count(facts.image_token) == int((processed.output["input_ids"] == facts.placeholders).sum())


def test_characters_of_the_spans_become_labels_and_inserted_ones_image_tokens(facts: ProcessorFacts) -> None:
    text = f"{facts.image_token}What? A cat."
    start = text.index(" A cat.")
    encoded = encode_rendered(facts, Rendered(text=text, label_spans=((start, len(text)),)), [IMAGE])
    tokenizer, ids = facts.processor.tokenizer, encoded.sequence_inputs["input_ids"]
    assert tokenizer.decode(encoded.labels[encoded.labels >= 0]).strip() == "A cat."
    assert encoded.image_mask.tolist() == (ids == facts.placeholders).tolist()
    assert set(encoded.image_inputs) == {"pixel_values"}


def test_a_way_refuses_the_rows_that_its_processor_cannot_take(facts: ProcessorFacts) -> None:
    with pytest.raises(SampleError, match="takes exactly one image, got 2"):
        encode_prefixed(facts, Rendered(text="", label_spans=()), [IMAGE, IMAGE])
    with pytest.raises(SampleError, match="takes one question and one answer"):
        encode_suffix(facts, [Turn(role="user", content="?")], [])
