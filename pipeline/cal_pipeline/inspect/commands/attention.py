"""Draws where in the image the words of a sample attend to, for one LLaVA-type checkpoint or two (CAL, Fig. 5).

    cal-inspect attention annotated/ --sample "#0" --output attention.png
    cal-inspect attention annotated/ --sample "#0" --model_name_or_path before/ after/ --output attention.svg
    cal-inspect attention annotated/ --sample "#0" --queries text --output attention.pdf

The map is the attention from text tokens to image tokens: mean over heads and over the text tokens, summed over layers,
each token's value spread over its patch (LLaVA-NeXT: over the patch of the whole image and those of the tiles).
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.samples import sample_with_image
from cal_schemas.storage.locations import Location

_SIDE = 336


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect attention`."""
    flags.add_checkpoints(parser)
    parser.add_argument(
        "--queries", choices=["answer", "text"], default="answer",
        help="whose attention: the supervised tokens', or that of all text behind the image (default answer)",
    )  # fmt: skip
    parser.add_argument("--json", type=flags.place, metavar="FILE", help="also write the values of the patches")


def run(arguments: argparse.Namespace) -> int:
    """Draws the maps; 0."""
    target = flags.new_file(arguments.output, *flags.FIGURE_SUFFIXES)
    values_target = flags.new_file(arguments.json, ".json") if arguments.json else None
    maps: list[dict[str, Any]] = []
    written = []
    dataset = open_paths(arguments.annotated)
    row = sample_with_image(dataset, arguments.sample, arguments.image_folder)
    # Torch and the models' code take seconds to import: after what can be refused without them.
    from cal_pipeline.inspect.with_model.checkpoints import encoded_views
    from cal_pipeline.inspect.with_model.visualization import image_attention

    for view in encoded_views(dataset, row, arguments, attn_implementation="eager"):
        values, share = image_attention(view.model, view.encoder, view.encoded, arguments.queries)
        heat = view.tokens.heat(values, _SIDE)
        maps.append({"name": view.name, "share": share, "heat": heat, "image": view.tokens.image})
        patches = [
            {"box": None if np.isnan(box).any() else box.tolist(), "attention": float(value)}
            for value, box in zip(values, view.tokens.boxes, strict=True)
        ]
        written.append({"name": view.name, "share": share, "patches": patches})
        print(f"{view.name}: {share:.1%} of the attention goes to the image")  # noqa: T201
    draw(maps, target)
    print(f"map: {target}")  # noqa: T201
    if values_target:
        flags.write_text(values_target, json.dumps(written, indent=1) + "\n")
    return 0


def draw(maps: list[dict[str, Any]], target: Location) -> None:
    """The image, and beside it one map for each checkpoint on the same scale of colours."""
    from cal_pipeline.inspect.page import plots

    figure, axes = plots.panels(1 + len(maps))
    axes[0].imshow(maps[0]["image"].resize((_SIDE, _SIDE)))
    axes[0].set_title("the image as the model sees it", fontsize=10)
    top = max(float(item["heat"].max()) for item in maps)
    for one, item in zip(axes[1:], maps, strict=True):
        one.imshow(np.asarray(item["image"].convert("L").resize((_SIDE, _SIDE))), cmap="gray", vmin=0, vmax=255)
        drawn = one.imshow(item["heat"], cmap="inferno", alpha=0.65, vmin=0.0, vmax=top)
        one.set_title(f"{item['name']}: {item['share']:.1%} of attention", fontsize=10)
    bar = figure.colorbar(drawn, ax=list(axes[1:]), shrink=0.75, ticks=[0.0, top])
    bar.ax.set_yticklabels(["none", "most"])
    assert bar.solids is not None
    bar.solids.set_alpha(1.0)
    plots.save(figure, target)
