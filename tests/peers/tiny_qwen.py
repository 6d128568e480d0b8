"""A tiny Qwen2.5-VL whose special tokens have Qwen's own ids: other trainers have these in their code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import transformers as hf
from tokenizers import Tokenizer

from families.builders.qwen import END, IMAGE, ROPE, START, TOWER, VIDEO, ids
from families.family import save, text_values
from tiny_models import train_tokenizer

TOKEN_PX: Final = 28
"""2 x 2 patches of 14 pixels, as those trainers resize images to."""
_IDS: Final = {
    "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, START: 151652, END: 151653, IMAGE: 151655,
    VIDEO: 151656,
}  # fmt: skip
_TEMPLATE: Final = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}"
    f"{{{{ '{START}{IMAGE}{END}' if part['type'] == 'image' else part['text'] }}}}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tiny_qwen(directory: Path) -> None:
    """With a template like Qwen's: its own system message where none is given, a line break behind every turn."""
    words = _tokenizer()
    processor = hf.Qwen2_5_VLProcessor(
        hf.Qwen2VLImageProcessor(
            patch_size=14, size={"shortest_edge": 4 * TOKEN_PX**2, "longest_edge": 16 * TOKEN_PX**2}
        ),
        words, hf.Qwen2VLVideoProcessor(), chat_template=_TEMPLATE,
    )  # fmt: skip
    text = {**text_values(words, rope_parameters=ROPE, tie_word_embeddings=True), "vocab_size": _IDS[VIDEO] + 1}
    del text["head_dim"]
    vision = {**TOWER, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]}
    config = hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids(words))
    save(directory, hf.Qwen2_5_VLForConditionalGeneration, config, processor)


def _tokenizer() -> hf.PreTrainedTokenizerFast:
    small = train_tokenizer(bos="<|endoftext|>", eos="<|im_end|>", pad="<|endoftext|>", add_bos=False, special=_IDS)
    state = json.loads(small.backend_tokenizer.to_str())
    state["model"]["vocab"] |= _IDS
    state["added_tokens"] = [{**token, "id": _IDS[token["content"]]} for token in state["added_tokens"]]
    roles = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **roles)
