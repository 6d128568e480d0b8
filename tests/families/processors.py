"""Families whose processor can be built without torchvision, beyond those of tiny_models.FAMILIES.

`BUILDERS[name](directory)` writes a checkpoint with its processor; `case` loads it as the pipeline does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import transformers as hf

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor, load_reference
from cal_schemas.spec import Template
from examples_of import conversation
from families.case import Case
from tiny_models import FAMILIES, HIDDEN, build, sample_image, text_config_values, train_tokenizer

_LAYERS: Final = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEMPLATES: Final[dict[str, Template]] = {"blip_2": "plain"}
"""Families without a chat template; the others use their processor's."""
ONE_IMAGE: Final = "its processor puts the tokens of exactly one image before the text"


def chat(image: str, *, user: str, assistant: str, end: str, begin: str = "") -> str:
    """A template in which every turn is a header, its parts in order, and an end token."""
    header = f"({user!r} if m['role'] == 'user' else {assistant!r})"
    parts = f"{{{{ {image!r} if part['type'] == 'image' else part['text'] }}}}"
    return (
        f"{{{{ {begin!r} }}}}{{% for m in messages %}}{{{{ {header} }}}}"
        "{% if m['content'] is string %}{{ m['content'] }}"
        f"{{% else %}}{{% for part in m['content'] %}}{parts}{{% endfor %}}{{% endif %}}{{{{ {end!r} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {assistant!r} }}}}{{% endif %}}"
    )


def save(directory: Path, model_class: Any, config: Any, processor: Any) -> None:
    model = build(model_class, config)
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):  # Mllama's start at 0: an image would change nothing
            torch.nn.init.constant_(parameter, 0.7)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def build_vipllava(directory: Path) -> None:
    """Image features from two layers, side by side."""
    tokenizer = train_tokenizer(bos="<s>", eos="</s>", pad="<pad>", special=["<image>"], add_bos=True)
    pixels = hf.CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    processor = hf.LlavaProcessor(
        pixels, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat("<image>\n", user="###Human: ", assistant="###Assistant: ", end="</s>"),
    )  # fmt: skip
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_LAYERS, image_size=42, patch_size=14, projection_dim=HIDDEN),
        text_config=hf.LlamaConfig(**text_config_values(tokenizer)), image_token_index=processor.image_token_id,
        image_seq_length=9, vision_feature_layers=(-2, 1), vision_feature_layer=(-2, 1),
    )  # fmt: skip
    save(directory, hf.VipLlavaForConditionalGeneration, config, processor)


def build_idefics2(directory: Path) -> None:
    """Five tiles of 4 latents each; adjacent images share a marker. Its processor reports no offsets."""
    tokenizer = train_tokenizer(bos="<s>", eos="</s>", pad="<unk>", add_bos=True)
    pixels = hf.Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=True)
    template = chat("<image>", user="User:", assistant="Assistant:", end="<end_of_utterance>\n")
    processor = hf.Idefics2Processor(pixels, tokenizer, image_seq_len=4, chat_template=template)
    config = hf.Idefics2Config(
        vision_config={**_LAYERS, "image_size": 32, "patch_size": 8},
        perceiver_config={
            "hidden_size": HIDDEN, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
            "resampler_head_dim": 16, "num_key_value_heads": 1,
        },
        text_config=hf.MistralConfig(**text_config_values(tokenizer), sliding_window=None),
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    save(directory, hf.Idefics2ForConditionalGeneration, config, processor)


def build_paligemma2(directory: Path) -> None:
    """PaliGemma over Gemma 2: soft-capped logits, one sliding layer."""
    tokenizer = train_tokenizer(bos="<bos>", eos="<eos>", pad="<pad>", special=["<image>"], add_bos=False)
    pixels = hf.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pixels.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(pixels, tokenizer)
    text = hf.Gemma2Config(
        **text_config_values(tokenizer), query_pre_attn_scalar=16, sliding_window=512,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**_LAYERS, image_size=28, patch_size=14, vision_use_head=False),
        text_config=text, image_token_index=processor.image_token_id, projection_dim=HIDDEN, hidden_size=HIDDEN,
    )  # fmt: skip
    save(directory, hf.PaliGemmaForConditionalGeneration, config, processor)


