"""Writes perturbed images beside their sources, for people to look at."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress

from PIL import Image

from cal_pipeline.encoding.perturbation import perturbed
from cal_pipeline.sources.images import decode_image, read_image_file
from cal_pipeline.sources.shard import Shard, read_samples
from cal_schemas.errors import SampleError, ShardError
from cal_schemas.sample import sample_key
from cal_schemas.spec import ContrastSpec
from cal_schemas.storage.locations import Location, location


def save_contrast_images(
    shards: Sequence[Shard], contrast: ContrastSpec, folder: Location, *, count: int, max_image_pixels: int
) -> int:
    """Writes the first `count` readable images of the plan and what the second pass sees of them; returns how many.

    `<number>-<sample key>-<image>.png` and the same name with the condition: the very images that are measured.
    Those of an earlier run are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier: list[Location] = [*folder.glob("*.png")]
    for path in earlier:
        path.unlink()
    written = 0
    for key, number, original in _images(shards, max_image_pixels):
        if written == count:
            break
        name = f"{written:04d}-{key}-{number}"
        _save(original, folder / f"{name}.png")
        changed = perturbed(original, contrast, key, number)
        _save(changed, folder / f"{name}-{contrast.describe().replace(' ', '-')}.png")
        written += 1
    return written


def _save(original: Image.Image, path: Location) -> None:
    file = io.BytesIO()
    original.save(file, "PNG")
    path.write_bytes(file.getvalue())


def _images(shards: Sequence[Shard], max_image_pixels: int) -> Iterator[tuple[str, int, Image.Image]]:
    """Sample key, place in the sample, and image, in the order of the plan.

    Bad images and damaged files are passed over: the measurement says what is wrong with them.
    """
    for shard in shards:
        folder = None if shard.source.image_folder is None else location(shard.source.image_folder)
        with suppress(ShardError):
            for sample in read_samples(shard):
                for number, image in enumerate(sample.images):
                    with suppress(SampleError):
                        original = decode_image(read_image_file(image, folder), max_image_pixels)
                        yield sample_key(sample), number, original
