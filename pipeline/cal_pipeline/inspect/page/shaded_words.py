"""Shows the words of one sample of a frame shaded, in a notebook, and with their numbers elsewhere."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pandas as pd
from PIL import Image
from rich.console import Console

from cal_pipeline.inspect.page.sample import ShownSample, turns_of
from cal_pipeline.inspect.page.sample_html import sample_fragment
from cal_pipeline.inspect.page.sample_text import print_sample
from cal_pipeline.inspect.page.shading import Shading
from cal_pipeline.inspect.tables.flat import token_columns
from cal_pipeline.inspect.tables.samples import row_images, shown_tokens
from cal_pipeline.inspect.tables.token_text import Pieces
from cal_schemas.annotated import sample_from_columns
from cal_schemas.sample import ImageRef
from cal_schemas.scores import DEFAULT_SCORE, Score
from cal_schemas.storage.locations import Location, location

_WIDTH = 100
_SAID = ("sample_id", "status", "error", "messages", "template_inputs", "images")


class ShadedWords:
    """One sample: a notebook shows it with shaded words, `print` with a number behind each word.

    Args:
        shown: the sample.
        shading: what the shade, or the number, tells.
    """

    def __init__(self, shown: ShownSample, shading: Shading) -> None:
        self._shown, self._shading = shown, shading

    def _repr_html_(self) -> str:
        return sample_fragment(self._shown, self._shading)

    def __repr__(self) -> str:
        file = io.StringIO()
        # Rich would show in a notebook by itself what it is to write to the file.
        console = Console(
            file=file, width=_WIDTH, color_system=None, highlight=False, markup=False, emoji=False, force_jupyter=False
        )
        print_sample(console, self._shown, self._shading)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def shown_values(
    values: Mapping[str, Any],
    pieces: Pieces | None,
    image_folder: Location | None,
    *,
    score: Score = DEFAULT_SCORE,
    **weighting: Any,
) -> ShownSample:
    """A sample of a row's values by column, as pandas, `datasets` or Arrow give them; no tokens without `pieces`."""
    names = [name for name in (*token_columns(score), "messages", "template_inputs") if name in values]
    row = pd.DataFrame({name: pd.Series([_value(values, name)], dtype=object) for name in names})
    tokens = [] if pieces is None else shown_tokens(row, pieces, score=score, **weighting)
    messages = _value(values, "messages")
    images = _value(values, "images")
    sample = sample_from_columns(
        {
            "sample_id": str(values.get("sample_id", "")),
            "messages": None if messages is None else list(messages),
            "template_inputs": _value(values, "template_inputs"),
        }
    )
    return ShownSample(
        sample_id=sample.sample_id,
        heading=sample.sample_id,
        status=str(values.get("status", "ok")),
        error=_value(values, "error"),
        turns=turns_of(sample.messages, tokens),
        tokens=tokens,
        images=[_image(*item, image_folder) for item in enumerate(() if images is None else images)],
        score=score,
        missing=_renamed(values),
    )


def _renamed(values: Mapping[str, Any]) -> str:
    """Names what `merge` renamed because both frames had it: it would be missing here without a word."""
    renamed = [f"{name} (there is {name}_x)" for name in _SAID if name not in values and f"{name}_x" in values]
    if not renamed:
        return ""
    return (
        f"this row lacks {', '.join(renamed)}: merged with a frame that has columns of these names, too; leave those "
        'out there, as frame.join(samples.drop(columns=frame.columns, errors="ignore")) does'
    )


def _value(values: Mapping[str, Any], name: str) -> Any:
    """The value of a column; None where it is null, which pandas may have as NaN."""
    value = values.get(name)
    return None if value is None or (isinstance(value, float) and value != value) else value


def _image(number: int, image: Any, folder: Location | None) -> tuple[str, Image.Image | str]:
    """Of a path and bytes, as shards have them, or of what `datasets` makes of these."""
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "") or number), image.convert("RGB")
    if own := image.get("folder"):  # Of a frame whose image paths start in several places.
        folder = location(own)
    reference = ImageRef(data=image.get("bytes"), path=image.get("path"))
    ((name, found),) = row_images([reference], folder)
    if isinstance(found, str) and "bytes" not in image and (folder is None or not reference.path):
        return (
            reference.path or str(number),
            "left out of this row; load_annotated with 'images' among columns= has it where the shards do",
        )
    return name, found
