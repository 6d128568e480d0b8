"""Implements Mini-Gemini and Mini-Gemini-HD on transformers' LLaVA (arXiv 2403.18814, section 3).

Each CLIP token looks, with one attention head, into its own window of a ConvNeXt's map of the same image at high
resolution ("patch info mining"); what it finds is added to it. The number of image tokens stays that of CLIP. Letters:
N images, P views of each, L tokens of a view, C channels of CLIP, D of the four ConvNeXt stages together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModelOutputWithPast

from cal_pipeline.models.mini_gemini.configuration import MiniGeminiConfig
from cal_pipeline.models.mini_gemini.processor import cut


class PatchInfoMining(nn.Module):
    """Attention of each low-resolution token to the places of the high-resolution map that lie beneath it."""

    def __init__(self, config: MiniGeminiConfig) -> None:
        super().__init__()
        width, aux_width = config.vision_config.hidden_size, sum(config.aux_vision_config.hidden_sizes)
        self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.key = nn.Sequential(nn.LayerNorm(aux_width), nn.Linear(aux_width, width))
        self.value = nn.Sequential(nn.LayerNorm(aux_width), nn.Linear(aux_width, width))

    def forward(self, tokens: Tensor, aux_map: Tensor) -> Tensor:
        """Mined tokens [M, L, C] of tokens [M, L, C] and maps [M, D, H, H], H a multiple of sqrt(L).

        softmax(q k / sqrt(C)) v over the (H / sqrt(L))^2 places under a token, added to the token itself.
        """
        windows = cut(aux_map, int(tokens.shape[1] ** 0.5)).flatten(3).mT  # [M, L, places, D]
        scores = self.query(tokens)[:, :, None] @ (self.key(windows) / tokens.shape[-1] ** 0.5).mT
        # A score may overflow in half precision; the released code turns such scores into numbers as well.
        mined: Tensor = scores.nan_to_num().softmax(-1) @ self.value(windows)
        return tokens + mined[:, :, 0]


class MiniGeminiModel(LlavaModel):  # type: ignore[misc]
    """LLaVA's model with the second tower."""

    config_class = MiniGeminiConfig

    def __init__(self, config: MiniGeminiConfig) -> None:
        super().__init__(config)
        # Convolutions have no attention; the kind asked for the model is meant for the others.
        config.aux_vision_config._attn_implementation = "eager"
        self.aux_vision_tower = AutoModel.from_config(config.aux_vision_config)
        # The classifier's norm over the pooled map takes no part here and has no weights in any checkpoint.
        self.aux_vision_tower.layernorm = nn.Identity()
        self.patch_info_mining = PatchInfoMining(config)
        self.post_init()

    def aux_map(self, high_res_pixel_values: Tensor) -> Tensor:
        """All stages of the ConvNeXt at the place of the finest, [N, D, H, H], for images [N, 3, 4 H, 4 H]."""
        images = high_res_pixel_values.to(self.aux_vision_tower.dtype)  # CLIP's embedding does the same by itself
        stages = self.aux_vision_tower(images, output_hidden_states=True).hidden_states[1:]
        size = stages[0].shape[-2:]
        # In float32, as the released code does: half precision has no exact bilinear weights.
        upsampled = [F.interpolate(stage.float(), size, mode="bilinear").to(stage.dtype) for stage in stages[1:]]
        return torch.cat([stages[0], *upsampled], dim=1)

    def get_image_features(
        self, pixel_values: Tensor, high_res_pixel_values: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Features of every image: `pooler_output`, N tensors [P * L, hidden], projected from `last_hidden_state`.

        Args:
            pixel_values: [N, P, 3, h, h], or [N, 3, h, h] where P is 1.
            high_res_pixel_values: [N, 3, H, H].
            kwargs: as LLaVA's; another `vision_feature_layer` than the config's is not served.

        Raises ValueError when one of the two images is missing, or another number of views comes.
        """
        if high_res_pixel_values is None:
            raise ValueError("Mini-Gemini needs high_res_pixel_values beside pixel_values: use its own processor")
        views = pixel_values[:, None] if pixel_values.dim() == 4 else pixel_values
        if views.shape[1] != self.config.num_views:
            raise ValueError(f"{views.shape[1]} views of an image came, the config has {self.config.num_views}")
        vision = self.vision_tower(views.flatten(0, 1), output_hidden_states=True)
        tokens = vision.hidden_states[self.config.vision_feature_layer][:, 1:]
        tokens = tokens.reshape(*views.shape[:2], *tokens.shape[1:])
        # One view after the other: the windows of all five would take three times the map's 1.7 GB in HD.
        maps = self._maps_of_views(self.aux_map(high_res_pixel_values))
        mined = torch.cat([self.patch_info_mining(tokens[:, view], part) for view, part in enumerate(maps)], dim=1)
        features = self.multi_modal_projector(mined)
        # Gemma scales its embeddings, which the released code does after the image took its place among them.
        features = features * getattr(self.get_input_embeddings(), "scalar_embed_scale", 1.0)
        return BaseModelOutputWithPooling(last_hidden_state=mined, pooler_output=list(features))

    def _maps_of_views(self, aux_map: Tensor) -> list[Tensor]:
        """P maps [N, D, H / grid, H / grid]: the whole made smaller, then its parts row by row."""
        grid = self.config.image_grid
        if grid == 1:
            return [aux_map]
        parts = [part for rows in aux_map.chunk(grid, dim=2) for part in rows.chunk(grid, dim=3)]
        if not self.config.image_global:
            return parts
        whole = F.interpolate(aux_map.float(), parts[0].shape[-2:], mode="bilinear").to(aux_map.dtype)
        return [whole, *parts]

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        high_res_pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        """As LLaVA's; the image token may lie behind the embedding's last row, its own embedding is never read."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if input_ids is not None:
            is_image = input_ids == self.config.image_token_id
            inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
            encoded = (mm_encoder_outputs or {}).get("image")
            if encoded is None and pixel_values is not None:
                encoded = self.get_image_features(pixel_values, high_res_pixel_values)
            features = None if encoded is None else torch.cat(list(encoded.pooler_output)).to(inputs_embeds)
            if features is None and attention_mask is not None and attention_mask.dim() == 2:
                # Without images only padding may hold the image token: the pass without the image pads with anything.
                is_image = is_image & attention_mask[:, -is_image.shape[1] :].bool()
            count = 0 if features is None else len(features)
            if int(is_image.sum()) != count:
                raise ValueError(f"{int(is_image.sum())} image tokens in input_ids for {count} image features")
            if features is not None:
                inputs_embeds = inputs_embeds.masked_scatter(is_image[..., None], features)
        elif pixel_values is not None:
            raise ValueError("images take their place among input_ids: give those instead of inputs_embeds")
        else:
            features = None
        outputs = self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        return LlavaModelOutputWithPast(**outputs, image_hidden_states=features)


class MiniGeminiForConditionalGeneration(LlavaForConditionalGeneration):  # type: ignore[misc]
    """Mini-Gemini with its language-model head; `generate` works as for LLaVA."""

    config_class = MiniGeminiConfig

    def __init__(self, config: MiniGeminiConfig) -> None:
        super().__init__(config)
        self.model = MiniGeminiModel(config)
        self.post_init()

    def get_image_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See MiniGeminiModel."""
        return self.model.get_image_features(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        high_res_pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """As LLaVA's, with the images of high resolution [N, 3, H, H]; `generate` reads the names off here."""
        return super().forward(
            input_ids=input_ids, pixel_values=pixel_values, high_res_pixel_values=high_res_pixel_values,
            attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            inputs_embeds=inputs_embeds, labels=labels, logits_to_keep=logits_to_keep, **kwargs,
        )  # fmt: skip
