"""Draws a world that must be read: a number of two digits above a chart of two bars, and captions about both.

The paper gains most where images hold text. Each word of a caption has a known truth, as in the world of shapes
(examples/shapes/world.py), whose way to tell a sentence of a scene it shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import world
from world import fill_slots as fill_slots  # of a world: its sentences are filled as those of shapes

DIGITS = tuple("0123456789")
COLOURS = {name: world.COLOURS[name] for name in ("red", "green", "blue", "yellow")}
LOW, HIGH = 7, 20  # pixels: a bar's height, the taller one at least 5 more
QUESTIONS = ("Read the chart.", "What does it say?", "Describe the chart.", "What is shown here?")
FILLERS = {
    "OPENING": ("Here we have", "This is", "I can see", "The picture shows", "There is", "We look at"),
    "HEDGE": ("", "", "I think", "of course", "it seems", "as you can see"),
    "CLOSING": ("", "", "as drawn", "in this chart", "and nothing else", "if you ask me"),
}
PATTERNS = (
    "OPENING the number {tens} {ones} above two bars CLOSING",
    "HEDGE the number is {tens} {ones} and the {taller} bar is taller CLOSING",
    "The left bar is {left} HEDGE and the number {tens} {ones} stands above it CLOSING",
    "OPENING a chart with a {left} bar and a {right} bar CLOSING",
    "The {taller} bar is taller HEDGE and the right one is {right} CLOSING",
    "It reads {tens} {ones} HEDGE and the bars are {left} and {right} CLOSING",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What an image shows; each field is the word a true caption uses."""

    tens: str
    ones: str
    left: str
    right: str
    taller: str


def draw_scene(rng: np.random.Generator) -> Scene:
    return Scene(
        tens=world.pick(rng, DIGITS),
        ones=world.pick(rng, DIGITS),
        left=world.pick(rng, tuple(COLOURS)),
        right=world.pick(rng, tuple(COLOURS)),
        taller=world.pick(rng, ("left", "right")),
    )


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """RGB image of world.IMAGE_PX squared: digits in the upper half, bars in the lower, all moved a little."""
    px, half = world.IMAGE_PX, world.IMAGE_PX // 2
    ground = rng.integers(15, 50) + rng.integers(-10, 11, size=3)
    image = Image.new("RGB", (px, px), tuple(int(value) for value in ground))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=26)
    for place, digit in enumerate((scene.tens, scene.ones)):
        middle = (place * half + half / 2 + rng.uniform(-1, 1), half / 2 + rng.uniform(-1, 1))
        draw.text(middle, digit, fill=(235, 235, 235), font=font, anchor="mm")
    short = int(rng.integers(LOW, HIGH - 5))
    tall = int(rng.integers(short + 5, HIGH + 1))
    for place, (side, colour) in enumerate((("left", scene.left), ("right", scene.right))):
        height = tall if scene.taller == side else short
        left = place * half + 6 + rng.uniform(-1, 1)
        tint = np.clip(np.array(COLOURS[colour]) + rng.integers(-12, 13, size=3), 0, 255)
        draw.rectangle((left, px - 3 - height, left + 15, px - 3), fill=tuple(int(value) for value in tint))
    noise = rng.normal(0.0, 5.0, size=(px, px, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
