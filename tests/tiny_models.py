"""Tiny random vision-language models with their real processors, for tests on CPU.

`FAMILIES[name](directory)` writes a checkpoint that `AutoProcessor` and `AutoModelForImageTextToText` load back without
network and without torchvision. Weights are random, seeded and scaled so that logits spread with std near 3 and the
image moves them. A family whose processor needs torchvision is built at model level: `build_qwen2_5_vl_model`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers as hf
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from cal_pipeline.measuring.contrast import innermost_decoder

HIDDEN: Final = 32
LOGIT_STD: Final = 3.0
_LAYERS: Final = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}

_CORPUS: Final = (
    "What is in the image? The image shows a red square on a blue background.",
    "How many circles are there? There are three green circles and one yellow line.",
    "Describe the image in a few words. A small dog sits next to a large white cat.",
    "What colour is the car on the left? The car on the left is dark grey.",
    "Is the man holding an umbrella? No, the man is holding a book and a cup of coffee.",
    "Read the sign. The sign says stop. Where is the bus? The bus is behind the tree.",
    # Real tokenizers have tokens for role names and for runs of newlines, and one run may reach into an image's span.
    *["USER: ASSISTANT: User: Assistant: [INST] [/INST] user model", "\n\n", "\n\n\n"] * 4,
)

# Each template follows the one published with its best known checkpoint; content is a string or a list of parts.
_TEXT_PARTS: Final = "m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ')"
_NUM_IMAGES: Final = "(m['content'] | selectattr('type', 'equalto', 'image') | list | length)"
_SET_TEXT: Final = (
    "{% if m['content'] is string %}{% set text, images = m['content'], '' %}{% else %}"
    f"{{% set text, images = {_TEXT_PARTS}, '<image>\\n' * {_NUM_IMAGES} %}}{{% endif %}}"
)
_LLAVA_TEMPLATE: Final = (
    "{% for m in messages %}" + _SET_TEXT + "{{ m['role'].upper() + ': ' + images }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ text + eos_token }}{% endgeneration %}"
    "{% else %}{{ text + ' ' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_LLAVA_NEXT_TEMPLATE: Final = (
    "{% for m in messages %}" + _SET_TEXT + "{% if m['role'] == 'user' %}{{ '[INST] ' + images + text + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + text + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_GEMMA3_TEMPLATE: Final = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_IDEFICS3_TEMPLATE: Final = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'] is string %}{{ ': ' + m['content'] }}{% else %}"
    "{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyBatch:
    """A right-padded batch at model level.

    `inputs` go to the model as they are; `labels` [B, T] int64 unshifted, -100 where unsupervised; `image_mask` [B, T]
    bool, true at image placeholders (the vision start and end tokens around them are text of the chat template).
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    image_mask: Tensor


def sample_image(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """RGB image of (width, height): a colour gradient under a few rectangles and ellipses drawn from the seed."""
    rng = np.random.default_rng(seed)
    width, height = size
    corners = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    for index in range(6):
        x0, x1 = sorted(int(x) for x in rng.integers(0, width + 1, 2))
        y0, y1 = sorted(int(y) for y in rng.integers(0, height + 1, 2))
        red, green, blue = (int(c) for c in rng.integers(0, 256, 3))
        (draw.rectangle if index % 2 else draw.ellipse)((x0, y0, x1, y1), fill=(red, green, blue))
    return image


def train_tokenizer(
    *, bos: str, eos: str, pad: str, add_bos: bool, special: Sequence[str] = (), named: Mapping[str, str] | None = None
) -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE over the corpus of this file with at most 128 merges.

    `add_bos` makes a plain call put `bos` in front; `special` tokens are never split; `named` are those among them that
    a processor reads as attributes of the tokenizer (`image_token`, ...).
    """
    fixed, alphabet = [pad, bos, eos, *special], pre_tokenizers.ByteLevel.alphabet()
    size = len(fixed) + len(alphabet) + 128
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=fixed, initial_alphabet=alphabet, show_progress=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(_CORPUS, trainer)
    roles = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "padding_side": "right", "add_bos_token": add_bos}
    wrapped = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles, extra_special_tokens=dict(named or {}))
    wrapped.update_post_processor()
    return wrapped


def _randomise(model: hf.PreTrainedModel, *, seed: int = 0) -> None:
    """Fill every matrix, and a head's bias, so that each layer keeps unit scale and logits have std near LOGIT_STD."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head: nn.Parameter = model.get_output_embeddings().weight
    tied = id(head) in embeddings
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter is getattr(model.get_output_embeddings(), "bias", None):
                std = 1.0
            elif parameter is head:
                std = (1.0 if tied else LOGIT_STD) / HIDDEN**0.5  # Gemma multiplies its tied embeddings by sqrt(HIDDEN)
            elif id(parameter) in embeddings:
                std = 0.3 if "vision" in name else 1.0
            elif parameter.dim() >= 2:
                fan_in = parameter.shape[0] if "projection_weight" in name else parameter[0].numel()
                std = 1.5 / fan_in**0.5
            else:
                continue  # norms and biases keep the library's own start
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        if tied:
            norm = _final_norm(model)
            norm.weight.fill_(LOGIT_STD - float("Gemma" in type(norm).__name__))  # Gemma's norms scale by 1 + weight


def _final_norm(model: hf.PreTrainedModel) -> nn.Module:
    decoder = innermost_decoder(model)
    names = ("norm", "embedding_norm", "final_layer_norm")
    return next(getattr(decoder, name) for name in names if hasattr(decoder, name))


def build(model_class: type[hf.PreTrainedModel], config: hf.PreTrainedConfig) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config).float().eval()
    _randomise(model)
    return model


