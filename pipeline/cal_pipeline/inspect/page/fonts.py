"""Gives the texts of a figure fonts that have their characters, of those that are installed, as a browser does."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from cal_pipeline.inspect.tables.token_text import printable

_BOXES = "Last Resort"
"""Beginning of the name of a font that has every character, as a box."""
_log = logging.getLogger(__name__)


def cover(texts: Iterable[Text]) -> None:
    """Lets every text fall back on installed fonts for what its own lacks; a warning names what no font has."""
    texts = list(texts)
    written = {character for text in texts for character in text.get_text() if not character.isspace()}
    lacking = {ord(character) for character in written} - _characters(findfont(FontProperties()))
    if not lacking:
        return
    of_font = {font.name: _characters(font.fname) for font in fontManager.ttflist if not font.name.startswith(_BOXES)}
    families: list[str] = []
    while lacking and (best := max(of_font, key=lambda name: len(of_font[name] & lacking))):
        if not of_font[best] & lacking:
            break
        families.append(best)
        lacking -= of_font[best]
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    if lacking:
        named = printable("".join(map(chr, sorted(lacking)[:10])))
        _log.warning("no installed font has %s%s: boxes stand there; install one that does (Noto Sans CJK, say)",
                     named, "" if len(lacking) <= 10 else f" and {len(lacking) - 10} more characters")  # fmt: skip


def _characters(file: str) -> set[int]:
    """Code points that a font has outlines for; none where it holds bitmaps only."""
    try:
        return set(FT2Font(file).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return set()
