"""Makes the tokenizer and chat template that give Mini-Gemini the token ids of its released preprocessing.

The released code tokenizes the text before and after an image separately, without adding tokens to the vocabulary.
Here the image is a token of the tokenizer alone: the model never reads its embedding.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from tokenizers import Regex, Tokenizer, normalizers
from transformers import AutoTokenizer, GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from cal_schemas.errors import ConfigError
from cal_schemas.spec import VICUNA_SYSTEM

IMAGE_TOKEN: Final = "<image>"

# The released code puts a turn's image in front of its words, on a line of its own.
_TURNS: Final = """
{%- set flat = namespace(messages=[], text='', images='') -%}
{%- for message in messages -%}
  {%- set flat.text = message['content'] if message['content'] is string else '' -%}{%- set flat.images = '' -%}
  {%- for part in ([] if message['content'] is string else message['content']) -%}
    {%- if part['type'] == 'image' -%}{%- set flat.images = flat.images + '<image>\n' -%}
    {%- else -%}{%- set flat.text = flat.text + part['text'] -%}{%- endif -%}
  {%- endfor -%}
  {%- set text = flat.images + flat.text | trim if flat.images else flat.text -%}
  {%- set flat.messages = flat.messages + [dict(message, content=text)] -%}
{%- endfor -%}{%- set messages = flat.messages %}"""
_VICUNA: Final = """
{%- set system = messages and messages[0]['role'] == 'system' -%}
{{- (messages[0]['content'] if system else SYSTEM) + ' ' -}}
{%- for message in (messages[1:] if system else messages) -%}
  {%- if message['role'] == 'user' -%}{{- 'USER: ' + message['content'] + ' ' -}}
  {%- elif message['role'] == 'assistant' -%}{{- 'ASSISTANT:' -}}
    {%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}
  {%- else -%}{{- raise_exception('only user and assistant turns may follow the first') -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}""".replace("SYSTEM", repr(VICUNA_SYSTEM))
# The end of each answer is <end_of_turn>, a newline and <eos>, and all three are supervised.
_GEMMA: Final = """
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{{- '<start_of_turn>user\n' + message['content'] + '<end_of_turn>\n' -}}
  {%- elif message['role'] == 'assistant' -%}{{- '<start_of_turn>model\n' -}}
    {%- generation -%}{{- message['content'] + '<end_of_turn>\n' + eos_token -}}{%- endgeneration -%}
  {%- else -%}{{- raise_exception('Gemma has turns of user and assistant only') -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"""


def load_tokenizer(place: Path, language: str) -> Any:
    """The fast tokenizer of a Mini-Gemini whose decoder is `llama` or `gemma`, with its image token.

    `place` is a folder, or a sentencepiece model itself. Raises ConfigError when there is none, or sentencepiece is
    missing to read a tokenizer.model.
    """
    if place.is_file():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(place, Path(folder) / "tokenizer.model")
            return load_tokenizer(Path(folder), language)
    directory = place
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ConfigError(f"{directory} holds neither tokenizer.json nor tokenizer.model: name its folder, --tokenizer")
    try:
        if language == "gemma":
            return _gemma(directory)
        return _vicuna(LlamaTokenizer.from_pretrained(directory))
    except ImportError as error:
        raise ConfigError(f"{directory / 'tokenizer.model'} is read by sentencepiece: pip install sentencepiece") from (
            error
        )


def chat_template(language: str) -> str:
    """Jinja source; template `auto` of the Encoder reads its label spans off it."""
    return _TURNS + (_GEMMA if language == "gemma" else _VICUNA)


def _gemma(directory: Path) -> Any:
    kind = AutoTokenizer if (directory / "tokenizer.json").is_file() else GemmaTokenizer
    tokenizer = kind.from_pretrained(directory)
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]})
    return tokenizer


def _vicuna(tokenizer: Any) -> PreTrainedTokenizerFast:
    """Puts sentencepiece's leading space before each piece of text between images, and not behind an end token.

    The end token is matched after the space was put (it is "normalized"), the image token before; the space is not put
    before a lone end token, because tokenizers normalises the token's own text by the same rule. A lone space token
    right behind an image covers no character, so template `plain` leaves it unsupervised.
    """
    eos, unk = str(tokenizer.eos_token), str(tokenizer.unk_token)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["pre_tokenizer"] = None
    for token in state["added_tokens"]:
        token["normalized"] = token["content"] == eos
    backend = Tokenizer.from_str(json.dumps(state))
    lone_eos = eos.replace("|", r"\|")
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(rf"\A(?!{lone_eos}\z)"), "\N{LOWER ONE EIGHTH BLOCK}"),
            normalizers.Replace(" ", "\N{LOWER ONE EIGHTH BLOCK}"),
        ]
    )
    # Read back, so that the added tokens are normalised by the new rule.
    result = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend.to_str()), bos_token=str(tokenizer.bos_token), eos_token=eos,
        unk_token=unk, pad_token=unk, add_bos_token=True, padding_side="right",
        model_max_length=tokenizer.model_max_length, extra_special_tokens={"image_token": IMAGE_TOKEN},
    )  # fmt: skip
    result.update_post_processor()
    return result