def _save(directory: Path, model_class: type[hf.PreTrainedModel], config: hf.PreTrainedConfig, processor: Any) -> None:
    build(model_class, config).save_pretrained(directory)
    processor.save_pretrained(directory)


def text_config_values(tokenizer: hf.PreTrainedTokenizerFast) -> dict[str, Any]:
    """Values of text_config common to all families."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    sizes = {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 2048}
    return {**_LAYERS, **sizes, **ids}


_CLIP: Final = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def _llama_tokenizer() -> hf.PreTrainedTokenizerFast:
    return train_tokenizer(bos="<s>", eos="</s>", pad="<pad>", special=["<image>"], add_bos=True)


def build_llava(directory: Path) -> None:
    """LLaVA-1.5 style: 9 image tokens per image, `USER: ... ASSISTANT:` template ending in `</s>`."""
    tokenizer = _llama_tokenizer()
    pixels = hf.LlavaImageProcessorPil(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    processor = hf.LlavaProcessor(pixels, tokenizer, **_CLIP, chat_template=_LLAVA_TEMPLATE)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_LAYERS, image_size=42, patch_size=14, projection_dim=HIDDEN),
        text_config=hf.LlamaConfig(**text_config_values(tokenizer)),
        image_token_index=processor.image_token_id,
        image_seq_length=9,
    )
    _save(directory, hf.LlavaForConditionalGeneration, config, processor)


def build_llava_next(directory: Path) -> None:
    """LLaVA-NeXT (mistral) style: at most 24 image tokens by aspect ratio, `[INST] ... [/INST]` template."""
    tokenizer = _llama_tokenizer()
    grid = {"image_grid_pinpoints": [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]}
    crop = {"height": 28, "width": 28}
    pixels = hf.LlavaNextImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop, **grid)
    processor = hf.LlavaNextProcessor(pixels, tokenizer, **_CLIP, chat_template=_LLAVA_NEXT_TEMPLATE)
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**_LAYERS, image_size=28, patch_size=14, projection_dim=HIDDEN),
        text_config=hf.MistralConfig(**text_config_values(tokenizer), sliding_window=None),
        image_token_index=processor.image_token_id,
        image_seq_length=4,
        **grid,
    )
    _save(directory, hf.LlavaNextForConditionalGeneration, config, processor)


def build_gemma3(directory: Path, sliding_window: int = 512) -> None:
    """Gemma 3 style: 4 image tokens per image, one sliding and one full attention layer, tied embeddings."""
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    special = ["<start_of_turn>", "<end_of_turn>", *named.values()]
    tokenizer = train_tokenizer(bos="<bos>", eos="<eos>", pad="<pad>", special=special, add_bos=True, named=named)
    pixels = hf.Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    processor = hf.Gemma3Processor(pixels, tokenizer, image_seq_length=4, chat_template=_GEMMA3_TEMPLATE)
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": sliding_window}
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**_LAYERS, image_size=28, patch_size=7, vision_use_head=False),
        text_config=hf.Gemma3TextConfig(**text_config_values(tokenizer), **layers, query_pre_attn_scalar=16),
        mm_tokens_per_image=4,
        **{f"{name}_index": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()},
    )
    _save(directory, hf.Gemma3ForConditionalGeneration, config, processor)


def build_paligemma(directory: Path) -> None:
    """PaliGemma style: 4 image tokens, no chat template; the processor adds 1152 location tokens to the vocabulary."""
    tokenizer = train_tokenizer(bos="<bos>", eos="<eos>", pad="<pad>", special=["<image>"], add_bos=False)
    pixels = hf.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pixels.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(pixels, tokenizer)
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**_LAYERS, image_size=28, patch_size=14, vision_use_head=False),
        text_config=hf.GemmaConfig(**text_config_values(tokenizer)),
        image_token_index=processor.image_token_id,
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
    )
    _save(directory, hf.PaliGemmaForConditionalGeneration, config, processor)


def build_idefics3(directory: Path) -> None:
    """Idefics3 (SmolVLM) style: 2x2 tiles, 1x2 or 2x1 for a long image, and one of the whole; 4 tokens each."""
    special = ["<fake_token_around_image>", "<image>", "<global-img>"]
    special += [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
    bos, eos = "<|im_start|>", "<end_of_utterance>"
    tokenizer = train_tokenizer(bos=bos, eos=eos, pad="<pad>", special=special, add_bos=False)
    pixels = hf.Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    processor = hf.Idefics3Processor(pixels, tokenizer, image_seq_len=4, chat_template=_IDEFICS3_TEMPLATE)
    config = hf.Idefics3Config(
        vision_config={**_LAYERS, "image_size": 28, "patch_size": 7},
        text_config=hf.LlamaConfig(**text_config_values(tokenizer)),
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    _save(directory, hf.Idefics3ForConditionalGeneration, config, processor)


_BUILDERS: Final = (build_llava, build_llava_next, build_gemma3, build_paligemma, build_idefics3)
FAMILIES: Final[dict[str, Callable[[Path], None]]] = {b.__name__.removeprefix("build_"): b for b in _BUILDERS}


def build_qwen2_5_vl_model() -> tuple[hf.Qwen2_5_VLForConditionalGeneration, TinyBatch]:
    """Qwen2.5-VL in float32 with three rows: image then text, longer text around an image, text only."""
    pad, vision_start, vision_end, image_pad, first_text, vocab_size = 0, 1, 2, 3, 8, 300
    config = hf.Qwen2_5_VLConfig(
        text_config={
            **{**_LAYERS, "num_key_value_heads": 1},
            **{"vocab_size": vocab_size, "pad_token_id": pad, "bos_token_id": 5, "eos_token_id": 6},
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            **{"depth": 2, "hidden_size": HIDDEN, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN},
            **{"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]},
        },
        image_token_id=image_pad,
        video_token_id=4,
        vision_start_token_id=vision_start,
        vision_end_token_id=vision_end,
    )
    model = build(hf.Qwen2_5_VLForConditionalGeneration, config)

    generator = torch.Generator().manual_seed(1)

    def words(count: int) -> list[int]:
        return [int(token) for token in torch.randint(first_text, vocab_size, (count,), generator=generator)]

    grids = torch.tensor([[1, 4, 4], [1, 4, 6]])  # in patches; 2 x 2 patches make one token
    images = [[vision_start, *[image_pad] * (int(grid.prod()) // 4), vision_end] for grid in grids]
    rows = [images[0] + words(7), words(5) + images[1] + words(12), words(9)]

    shape = len(rows), max(len(row) for row in rows)
    input_ids, labels = torch.full(shape, pad), torch.full(shape, -100)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for index, (row, num_labels) in enumerate(zip(rows, (4, 6, 5), strict=True)):
        input_ids[index, : len(row)] = torch.tensor(row)
        attention_mask[index, : len(row)] = 1
        labels[index, len(row) - num_labels : len(row)] = torch.tensor(row[-num_labels:])
    image_mask = input_ids == image_pad
    inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(int(grids.prod(dim=1).sum()), 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": grids,
        "mm_token_type_ids": image_mask.long(),
    }
    return model, TinyBatch(inputs=inputs, labels=labels, image_mask=image_mask)
