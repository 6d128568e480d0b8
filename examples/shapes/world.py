"""Generates a world: small images of one coloured shape, and captions whose every word has a known truth.

A scene has four attributes (colour, shape, size, side). A caption mentions two to four of them among filler words that
are drawn without looking at the scene. In a dirty set a known share of the captions describes another scene, so each
whitespace word of a caption is one of

- `correlated`: an attribute word that is true of the image,
- `irrelevant`: a filler word,
- `contradictory`: an attribute word that is false of the image.

In a caption that describes another scene, the attribute words that happen to be true anyway count as correlated.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

WordKind = Literal["correlated", "irrelevant", "contradictory"]

IMAGE_PX = 56
COLOURS = {
    "red": (225, 35, 35),
    "green": (40, 190, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 225, 50),
    "purple": (165, 50, 205),
    "white": (240, 240, 240),
    "pink": (245, 125, 165),
    "cyan": (50, 220, 225),
}
SHAPES = ("ring", "square", "triangle", "cross", "bar")
SIZES = {"small": 6.5, "middling": 10.0, "big": 14.0}  # half the side of the bounding box, in pixels
SIDES = {"left": (-1, 0), "right": (1, 0), "upper": (0, -1), "lower": (0, 1)}

QUESTIONS = ("Describe the picture.", "What do you see?", "Tell me about this picture.", "What is in the picture?")
OPENINGS = (
    "There is",
    "I can see",
    "I think there is",
    "This picture shows",
    "In this picture we have",
    "Today I found",
    "Well, here is",
)
ARTICLES = ("a", "one", "a nice", "just a", "a single")
PLACES = ("half", "part", "side")
HEDGES = ("", "", "I think", "of course", "it seems", "as you can see", "I believe")
CLOSINGS = ("", "", "today", "in this picture", "and nothing else", "on a plain ground", "if you ask me")
# {colour}, {shape}, {size} and {side} are filled from a scene, everything else is drawn from the tuples above.
PATTERNS = (
    "OPENING ARTICLE {size} {colour} {shape} in the {side} PLACE CLOSING",
    "OPENING ARTICLE {colour} {shape} in the {side} PLACE HEDGE CLOSING",
    "OPENING ARTICLE {size} {shape} HEDGE and the colour is {colour} CLOSING",
    "The {shape} HEDGE is {colour} and rather {size} CLOSING",
    "In the {side} PLACE HEDGE there is ARTICLE {colour} {shape} CLOSING",
    "HEDGE the {side} PLACE has something {colour} which is ARTICLE {size} {shape} CLOSING",
    "OPENING something {colour} HEDGE namely ARTICLE {shape} CLOSING",
)
FILLERS = {"OPENING": OPENINGS, "ARTICLE": ARTICLES, "PLACE": PLACES, "HEDGE": HEDGES, "CLOSING": CLOSINGS}

PARQUET_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        pa.field("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        pa.field("word_kinds", pa.list_(pa.string())),
        pa.field("clean_caption", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What an image shows; each field is the word a true caption uses."""

    colour: str
    shape: str
    size: str
    side: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldSample:
    """An image with a caption of known truth."""

    sample_id: str
    image_png: bytes
    scene: object
    """A Scene, or that of another world."""
    question: str
    caption: str
    word_kinds: tuple[WordKind, ...]
    """One per whitespace word of `caption`."""
    clean_caption: str
    """The same sentence told of this image; equal to `caption` unless the caption describes another scene."""

    @property
    def messages(self) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": f"<image>\n{self.question}"},
            {"role": "assistant", "content": self.caption},
        ]


