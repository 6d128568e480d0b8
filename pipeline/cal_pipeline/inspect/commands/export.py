"""Writes per-token weights for other trainers, or a sheet for people to mark.

    cal-inspect export annotated/ --to messages-jsonl --model_name_or_path llava-hf/llava-1.5-7b-hf --output weights/
    cal-inspect export annotated/ --to hf-dataset --model_name_or_path llava-hf/llava-1.5-7b-hf --output dataset/
    cal-inspect export annotated/ --to labelling-sheet --num_samples 100 --output sheet/

The first two encode every usable row again, with MODEL's processor and the flags of the measurement, and refuse labels
other than the measured ones. Columns: sample_id, sample_key, messages, template_inputs, images, input_ids, labels (-100
where nothing is supervised), loss_weights (0 there). What is lost is in docs/inspecting.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.weighting import weighting_of
from cal_pipeline.sources.images import DEFAULT_MAX_IMAGE_PIXELS
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.scores import DEFAULT_SCORE

FORMATS = ("messages-jsonl", "hf-dataset", "labelling-sheet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect export`."""
    flags.add_annotated(parser)
    flags.add_weighting(parser)
    flags.add_ids_from(parser)
    parser.add_argument("--to", choices=FORMATS, required=True, help="what to write")
    parser.add_argument("--output", type=flags.local_place, required=True, metavar="DIR", help="new directory")
    parser.add_argument("--model_name_or_path", help="whose processor encodes (not for labelling-sheet)")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    flags.add_image_folder(parser)
    parser.add_argument("--max_image_pixels", type=int, default=DEFAULT_MAX_IMAGE_PIXELS, help="as in cal-precompute")
    parser.add_argument(
        "--num_samples", type=flags.at_least(1), default=100, help="of the labelling sheet (default 100)"
    )
    parser.add_argument("--seed", type=flags.at_least(0), default=0, help="of the labelling sheet's draw")


def run(arguments: argparse.Namespace) -> int:
    """Writes the directory in one step and says what is in it; 0."""
    opened = open_paths(arguments.annotated)
    arguments.weighting = weighting_of(arguments, opened)
    if "messages" not in opened.schema.names:
        raise ConfigError(
            "this is a sidecar (--carry none): it holds no messages and images to export; measure with "
            "--carry images or paths"
        )
    write = _writer(arguments)
    with flags.new_directory(arguments.output) as folder:
        said = write(opened, folder, arguments)
    print(f"{arguments.output}: {said}")  # noqa: T201
    return 0


def _writer(arguments: argparse.Namespace) -> Callable[[AnnotatedDataset, Path, argparse.Namespace], str]:
    if arguments.to == "labelling-sheet":
        if (score := arguments.weighting["score"]) != DEFAULT_SCORE or str(arguments.weighting["map"]) != "clamp":
            raise ConfigError(
                f"--to labelling-sheet scores samples by their deltas under map clamp, got score {score} and map "
                f"{arguments.weighting['map']}: leave --score, --map and --preset out"
            )
        from cal_pipeline.inspect.tables.labelling_sheet import write_sheet

        return write_sheet
    if not arguments.model_name_or_path:
        raise ConfigError(f"--to {arguments.to} encodes every row again: name the model with --model_name_or_path")
    # Only here torch is needed.
    from cal_pipeline.inspect.with_model import export_formats

    return {
        "messages-jsonl": export_formats.write_messages_jsonl,
        "hf-dataset": export_formats.write_hf_dataset,
    }[arguments.to]
