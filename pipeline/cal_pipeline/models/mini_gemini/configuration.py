"""Configures Mini-Gemini (arXiv 2403.18814): LLaVA with a second, convolutional tower of high resolution."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlavaConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class MiniGeminiConfig(LlavaConfig):  # type: ignore[misc]
    """`LlavaConfig` and what Mini-Gemini adds; the defaults are Mini-Gemini-7B's.

    Args:
        aux_vision_config: of the ConvNeXt; its `image_size` is the side of the high-resolution image, in pixels.
            `drop_path_rate` is 0: the released code leaves the frozen tower's 0.1 active while training, so that its
            features differ from pass to pass; here they never do.
        image_grid: 1, or 2 for HD: the tower's image is cut into image_grid x image_grid crops.
        image_global: HD's view of the whole image, put before the crops.

    `image_seq_length`, the number of tokens of an image, follows from these and is not chosen.
    """

    model_type = "mini_gemini"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        **LlavaConfig.sub_configs_defaults,
        "aux_vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="convnext",
            init_kwargs={"depths": [3, 3, 27, 3], "hidden_sizes": [192, 384, 768, 1536], "image_size": 768},
        ),
    }

    aux_vision_config: Any = None
    image_grid: int = 1
    image_global: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Checks that the grids of the two towers fit into each other; ValueError with both when not."""
        super().__post_init__(**kwargs)
        if self.image_grid < 1 or (self.image_global and self.image_grid == 1):
            raise ValueError(
                f"image_grid={self.image_grid}, image_global={self.image_global}: a global view belongs to a grid of 2 "
                "or more"
            )
        side, aux_side = self.tokens_per_side * self.image_grid, self.aux_map_side
        if aux_side % side:
            raise ValueError(
                f"the high-resolution map has {aux_side} x {aux_side} places, which {side} x {side} image tokens do "
                "not divide; change the image_size of aux_vision_config"
            )
        self.image_seq_length = self.num_views * self.tokens_per_side**2

    @property
    def num_views(self) -> int:
        """Images that the low-resolution tower sees for one image: the crops, and the global view."""
        return int(self.image_grid**2 + self.image_global)

    @property
    def tokens_per_side(self) -> int:
        """Patches along one side of a view, 24 for CLIP ViT-L/14 at 336 pixels."""
        return int(self.vision_config.image_size // self.vision_config.patch_size)

    @property
    def aux_map_side(self) -> int:
        """Places along one side of the ConvNeXt's finest map, 192 for 768 pixels."""
        return int(self.aux_vision_config.image_size // self.aux_vision_config.patch_size)

    def image_token_boxes(self) -> np.ndarray:
        """[image_seq_length, 4] float64: top, left, bottom, right of an image's tokens, as shares of the image."""
        grid, view = self.image_grid, grid_boxes(self.tokens_per_side)
        corners = [(row, column, row, column) for row in range(grid) for column in range(grid)]
        crops = [(view + corner) / grid for corner in corners]
        return np.concatenate([view, *crops] if self.image_global else crops)


def grid_boxes(side: int) -> np.ndarray:
    """[side * side, 4] float64: the cells of a grid over the whole image, row by row."""
    rows, columns = np.divmod(np.arange(side * side), side)
    return np.stack([rows, columns, rows + 1, columns + 1], axis=1) / side