def generate(num_samples: int, *, seed: int, wrong_share: float = 0.3, prefix: str = "shape") -> list[WorldSample]:
    """Draw `num_samples` images with captions; the share `wrong_share` of the captions describes another scene.

    The share is exact up to rounding, so that two seeds differ in their images only. 0 gives clean captions.
    """
    if not 0.0 <= wrong_share <= 1.0:
        raise ValueError(f"wrong_share is a share of the captions, between 0 and 1, got {wrong_share}")
    rng = np.random.default_rng(seed)
    is_wrong = rng.permutation(num_samples) < round(wrong_share * num_samples)
    return [
        _draw_sample(rng, f"{prefix}-{seed}-{index:06d}", wrong=bool(is_wrong[index])) for index in range(num_samples)
    ]


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """RGB image of IMAGE_PX x IMAGE_PX: place, size, tint of shape and ground vary a little, and there is noise."""
    ground = rng.integers(15, 50) + rng.integers(-10, 11, size=3)
    tint = np.clip(np.array(COLOURS[scene.colour]) + rng.integers(-12, 13, size=3), 0, 255)
    half = SIZES[scene.size] * rng.uniform(0.93, 1.07)
    step_x, step_y = SIDES[scene.side]
    middle = IMAGE_PX / 2
    x, y = middle + step_x * 13 + rng.uniform(-2, 2), middle + step_y * 13 + rng.uniform(-2, 2)

    image = Image.new("RGB", (IMAGE_PX, IMAGE_PX), tuple(int(value) for value in ground))
    _draw_shape(ImageDraw.Draw(image), scene.shape, x, y, half, tuple(int(value) for value in tint))
    noise = rng.normal(0.0, 5.0, size=(IMAGE_PX, IMAGE_PX, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def write_llava_json(samples: list[WorldSample], directory: Path) -> Path:
    """Write `directory/images/*.png` and `directory/data.json` in the LLaVA form; returns the JSON's path."""
    (directory / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for sample in samples:
        (directory / "images" / f"{sample.sample_id}.png").write_bytes(sample.image_png)
        question, answer = sample.messages
        conversations = [{"from": "human", "value": question["content"]}, {"from": "gpt", "value": answer["content"]}]
        entries.append({"id": sample.sample_id, "image": f"{sample.sample_id}.png", "conversations": conversations})
    path = directory / "data.json"
    path.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return path


def write_parquet_shards(samples: list[WorldSample], directory: Path, *, num_shards: int) -> list[Path]:
    """Write the samples, in order, to `num_shards` Parquet files of PARQUET_SCHEMA; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard, rows in enumerate(np.array_split(np.arange(len(samples)), num_shards)):
        path = directory / f"shapes-{shard:05d}-of-{num_shards:05d}.parquet"
        pq.write_table(pa.Table.from_pylist([parquet_row(samples[row]) for row in rows], PARQUET_SCHEMA), path)
        paths.append(path)
    return paths


def parquet_row(sample: WorldSample) -> dict[str, object]:
    return {
        "id": sample.sample_id,
        "images": [{"bytes": sample.image_png, "path": f"{sample.sample_id}.png"}],
        "messages": sample.messages,
        "word_kinds": list(sample.word_kinds),
        "clean_caption": sample.clean_caption,
    }


def _draw_sample(rng: np.random.Generator, sample_id: str, *, wrong: bool) -> WorldSample:
    scene = draw_scene(rng)
    sentence = draw_sentence(rng)
    clean_caption, word_kinds = fill_slots(sentence, described=scene, shown=scene)
    caption = clean_caption
    while wrong and caption == clean_caption:  # another scene may agree in all that this sentence mentions
        caption, word_kinds = fill_slots(sentence, described=draw_scene(rng), shown=scene)
    file = io.BytesIO()
    render(scene, rng).save(file, format="PNG")
    return WorldSample(
        sample_id=sample_id,
        image_png=file.getvalue(),
        scene=scene,
        question=pick(rng, QUESTIONS),
        caption=caption,
        word_kinds=word_kinds,
        clean_caption=clean_caption,
    )


def draw_scene(rng: np.random.Generator) -> Scene:
    return Scene(
        colour=pick(rng, tuple(COLOURS)),
        shape=pick(rng, SHAPES),
        size=pick(rng, tuple(SIZES)),
        side=pick(rng, tuple(SIDES)),
    )


def draw_sentence(
    rng: np.random.Generator,
    patterns: tuple[str, ...] = PATTERNS,
    fillers: Mapping[str, tuple[str, ...]] = MappingProxyType(FILLERS),
) -> list[str]:
    """Words of a sentence in which only the attribute slots are still open."""
    words = []
    for word in pick(rng, patterns).split():
        words += pick(rng, fillers[word]).split() if word in fillers else [word]
    return words


def fill_slots(sentence: list[str], *, described: object, shown: object) -> tuple[str, tuple[WordKind, ...]]:
    """Fill the slots from the scene `described`, and judge each word by the scene `shown`."""
    words: list[str] = []
    kinds: list[WordKind] = []
    for word in sentence:
        slot = word.strip("{}")
        is_slot = word != slot
        words.append(getattr(described, slot) if is_slot else word)
        is_true = is_slot and getattr(described, slot) == getattr(shown, slot)
        kinds.append("irrelevant" if not is_slot else "correlated" if is_true else "contradictory")
    text = " ".join(words) + "."
    return text[0].upper() + text[1:], tuple(kinds)


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, half: float, fill: tuple[int, ...]) -> None:
    box = (x - half, y - half, x + half, y + half)
    if shape == "ring":
        draw.ellipse(box, outline=fill, width=round(half * 0.42))
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=fill)
    elif shape == "bar":
        draw.rectangle((x - half, y - half * 0.4, x + half, y + half * 0.4), fill=fill)
    elif shape == "cross":
        arm = half * 0.36
        draw.rectangle((x - half, y - arm, x + half, y + arm), fill=fill)
        draw.rectangle((x - arm, y - half, x + arm, y + half), fill=fill)
    else:
        raise ValueError(f"no such shape: {shape!r}; known shapes: {', '.join(SHAPES)}")
