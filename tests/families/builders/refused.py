"""Families whose models the check at load refuses: what it must say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import transformers as hf

from families.builders.qwen import template
from families.family import LAYERS, RefusedFamily, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN, train_tokenizer

MINIMAX: Final = hf.MiniMaxM3VLProcessor
INKLING_IMAGE, INKLING_START = "<|unused_200054|>", "<|content_image|>"
INKLING_AUDIO, INKLING_AUDIO_START = "<|unused_200053|>", "<|content_audio_input|>"
INKLING_VISION: Final = {
    "text_hidden_size": HIDDEN, "patch_size": 4, "hidden_size": HIDDEN, "num_hidden_layers": 2,
    "num_attention_heads": 2,
}  # fmt: skip


def _inkling_text(words: hf.PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    return text_values(
        words, swa_num_attention_heads=2, swa_num_key_value_heads=1, swa_head_dim=16, sliding_window_size=8, d_rel=4,
        rel_extent=256, layer_types=["hybrid_sliding", "hybrid"], moe_intermediate_size=32, n_routed_experts=4,
        num_experts_per_tok=2, route_scale=1.0, **more,
    )  # fmt: skip


def build_minimax_m3_vl(directory: Path) -> None:
    words = chatml_tokenizer(
        MINIMAX.IMAGE_TOKEN, MINIMAX.VIDEO_TOKEN, MINIMAX.VISION_START_TOKEN, MINIMAX.VISION_END_TOKEN
    )
    processor = MINIMAX(
        hf.MiniMaxM3VLImageProcessor(patch_size=4, size={"shortest_edge": 8 * 8, "longest_edge": 32 * 32}), words,
        hf.MiniMaxM3VLVideoProcessor(), chat_template=template(MINIMAX.IMAGE_TOKEN),
    )  # fmt: skip
    values = text_values(
        words, dense_intermediate_size=64, shared_intermediate_size=32, num_local_experts=4, num_experts_per_tok=2,
        rotary_dim=8, index_n_heads=1, index_head_dim=16, index_block_size=8, index_topk_blocks=2,
        layer_types=["minimax_m3_sparse", "full_attention"], mlp_layer_types=["dense", "sparse"],
    )  # fmt: skip
    config = hf.MiniMaxM3VLConfig(
        text_config=values, vision_config={**LAYERS, "patch_size": 4, "image_size": 32},
        image_token_index=words.convert_tokens_to_ids(MINIMAX.IMAGE_TOKEN),
        video_token_index=words.convert_tokens_to_ids(MINIMAX.VIDEO_TOKEN), projector_hidden_size=HIDDEN,
    )  # fmt: skip
    save(directory, hf.MiniMaxM3SparseForConditionalGeneration, config, processor)


def build_inkling(directory: Path) -> None:
    words = chatml_tokenizer(INKLING_IMAGE, INKLING_START, INKLING_AUDIO, INKLING_AUDIO_START)
    processor = hf.InklingProcessor(
        hf.InklingFeatureExtractor(), hf.InklingImageProcessor(size={"height": 4, "width": 4}), words,
        chat_template=template(INKLING_START + INKLING_IMAGE),
    )  # fmt: skip
    config = hf.InklingConfig(
        text_config=_inkling_text(
            words, mlp_layer_types=["dense", "sparse"], n_shared_experts=1, logits_mup_width_multiplier=1.0
        ),
        vision_config={**INKLING_VISION, "temporal_patch_size": 2},
        audio_config={"n_mel_bins": 4, "mel_vocab_size": 8, "text_hidden_size": HIDDEN},
        image_token_id=words.convert_tokens_to_ids(INKLING_IMAGE),
        audio_token_id=words.convert_tokens_to_ids(INKLING_AUDIO),
        image_bos_token_id=words.convert_tokens_to_ids(INKLING_START),
        audio_bos_token_id=words.convert_tokens_to_ids(INKLING_AUDIO_START),
    )  # fmt: skip
    save(directory, hf.InklingForConditionalGeneration, config, processor)


def build_inkling2(directory: Path) -> None:
    words = chatml_tokenizer(INKLING_IMAGE)
    processor = hf.Inkling2Processor(
        hf.Inkling2ImageProcessor(size={"height": 8, "width": 8}), words, chat_template=template(INKLING_IMAGE)
    )
    values = _inkling_text(words, unpadded_vocab_size=len(words), n_layers_per_attn_res_block=1)
    del values["intermediate_size"]
    config = hf.Inkling2Config(
        text_config=values, image_token_id=words.convert_tokens_to_ids(INKLING_IMAGE),
        vision_config={**INKLING_VISION, "posemb_grid_size": 8, "projection_hidden_dim": HIDDEN, "mlp_ratio": 2.0},
    )  # fmt: skip
    save(directory, hf.Inkling2ForConditionalGeneration, config, processor)


def build_nemotron_h_omni(directory: Path) -> None:
    words = chatml_tokenizer("<img>", "</img>", "<video>", "<so_embedding>", "<so_start>", "<so_end>", "<image>")
    processor = hf.NemotronH_Omni_Reasoning_V3Processor(
        hf.NemotronH_Omni_Reasoning_V3ImageProcessor(patch_size=4, min_num_patches=16, max_num_patches=64),
        hf.NemotronH_Omni_Reasoning_V3VideoProcessor(), words, hf.ParakeetFeatureExtractor(),
        chat_template=template("<image>\n"),
    )  # fmt: skip
    values = text_values(
        words, model_type="nemotron_h", layers_block_type=["mamba", "attention", "moe"], num_hidden_layers=3,
        mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, n_groups=1, conv_kernel=4, chunk_size=8,
        n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=32, n_group=1, topk_group=1,
    )  # fmt: skip
    vision = {**LAYERS, "model_type": "radio", "patch_size": 4, "image_size": 16, "max_img_size": 32,
              "video_temporal_patch_size": 2}  # fmt: skip
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        text_config=values, vision_config=vision, projector_hidden_size=HIDDEN, vision_hidden_size=HIDDEN,
        image_token_id=words.convert_tokens_to_ids("<image>"), video_token_id=words.convert_tokens_to_ids("<video>"),
        audio_token_id=words.convert_tokens_to_ids("<so_embedding>"),
    )  # fmt: skip
    # As it is made: what fills the other tiny models' matrices asks for the head that this one does not name.
    hf.NemotronH_Omni_Reasoning_V3(config).save_pretrained(directory)
    processor.save_pretrained(directory)


def build_instructblipvideo(directory: Path) -> None:
    """No weights: its processor is refused before they would be loaded."""
    processor = hf.InstructBlipVideoProcessor(
        hf.InstructBlipVideoVideoProcessor(), chatml_tokenizer("<video>"), chatml_tokenizer(), num_query_tokens=4
    )
    hf.InstructBlipVideoConfig().save_pretrained(directory)
    processor.save_pretrained(directory)


def build_pp_chart2table(directory: Path) -> None:
    words = chatml_tokenizer("<img>", "<imgpad>", "</img>")
    processor = hf.PPChart2TableProcessor(
        hf.PPChart2TableImageProcessor(size={"height": 64, "width": 64}), words,
        chat_template=template("<img><imgpad></img>\n"),
    )  # fmt: skip
    hf.PPChart2TableConfig().save_pretrained(directory)
    processor.save_pretrained(directory)


def build_fuyu(directory: Path) -> None:
    words = chatml_tokenizer("|SPEAKER|", "|NEWLINE|", "<0x00>", "<0x01>", "<0x02>", "<0x03>", "<0x04>", "<s>")
    sizes = {"size": {"height": 32, "width": 32}, "patch_size": {"height": 8, "width": 8}}
    processor = hf.FuyuProcessor(hf.FuyuImageProcessor(**sizes), words)
    processor.chat_template = template("")
    hf.FuyuConfig().save_pretrained(directory)
    processor.save_pretrained(directory)


def build_kosmos_2_5(directory: Path) -> None:
    words = train_tokenizer(
        bos="<s>", eos="</s>", pad="<pad>", add_bos=False, special=["<|im_start|>", "<|im_end|>"],
        named={"boi_token": "<image>", "eoi_token": "</image>", "image_token": "<s>"},
    )  # fmt: skip
    processor = hf.Kosmos2_5Processor(hf.Kosmos2_5ImageProcessor(), words, num_image_tokens=4)
    processor.chat_template = template("")
    hf.Kosmos2_5Config().save_pretrained(directory)
    processor.save_pretrained(directory)


PLACES: Final = "its layers take position ids for places of keys; use --contrast patch_mask or gaussian_blur"
HEEDLESS: Final = "its decoder pays no heed to position ids; use --contrast patch_mask or gaussian_blur"
MINIMAX_M3_VL: Final = RefusedFamily(
    name="minimax_m3_vl", build=build_minimax_m3_vl, reason=PLACES, perturbed=True,
    says="layers of MiniMaxM3SparseForConditionalGeneration take position ids for places of keys",
)  # fmt: skip
INKLING: Final = RefusedFamily(
    name="inkling_mm_model", build=build_inkling, reason=HEEDLESS, perturbed=True,
    says="InklingForConditionalGeneration pays no heed to position ids",
)  # fmt: skip
INKLING2: Final = RefusedFamily(
    name="inkling2", build=build_inkling2, reason=HEEDLESS, attention="eager", perturbed=True,
    says="Inkling2ForConditionalGeneration pays no heed to position ids",
)  # fmt: skip
NEMOTRON_H_OMNI: Final = RefusedFamily(
    name="nemotron_h_omni", build=build_nemotron_h_omni, reason="the model does not name its output head",
    says="NemotronH_Omni_Reasoning_V3 has no output head over the vocabulary",
)  # fmt: skip
INSTRUCTBLIPVIDEO: Final = RefusedFamily(
    name="instructblipvideo", build=build_instructblipvideo, reason="its processor, reason below",
    says="InstructBlipVideoProcessor",
)  # fmt: skip
PP_CHART2TABLE: Final = RefusedFamily(
    name="pp_chart2table", build=build_pp_chart2table, reason="its processor has no image token",
    says="PPChart2TableProcessor is no image-text processor",
)  # fmt: skip
FUYU: Final = RefusedFamily(
    name="fuyu", build=build_fuyu, reason="its processor puts the token of an image before every text itself",
    says=r"FuyuProcessor cannot process two small images: ValueError: The total number of \|SPEAKER\| tokens",
)  # fmt: skip
KOSMOS_2_5: Final = RefusedFamily(
    name="kosmos_2_5", build=build_kosmos_2_5, reason="its processor, reason below", says="Kosmos2_5Processor",
)  # fmt: skip
