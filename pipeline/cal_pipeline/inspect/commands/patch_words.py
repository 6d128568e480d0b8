"""Draws the nearest words of each patch of an image, for one LLaVA-type checkpoint or two side by side (CAL, Fig. 6).

    cal-inspect patch-words annotated/ --sample "#0" --output words.png
    cal-inspect patch-words annotated/ --sample "#0" --model_name_or_path before/ after/ --output words.svg
    cal-inspect patch-words annotated/ --sample "#0" --output words.pdf --csv words.csv --top 5

Nearest is the token whose input embedding has the highest cosine with the patch after the projector; special tokens and
tokens that spell nothing are left out. LLaVA-NeXT: the patches of the whole image, not those of its tiles.
"""

from __future__ import annotations

import argparse
import csv
from typing import Any

import numpy as np

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.samples import sample_with_image
from cal_schemas.storage.locations import Location

_MAX_DRAWN = 24
"""Patches a side that still have room for a word; larger grids are drawn larger."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect patch-words`."""
    flags.add_checkpoints(parser)
    parser.add_argument(
        "--top", type=flags.at_least(1), default=3, help="words of each patch in --csv (default 3); one is drawn"
    )
    parser.add_argument("--csv", type=flags.place, metavar="FILE", help="also write row, column, rank, word, cosine")


def run(arguments: argparse.Namespace) -> int:
    """Draws the words over the image; 0."""
    target = flags.new_file(arguments.output, *flags.FIGURE_SUFFIXES)
    table_target = flags.new_file(arguments.csv, ".csv") if arguments.csv else None
    panels = []
    dataset = open_paths(arguments.annotated)
    row = sample_with_image(dataset, arguments.sample, arguments.image_folder)
    # Torch and the models' code take seconds to import: after what can be refused without them.
    from cal_pipeline.inspect.with_model.checkpoints import encoded_views
    from cal_pipeline.inspect.with_model.visualization import nameable_words, patch_words

    for view in encoded_views(dataset, row, arguments, attn_implementation="sdpa"):
        tokenizer = view.encoder.processor.tokenizer
        vocabulary = nameable_words(view.model, tokenizer)
        top = min(arguments.top, len(vocabulary))
        ids, cosines = patch_words(view.model, view.encoded, vocabulary=vocabulary, top=top)
        words = np.array([[tokenizer.decode([token]).strip() for token in row] for row in ids.tolist()], object)
        panels.append({"name": view.name, "words": words, "cosines": cosines, "side": view.tokens.grid_side,
                      "image": view.tokens.image})  # fmt: skip
        print(f"{view.name}: {len(set(words[:, 0]))} different words for {len(words)} patches, "  # noqa: T201
              f"mean cosine {cosines[:, 0].mean():.3f}")  # fmt: skip
    draw(panels, target)
    print(f"words: {target}")  # noqa: T201
    if table_target:
        write_table(panels, table_target)
    return 0


def draw(panels: list[dict[str, Any]], target: Location) -> None:
    """One panel for each checkpoint: the image, dimmed, with the nearest word in each patch."""
    from matplotlib.patheffects import withStroke

    side = max(item["side"] for item in panels)
    size = max(5.0, 0.55 * side)
    from cal_pipeline.inspect.page import plots

    figure, axes = plots.panels(len(panels), width=size, height=size + 0.4)
    for one, item in zip(axes, panels, strict=True):
        grid = item["side"]
        one.imshow(item["image"].resize((336, 336)), extent=(0, grid, grid, 0), alpha=0.45)
        for patch, word in enumerate(item["words"][:, 0]):
            row, column = divmod(patch, grid)
            # Long words are cut to stay in their cell.
            text = word if len(word) < 12 else word[:10] + ".."
            one.text(column + 0.5, row + 0.5, text, ha="center", va="center",
                     fontsize=6 if grid > _MAX_DRAWN // 3 else 11,
                     path_effects=[withStroke(linewidth=2, foreground="white")])  # fmt: skip
        for line in range(grid + 1):
            one.plot([0, grid], [line, line], [line, line], [0, grid], color="white", linewidth=0.4)
        one.set_title(f"{item['name']}: mean cosine {item['cosines'][:, 0].mean():.3f}", fontsize=10)
    plots.save(figure, target)


def write_table(panels: list[dict[str, Any]], target: Location) -> None:
    """One line for each checkpoint, patch and rank."""
    with flags.written(target) as path, path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["checkpoint", "row", "column", "rank", "word", "cosine"])
        for item in panels:
            for patch, (words, cosines) in enumerate(zip(item["words"], item["cosines"], strict=True)):
                for rank, (word, cosine) in enumerate(zip(words, cosines, strict=True), 1):
                    table.writerow([item["name"], *divmod(patch, item["side"]), rank, word, f"{cosine:.5f}"])