def build_aya_vision(directory: Path) -> None:
    """Tiles named in plain text (TILE_1) between special tokens."""
    special = [
        "<image>",
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE",
        "TILE_GLOBAL",
    ]
    tokenizer = train_tokenizer(
        bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>", special=special, add_bos=True
    )
    pixels = hf.GotOcr2ImageProcessorPil(
        size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    template = chat("<image>", begin="<BOS_TOKEN>", user="<USER>", assistant="<CHATBOT>", end="<|END_OF_TURN_TOKEN|>")
    processor = hf.AyaVisionProcessor(
        pixels, tokenizer, patch_size=4, img_size=16, downsample_factor=2, chat_template=template
    )
    text = hf.Cohere2Config(
        **text_config_values(tokenizer), sliding_window=512, layer_types=["sliding_attention", "full_attention"]
    )
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**_LAYERS, image_size=16, patch_size=4, vision_use_head=False),
        text_config=text, image_token_index=processor.image_token_id, vision_feature_layer=-1,
    )  # fmt: skip
    save(directory, hf.AyaVisionForConditionalGeneration, config, processor)


def build_mllama(directory: Path) -> None:
    """Llama 3.2 Vision: one token for an image, whose tiles enter by cross-attention."""
    special = ["<|image|>", "<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = train_tokenizer(bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<pad>", special=special, add_bos=True)
    pixels = hf.MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=2)

    def header(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    template = chat(
        "<|image|>", begin="<|begin_of_text|>", user=header("user"), assistant=header("assistant"), end="<|eot_id|>"
    )
    processor = hf.MllamaProcessor(pixels, tokenizer, chat_template=template)
    values = text_config_values(tokenizer)
    del values["head_dim"]
    config = hf.MllamaConfig(
        vision_config={
            **_LAYERS, "attention_heads": 2, "num_global_layers": 1, "image_size": 16, "patch_size": 8,
            "max_num_tiles": 2, "vision_output_dim": 2 * HIDDEN, "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        text_config={**values, "num_hidden_layers": 3, "cross_attention_layers": [1],
                     "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        image_token_index=processor.image_token_id,
    )  # fmt: skip
    save(directory, hf.MllamaForConditionalGeneration, config, processor)


def build_blip_2(directory: Path) -> None:
    """A Q-Former's 4 queries before OPT, whose learned positions count real tokens."""
    tokenizer = train_tokenizer(bos="</s>", eos="<eos>", pad="<pad>", add_bos=True)
    pixels = hf.BlipImageProcessorPil(size={"height": 16, "width": 16})
    processor = hf.Blip2Processor(pixels, tokenizer, num_query_tokens=4)
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    shape = {**_LAYERS, "encoder_hidden_size": HIDDEN}
    text = hf.OPTConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, word_embed_proj_dim=HIDDEN, ffn_dim=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=256, dropout=0.0, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = hf.Blip2Config(
        vision_config={**_LAYERS, "image_size": 16, "patch_size": 8},
        qformer_config={**shape, "vocab_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        text_config=text, num_query_tokens=4, image_token_index=image_token_id,
    )  # fmt: skip
    save(directory, hf.Blip2ForConditionalGeneration, config, processor)


def build_deepseek_vl(directory: Path) -> None:
    named = {"image_token": "<image_placeholder>"}
    tokenizer = train_tokenizer(
        bos="<|begin|>", eos="<|end|>", pad="<pad>", special=[*named.values()], add_bos=True, named=named
    )
    pixels = hf.DeepseekVLImageProcessorPil(size={"height": 16, "width": 16}, min_size=4)
    template = chat("<image_placeholder>", begin="<|begin|>", user="User: ", assistant="Assistant: ", end="<|end|>")
    processor = hf.DeepseekVLProcessor(pixels, tokenizer, chat_template=template, num_image_tokens=4)
    config = hf.DeepseekVLConfig(
        vision_config=hf.SiglipVisionConfig(**_LAYERS, image_size=16, patch_size=8, vision_use_head=False),
        text_config=hf.LlamaConfig(**text_config_values(tokenizer)), image_token_id=processor.image_token_id,
    )  # fmt: skip
    save(directory, hf.DeepseekVLForConditionalGeneration, config, processor)


def build_granite4_vision(directory: Path) -> None:
    """LLaVA-NeXT's tiles through window Q-Formers, whose features enter several layers of the decoder."""
    tokenizer = train_tokenizer(bos="<s>", eos="<|end|>", pad="<pad>", special=["<image>"], add_bos=False)
    grid = {"image_grid_pinpoints": [[32, 64], [64, 32]]}
    pixels = hf.LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, **grid)
    template = chat("<image>\n", user="<|user|>\n", assistant="<|assistant|>\n", end="<|end|>\n")
    processor = hf.Granite4VisionProcessor(
        pixels,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        chat_template=template,
    )
    wide = {**_LAYERS, "hidden_size": 64}  # its Q-Formers have heads of 64
    config = hf.Granite4VisionConfig(
        vision_config=hf.SiglipVisionConfig(**wide, image_size=32, patch_size=4, vision_use_head=False),
        text_config={**text_config_values(tokenizer), "model_type": "granite4_vision_text"},
        qformer_config={**wide, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "vocab_size": 8},
        image_token_index=processor.image_token_id, vision_feature_select_strategy="full", downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0], [-1, 1]], spatial_target_layers=[0, 1, 0, 1], projector_dropout=0.0, **grid,
    )  # fmt: skip
    save(directory, hf.Granite4VisionForConditionalGeneration, config, processor)


