"""How lmms-eval asks about an image of the world of shapes and scores the answer; runs in lmms-eval's environment."""

from __future__ import annotations

import io
import re
from typing import Any

from PIL import Image


def image(doc: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(doc["image"])).convert("RGB")]


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Of the colour, shape, size and side words of an answer: the share that is true of the image, and their number.

    An answer without any has a share of 0: silence must not score.
    """
    words = re.findall(r"\w+", results[0].lower())
    num_true = sum(word in doc["true_words"] for word in words)
    num_said = num_true + sum(word in doc["false_words"] for word in words)
    return {"true_share": num_true / num_said if num_said else 0.0, "words_said": float(num_said)}
