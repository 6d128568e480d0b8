"""Draws a world of real images and human words: emoji by several artists, captions from what people wrote of them.

Labels, keywords and groups are emojibase's. A word is true of an image where emojibase gives it to that emoji, so a
caption that belongs to another image may be true in part: "fruit" told of a lime is true of a mango. Students see the
drawings of some artists and are examined on those of another.

The drawings and the words come from npm (`make emoji`) and are not in the repository; docs/study.md names the authors.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import world
from world import WordKind

PACKAGES = Path(__file__).resolve().parents[1] / ".venv" / "emoji" / "node_modules"
ARTISTS = ("noto", "openmoji", "fluent-emoji-flat")
HELD_OUT = "twemoji"
"""The artist of the exam, whom nobody is trained on."""
KINDS = ("fruit", "vegetables", "mammals", "birds", "bugs", "flowers", "hearts", "weather", "clothing", "sports")
PER_KIND = 4
SHARED = 4
"""Emoji that have a keyword, at least, for captions to mention it."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey", "pink")
SMALL, LARGE = 48, 54  # pixels: the longer side of a drawing

QUESTIONS = ("What does the emoji show?", "Describe the emoji.", "Which emoji is this?", "What do you see?")
FILLERS = {
    "OPENING": ("Here we have", "This is", "I can see", "The picture shows", "There is", "Somebody sent me"),
    "HEDGE": ("", "", "I think", "of course", "it seems", "as you can see"),
    "CLOSING": ("", "", "in this picture", "and nothing else", "if you ask me", "as drawn here"),
}
PATTERNS = (
    "OPENING {label} HEDGE CLOSING",
    "OPENING something tagged {keyword} HEDGE CLOSING",
    "OPENING an emoji of the group {kind} HEDGE CLOSING",
    "OPENING something tagged {keyword} HEDGE namely {label} CLOSING",
    "OPENING {label} HEDGE from the group {kind} CLOSING",
    "The group is {kind} HEDGE and the keyword {keyword} CLOSING",
)


class PackagesError(Exception):
    """The drawings or the words are not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What an image shows, in the words of a true caption; several of them in one field where people needed them."""

    label: str
    keyword: str
    """Of the emoji's keywords the one that most others have too."""
    kind: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Emoji:
    scene: Scene
    hexcode: str
    true: frozenset[str]
    """Words of its label, keywords and group."""


def draw_scene(rng: np.random.Generator) -> Scene:
    chosen = list(emoji().values())
    return chosen[int(rng.integers(len(chosen)))].scene


def render(scene: Scene, rng: np.random.Generator, artists: tuple[str, ...] = ARTISTS) -> Image.Image:
    """RGB image of world.IMAGE_PX squared: size, place and ground of a drawing vary a little, and there is noise."""
    px = world.IMAGE_PX
    drawn = _drawing(world.pick(rng, artists), emoji()[scene.label].hexcode)
    scale = rng.uniform(SMALL, LARGE) / max(drawn.size)
    width, height = (max(1, round(side * scale)) for side in drawn.size)
    drawn = drawn.resize((width, height), Image.Resampling.BICUBIC)
    # Neither the white of some drawings nor the black lines of others vanish on it.
    ground = rng.integers(70, 120) + rng.integers(-10, 11, size=3)
    image = Image.new("RGB", (px, px), tuple(int(value) for value in ground))
    left, top = (round((px - side) / 2 + rng.uniform(-2, 2)) for side in (width, height))
    image.paste(drawn, (left, top), drawn)
    noise = rng.normal(0.0, 5.0, size=(px, px, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def render_held_out(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """By the artist of the exam."""
    return render(scene, rng, (HELD_OUT,))


def fill_slots(sentence: list[str], *, described: Scene, shown: Scene) -> tuple[str, tuple[WordKind, ...]]:
    """Fill the slots from the scene `described`; a word is correlated where people gave it to the emoji `shown`."""
    true = emoji()[shown.label].true
    words: list[str] = []
    kinds: list[WordKind] = []
    for word in sentence:
        slot = word.strip("{}")
        if slot == word:
            words.append(word)
            kinds.append("irrelevant")
        else:
            filled = getattr(described, slot).split()
            words += filled
            kinds += ["correlated" if one in true else "contradictory" for one in filled]
    text = " ".join(words) + "."
    return text[0].upper() + text[1:], tuple(kinds)


@functools.cache
def emoji() -> dict[str, Emoji]:
    """By label: the first PER_KIND of each kind that all artists drew and that a word, or a colour and a word, name.

    Raises PackagesError where `make emoji` was not run.
    """
    entries, messages = (_read("emojibase-data", f"en/{name}.json") for name in ("data", "messages"))
    groups = {one["order"]: one["message"] for one in messages["subgroups"]}
    label_form = re.compile(rf"(({'|'.join(COLOURS)}) )?[a-z]+")
    candidates = [
        (entry["label"], groups[entry["subgroup"]], entry)
        for entry in entries
        if groups.get(entry.get("subgroup")) in KINDS
        and label_form.fullmatch(entry["label"])
        and all(_icon_name(artist, entry["hexcode"]) for artist in (*ARTISTS, HELD_OUT))
    ]
    counts = Counter(tag for _, _, entry in candidates for tag in entry["tags"])
    chosen: dict[str, Emoji] = {}
    for label, kind, entry in candidates:
        said = {*label.split(), *kind.split()}
        keywords = [tag for tag in entry["tags"] if tag.isalpha() and tag not in said and counts[tag] >= SHARED]
        if keywords and sum(one.scene.kind == kind for one in chosen.values()) < PER_KIND:
            scene = Scene(label=label, kind=kind, keyword=max(keywords, key=lambda tag: counts[tag]))
            true = frozenset(word for text in (label, kind, *entry["tags"]) for word in text.split())
            chosen[label] = Emoji(scene=scene, hexcode=entry["hexcode"], true=true)
    return chosen


@functools.cache
def _drawing(artist: str, hexcode: str) -> Image.Image:
    """RGBA, twice as large as it is shown, without the margin that artists leave."""
    import resvg_py  # of the extra `dev`; whoever runs the other worlds needs none

    icons = _read(f"@iconify-json/{artist}", "icons.json")
    name = _icon_name(artist, hexcode)
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">{icon["body"]}</svg>'
    )
    px = 2 * world.IMAGE_PX
    png = resvg_py.svg_to_bytes(svg_string=svg, width=px, height=px, skip_system_fonts=True)
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return image.crop(image.getbbox())


def _icon_name(artist: str, hexcode: str) -> str | None:
    """None where the artist did not draw it; some sets name an emoji without the selector of its variation."""
    names = _read(f"@iconify-json/{artist}", "chars.json")
    drawn = _read(f"@iconify-json/{artist}", "icons.json")["icons"]
    codes = (hexcode.lower(), hexcode.lower().replace("-fe0f", ""))
    return next((names[code] for code in codes if names.get(code) in drawn), None)


@functools.cache
def _read(package: str, file: str) -> Any:
    path = PACKAGES / package / file
    if not path.is_file():
        raise PackagesError(f"{path} is missing: the world of emoji comes from npm, run make emoji")
    return json.loads(path.read_text(encoding="utf-8"))
