"""How many of a model's words about clean pictures are right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from reference import IGNORE_INDEX, encode
from words import words_of_tokens
from world import WorldSample


@torch.no_grad()
def word_accuracy(directory: Path, samples: Sequence[WorldSample], batch_size: int = 64) -> float:
    """Share of colour, shape, size and side words of true captions that the model would have said itself.

    For each such word: is its token the likeliest one, given the picture and the caption up to there? Takes clean
    samples, whose correlated words are true of their pictures.
    """
    processor = AutoProcessor.from_pretrained(directory)
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    encoded = encode(processor, samples)
    right = total = 0
    for start in range(0, len(samples), batch_size):
        rows = slice(start, start + batch_size)
        logits = model(
            input_ids=encoded.input_ids[rows],
            attention_mask=encoded.attention_mask[rows],
            pixel_values=encoded.pixel_values[rows],
        ).logits
        for row, sample in enumerate(samples[rows]):
            labels = encoded.labels[start + row]
            positions = (labels != IGNORE_INDEX).nonzero()[:, 0]
            words = words_of_tokens(labels[positions].tolist(), sample.clean_caption, processor.tokenizer)
            for position, word in zip(positions.tolist(), words, strict=True):
                if word is not None and sample.word_kinds[word] == "correlated":
                    total += 1
                    right += int(logits[row, position - 1].argmax() == labels[position])
    return right / total
