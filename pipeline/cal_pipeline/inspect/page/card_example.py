"""Draws one sample, its image beside its words shaded by delta, for the card of published shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from rich.cells import cell_len

from cal_pipeline.inspect.page.sample import ShownSample
from cal_pipeline.inspect.page.shading import Shading, characters, rgb_on
from cal_pipeline.inspect.tables.flat import LIST_COLUMNS, FlatTokens
from cal_pipeline.inspect.tables.reading import IMAGE_PATHS, read_batches
from cal_pipeline.inspect.tables.samples import Place
from cal_pipeline.inspect.tables.token_text import printable
from cal_schemas.opened import AnnotatedDataset

_COLUMNS, _LEAST_LINES, _MOST_LINES = 64, 9, 40
_POINTS = 12
"""Size of the letters, of which one is 0.602 as wide and, with the space between lines, 1.6 as high."""
_PIXELS = 512
_FEWEST, _MOST = 8, 60
"""Tokens of a sample that can be read at a glance."""
_MOST_CHARACTERS = 200
"""Of a turn that is not learned."""
_LOOKED_AT = 20_000
_STRONG = 5.0
_WHITE = (255, 255, 255)

Piece = tuple[str, float | None]
"""Text, and its shade; None for words that are not learned."""


def choose_example(opened: AnnotatedDataset) -> Place | None:
    """Of the first rows that are ok, of a readable length and with an image: that with the widest range of delta."""
    best: tuple[float, Place | None] = (-np.inf, None)
    number = 0
    for batch in read_batches(opened, [IMAGE_PATHS, *LIST_COLUMNS]):
        flat = FlatTokens.of(batch.data)
        images = np.ones(batch.data.num_rows, bool)
        if "images" in batch.data.schema.names:
            images = np.asarray(batch.data.column("images").value_lengths().fill_null(0)) > 0
        for row in np.flatnonzero((flat.lengths >= _FEWEST) & (flat.lengths <= _MOST) & images).tolist():
            deltas = flat.take(np.array([row])).scores
            if np.isfinite(deltas).any():
                spread = float(np.nanmax(np.clip(deltas, -_STRONG, _STRONG)) - np.nanmin(deltas.clip(-_STRONG)))
                if spread > best[0]:
                    best = spread, Place(file=batch.file, row=batch.row + row, number=number + row)
        number += batch.data.num_rows
        if number >= _LOOKED_AT:
            break
    return best[1]


def example_figure(shown: ShownSample, *, with_image: bool) -> Figure:
    """Its first image, if it may be shown, and its words; the figure is as high as they are."""
    lines = list(_lines(_pieces(shown), _COLUMNS))
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], [("…", None)]]
    image = next((item for _, item in shown.images if isinstance(item, Image.Image)), None) if with_image else None
    height, width = max(_LEAST_LINES, len(lines)) * 1.6 * _POINTS / 72, _COLUMNS * 0.602 * _POINTS / 72
    beside = 0.0 if image is None else 3.0
    figure = Figure(figsize=(width + beside + 0.4, height + 0.4), facecolor="white")
    whole = (width + beside + 0.4, height + 0.4)
    if image is not None:
        small = image.copy()
        small.thumbnail((_PIXELS, _PIXELS))
        axes = figure.add_axes((0.2 / whole[0], 0.2 / whole[1], (beside - 0.2) / whole[0], height / whole[1]))
        axes.imshow(np.asarray(small), interpolation="nearest" if max(image.size) < _PIXELS // 2 else None)
        axes.set_anchor("NW")
        axes.set_axis_off()
    axes = figure.add_axes(((beside + 0.2) / whole[0], 0.2 / whole[1], width / whole[0], height / whole[1]))
    axes.set_xlim(0, _COLUMNS)
    axes.set_ylim(max(_LEAST_LINES, len(lines)), 0)
    axes.set_axis_off()
    for number, line in enumerate(lines):
        column = 0
        for text, shade in line:
            size = cell_len(text)
            if shade is not None and text.strip():
                colour = [part / 255 for part in rgb_on(_WHITE, shade)]
                axes.add_patch(Rectangle((column, number + 0.08), size, 0.84, color=colour, linewidth=0))
            axes.text(column, number + 0.5, text, fontsize=_POINTS, family="monospace", va="center_baseline",
                      color="black" if shade is not None else "0.45")  # fmt: skip
            column += size
    return figure


def _pieces(shown: ShownSample) -> Iterator[Sequence[Piece]]:
    """Paragraphs: a turn's role and words each."""
    shading = Shading(by="score", alpha=1.0, beta=_STRONG)
    for turn in shown.turns:
        tokens = shown.tokens[turn.tokens.start : turn.tokens.stop]
        words: list[Piece] = [(group[-1].text, shading.extreme(group)) for group in characters(tokens)]
        said = turn.text.replace("<image>", "").strip()
        said = said if len(said) <= _MOST_CHARACTERS else f"{said[:_MOST_CHARACTERS]} …"
        yield [(f"{turn.role}: ", None), *(words or [(said, None)])]


def _lines(paragraphs: Iterator[Sequence[Piece]], columns: int) -> Iterator[list[Piece]]:
    """Pieces in lines of at most so many columns, broken at blanks where there are any."""
    for paragraph in paragraphs:
        line: list[Piece] = []
        used = 0
        for text, shade in paragraph:
            for part in _parts(text, columns, whole=shade is not None):
                if used + cell_len(part) > columns:
                    yield line
                    line, used, part = [], 0, part.lstrip()
                line.append((part, shade))
                used += cell_len(part)
        yield line


def _parts(text: str, columns: int, *, whole: bool) -> Iterator[str]:
    """A token, or a text word by word, in parts that a line can hold."""
    clean = printable(text.replace("\n", " "))
    for word in [clean] if whole else clean.replace(" ", " \0").split("\0"):
        for start in range(0, max(1, len(word)), columns // 2):
            yield word[start : start + columns // 2]
