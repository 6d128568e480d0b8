"""Prints a sample to a terminal: words shaded where it has colours, followed by their numbers elsewhere."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence

from PIL import Image
from rich.console import Console
from rich.text import Text

from cal_pipeline.inspect.page.sample import ShownSample
from cal_pipeline.inspect.page.shading import Shading, characters, rgb_on
from cal_pipeline.inspect.tables.samples import ShownToken
from cal_pipeline.inspect.tables.token_text import printable
from cal_schemas.scores import DEFAULT_SCORE

IMAGE_WIDTH = 48
"""Of an image in the terminal, in columns."""
_WHITE = (255, 255, 255)
_LEAST_SHADE = 0.02
"""A word that hardly differs from its surroundings keeps the terminal's own colours."""
_BAR_WIDTH = 16


def terminal_svg(shown: Sequence[ShownSample], shading: Shading) -> str:
    """What a terminal with colours would show, as SVG that loads nothing from a network."""
    console = Console(
        record=True,
        width=100,
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
        file=io.StringIO(),
        highlight=False,
    )
    for item in shown:
        print_sample(console, item, shading)
    svg = console.export_svg(title=f"cal-inspect show {printable(shown[0].sample_id)}", unique_id="cal")
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def print_sample(console: Console, shown: ShownSample, shading: Shading) -> None:
    """Shaded where the terminal has colours; elsewhere every word is followed by the numbers of its tokens."""
    coloured = console.is_terminal and console.color_system is not None and not console.no_color
    console.print(Text(printable(shown.heading), style="bold"))
    for name, image in shown.images:
        if isinstance(image, str):
            console.print(Text(f"[image {printable(name)}: {printable(image)}]"))
            continue
        console.print(Text(f"[image {printable(name)}, {image.width} x {image.height} pixels]"))
        if coloured:
            console.print(drawn(image, min(IMAGE_WIDTH, console.width - 1)))
    if shown.missing:
        console.print(Text(f"[{printable(shown.missing)}]"))
    shared: list[str] = []
    for turn in shown.turns:
        text = Text.assemble((f"{turn.role}: ", "bold"))
        if not turn.tokens:
            text.append(_lines(turn.text))
        for tokens in characters(shown.tokens[turn.tokens.start : turn.tokens.stop]):
            if coloured:
                text.append_text(_shaded(tokens, shading))
            else:
                text.append(_numbered(tokens, shading))
            if len(tokens) > 1:
                shared.append(_numbered(tokens, shading).strip())
        console.print(text)
    console.print(Text(printable(shown.numbers())))
    if coloured and shared:
        console.print(Text(f"characters of several tokens ({shading.unit} of each): {'  '.join(shared)}"))
    if shown.tokens:
        console.print(_bar(shading) if coloured else Text(f"(in parentheses: {shading.unit})", style="dim"))


def _bar(shading: Shading) -> Text:
    left, first, right = shading.bar()
    text = Text(f"{left} ")
    for step in range(_BAR_WIDTH):
        text.append(" ", style=f"on {_rgb(first + (1.0 - first) * step / (_BAR_WIDTH - 1))}")
    return text.append(f" {right}")


def _rgb(shade: float) -> str:
    red, green, blue = rgb_on(_WHITE, shade)
    return f"rgb({red},{green},{blue})"


def _lines(text: str) -> str:
    """Line breaks stay, other characters that would steer a terminal are shown as escapes."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _numbered(tokens: Sequence[ShownToken], shading: Shading) -> str:
    words = _lines(tokens[-1].text)
    values = [getattr(token, shading.by) for token in tokens]
    digits = 1 if shading.by == "weight" or shading.score == DEFAULT_SCORE else 2
    numbers = ", ".join("?" if math.isnan(value) else f"{value:.{digits}f}" for value in values)
    return f"{words}({numbers})" if words.strip() else words


def _shaded(tokens: Sequence[ShownToken], shading: Shading) -> Text:
    words = _lines(tokens[-1].text)
    if all(math.isnan(token.score) for token in tokens):
        return Text(words, style="underline")
    shade = shading.extreme(tokens)
    return Text(words, style="" if abs(shade) < _LEAST_SHADE else f"rgb(0,0,0) on {_rgb(shade)}")


def drawn(image: Image.Image, width: int) -> Text:
    """The image in half blocks: two pixels a character, at most `width` wide and as many lines high."""
    scale = min(width / image.width, 2 * width / image.height, 1.0)
    size = max(1, round(image.width * scale)), max(2, round(image.height * scale) // 2 * 2)
    pixels = image.resize(size).load()
    assert pixels is not None
    text = Text()
    for y in range(0, size[1], 2):
        for x in range(size[0]):
            (top, bottom) = (pixels[x, y], pixels[x, y + 1])
            upper, lower = (",".join(map(str, pixel[:3])) for pixel in (top, bottom))  # type: ignore[index]
            text.append("\u2580", style=f"rgb({upper}) on rgb({lower})")
        text.append("\n")
    return text
