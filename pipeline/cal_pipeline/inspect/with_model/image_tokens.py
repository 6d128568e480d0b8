"""Places the image tokens of LLaVA-type models on the image, and shows the image as the model sees it.

For LLaVA (one square grid behind a projector), LLaVA-NeXT (the whole image as a grid, then tiles of it in finer
grids), and models whose config has a method `image_token_boxes` that says where their tokens lie. Coordinates are
shares of the image's height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.models.mini_gemini.configuration import grid_boxes
from cal_schemas.errors import ConfigError

LLAVA_TYPES = ("llava", "llava_next")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTokens:
    """The n image tokens of a sample's one image, in the order of the sequence."""

    boxes: np.ndarray
    """[n, 4] float64: top, left, bottom, right as shares of the image; NaN for tokens of no place (line ends)."""
    grid_side: int
    """The first grid_side ** 2 tokens are the grid of the whole image, row by row."""
    image: Image.Image
    """What the model's vision tower sees of the whole image."""

    def heat(self, values: np.ndarray, side: int = 336) -> np.ndarray:
        """[side, side] float64: a value per token [n] spread evenly over its box; the sum stays, line ends aside."""
        heat = np.zeros((side, side))
        for value, box in zip(values, self.boxes, strict=True):
            if not np.isnan(box).any():
                top, left, bottom, right = np.rint(box * side).astype(int)
                bottom, right = max(bottom, top + 1), max(right, left + 1)
                heat[top:bottom, left:right] += value / ((bottom - top) * (right - left))
        return heat


def check_places(config: Any, what: str) -> None:
    """ConfigError naming the reason for a model whose image tokens are no patches behind a projector."""
    if config.model_type not in LLAVA_TYPES and not hasattr(config, "image_token_boxes"):
        raise ConfigError(
            f"{what} holds a {config.model_type!r} model; this is for {', '.join(LLAVA_TYPES)} and models whose "
            "config says where their image tokens lie: patches of the image, one by one behind a projector. Others "
            "pool, merge or resample patches, so that no token is one place in the image"
        )


def image_tokens(model: Any, processor: Any, encoded: EncodedSample) -> ImageTokens:
    """Places of the image tokens of a sample with one image; ConfigError when the model has another number."""
    pixels = encoded.image_inputs["pixel_values"]
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    tokens = int(encoded.image_mask.sum())
    if hasattr(model.config, "image_token_boxes"):
        boxes = model.config.image_token_boxes()
        if not np.array_equal(boxes[: side * side], grid_boxes(side)):
            raise ConfigError("this model has no view of the whole image (image_global is off): nothing to draw on")
    elif model.config.model_type == "llava":
        boxes = grid_boxes(side)
    else:
        boxes = _tiled_boxes(model, pixels, encoded.image_inputs["image_sizes"], side)
    whole = pixels.flatten(0, -4)[0]  # of tiles the first is the whole image
    extra = tokens - len(boxes)
    if extra == 1 and model.config.vision_feature_select_strategy == "full":
        # The class token leads and is no place.
        boxes = np.concatenate([np.full((1, 4), np.nan), boxes])
    elif extra:
        raise ConfigError(
            f"the processor makes {tokens} image tokens of this image, and the model {len(boxes)} patches: "
            "are patch_size and vision_feature_select_strategy of both the same?"
        )
    return ImageTokens(boxes=boxes, grid_side=side, image=_seen(whole, processor.image_processor))


def _tiled_boxes(model: Any, pixels: Tensor, image_sizes: Tensor, side: int) -> np.ndarray:
    """The model itself arranges, unpads and flattens tiles: it is given coordinates in place of features."""
    num_tiles = pixels.shape[1]
    grid = torch.arange(side * side)
    coordinates = torch.stack([grid // side, grid % side], dim=-1).float()
    feature = coordinates.repeat(num_tiles, 1, 1)
    tile = torch.arange(num_tiles)[:, None, None].expand(-1, side * side, 1).float()
    nowhere = torch.full((3,), -1.0)
    packed, _ = model.model.pack_image_features(
        [torch.cat([tile, feature], dim=-1)], image_sizes, "default", image_newline=nowhere
    )
    arranged = packed[0].numpy().astype(np.float64)
    boxes = np.full((len(arranged), 4), np.nan)
    base = arranged[:, 0] == 0
    boxes[base] = (
        np.stack([arranged[base, 1], arranged[base, 2], arranged[base, 1] + 1, arranged[base, 2] + 1], axis=1) / side
    )
    fine = arranged[:, 0] > 0
    if fine.any():
        # Flattened line by line and each line closed by a line end: count lines and places within them.
        first = int(np.flatnonzero(fine)[0])
        width = int(np.flatnonzero(arranged[first:, 0] < 0)[0])
        height = len(arranged[first:]) // (width + 1)
        rows, columns = np.divmod(np.arange(len(arranged) - first), width + 1)
        box = np.stack([rows / height, columns / width, (rows + 1) / height, (columns + 1) / width], axis=1)
        boxes[first:] = np.where(columns[:, None] < width, box, np.nan)
    return boxes


def _seen(pixels: Tensor, image_processor: Any) -> Image.Image:
    """Normalised pixels [3, H, W] as the image they are."""
    mean, std = (torch.tensor(getattr(image_processor, name))[:, None, None] for name in ("image_mean", "image_std"))
    values = (pixels.float() * std + mean).clamp(0, 1) * 255
    return Image.fromarray(values.round().byte().permute(1, 2, 0).contiguous().numpy())
