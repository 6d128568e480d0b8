"""Shows one sample: its image, and its words shaded by score or weight, in the terminal or as one HTML file.

    cal-inspect show annotated/ "#0" --tokenizer llava-hf/llava-1.5-7b-hf
    cal-inspect show annotated/ "#0" --tokenizer llava-hf/llava-1.5-7b-hf --preset vppo --by weight
    cal-inspect show annotated/ "#17" --tokenizer llava-hf/llava-1.5-7b-hf --output sample.html

SAMPLE is a sample_id, a sample_key, or #N for row N. Blue: the image speaks for the word; red: against it; of scores
that are no differences, such as kl: the more, the bluer. A character that several tokens share has the shade of the
most extreme one.
"""

from __future__ import annotations

import argparse

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.page.sample import shown_sample
from cal_pipeline.inspect.page.sample_html import sample_page
from cal_pipeline.inspect.page.sample_text import print_sample, terminal_svg
from cal_pipeline.inspect.page.shading import Shading
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.samples import find_samples
from cal_pipeline.inspect.tables.weighting import weighting_of
from cal_schemas.counted import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect show`."""
    flags.add_annotated(parser)
    parser.add_argument("sample", metavar="SAMPLE", help="sample_id, sample_key, or #N for row N of all")
    flags.add_tokenizer(parser)
    flags.add_weighting(parser)
    parser.add_argument("--by", choices=["score", "weight"], default="score", help="what the shade tells")
    flags.add_image_folder(parser)
    parser.add_argument(
        "--output", type=flags.place, metavar="FILE", help=".html: a page; .svg: the terminal as an image"
    )
    parser.add_argument("--color", choices=["auto", "always", "never"], default="auto", help="of the terminal")
    parser.add_argument(
        "--limit", type=flags.at_least(1), default=5, help="of rows with one id, how many are shown (default 5)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Shows every row with this id; 0."""
    path = flags.new_file(arguments.output, ".html", ".htm", ".svg") if arguments.output else None
    opened = open_paths(arguments.annotated)
    weighting = weighting_of(arguments, opened)
    places = find_samples(opened, arguments.sample)
    shown = [
        shown_sample(opened, place, tokenizer=arguments.tokenizer, image_folder=arguments.image_folder, **weighting)
        for place in places[: arguments.limit]
    ]
    shading = Shading.of(arguments.by, (token for item in shown for token in item.tokens), **weighting)
    if path:
        write = terminal_svg if path.suffix.lower() == ".svg" else sample_page
        flags.write_text(path, write(shown, shading))
        flags.say(f"{path}: {counted(len(shown), 'row')}")
    else:
        terminal = flags.console(arguments.color)
        for item in shown:
            print_sample(terminal, item, shading)
    if len(places) > len(shown):
        flags.say(
            f"{len(places)} rows have this id, {len(shown)} are shown: raise --limit, or ask for a sample_key or #N"
        )
    return 0
