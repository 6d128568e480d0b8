"""dots3-note: Qwen's patches; layers with a sliding window and layers whose indexer chooses what a token attends to."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import transformers as hf

from families.builders.qwen import PATCHES, template
from families.family import LAYERS, Family, chatml_tokenizer, save, text_values
from tiny_models import HIDDEN

START, END, IMAGE, VIDEO, AUDIO = "<|img|>", "<|endofimg|>", "<|imgpad|>", "<|video_pad|>", "<|audio_comp_pad|>"


def build(directory: Path) -> None:
    words = chatml_tokenizer(START, END, IMAGE, VIDEO, AUDIO)
    processor = hf.Dots3NoteProcessor(
        hf.Qwen2VLImageProcessor(**PATCHES, temporal_patch_size=1), words, hf.Qwen3VLVideoProcessor(),
        hf.Dots3NoteFeatureExtractor(), chat_template=template(f"{START}{IMAGE}{END}"),
    )  # fmt: skip
    narrow = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16,
              "head_dim": 16, "qk_nope_head_dim": 8, "v_head_dim": 16}  # fmt: skip
    text = text_values(
        words, num_key_value_heads=2, moe_intermediate_size=32, n_routed_experts=4, n_group=1, topk_group=1,
        num_experts_per_tok=2, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
        index_topk=512, index_head_dim=16, index_n_heads=2, sliding_window=8, shared_experts_intermediate_size=32,
        first_k_dense_replace=1, layer_types=["sliding_attention", "indexed_attention"],
        **{f"swa_{name}": value for name, value in narrow.items()},
    )  # fmt: skip
    vision = {**LAYERS, "patch_size": 4, "moe_intermediate_size": 32, "mlp_layer_types": ["dense", "dense"],
              "adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN}  # fmt: skip
    audio = {"hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "feature_size": 16, "downsample_hidden_size": 8, "adapter_input_size": HIDDEN,
             "adapter_out_dim": HIDDEN}  # fmt: skip
    names = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO}
    config = hf.Dots3NoteConfig(
        text_config=text, vision_config=vision, audio_config=audio,
        **{name: words.convert_tokens_to_ids(token) for name, token in names.items()},
    )  # fmt: skip
    save(directory, hf.Dots3NoteForConditionalGeneration, config, processor)


DOTS3_NOTE: Final = Family(name="dots3_note", build=build, markers=(IMAGE,), around=(START, END))
