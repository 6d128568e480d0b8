"""Draws and writes samples of the study's worlds: images with captions of known truth, some of them exchanged."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import charts
import emojis
import world
from condition import SIZES
from world import WorldSample

WORLDS: dict[str, ModuleType] = {"shapes": world, "charts": charts, "emoji": emojis}
"""Each with PATTERNS of sentences, whose slots are open for what is true of a scene, FILLERS for their other words,
QUESTIONS, draw_scene, fill_slots and render; render_held_out where the exam has images of another kind."""


def draw(name: str, num_samples: int, *, seed: int, noise: float = 0.0, held_out: bool = False) -> list[WorldSample]:
    """Samples of the world `name`; the share `noise` of the images, up to rounding, is exchanged among its samples.

    A sample that takes part has an image that belongs to another caption, whose words may be true of it by chance.
    With the same seed a higher noise exchanges more of the same images and changes nothing else. `held_out`: for an
    exam, on images of which training has no like.
    """
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"noise is a share of the samples, between 0 and 1, got {noise}")
    chosen = WORLDS[name]
    render = getattr(chosen, "render_held_out", chosen.render) if held_out else chosen.render
    rng = np.random.default_rng(seed)
    scenes, sentences, questions, images = [], [], [], []
    for _ in range(num_samples):
        scenes.append(chosen.draw_scene(rng))
        sentences.append(world.draw_sentence(rng, chosen.PATTERNS, chosen.FILLERS))
        questions.append(world.pick(rng, chosen.QUESTIONS))
        images.append(_png(render(scenes[-1], rng)))
    exchanged = rng.permutation(num_samples)[: round(noise * num_samples)]
    shown = np.arange(num_samples)
    shown[exchanged] = np.roll(exchanged, 1)
    samples = []
    for number, image in enumerate(shown):
        caption, kinds = chosen.fill_slots(sentences[number], described=scenes[number], shown=scenes[image])
        clean_caption, _ = chosen.fill_slots(sentences[number], described=scenes[image], shown=scenes[image])
        samples.append(
            WorldSample(
                sample_id=f"{name}-{seed}-{number:06d}",
                image_png=images[image],
                scene=scenes[image],
                question=questions[number],
                caption=caption,
                word_kinds=kinds,
                clean_caption=clean_caption,
            )
        )
    return samples


Conversation = list[dict[str, str]]


def _conversation(chosen: ModuleType, scene: Any, rng: np.random.Generator) -> Conversation:
    """A question and a true caption of the scene."""
    sentence = world.draw_sentence(rng, chosen.PATTERNS, chosen.FILLERS)
    caption, _ = chosen.fill_slots(sentence, described=scene, shown=scene)
    question = world.pick(rng, chosen.QUESTIONS)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": caption}]


def texts(name: str, num_samples: int, *, seed: int) -> list[Conversation]:
    """Conversations without an image: the questions and captions of scenes that nobody drew."""
    chosen, rng = WORLDS[name], np.random.default_rng([seed, 1])
    return [_conversation(chosen, chosen.draw_scene(rng), rng) for _ in range(num_samples)]


def earlier_answers(name: str, num_samples: int, *, seed: int) -> list[Conversation]:
    """Another question and caption for every sample that `draw` makes with this seed, whatever its noise."""
    rng = np.random.default_rng([seed, 2])
    samples = draw(name, num_samples, seed=seed)  # without noise a sample shows what its caption describes
    return [_conversation(WORLDS[name], sample.scene, rng) for sample in samples]


def words_of(name: str) -> list[str]:
    """Texts that hold every word of the world, for its tokenizer: the same for all seeds."""
    drawn = [turn["content"] for messages in texts(name, SIZES.vocabulary_texts, seed=0) for turn in messages]
    return [*drawn, *WORLDS[name].QUESTIONS]


def write(
    samples: list[WorldSample], texts: Sequence[Conversation], directory: Path, earlier: Sequence[Conversation] = ()
) -> None:
    """Two Parquet shards, each with half of the images and then half of the texts, whose words are irrelevant.

    `earlier` begins the conversations of the samples; `word_kinds` stay those of their last answer.
    """
    directory.mkdir(parents=True)
    for shard in range(2):
        rows: list[dict[str, Any]] = [world.parquet_row(sample) for sample in samples[shard::2]]
        for row, (asked, answer) in zip(rows, earlier[shard::2], strict=bool(earlier)):
            first, *rest = row["messages"]
            question = first["content"].removeprefix("<image>\n")
            row["messages"] = [{**asked, "content": f"<image>\n{asked['content']}"}, answer,
                               {**first, "content": question}, *rest]  # fmt: skip
        for number, messages in enumerate(texts[shard::2]):
            words = messages[-1]["content"].split()
            rows.append({"id": f"text-{shard}-{number:06d}", "images": [], "messages": messages,
                         "word_kinds": ["irrelevant"] * len(words), "clean_caption": None})  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows, world.PARQUET_SCHEMA), directory / f"part-{shard}.parquet")


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
