"""One sample in front of one or two LLaVA-type checkpoints: what `attention` and `patch-words` have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.samples import find_samples
from cal_pipeline.output.row_reader import read_rows
from cal_schemas.errors import ConfigError

if TYPE_CHECKING:
    from cal_pipeline.encoding.encoded import EncodedSample
    from cal_pipeline.encoding.encoder import Encoder
    from cal_pipeline.inspect.with_model.image_tokens import PictureTokens

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """A checkpoint with the sample encoded by its own processor."""

    name: str
    model: Any
    encoder: Encoder
    encoded: EncodedSample
    tokens: PictureTokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """ANNOTATED..., --sample, --model_name_or_path and how to load it."""
    flags.add_annotated(parser)
    parser.add_argument("--sample", required=True, help="sample_id, sample_key, or #N for row N of all")
    parser.add_argument(
        "--model_name_or_path", nargs="+", metavar="MODEL",
        help="one checkpoint, or two side by side (before and after training); default the reference",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .png, .svg or .pdf")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the model")
    parser.add_argument("--device", help="cuda or cpu; default cuda where there is one")
    parser.add_argument(
        "--image_folder", type=Path, metavar="DIR", help="where image paths start, if not where they did"
    )


def sights(arguments: argparse.Namespace, *, attn_implementation: str) -> Iterator[Sight]:
    """Each checkpoint in turn, so that one model is held at a time.

    Raises ConfigError for more than two, a model that is no LLaVA type, or a sample without exactly one image.
    """
    dataset = open_paths(arguments.annotated)
    place = find_samples(dataset, arguments.sample)[0]
    row = next(read_rows(dataset, [place.number], arguments.image_folder))
    if len(row.sample.images) != 1:
        raise ConfigError(
            f"{row.sample.sample_id} has {len(row.sample.images)} images; this look is for samples with one"
        )
    from transformers.utils.logging import disable_progress_bar

    from cal_pipeline.encoding.identity import rebuild_encoder
    from cal_pipeline.inspect.with_model.image_tokens import check_places, picture_tokens
    from cal_pipeline.inspect.with_model.resolve_reference import find_reference
    from cal_pipeline.models.directory import model_directory
    from cal_pipeline.models.loading import load_config, load_processor, load_reference
    from cal_pipeline.sources.images import decode_images

    disable_progress_bar()
    if arguments.model_name_or_path:
        if len(arguments.model_name_or_path) > 2:
            raise ConfigError(f"--model_name_or_path: two checkpoints at most, got {len(arguments.model_name_or_path)}")
        directories = [model_directory(name) for name in arguments.model_name_or_path]
    else:
        directories = [find_reference(arguments.annotated, dataset.spec)]
    for directory in directories:  # all of them before the first is loaded
        check_places(load_config(directory), str(directory))
    pictures = decode_images(row.image_files())
    for directory in directories:
        processor = load_processor(directory)
        encoder = rebuild_encoder(dataset.spec, processor)
        encoded = encoder(row.sample, pictures)
        model = load_reference(
            directory, dtype=arguments.dtype, attn_implementation=attn_implementation, device=arguments.device
        )
        yield Sight(
            name=directory.resolve().name,
            model=model,
            encoder=encoder,
            encoded=encoded,
            tokens=picture_tokens(model, processor, encoded),
        )


def figure_of(panels: int, width: float = 4.2, height: float = 4.6) -> Any:
    """A figure and its row of axes without ticks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.set_axis_off()
    return figure, axes