_MORE: Final = (
    build_vipllava, build_idefics2, build_paligemma2, build_aya_vision, build_mllama, build_blip_2, build_deepseek_vl,
    build_granite4_vision,
)  # fmt: skip
BUILDERS: Final[dict[str, Callable[[Path], None]]] = {
    **FAMILIES,
    **{b.__name__.removeprefix("build_"): b for b in _MORE},
}


ATTENTION: Final = {"paligemma2": "eager"}
"""Families that refuse sdpa (Gemma 2 soft-caps its attention)."""


def load(directory: Path, name: str) -> tuple[Any, Encoder]:
    """The checkpoint's model in float32 and its encoder, as the pipeline loads them."""
    encoder = Encoder(load_processor(directory), template=TEMPLATES.get(name, "auto"))
    return load_reference(directory, dtype="float32", attn_implementation=ATTENTION.get(name, "sdpa")), encoder


def case(model: Any, encoder: Encoder, name: str) -> Case:
    """Ragged samples through the processor: one image, several turns, two images, none."""
    one_turn = name in ("paligemma", "paligemma2", "blip_2")
    given = [
        (["<image>\nWhat is this?", "A red cat on the table."], [(60, 40)]),
        (["<image>\nDescribe the image in a few words.", "A small dog sits next to a large white cat."], [(90, 50)]),
    ]
    if not one_turn:
        given.append((["Look: <image>\nWhat?", "A dog.", "And where is it?", "On the left, I think."], [(40, 70)]))
    if name != "blip_2":
        given.append((["<image>\n<image>\nAnd these?", "The second shows a small dog, I think."], [(50, 50), (80, 30)]))
        given.append((["How are you?", "Fine, and the bus is behind the tree."], []))
    samples = [
        encoder(conversation(*turns), [sample_image(10 * row + n, size) for n, size in enumerate(sizes)])
        for row, (turns, sizes) in enumerate(given)
    ]
    only = {"two_images": ONE_IMAGE, "text_only": ONE_IMAGE} if name == "blip_2" else {}
    found_by = {"blip_2": "count", "idefics2": "text", "mllama": "text"}.get(name, "report")
    return Case(
        model=model, samples=samples, pad_token_id=encoder.pad_token_id, batch_first=encoder.batch_first_inputs,
        uniform_shape_batches=encoder.uniform_shape_batches, found_by=found_by, **only,
    )  # fmt: skip
