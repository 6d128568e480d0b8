"""Text sides of published models: their vocabularies, out of packages of the registry, under TRL's chat templates."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import transformers as hf
from transformers.convert_slow_tokenizer import TikTokenConverter

from cal_pipeline.encoding.encoder import Encoder
from trl_templates import SOURCES

FOLDER: Final = Path(os.environ["CAL_VOCABULARIES"])
"""The unpacked packages dashscope, llama_models and mistral_common."""
_QWEN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_4: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


_TEKKEN: Final = (
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}[INST]{% for p in m.content %}"
    "{{ '[IMG]' if p.type == 'image' else p.text }}{% endfor %}[/INST]"
    "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}</s>{% endif %}{% endfor %}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSide:
    """A published vocabulary with the template of a model that has it, and by hand what that template writes."""

    file: str
    template: str
    start: str
    question: str
    answer: str
    """Of what the template writes: before everything, a question's turn with {}, and an answer's header."""
    end: str
    """What closes an answer and is learned with it."""
    after: str = ""
    special: tuple[str, ...]
    """The first one stands for an image."""
    bos: str | None = None
    strips: bool = False
    """Whether the template takes the blanks around words away."""
    pattern: str | None = None

    def encoder(self) -> Encoder:
        """With an image processor that these tests never ask."""
        processor = hf.LlavaProcessor(
            hf.CLIPImageProcessor(size={"shortest_edge": 14}, crop_size={"height": 14, "width": 14}),
            self._tokenizer(), patch_size=14, vision_feature_select_strategy="default", image_token=self.special[0],
            num_additional_image_tokens=1, chat_template=self.template,
        )  # fmt: skip
        return Encoder(processor, max_length=8192)

    def by_hand(self, turns: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
        """The text of questions and answers in turn, and the places of the answers that have words, with their ends."""
        text, spans = self.start, []
        for number, words in enumerate(turns):
            said = words.strip() if self.strips else words
            if number % 2 == 0:
                text += self.question.format(said)
                continue
            text += self.answer
            if words.strip():
                spans.append((len(text), len(text + said + self.end)))
            text += said + self.end + self.after
        return text, spans

    def _tokenizer(self) -> hf.PreTrainedTokenizerFast:
        named = {"bos_token": self.bos, "eos_token": self.end, "pad_token": self.end,
                 "extra_special_tokens": list(self.special)}  # fmt: skip
        path = FOLDER / self.file
        if path.suffix == ".v1":
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(path, Path(folder) / "tokenizer.model")
                return hf.LlamaTokenizer.from_pretrained(folder, **named)  # type: ignore[no-any-return]
        ranks = _tekken(path) if path.suffix == ".json" else _tiktoken(path)
        pattern = json.loads(path.read_text(encoding="utf-8"))["config"]["pattern"] if path.suffix == ".json" else None
        converter = _Converter(ranks, pattern or self.pattern, self.special)
        return hf.PreTrainedTokenizerFast(tokenizer_object=converter.converted(), **named)


class _Converter(TikTokenConverter):  # type: ignore[misc]
    def __init__(self, ranks: dict[bytes, int], pattern: str | None, special: Sequence[str]) -> None:
        super().__init__(extra_special_tokens=list(special), **({"pattern": pattern} if pattern else {}))
        self._ranks = ranks

    def load_tiktoken_bpe(self, tiktoken_url: Any) -> dict[bytes, int]:
        return self._ranks


def _tiktoken(path: Path) -> dict[bytes, int]:
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _tekken(path: Path) -> dict[bytes, int]:
    value = json.loads(path.read_text(encoding="utf-8"))
    size = value["config"]["default_vocab_size"] - value["config"]["default_num_special_tokens"]
    return {base64.b64decode(item["token_bytes"]): item["rank"] for item in value["vocab"][:size]}


_IM: Final = {"question": "<|im_start|>user\n{}<|im_end|>\n", "answer": "<|im_start|>assistant\n", "end": "<|im_end|>"}
_LLAMA: Final[dict[str, Any]] = {
    "template": SOURCES["llama3"], "strips": True, "start": "<|begin_of_text|>", "bos": "<|begin_of_text|>",
    "question": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    "answer": "<|start_header_id|>assistant<|end_header_id|>\n\n", "end": "<|eot_id|>",
    "special": ("<|image|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}  # fmt: skip
TEXT_SIDES: Final = {
    "qwen2_5_vl": TextSide(
        file="dashscope/resources/qwen.tiktoken", template=SOURCES["qwen2_5_vl"], pattern=_QWEN, after="\n", **_IM,
        start="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        special=("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"),
    ),
    "llama3": TextSide(file="llama_models/llama3/tokenizer.model", **_LLAMA),
    "llama4": TextSide(file="llama_models/llama4/tokenizer.model", pattern=_LLAMA_4, **_LLAMA),
    "llava_next_mistral": TextSide(
        file="mistral_common/data/tokenizer.model.v1", template=SOURCES["llava_next"], start="", bos="<s>",
        question="[INST] {} [/INST]", answer=" ", end="</s>", after=" ", special=("<image>",),
    ),
    "pixtral": TextSide(
        file="mistral_common/data/tekken_240911.json", template=_TEKKEN, start="<s>", bos="<s>",
        question="[INST]{}[/INST]", answer="", end="</s>", special=("[IMG]", "<s>", "</s>", "[INST]", "[/INST]"),
    ),
}  # fmt: skip
