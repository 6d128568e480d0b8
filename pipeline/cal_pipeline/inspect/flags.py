"""Adds and reads the flags that several subcommands share."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console, OverflowMethod
from rich.table import Table

from cal_pipeline.console import open_console
from cal_schemas.errors import CalError, ConfigError
from cal_schemas.presets import Preset
from cal_schemas.scores import Score
from cal_schemas.storage.locations import Location, location
from cal_schemas.storage.object_path import ObjectPath

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
WIDTH = 140


def place(text: str) -> Location:
    """`type` of a flag that names a file or directory: a path, or a URL of a store."""
    try:
        return location(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def local_place(text: str) -> Path:
    """`type` of a flag that names what can only be on a local disk."""
    if isinstance(found := place(text), Path):
        return found
    raise argparse.ArgumentTypeError(
        f"{text}: this is written to local disks only; name a path, and copy it from there"
    )


def add_annotated(parser: argparse.ArgumentParser) -> None:
    """ANNOTATED..., one or more shards or directories of one measurement."""
    parser.add_argument(
        "annotated", type=place, nargs="+", metavar="ANNOTATED",
        help="directory of annotated shards, or a shard; several are taken as one",
    )  # fmt: skip


def add_score(parser: argparse._ActionsContainer) -> None:
    """--score; read with `score_of`."""
    parser.add_argument(
        "--score", choices=get_args(Score), metavar="NAME", help="shown of a token and weighed (default delta_logit)"
    )


def add_weighting(parser: argparse.ArgumentParser, *, pool: bool = True) -> None:
    """--preset --score --map --alpha --beta --window --pool, as cal-train has them; read with `weighting_of`."""
    weights = parser.add_argument_group("weights")
    weights.add_argument("--preset", choices=get_args(Preset), metavar="NAME", help="a paper's score, map and bounds")
    add_score(weights)
    weights.add_argument("--map", metavar="NAME[=X]", help="of scores to weights (default clamp)")
    weights.add_argument("--alpha", type=float, help="lower bound (default: the map's; clamp 1)")
    weights.add_argument("--beta", type=float, help="upper bound (default: the map's; clamp 5)")
    weights.add_argument("--window", type=int, help="tokens averaged (default: the map's; clamp 3)")
    if pool:
        weights.add_argument("--pool", choices=["span", "joined"], help="which tokens are neighbours (default span)")


def add_tokenizer(parser: argparse.ArgumentParser) -> None:
    """--tokenizer; read with `token_text.pieces_of_measurement`."""
    parser.add_argument(
        "--tokenizer", metavar="DIR",
        help="directory or hub id of the reference (its tokenizer.json is read); not needed when it was a hub id",
    )  # fmt: skip


def add_image_folder(parser: argparse.ArgumentParser) -> None:
    """--image_folder, where an annotated directory's images lie now."""
    parser.add_argument(
        "--image_folder", type=place, metavar="DIR", help="where image paths start, if not where they did"
    )


def add_ids_from(parser: argparse.ArgumentParser) -> None:
    """--ids_from, a file that names rows; read with `named_rows`."""
    parser.add_argument(
        "--ids_from", type=place, metavar="FILE",
        help="only these rows: a sample_id or sample_key a line, or a .csv or .parquet with columns of these names",
    )  # fmt: skip


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """ANNOTATED..., --sample, --model_name_or_path and how to load it; read with `checkpoints.encoded_views`."""
    add_annotated(parser)
    parser.add_argument("--sample", required=True, help="sample_id, sample_key, or #N for row N of all")
    parser.add_argument(
        "--model_name_or_path", nargs="+", metavar="MODEL",
        help="one checkpoint, or two side by side (before and after training); default the reference",
    )  # fmt: skip
    parser.add_argument("--output", type=place, required=True, metavar="FILE", help="a .png, .svg or .pdf")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the model")
    parser.add_argument("--device", help="cuda or cpu; default cuda where there is one")
    add_image_folder(parser)


def at_least(minimum: int) -> Callable[[str], int]:
    """`type` of a flag that takes whole numbers from `minimum` on."""

    def number(text: str) -> int:
        if (value := int(text)) < minimum:
            raise argparse.ArgumentTypeError(f"must be {minimum} or more, got {text}")
        return value

    return number


def console(color: Literal["auto", "always", "never"] = "auto") -> Console:
    """As `open_console`, wide enough for tables where nobody says how wide a line is (a pipe, a file)."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH
    return open_console(color, width=width)


def say(text: str) -> None:
    """Prints a line, at once."""
    print(text, flush=True)  # noqa: T201


def table(
    *headings: str, left: Collection[str], title: str | None = None, overflow: OverflowMethod = "ellipsis"
) -> Table:
    """A table without lines; columns stand at the right but for those in `left`."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="left" if heading in left else "right", overflow=overflow)
    return made


def new_file(path: Location, *suffixes: str) -> Location:
    """`path` with its directory made; ConfigError for another suffix or a place that cannot be written.

    Of a store's only the bucket is asked for; StoreError where it does not answer.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{path} is a directory, give the name of a file")
    if isinstance(path, ObjectPath):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):  # Found out now, not after an hour of measuring.
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    return path


@contextmanager
def new_directory(output: Path, *, flag: str = "--output") -> Iterator[Path]:
    """A local directory to fill, which becomes `output` in one step; ConfigError where that holds something already."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{flag} {output} is there already; give a new directory")
    partial = output.absolute().with_name(f".{output.absolute().name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except OSError as error:
        raise ConfigError(f"{flag} {output} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def written(target: Location) -> Iterator[Path]:
    """A local file to write, of the same suffix; when it is whole, it becomes `target` in one step.

    Raises ConfigError where it cannot be written (a full disk), StoreError where a store does not take it.
    """
    try:
        if isinstance(target, Path):
            partial = target.with_name(f".{target.stem}.partial{target.suffix}")
            try:
                yield partial
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / target.name
            target.upload(Path(folder) / target.name, if_absent=False)
    except OSError as error:
        if isinstance(error, CalError):
            raise
        raise ConfigError(f"{target} cannot be written: {error}") from error


def write_text(target: Location, text: str) -> None:
    """The same of a whole text."""
    with written(target) as file:
        file.write_text(text, encoding="utf-8")
