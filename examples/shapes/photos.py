"""Writes real photographs with conversations about them, as a small LLaVA JSON and its image folder.

The photographs ship with scikit-learn (a temple above a lake, a dahlia) and matplotlib (a portrait); nothing is
downloaded. The answers were written while looking at the images and are true of them. The set holds the
cases a reader of such files must stand: several turns, two images in one sample, no image, a missing file.
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.cbook import get_sample_data

# (id, image files, turns); a turn is (question, answer), and the first question begins with one <image> per file.
CONVERSATIONS: tuple[tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]], ...] = (
    (
        "temple-several-turns",
        ("china.jpg",),
        (
            (
                "<image>\nWhat does the photograph show?",
                "A tall Chinese building with several tiled roofs, one above the other, stands among trees above a "
                "wide lake.",
            ),
            ("Which colours has the building?", "The columns and railings are red, the tiles orange with green rims."),
            (
                "What is on the water?",
                "Many small boats, and farther back a low island with trees that a long bridge leads to.",
            ),
            ("How is the weather?", "Bright and hazy, with a pale blue sky and thin clouds."),
        ),
    ),
    (
        "flower-several-turns",
        ("flower.jpg",),
        (
            (
                "<image>\nDescribe the picture.",
                "An orange dahlia in full bloom, its petals set in close rings, before a dark blurred ground of "
                "green leaves.",
            ),
            ("Is there a second flower?", "Yes, part of another one reaches into the picture at the bottom edge."),
        ),
    ),
    (
        "portrait-several-turns",
        ("grace_hopper.jpg",),
        (
            (
                "<image>\nWho or what is in this photograph?",
                "An elderly officer in a dark navy uniform and cap, with glasses, in front of a flag of the United "
                "States and a blue wall.",
            ),
            ("What does the name tag say?", "It says COMO HOPPER."),
            ("What is on the other side of the jacket?", "Three rows of coloured ribbons."),
        ),
    ),
    (
        "flower-one-turn",
        ("flower.jpg",),
        (("<image>\nWhat colour is the flower?", "The flower is orange, a little redder towards its middle."),),
    ),
    (
        "temple-and-flower-two-images",
        ("china.jpg", "flower.jpg"),
        (
            (
                "<image>\n<image>\nWhat do the two pictures show?",
                "The first shows a Chinese building above a lake, the second an orange flower before a dark ground.",
            ),
            ("In which of them can one see the sky?", "Only in the first."),
        ),
    ),
    (
        "text-only",
        (),
        (
            (
                "How many sides does a triangle have?",
                "A triangle has three sides.",
            ),
            ("And a square?", "A square has four sides of equal length."),
        ),
    ),
    (
        "missing-image-on-purpose",
        ("this-file-does-not-exist.jpg",),
        (("<image>\nDescribe the picture.", "A picture that nobody can open."),),
    ),
)


def write_photographs(directory: Path) -> Path:
    """Write `directory/images/*.jpg` and `directory/data.json` in the LLaVA form; returns the JSON's path.

    `image` is a file name, a list of them for several images, and absent from a sample without images. Raises
    ModuleNotFoundError where scikit-learn, a development dependency, is missing.
    """
    (directory / "images").mkdir(parents=True, exist_ok=True)
    for name, content in _photographs().items():
        (directory / "images" / name).write_bytes(content)
    entries = []
    for sample_id, images, turns in CONVERSATIONS:
        conversations = []
        for question, answer in turns:
            conversations += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        entry: dict[str, object] = {"id": sample_id}
        if images:
            entry["image"] = images[0] if len(images) == 1 else list(images)
        entries.append(entry | {"conversations": conversations})
    path = directory / "data.json"
    path.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return path


def _photographs() -> dict[str, bytes]:
    """The JPEG files by name, as they were shipped."""
    try:
        from sklearn.datasets import load_sample_images
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the photographs ship with scikit-learn, which is not installed: pip install scikit-learn "
            "(a development dependency of this project)"
        ) from error
    files = [Path(name) for name in load_sample_images().filenames]
    files.append(Path(str(get_sample_data("grace_hopper.jpg", asfileobj=False))))
    return {file.name: file.read_bytes() for file in files}
