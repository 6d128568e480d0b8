"""Shows one sample: its image, and its words shaded by delta or weight, in the terminal or as one HTML file.

    cal-inspect show annotated/ 000123 --tokenizer path/to/the/reference
    cal-inspect show annotated/ '#17' --tokenizer path/to/the/reference --output sample.html

SAMPLE is a sample_id, a sample_key, or #N for row N. Green: the image speaks for the word; red: against it.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.style import Style
from rich.text import Text

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.page import shading
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.samples import (
    Place,
    ShownToken,
    Utterance,
    conversation,
    find_samples,
    image_folder_of,
    read_row,
    row_images,
    shown_tokens,
    small_jpeg,
    table_of,
)
from cal_pipeline.inspect.tables.token_text import pieces_of_measurement, printable
from cal_pipeline.output.row_reader import numbered_rows
from cal_schemas.errors import STATUS_OK, ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import Turn

IMAGE_WIDTH = 48
"""Of an image in the terminal, in columns."""
_WHITE = (255, 255, 255)
_LEAST_SHADE = 0.02
"""A word that hardly differs from its surroundings keeps the terminal's own colours."""
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.6 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; border-radius: 4px; }
.turn { margin: .8rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.role { font-size: .75rem; text-transform: uppercase; opacity: .6; display: block; }
.t { border-radius: 3px; padding: .1em 0; }
.undefined { text-decoration: underline dotted; }
.about { font-size: .85rem; opacity: .75; overflow-wrap: anywhere; }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect show`."""
    flags.add_annotated(parser)
    parser.add_argument("sample", metavar="SAMPLE", help="sample_id, sample_key, or #N for row N of all")
    flags.add_tokenizer(parser)
    flags.add_weighting(parser)
    parser.add_argument("--by", choices=["delta", "weight"], default="delta", help="what the shade tells")
    flags.add_image_folder(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help=".html: a page; .svg: the terminal as an image")
    parser.add_argument("--color", choices=["auto", "always", "never"], default="auto", help="of the terminal")
    parser.add_argument("--limit", type=int, default=5, help="of rows with one id, how many are shown (default 5)")


def run(arguments: argparse.Namespace) -> int:
    """Shows every row with this id; 0."""
    if arguments.limit < 1:
        raise ConfigError(f"--limit must be positive, got {arguments.limit}")
    path = flags.new_file(arguments.output, ".html", ".htm", ".svg") if arguments.output else None
    flags.weighting_of(arguments)
    opened = open_paths(arguments.annotated)
    places = find_samples(opened, arguments.sample)
    shown = [_Shown(opened, place, arguments) for place in places[: arguments.limit]]
    if path:
        written = terminal_svg(shown, arguments) if path.suffix.lower() == ".svg" else page(shown, arguments)
        path.write_text(written, encoding="utf-8")
        print(f"{path}: {flags.counted(len(shown), 'row')}")  # noqa: T201
    else:
        terminal = _terminal(arguments.color)
        for item in shown:
            print_sample(terminal, item, arguments)
    if len(places) > len(shown):
        print(f"{len(places)} rows have this id, {len(shown)} are shown: raise --limit, or ask for a sample_key or #N")  # noqa: T201
    return 0


class _Shown:
    """A row ready to be printed."""

    def __init__(self, opened: AnnotatedDataset, place: Place, arguments: argparse.Namespace) -> None:
        table = read_row(place)
        self.place = place
        self.row: dict[str, Any] = table.select(["sample_id", "sample_key", "status", "error"]).to_pylist()[0]
        pieces = pieces_of_measurement(opened, arguments.tokenizer) if self.row["status"] == STATUS_OK else None
        folder = image_folder_of(opened, place.file, arguments.image_folder)
        messages: Sequence[Turn] | None = None
        self.images: list[tuple[str, Image.Image | str]] = []
        self.missing = ""
        """Why words and images cannot be shown: they are in the source of a sidecar, and that is gone."""
        try:
            (row,) = numbered_rows(opened, [place.number], folder)
        except ConfigError as error:
            self.missing = str(error)
        else:
            table, messages = table_of([row]), row.sample.messages or ()
            self.images = list(row_images(row.sample.images, folder))
        self.tokens = shown_tokens(table, pieces, **flags.weighting_of(arguments)) if pieces else []
        turns = np.array([token.turn for token in self.tokens], int)
        if messages is None:  # One turn for each answer that was measured.
            messages = [Turn(role="assistant", content="?")] * turns.max(initial=0)
        self.turns = conversation(messages, turns)

    def heading(self) -> str:
        """What and where the row is."""
        return f"{self.row['sample_id']}  (row {self.place.row} of {self.place.file}, key {self.row['sample_key']})"

    def numbers(self) -> str:
        """Its tokens in one line, or why it has none."""
        if not self.tokens:
            return f"{self.row['status']}: {self.row['error']}"
        deltas = [token.delta for token in self.tokens if not math.isnan(token.delta)]
        undefined = len(self.tokens) - len(deltas)
        mean = f"mean {sum(deltas) / len(deltas):.2f}, " if deltas else ""
        span = f"min {min(deltas):.2f}, max {max(deltas):.2f}, " if deltas else ""
        negative = f"{sum(delta < 0 for delta in deltas) / len(deltas):.0%} negative" if deltas else "all undefined"
        note = f"; {self.row['error']}" if self.row["error"] else ""
        return f"{len(self.tokens)} tokens, {undefined} undefined; delta {mean}{span}{negative}{note}"


def _terminal(color: str) -> Console:
    console = flags.console()
    if color == "always":
        return Console(
            highlight=False, soft_wrap=True, width=console.width, force_terminal=True, color_system="truecolor"
        )
    return Console(highlight=False, soft_wrap=True, width=console.width, no_color=True) if color == "never" else console


def terminal_svg(shown: list[_Shown], arguments: argparse.Namespace) -> str:
    """What a terminal with colours would show, as SVG that loads nothing from a network."""
    console = Console(
        record=True, width=100, force_terminal=True, color_system="truecolor", file=io.StringIO(), highlight=False
    )
    for item in shown:
        print_sample(console, item, arguments)
    svg = console.export_svg(title=f"cal-inspect show {printable(str(shown[0].row['sample_id']))}", unique_id="cal")
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def print_sample(console: Console, shown: _Shown, arguments: argparse.Namespace) -> None:
    """Shaded where the terminal has colours; elsewhere every word is followed by its number."""
    coloured = console.is_terminal and console.color_system is not None and not console.no_color
    console.print(Text(printable(shown.heading()), style="bold"))
    for name, image in shown.images:
        if isinstance(image, str):
            console.print(Text(f"[image {printable(name)}: {printable(image)}]"))
            continue
        console.print(Text(f"[image {printable(name)}, {image.width} x {image.height} pixels]"))
        if coloured:
            console.print(drawn(image, min(IMAGE_WIDTH, console.width - 1)))
    if shown.missing:
        console.print(Text(f"[{printable(shown.missing)}]"))
    for turn in shown.turns:
        text = Text.assemble((f"{turn.role}: ", "bold"))
        if turn.tokens:
            for token in shown.tokens[turn.tokens.start : turn.tokens.stop]:
                text.append_text(_token(token, arguments, coloured))
        else:
            text.append(_lines(turn.text), style="")
        console.print(text)
    console.print(Text(printable(shown.numbers())))
    if shown.tokens:
        unit = "delta, logits" if arguments.by == "delta" else "weight"
        console.print(Text(f"shade: {unit}" if coloured else f"(in parentheses: {unit})", style="dim"))


def _lines(text: str) -> str:
    """Line breaks stay, other characters that would steer a terminal are shown as escapes."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _token(token: ShownToken, arguments: argparse.Namespace, coloured: bool) -> Text:
    value = getattr(token, arguments.by)
    words = _lines(token.text)
    if not coloured:
        number = "?" if math.isnan(value) else f"{value:.1f}"
        return Text(f"{words}({number})" if words.strip() else words)
    if math.isnan(token.delta):
        return Text(words, style=Style(underline=True))
    shade = shading.strength(value, arguments.by, alpha=arguments.alpha, beta=arguments.beta)
    if abs(shade) < _LEAST_SHADE:
        return Text(words)
    red, green, blue = shading.rgb_on(_WHITE, shade)
    return Text(words, style=Style.parse(f"rgb(0,0,0) on rgb({red},{green},{blue})"))


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
            text.append("\u2580", style=Style.parse(f"rgb({upper}) on rgb({lower})"))
        text.append("\n")
    return text


def page(shown: list[_Shown], arguments: argparse.Namespace) -> str:
    """One self-contained HTML file without scripts; every text of the dataset is escaped."""
    parts = [_article(item, arguments) for item in shown]
    title = html.escape(str(shown[0].row["sample_id"]))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n" + "\n<hr>\n".join(parts) + "\n</body></html>\n"
    )


def _article(shown: _Shown, arguments: argparse.Namespace) -> str:
    lines = [f"<h1>{html.escape(str(shown.row['sample_id']))}</h1>"]
    for name, image in shown.images:
        if isinstance(image, str):
            lines.append(f'<p class="about">{html.escape(name)}: {html.escape(image)}</p>')
        else:
            data = base64.b64encode(small_jpeg(image, 768)).decode("ascii")
            lines.append(f'<p><img alt="{html.escape(name)}" src="data:image/jpeg;base64,{data}"></p>')
    if shown.missing:
        lines.append(f'<p class="about">{html.escape(shown.missing)}</p>')
    lines += [_turn(turn, shown.tokens[turn.tokens.start : turn.tokens.stop], arguments) for turn in shown.turns]
    lines.append(f'<p class="about">{html.escape(shown.numbers())}</p>')
    lines.append(f'<p class="about">{html.escape(shown.heading())}</p>')
    return "\n".join(lines)


def _turn(turn: Utterance, tokens: Sequence[ShownToken], arguments: argparse.Namespace) -> str:
    words = "".join(_span(token, arguments) for token in tokens) or html.escape(turn.text)
    return f'<div class="turn"><span class="role">{html.escape(turn.role)}</span>{words}</div>'


def _span(token: ShownToken, arguments: argparse.Namespace) -> str:
    shade = shading.strength(getattr(token, arguments.by), arguments.by, alpha=arguments.alpha, beta=arguments.beta)
    undefined = math.isnan(token.delta)
    delta = "undefined" if undefined else f"{token.delta:.3f}"
    title = html.escape(f"{token.text.strip()!r} delta {delta}, weight {token.weight:.3f}")
    kind = "t undefined" if undefined else "t"
    return (
        f'<span class="{kind}" style="background:{shading.css(shade)}" title="{title}">{html.escape(token.text)}</span>'
    )
