"""Finds which tokens are supervised and which stand for images: three ways, by what the processor makes of the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.processor_facts import ProcessorFacts
from cal_pipeline.encoding.spans import overlapping_tokens
from cal_pipeline.encoding.templates import Rendered
from cal_schemas.errors import SampleError
from cal_schemas.sample import IMAGE_MARK, Turn


def encode_rendered(facts: ProcessorFacts, rendered: Rendered, images: Sequence[Image.Image]) -> EncodedSample:
    """Encodes text in which images have a place: supervised are the tokens that cover characters of label spans."""
    processed = facts.process_rendered(rendered.text, images)
    expansion = processed.expansion(rendered.text, len(images), facts.specials)
    spans = [(expansion.offset(start), expansion.offset(stop)) for start, stop in rendered.label_spans]
    starts, stops = facts.offsets(processed)
    image_mask = overlapping_tokens(starts, stops, expansion.inserted)
    return facts.encoded(processed.output, overlapping_tokens(starts, stops, spans), image_mask)


def encode_prefixed(facts: ProcessorFacts, rendered: Rendered, images: Sequence[Image.Image]) -> EncodedSample:
    """Encodes for a processor that puts the image's ids before all text: its mark and a newline behind it leave."""
    if len(images) != 1:
        raise SampleError(f"{facts.name} takes exactly one image, got {len(images)}")
    at = rendered.text.index(facts.image_token)
    after = at + len(facts.image_token)
    after += rendered.text[after : after + 1] == "\n"
    processed = facts.process_rendered(rendered.text[:at] + rendered.text[after:], images)
    ids = processed.output["input_ids"][0]
    if not bool(torch.isin(ids[: facts.prefix], facts.placeholders).all()):
        raise SampleError(f"{facts.name} did not put {facts.prefix} image tokens before the text")
    removed = after - at
    spans = [
        (start - removed * (start >= after), stop - removed * (stop >= after)) for start, stop in rendered.label_spans
    ]
    image_mask = torch.arange(len(ids)) < facts.prefix
    return facts.encoded(processed.output, overlapping_tokens(*facts.offsets(processed), spans), image_mask)


def encode_suffix(facts: ProcessorFacts, messages: Sequence[Turn], images: Sequence[Image.Image]) -> EncodedSample:
    """Encodes for a prefix-LM processor (PaliGemma): it takes the answer apart, and marks its tokens by their type."""
    if [turn.role for turn in messages] != ["user", "assistant"]:
        raise SampleError(f"{facts.name} takes one question and one answer, got {[turn.role for turn in messages]}")
    question, answer = messages[0].content.replace(IMAGE_MARK, "").strip(), messages[1]
    if images:
        text = facts.image_token * len(images) + question
        processed = facts.process(text, images, suffix=answer.content)
        output, inserted = processed.output, processed.expansion(text, len(images), facts.specials).inserted
    else:
        # The processor insists on an image; without one its prompt is the same text with no image tokens.
        tokenizer = facts.processor.tokenizer
        output = tokenizer(
            [f"{tokenizer.bos_token}{question}\n"], text_pair=[answer.content + tokenizer.eos_token],
            return_token_type_ids=True, return_offsets_mapping=True, return_tensors="pt",
        )  # fmt: skip
        inserted = ()
    starts, stops = output["offset_mapping"][0].unbind(-1)
    in_answer = output["token_type_ids"][0] == 1
    image_mask = overlapping_tokens(starts, stops, inserted) & ~in_answer
    return facts.encoded(output, in_answer & answer.supervised, image_mask)
