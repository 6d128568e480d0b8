"""A batch of a tiny model whose rows differ in what they have: an image, turns, length."""

from __future__ import annotations

from transformers import PaliGemmaProcessor

from cal_pipeline.encoding.collate import Batch, collate
from cal_pipeline.encoding.encoder import Encoder
from cal_schemas.sample import Sample, Turn
from tiny_models import sample_image


def batch_of(encoder: Encoder) -> Batch:
    """Rows of unequal length: image, and where the processor takes them two turns and text only."""
    rows: tuple[tuple[str, ...], ...] = (
        ("<image>\nWhat is in the image?", "A red car."),
        ("<image>\nHow many circles are there?", "Three green circles."),
    )
    if not isinstance(encoder.processor, PaliGemmaProcessor):
        rows = (rows[0], (*rows[1], "And where?", "On the left."), ("Read the sign.", "Stop."))
    encoded = []
    for number, contents in enumerate(rows):
        roles = ("user", "assistant") * (len(contents) // 2)
        turns = tuple(Turn(role=role, content=content) for role, content in zip(roles, contents, strict=True))
        images = [sample_image(number)] if "<image>" in contents[0] else []
        encoded.append(encoder(Sample(sample_id=str(number), images=(), messages=turns), images))
    return collate(encoded, pad_token_id=encoder.pad_token_id, batch_first=encoder.batch_first_inputs)
