"""Makes other images in place of the image: the paper's patch mask and gaussian blur, before the processor.

A perturbed image has the size of its source, so ids, positions and labels of the first pass serve the second. All
pixels here are those of the image as stored, before padding, resizing or tiling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_schemas.errors import ContrastError, SampleError
from cal_schemas.sample import Sample
from cal_schemas.spec import PATCH_COLUMNS, PATCH_ROWS, Condition, ContrastSpec

FILL = (127, 127, 127)
"""Of masked cells. Mid grey is near 0 after every family's normalisation, and the same for all of them."""
_TRUNCATE = 4.0
_CHUNK_VALUES = 2**21


def perturbed(image: Image.Image, contrast: ContrastSpec, sample_key: str, number: int) -> Image.Image:
    """The image of the second pass, RGB, of the same size.

    Args:
        image: of any mode; image `number` of its sample.
        contrast: one whose condition perturbs.
        sample_key: with `number` the seed of what is drawn, so that a rerun, and training, perturb alike.
        number: position among the sample's images.
    """
    return PERTURBATIONS[contrast.condition](image, contrast.parameter, f"{sample_key}/{number}")


def mask_patches(image: Image.Image, ratio: float, seed: str) -> Image.Image:
    """The image with round(ratio * cells) cells of a grid painted in FILL, at least one.

    The grid has 10 columns and 20 rows; an image with fewer pixels than that on a side has one cell a pixel there.
    Cells are ranked by a hash of `seed`: the same on every machine, and a larger ratio masks what a smaller one does
    and more.
    """
    pixels = np.array(image.convert("RGB"))
    height, width = pixels.shape[:2]
    columns, rows = min(PATCH_COLUMNS, width), min(PATCH_ROWS, height)
    stream = hashlib.shake_256(seed.encode()).digest(8 * columns * rows)
    ranked = np.argsort(np.frombuffer(stream, "<u8"), kind="stable")
    masked = np.zeros(columns * rows, bool)
    masked[ranked[: max(1, round(ratio * columns * rows))]] = True
    # Cell c covers pixels [c * width // columns, (c + 1) * width // columns).
    column_of = ((np.arange(width) + 1) * columns - 1) // width
    row_of = ((np.arange(height) + 1) * rows - 1) // height
    pixels[masked.reshape(rows, columns)[row_of][:, column_of]] = FILL
    return Image.fromarray(pixels)


def gaussian_blur(image: Image.Image, sigma: float) -> Image.Image:
    """The image convolved with a gaussian of `sigma` pixels, on values as stored, rounded to whole levels.

    A sampled kernel cut at 4 sigma, borders mirrored (… b a | a b c …), which keeps the mean of each channel. Pillow's
    own GaussianBlur is three box filters. By FFT of the mirrored lines, so the time does not depend on sigma.
    """
    pixels = np.asarray(image.convert("RGB"))
    blurred = np.empty_like(pixels)
    for channel in range(3):
        plane = pixels[..., channel].astype(np.float32)
        _blur_lines(plane, sigma)
        _blur_lines(plane.T, sigma)
        blurred[..., channel] = np.rint(plane.clip(0, 255)).astype(np.uint8)
    return Image.fromarray(blurred)


def _blur_lines(lines: np.ndarray, sigma: float) -> None:
    """Blurs [L, n] float32 along its last axis, in place; a few lines at a time, in float64."""
    period = 2 * lines.shape[1]  # of a line and its mirror image
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = np.bincount(offsets % period, weights / weights.sum(), minlength=period)
    response = np.fft.rfft(kernel)
    step = max(1, _CHUNK_VALUES // period)
    for start in range(0, len(lines), step):
        part = lines[start : start + step]
        mirrored = np.concatenate([part, part[:, ::-1]], axis=1, dtype=np.float64)
        part[:] = np.fft.irfft(np.fft.rfft(mirrored) * response, period)[:, : lines.shape[1]]


PERTURBATIONS: dict[Condition, Callable[[Image.Image, Any, str], Image.Image]] = {
    "patch_mask": mask_patches,
    "gaussian_blur": lambda image, sigma, _seed: gaussian_blur(image, sigma),
}
"""Of each condition that perturbs: its image from the image, the value of its parameter (None without) and a seed."""


def encode_with_contrast(
    encoder: Encoder, contrast: ContrastSpec, sample: Sample, images: Sequence[Image.Image], sample_key: str
) -> EncodedSample:
    """`encoder(sample, images)`; under a condition that perturbs also the pixel inputs of the perturbed images.

    Raises ContrastError when the processor gives the perturbed images other tokens or shapes than the images.
    """
    encoded = encoder(sample, images)
    if not contrast.perturbs or not images:
        return encoded
    try:
        changed = encoder(sample, [perturbed(image, contrast, sample_key, i) for i, image in enumerate(images)])
    except SampleError as error:
        raise ContrastError(f"contrast {contrast.condition}: the perturbed image cannot be encoded: {error}") from error
    for name, ids in encoded.sequence_inputs.items():
        if ids.tolist() != changed.sequence_inputs[name].tolist():
            raise ContrastError(
                f"contrast {contrast.condition}: the processor makes other tokens of the perturbed image "
                f"({changed.num_tokens} instead of {encoded.num_tokens}, {name} differ), so the two passes cannot be "
                "compared"
            )
    shapes, changed_shapes = (
        {key: tuple(value.shape) for key, value in item.image_inputs.items()} for item in (encoded, changed)
    )
    if shapes != changed_shapes:
        raise ContrastError(
            f"contrast {contrast.condition}: the processor makes pixels of other shapes of the perturbed image "
            f"({changed_shapes} instead of {shapes})"
        )
    return replace(encoded, contrast_inputs=changed.image_inputs)
