"""Writes packages of npm as the study's world of emoji reads them: a few emoji, a colour for each artist."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

import emojis

FILLS = {"noto": "#ff0000", "openmoji": "#00ff00", "fluent-emoji-flat": "#0000ff", "twemoji": "#ffffff"}
EMOJI = {  # label -> (code, group, keywords)
    "lime": ("1F34B-200D-1F7E9", "fruit", ["acidity", "citrus", "food", "tropical fruit"]),
    "red apple": ("1F34E", "fruit", ["apple", "food", "fruit", "red"]),
    "kiwi fruit": ("1F95D", "fruit", ["food", "kiwi"]),  # no colour and a word
    "pear": ("1F350", "fruit", ["food"]),  # HELD_OUT did not draw it
    "melon": ("1F348", "fruit", ["cantaloupe"]),  # no keyword that others have
    "tomato": ("1F345", "fruit", ["food", "vegetable"]),
    "carrot": ("1F955", "vegetables", ["food", "vegetable"]),
    "red heart": ("2764-FE0F", "hearts", ["heart", "love"]),
    "blue heart": ("1F499", "hearts", ["blue", "heart", "love"]),
    "pink heart": ("1FA77", "hearts", ["heart", "love"]),
    "green heart": ("1F49A", "hearts", ["green", "heart", "love"]),
    "hammer": ("1F528", "tools", ["food"]),  # of no kind that is drawn
}


def write_emoji_packages(folder: Path) -> Path:
    """`folder`, with the packages in it; every drawing fills the middle quarter of its box."""
    groups = sorted({group for _, group, _ in EMOJI.values()})
    entries: list[dict[str, Any]] = [
        {"label": label, "hexcode": code, "tags": tags, "subgroup": groups.index(group)}
        for label, (code, group, tags) in EMOJI.items()
    ]
    entries.append({"label": "regional indicator", "hexcode": "1F1E6", "tags": []})  # of no group, as there are
    messages = {"subgroups": [{"order": order, "message": group} for order, group in enumerate(groups)]}
    _write(folder / "emojibase-data" / "en", data=entries, messages=messages)
    for artist, fill in FILLS.items():
        drawn = [label for label in EMOJI if (label, artist) != ("pear", emojis.HELD_OUT)]
        body = f'<rect x="9" y="9" width="18" height="18" fill="{fill}"/>'
        icons = {"width": 36, "height": 36, "icons": {label.replace(" ", "-"): {"body": body} for label in drawn}}
        # Some sets leave the selector of the variation out of an emoji's code.
        codes = {EMOJI[label][0].lower().replace("-fe0f", ""): label.replace(" ", "-") for label in EMOJI}
        _write(folder / "@iconify-json" / artist, icons=icons, chars=codes)
    return folder


def use_packages(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Until `patch` is undone; what was read of other ones is forgotten, before and after."""
    patch.setattr(emojis, "PACKAGES", folder)
    for name in ("emoji", "_drawing", "_read"):
        patch.setattr(emojis, name, functools.cache(getattr(emojis, name).__wrapped__))


def _write(folder: Path, **files: Any) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
