"""Labels of random conversations in many scripts, with the vocabularies and templates of published models."""

from __future__ import annotations

import random
from functools import cache

import pytest

from cal_pipeline.encoding.encoder import Encoder
from cal_schemas.errors import NoSupervisedTokensError
from cal_schemas.spec import IGNORE_INDEX
from examples_of import conversation
from published_vocabularies import TEXT_SIDES

PIECES = (
    "The cat", " sits", " on the", "Katze", "don't", "it's", "世界地图", "图片里有三只猫。", "مرحبا بالعالم", "عَرَبِيّ",
    "नमस्ते दुनिया", "क्षत्रिय", "👩\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "👍🏽", "e\u0301", "n\u0303o\u0302", "Ünïcödé",
    "ไทย", "한국어", "日本語の", " ", "  ", "   ", "\t", "\n", "\n\n", " \n ", "\r\n", "\u00a0", "\u3000",
    "12", "1234567", "3.14", " 2024", "x=1;</p>", "{}", "\\n", "A", "I", ".", "!", "?!", "…", "—", "\u200b", "\ufeff",
)  # fmt: skip
NUM_CONVERSATIONS = 600


@cache
def encoder(name: str) -> Encoder:
    return TEXT_SIDES[name].encoder()


def words(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(1, 9)))


@pytest.mark.parametrize("name", TEXT_SIDES)
def test_labels_are_the_tokens_of_every_answer_with_words_and_of_its_end(name: str) -> None:
    side, rng, learned = TEXT_SIDES[name], random.Random(7), 0
    for _ in range(NUM_CONVERSATIONS):
        turns = [words(rng) for _ in range(2 * rng.randint(1, 4))]
        text, spans = side.by_hand(turns)
        if not spans:
            with pytest.raises(NoSupervisedTokensError):
                encoder(name)(conversation(*turns), [])
            continue
        encoded = encoder(name)(conversation(*turns), [])
        tokens = encoder(name).processor.tokenizer(
            text, add_special_tokens=not side.start.startswith(side.bos or "\0"), return_offsets_mapping=True
        )
        assert encoded.sequence_inputs["input_ids"].tolist() == tokens["input_ids"], turns
        expected = [
            token if any(start < stop and start < last and stop > first for first, last in spans) else IGNORE_INDEX
            for token, (start, stop) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        ]
        assert encoded.labels.tolist() == expected, turns
        learned += len(spans)
    assert learned > NUM_CONVERSATIONS
