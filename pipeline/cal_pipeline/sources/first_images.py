"""Looks at a few images before work, so that a wrong `--image_folder` ends the run and not each of its rows."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from cal_pipeline.sources.compression import is_compressed
from cal_pipeline.sources.images import DEFAULT_MAX_IMAGE_PIXELS, decode_image, read_image_file
from cal_pipeline.sources.shard import Shard, read_samples
from cal_schemas.errors import CalError, ConfigError, ImageError, ShardError
from cal_schemas.sample import ImageRef
from cal_schemas.storage.locations import Location, location

_LOOKED_AT = 8
_SHARDS = 4
_FIRST_ROWS = 256
"""Of a shard; a source whose first rows are all of text is looked at no further."""
_FOLDERS_TRIED = 100
_log = logging.getLogger(__name__)


def look_at_images(shards: Sequence[Shard], *, max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS) -> None:
    """Opens up to eight images of each data path that are named by path, through the way that workers take.

    Raises ConfigError where none of them can be read, with both paths and the way out; warns where some cannot, or none
    can be decoded.
    """
    of_path: dict[str, list[Shard]] = {}
    for shard in shards:
        if shard.source.image_folder is not None and shard.problem is None:
            of_path.setdefault(shard.source.data_path, []).append(shard)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # As in the workers: its chatter on odd metadata.
        for data_path, of_this_path in of_path.items():
            _look(data_path, spread(of_this_path), max_image_pixels)


def _look(data_path: str, shards: Sequence[Shard], max_image_pixels: int) -> None:
    missed: list[tuple[str, Location, CalError]] = []
    spoilt: list[CalError] = []
    looked_at = 0
    for shard in shards:
        folder = location(str(shard.source.image_folder))
        for ref in islice(_named_images(shard), min(-(-_LOOKED_AT // len(shards)), _LOOKED_AT - looked_at)):
            looked_at += 1
            try:
                data = read_image_file(ref, folder)
            except (ImageError, ShardError) as error:
                missed.append((str(ref.path), folder, error))
                continue
            try:
                decode_image(data, max_image_pixels)
            except (ImageError, ShardError) as error:
                spoilt.append(error)
    if missed and len(missed) == looked_at:
        path, folder, reason = missed[0]
        raise ConfigError(
            f"--data_path {data_path}: none of the {looked_at} images looked at can be read. The first is {path!r}, "
            f"and with --image_folder {folder} that is {folder / path}: {reason}{_elsewhere(folder, path)}"
        )
    if missed:
        _log.warning("%s: %d of %d images looked at cannot be read; the first: %s", data_path, len(missed), looked_at,
                     missed[0][2])  # fmt: skip
    elif spoilt and len(spoilt) == looked_at:
        _log.warning("%s: none of %d images looked at can be decoded; the first: %s", data_path, looked_at, spoilt[0])


def spread(shards: Sequence[Shard]) -> list[Shard]:
    """A few shards from all over the data, that cost little to open: no stream is decompressed up to its middle."""
    cheap = [shard for shard in shards if not shard.byte_start or not is_compressed(location(shard.source.uri))]
    return cheap[:: max(1, -(-len(cheap) // _SHARDS))]


def _named_images(shard: Shard) -> Iterator[ImageRef]:
    """Images of its first rows that are named and not embedded, one a row."""
    if shard.embedded_bytes and not shard.byte_stop:
        return  # A file read by columns, which holds its images: they would be read to see that they are there.
    try:
        for sample in islice(read_samples(shard), _FIRST_ROWS):
            if named := next((ref for ref in sample.images if ref.data is None and ref.path), None):
                yield named
    except ShardError as error:
        _log.warning("%s: no image was looked at: %s", shard.name, error)  # Its worker will say so too.


def _elsewhere(folder: Location, path: str) -> str:
    """Names a folder nearby that has the image, if one does."""
    if not isinstance(folder, Path) or Path(path).is_absolute():
        return ""
    try:
        below = [place for place in islice(folder.iterdir(), _FOLDERS_TRIED) if place.is_dir()]
        nearby = (*folder.parents, *below)
        holder = next((place for place in nearby if (place / path).is_file()), None)
    except (OSError, ValueError):
        return ""
    return "" if holder is None else f". It lies in {holder}: give --image_folder {holder}"
