"""Processes images and text for Mini-Gemini: one image of high resolution, smaller ones from its pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaProcessor
from transformers.image_processing_utils import BatchFeature
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.processing_utils import ImagesKwargs


class MiniGeminiImagesKwargs(ImagesKwargs, total=False):  # type: ignore[misc, call-arg]
    """The image processor's options beside the usual ones.

    low_res_size: side of a view for CLIP, in pixels.
    image_grid, image_global: as in MiniGeminiConfig.
    """

    low_res_size: int
    image_grid: int
    image_global: bool


class MiniGeminiImageProcessor(LlavaImageProcessorPil):  # type: ignore[misc]
    """CLIP's preprocessing at the high resolution, then bilinear copies of the *normalised* pixels for CLIP itself.

    Returns `high_res_pixel_values` [N, 3, H, H] and `pixel_values`: [N, 3, h, h], or [N, P, 3, h, h] for a grid (the
    global view first, then the crops row by row).
    """

    valid_kwargs = MiniGeminiImagesKwargs
    model_input_names = ("pixel_values", "high_res_pixel_values")
    low_res_size = 336
    image_grid = 1
    image_global = False
    size = {"shortest_edge": 768}  # noqa: RUF012
    crop_size = {"height": 768, "width": 768}  # noqa: RUF012
    do_pad = True

    def _preprocess(
        self, images: Any, *, low_res_size: int, image_grid: int, image_global: bool, return_tensors: Any, **kwargs: Any
    ) -> BatchFeature:
        images = super()._preprocess(images, return_tensors="pt", **kwargs)["pixel_values"]
        views = low_res_views(images, low_res_size, image_grid, image_global)
        data = {"pixel_values": views, "high_res_pixel_values": images}
        return BatchFeature(data=data, tensor_type=return_tensors)


def low_res_views(images: Tensor, size: int, grid: int, with_global: bool) -> Tensor:
    """Images [N, 3, H, H] as CLIP sees them: [N, 3, size, size], or [N, P, 3, size, size] where grid is above 1.

    Bilinear without antialias, corners not aligned, as the released code resizes.
    """
    if grid == 1:
        return F.interpolate(images, (size, size), mode="bilinear")
    whole = F.interpolate(images, (grid * size, grid * size), mode="bilinear")
    crops = cut(whole, grid)
    if not with_global:
        return crops
    return torch.cat([F.interpolate(whole, (size, size), mode="bilinear")[:, None], crops], dim=1)


def cut(images: Tensor, grid: int) -> Tensor:
    """Squares [N, grid * grid, C, S / grid, S / grid] of images [N, C, S, S], row by row."""
    count, channels, side, _ = images.shape
    parts = images.reshape(count, channels, grid, side // grid, grid, side // grid)
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


class MiniGeminiProcessor(LlavaProcessor):  # type: ignore[misc]
    """LLaVA's processor; an image takes `num_views * (low_res_size / patch_size)^2` tokens whatever its shape."""

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """The image token, once for each token of the image: 576, or 2880 for HD."""
        grid, with_global = self.image_processor.image_grid, self.image_processor.image_global
        views = grid**2 + (with_global if grid > 1 else 0)
        side: int = self.image_processor.low_res_size // self.patch_size
        image_token: str = self.image_token
        return image_token * int(views * side**2)
