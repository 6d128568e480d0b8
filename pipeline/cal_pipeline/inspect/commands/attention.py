"""Where in the image the words of a sample attend to, for one LLaVA-type checkpoint or two (CAL, Fig. 5).

    cal-inspect attention annotated/ --sample 000123 --model_name_or_path before/ after/ --output attention.png

The map is the attention from text tokens to image tokens: mean over heads and over the text tokens, summed over layers,
each token's value spread over its patch (LLaVA-NeXT: over the patch of the whole image and those of the tiles).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.with_model import checkpoints

_SIDE = 336


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect attention`."""
    checkpoints.add_arguments(parser)
    parser.add_argument(
        "--queries", choices=["answer", "text"], default="answer",
        help="whose attention: the supervised tokens', or that of all text behind the image (default answer)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the values of the patches")


def run(arguments: argparse.Namespace) -> int:
    """Draws the maps; 0."""
    target = flags.new_file(arguments.output, *checkpoints.FIGURE_SUFFIXES)
    values_target = flags.new_file(arguments.json, ".json") if arguments.json else None
    maps: list[dict[str, Any]] = []
    for sight in checkpoints.sights(arguments, attn_implementation="eager"):
        from cal_pipeline.inspect.with_model.visualization import image_attention

        values, share = image_attention(sight.model, sight.encoder, sight.encoded, arguments.queries)
        heat = sight.tokens.heat(values, _SIDE)
        maps.append({"name": sight.name, "share": share, "heat": heat, "picture": sight.tokens.picture,
                     "values": values, "boxes": sight.tokens.boxes})  # fmt: skip
        print(f"{sight.name}: {share:.1%} of the attention goes to the image")  # noqa: T201
    draw(maps, target)
    print(f"map: {target}")  # noqa: T201
    if values_target:
        written = [
            {
                "name": item["name"],
                "share": item["share"],
                "patches": [
                    {"box": None if np.isnan(box).any() else box.tolist(), "attention": float(value)}
                    for value, box in zip(item["values"], item["boxes"], strict=True)
                ],
            }
            for item in maps
        ]
        values_target.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


def draw(maps: list[dict[str, Any]], target: Path) -> None:
    """The image, and beside it one map for each checkpoint on the same scale of colours."""
    figure, axes = checkpoints.figure_of(1 + len(maps))
    axes[0].imshow(maps[0]["picture"].resize((_SIDE, _SIDE)))
    axes[0].set_title("the image as the model sees it", fontsize=10)
    top = max(float(item["heat"].max()) for item in maps)
    for one, item in zip(axes[1:], maps, strict=True):
        one.imshow(np.asarray(item["picture"].convert("L").resize((_SIDE, _SIDE))), cmap="gray", vmin=0, vmax=255)
        drawn = one.imshow(item["heat"], cmap="inferno", alpha=0.65, vmin=0.0, vmax=top)
        one.set_title(f"{item['name']}: {item['share']:.1%} of attention", fontsize=10)
    bar = figure.colorbar(drawn, ax=list(axes[1:]), shrink=0.75, ticks=[0.0, top])
    bar.ax.set_yticklabels(["none", "most"])
    bar.solids.set_alpha(1.0)
    figure.savefig(target, dpi=110)
