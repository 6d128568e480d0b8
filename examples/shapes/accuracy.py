"""Scores how many of a model's words about clean images are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor

from reference import IGNORE_INDEX, EncodedSet, encode
from words import words_of_tokens
from world import WorldSample


@dataclass(frozen=True, kw_only=True, slots=True)
class Exam:
    """Clean samples, and which of their tokens are asked for."""

    encoded: EncodedSet
    is_asked: Tensor  # [B, T] bool: tokens of words that are true of the image


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Of the words that are asked for."""

    accuracy: float
    """Share whose token is the likeliest one, given the image and the caption up to there."""
    nll: float
    """Mean negative log-likelihood, in nats per token."""


def make_exam(processor: Any, samples: Sequence[WorldSample]) -> Exam:
    """Takes clean samples, whose correlated words are true of their images."""
    encoded = encode(processor, samples)
    is_asked = torch.zeros(encoded.labels.shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        positions = (encoded.labels[row] != IGNORE_INDEX).nonzero()[:, 0]
        words = words_of_tokens(encoded.labels[row, positions].tolist(), sample.clean_caption, processor.tokenizer)
        for position, word in zip(positions, words, strict=True):
            is_asked[row, position] = word is not None and sample.word_kinds[word] == "correlated"
    return Exam(encoded=encoded, is_asked=is_asked)


@torch.no_grad()
def examine(model: Any, exam: Exam, batch_size: int = 64) -> Score:
    right, nll = [], []
    for start in range(0, len(exam.is_asked), batch_size):
        rows = slice(start, start + batch_size)
        logits = model(
            input_ids=exam.encoded.input_ids[rows],
            attention_mask=exam.encoded.attention_mask[rows],
            pixel_values=exam.encoded.pixel_values[rows],
        ).logits
        asked = exam.is_asked[rows, 1:]
        predicted, labels = logits[:, :-1][asked], exam.encoded.labels[rows, 1:][asked]
        right.append(predicted.argmax(-1) == labels)
        nll.append(functional.cross_entropy(predicted, labels, reduction="none"))
    return Score(accuracy=torch.cat(right).float().mean().item(), nll=torch.cat(nll).mean().item())


def word_accuracy(directory: Path, samples: Sequence[WorldSample]) -> float:
    """Share of colour, shape, size and side words of true captions that the model would have said itself."""
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    return examine(model, make_exam(AutoProcessor.from_pretrained(directory), samples)).accuracy
