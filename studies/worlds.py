"""The worlds of the study: images with captions of known truth, some of whose images were exchanged."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import charts
import world
from condition import SIZES
from world import WorldSample


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Scenes, how they look, and sentences with open slots for what is true of them."""

    patterns: tuple[str, ...]
    fillers: Mapping[str, tuple[str, ...]]
    questions: tuple[str, ...]
    draw_scene: Callable[[np.random.Generator], Any]
    render: Callable[[Any, np.random.Generator], Image.Image]


WORLDS = {
    "shapes": World(
        patterns=world.PATTERNS,
        fillers=world.FILLERS,
        questions=world.QUESTIONS,
        draw_scene=world.draw_scene,
        render=world.render,
    ),
    "charts": World(
        patterns=charts.PATTERNS,
        fillers=charts.FILLERS,
        questions=charts.QUESTIONS,
        draw_scene=charts.draw_scene,
        render=charts.render,
    ),
}


def draw(name: str, num_samples: int, *, seed: int, noise: float = 0.0) -> list[WorldSample]:
    """Samples of the world `name`; the share `noise` of the images, up to rounding, is exchanged among its samples.

    A sample that takes part has an image that belongs to another caption, whose words may be true of it by chance.
    With the same seed a higher noise exchanges more of the same images and changes nothing else.
    """
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"noise is a share of the samples, between 0 and 1, got {noise}")
    chosen = WORLDS[name]
    rng = np.random.default_rng(seed)
    scenes, sentences, questions, pictures = [], [], [], []
    for _ in range(num_samples):
        scenes.append(chosen.draw_scene(rng))
        sentences.append(world.draw_sentence(rng, chosen.patterns, chosen.fillers))
        questions.append(world.pick(rng, chosen.questions))
        pictures.append(_png(chosen.render(scenes[-1], rng)))
    exchanged = rng.permutation(num_samples)[: round(noise * num_samples)]
    shown = np.arange(num_samples)
    shown[exchanged] = np.roll(exchanged, 1)
    samples = []
    for told, picture in enumerate(shown):
        caption, kinds = world.tell(sentences[told], told=scenes[told], shown=scenes[picture])
        clean_caption, _ = world.tell(sentences[told], told=scenes[picture], shown=scenes[picture])
        samples.append(
            WorldSample(
                sample_id=f"{name}-{seed}-{told:06d}",
                image_png=pictures[picture],
                scene=scenes[picture],
                question=questions[told],
                caption=caption,
                word_kinds=kinds,
                clean_caption=clean_caption,
            )
        )
    return samples


def texts(name: str, num_samples: int, *, seed: int) -> list[list[dict[str, str]]]:
    """Conversations without an image: the questions and captions of scenes that nobody drew."""
    chosen = WORLDS[name]
    rng = np.random.default_rng([seed, 1])
    found = []
    for _ in range(num_samples):
        scene = chosen.draw_scene(rng)
        caption, _ = world.tell(world.draw_sentence(rng, chosen.patterns, chosen.fillers), told=scene, shown=scene)
        question = world.pick(rng, chosen.questions)
        found.append([{"role": "user", "content": question}, {"role": "assistant", "content": caption}])
    return found


def earlier_answers(name: str, num_samples: int, *, seed: int) -> list[list[dict[str, str]]]:
    """Another question and caption for every sample that `draw` tells of with this seed, whatever its noise."""
    chosen = WORLDS[name]
    rng = np.random.default_rng([seed, 2])
    found = []
    for sample in draw(name, num_samples, seed=seed):  # without noise a sample shows what it tells of
        sentence = world.draw_sentence(rng, chosen.patterns, chosen.fillers)
        caption, _ = world.tell(sentence, told=sample.scene, shown=sample.scene)
        question = world.pick(rng, chosen.questions)
        found.append([{"role": "user", "content": question}, {"role": "assistant", "content": caption}])
    return found


def words_of(name: str) -> list[str]:
    """Texts that hold every word of the world, for its tokenizer: the same for all seeds."""
    drawn = [turn["content"] for messages in texts(name, SIZES.vocabulary_texts, seed=0) for turn in messages]
    return [*drawn, *WORLDS[name].questions]


Conversations = Sequence[list[dict[str, str]]]


def write(samples: list[WorldSample], texts: Conversations, directory: Path, earlier: Conversations = ()) -> None:
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


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
