"""Assembles the model that pretraining starts from: a CLIP tower, a causal language model, a fresh projector.

Saved as Hugging Face's `llava` or `llava_next`, so that every later step is an ordinary `from_pretrained`.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
import transformers as hf
from torch import nn
from transformers.utils import is_torchvision_available

from cal_pipeline.models.directory import model_directory
from cal_schemas.errors import ConfigError
from cal_schemas.spec import VICUNA_SYSTEM

Kind = Literal["llava", "llava_next"]
_IMAGE_TOKEN: Final = "<image>"
_CLASSES: Final[dict[Kind, str]] = {"llava": "Llava", "llava_next": "LlavaNext"}
_PINPOINT_TILES: Final = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""LLaVA-NeXT's grids in tiles of the tower: 336x672, 672x336, 672x672, 1008x336, 336x1008 for a tower of 336."""
_log = logging.getLogger(__name__)

# Chat templates of language models expect words; an image among the parts becomes its token on a line of its own.
_FLATTEN: Final = """
{%- set flat = namespace(messages=[], text='') -%}
{%- for message in messages -%}
  {%- set flat.text = message['content'] if message['content'] is string else '' -%}
  {%- for part in ([] if message['content'] is string else message['content']) -%}
    {%- set flat.text = flat.text + ('<image>\n' if part['type'] == 'image' else part['text']) -%}
  {%- endfor -%}
  {%- set flat.messages = flat.messages + [dict(message, content=flat.text)] -%}
{%- endfor -%}{%- set messages = flat.messages %}"""
# What templates.render_vicuna_v1 writes, turn by turn.
_VICUNA: Final = """
{%- set system = messages and messages[0]['role'] == 'system' -%}
{{- (messages[0]['content'] if system else SYSTEM) + ' ' -}}
{%- for message in (messages[1:] if system else messages) -%}
  {%- if message['role'] == 'user' -%}{{- 'USER: ' + message['content'] + ' ' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- 'ASSISTANT:' -}}{%- generation -%}{{- ' ' + message['content'] + eos_token -}}{%- endgeneration -%}
  {%- else -%}{{- raise_exception('only user and assistant turns may follow the first') -}}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}""".replace("SYSTEM", repr(VICUNA_SYSTEM))


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembly:
    """The arguments of `assemble` that `--assemble` gives."""

    vision: str
    language: str
    kind: Kind = "llava"
    image_grid_pinpoints: list[list[int]] | None = None


def parse_assemble(items: Sequence[str]) -> Assembly:
    """`vision=… language=…`, and optionally `kind=llava_next`, `image_grid_pinpoints=336x672,672x336`."""
    values: dict[str, Any] = {}
    for item in items:
        name, _, value = item.partition("=")
        if name not in Assembly.__dataclass_fields__ or not value or name in values:
            raise ConfigError(f"--assemble {item}: expected NAME=VALUE, each name once, of "
                              f"{', '.join(Assembly.__dataclass_fields__)}")  # fmt: skip
        values[name] = value
    if not {"vision", "language"} <= set(values):
        raise ConfigError(f"--assemble needs vision=… and language=…, got {' '.join(items)}")
    if values.get("kind", "llava") not in get_args(Kind):
        raise ConfigError(f"--assemble kind={values['kind']}: expected {' or '.join(get_args(Kind))}")
    if pinpoints := values.get("image_grid_pinpoints"):
        if not re.fullmatch(r"\d+x\d+(,\d+x\d+)*", pinpoints):
            raise ConfigError(f"--assemble image_grid_pinpoints={pinpoints}: expected HEIGHTxWIDTH,…: 336x672,672x336")
        values["image_grid_pinpoints"] = [[int(side) for side in pair.split("x")] for pair in pinpoints.split(",")]
    return Assembly(**values)


def assemble(
    vision: Path | str, language: Path | str, output: Path, *, kind: Kind = "llava",
    image_grid_pinpoints: Sequence[Sequence[int]] | None = None, seed: int = 0,
) -> None:  # fmt: skip
    """Writes the model and its processor to `output`, which must not exist or be empty.

    Args:
        vision: directory or hub id of a CLIPModel or CLIPVisionModel.
        language: of a causal language model with its fast tokenizer (Llama, Mistral, Qwen2, …).
        output: appears whole or not at all.
        kind: `llava` (LLaVA-1.5) or `llava_next`.
        image_grid_pinpoints: (height, width) grids of llava_next; by default LLaVA-NeXT's, in tiles of the tower.
        seed: of the projector, and of the rows that the vocabulary gains.

    Both parts keep their weights, the narrower dtype widened. Raises ConfigError naming what does not fit.
    """
    output = output.resolve()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"--output_dir {output} exists already: an assembled model is not written over it")
    folders = {part: _directory(part, str(given)) for part, given in (("vision", vision), ("language", language))}
    tower, pixels = _load_vision(folders["vision"])
    pinpoints = _pinpoints(kind, image_grid_pinpoints, tower.config.image_size)
    decoder, tokenizer = _load_language(folders["language"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _extend_vocabulary(decoder, tokenizer)
        model = _join(tower, decoder, kind, pinpoints, tokenizer)
    _check_text_logits(model, decoder, str(language))
    processor = _processor(kind, tower.config, pixels, pinpoints, tokenizer)
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    partial.rename(output)  # Onto nothing or an empty directory.


def _directory(part: str, given: str) -> Path:
    try:
        return model_directory(given)
    except ConfigError as error:
        raise ConfigError(f"--assemble {part}={given}: {str(error).partition(': ')[2]}") from error


def _load(part: str, folder: Path, kind: Any, *, weights: bool = False) -> Any:
    options = {"dtype": "auto", "use_safetensors": True, "output_loading_info": True} if weights else {}
    try:
        loaded = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:400]
        if weights and not list(folder.glob("*.safetensors")):
            reason = ("there are no *.safetensors; pickled weights may run code when loaded: convert them once with "
                      "from_pretrained and save_pretrained")  # fmt: skip
        raise ConfigError(f"--assemble {part}={folder}: {reason}") from error
    if not weights:
        return loaded
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(f"--assemble {part}={folder} lacks {len(missing)} weights ({missing[0]}, …)")
    return model.eval()


def _load_vision(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The tower, and how its images are normalised."""
    config = _load("vision", folder, hf.AutoConfig)
    if config.model_type not in ("clip", "clip_vision_model"):
        raise ConfigError(f"--assemble vision={folder} holds a {config.model_type!r} model, not a CLIP vision tower")
    stored = {}
    if (file := folder / "preprocessor_config.json").is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
    else:
        _log.warning("%s has no preprocessor_config.json: taking the mean and deviation of OpenAI's CLIP", folder)
    pixels = {key: stored[key] for key in ("image_mean", "image_std", "resample") if key in stored}
    return _load("vision", folder, hf.CLIPVisionModel, weights=True), pixels


def _load_language(folder: Path) -> tuple[Any, Any]:
    config = _load("language", folder, hf.AutoConfig)
    given = f"--assemble language={folder}"
    if type(config) not in hf.AutoModelForCausalLM._model_mapping or config.get_text_config() is not config:
        raise ConfigError(f"{given} holds a {config.model_type!r} model, not a causal language model of text alone")
    tokenizer = _load("language", folder, hf.AutoTokenizer)
    if not tokenizer.is_fast or (tokenizer.eos_token is None and not tokenizer.chat_template):
        raise ConfigError(f"{given}: its tokenizer is not fast, or has neither a chat template nor an eos token")
    decoder = _load("language", folder, hf.AutoModelForCausalLM, weights=True)
    head = decoder.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ConfigError(f"{given}: {type(decoder).__name__}'s output head is no plain linear layer, as LLaVA's is")
    return decoder, tokenizer


def _pinpoints(kind: Kind, given: Sequence[Sequence[int]] | None, side: int) -> list[list[int]] | None:
    if kind == "llava":
        if given is not None:
            raise ConfigError("image_grid_pinpoints belong to kind llava_next; llava sees one square")
        return None
    pinpoints = [[side * rows, side * columns] for rows, columns in _PINPOINT_TILES] if given is None else given
    if not pinpoints or any(len(p) != 2 or any(length <= 0 or length % side for length in p) for p in pinpoints):
        raise ConfigError(f"image_grid_pinpoints {given}: expected heights and widths in multiples of the tower's "
                          f"{side} pixels")  # fmt: skip
    return [list(pinpoint) for pinpoint in pinpoints]


def _extend_vocabulary(decoder: Any, tokenizer: Any) -> None:
    """Adds the image token and, where there is none, a padding token.

    A matrix with room for them (Qwen2's) stays as it is; a full one grows to a multiple of 64, as in the published
    llava-hf models, by rows near the mean of the others, which take next to nothing from the softmax.
    """
    new: dict[str, Any] = {"extra_special_tokens": [hf.AddedToken(_IMAGE_TOKEN, special=True, normalized=False)]}
    if tokenizer.pad_token is None:
        new["pad_token"] = "<pad>"
    tokenizer.add_special_tokens(new, replace_extra_special_tokens=False)
    if len(tokenizer) > decoder.get_input_embeddings().num_embeddings:
        decoder.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)


def _join(tower: Any, decoder: Any, kind: Kind, pinpoints: list[list[int]] | None, tokenizer: Any) -> Any:
    dtype = torch.promote_types(tower.dtype, decoder.dtype)
    text, prefix = decoder.config, _CLASSES[kind]
    text.pad_token_id = tokenizer.pad_token_id
    side = tower.config.image_size // tower.config.patch_size
    config = getattr(hf, f"{prefix}Config")(
        vision_config=tower.config, text_config=text, tie_word_embeddings=text.tie_word_embeddings,
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN), image_seq_length=side * side,
        vision_feature_layer=-2, vision_feature_select_strategy="default", projector_hidden_act="gelu",
        **({"image_grid_pinpoints": pinpoints} if pinpoints else {}),
    )  # fmt: skip
    with torch.device("meta"):
        model = getattr(hf, f"{prefix}ForConditionalGeneration")(config)
    model.model.vision_tower = tower.to(dtype)
    model.model.language_model = decoder.base_model.to(dtype)
    model.lm_head = decoder.get_output_embeddings().to(dtype)
    projector = model.model.multi_modal_projector.to_empty(device="cpu").to(dtype)
    for layer in (projector.linear_1, projector.linear_2):
        layer.reset_parameters()  # torch's own start, as in the released code.
    if kind == "llava_next":
        model.model.image_newline = nn.Parameter((torch.randn(text.hidden_size) / text.hidden_size**0.5).to(dtype))
    model.tie_weights()
    model.generation_config = decoder.generation_config
    model.generation_config.pad_token_id = text.pad_token_id
    return model.eval()


@torch.no_grad()
def _check_text_logits(model: Any, decoder: Any, name: str) -> None:
    """ConfigError for decoders that scale or cap their logits outside the parts that LLaVA takes over."""
    ids = torch.arange(1, 9)[None]
    ours, theirs = (module(input_ids=ids, use_cache=False).logits.float() for module in (model, decoder))
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())):
        raise ConfigError(f"--assemble language={name}: {type(decoder).__name__} does more with its logits than its "
                          "head; LLaVA would train another model")  # fmt: skip


def _processor(kind: Kind, vision: Any, pixels: dict[str, Any], pinpoints: Any, tokenizer: Any) -> Any:
    side, grid = vision.image_size, {"image_grid_pinpoints": pinpoints} if pinpoints else {}
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, **pixels, **grid}
    prefix, backend = _CLASSES[kind], "" if is_torchvision_available() else "Pil"
    image_processor = getattr(hf, f"{prefix}ImageProcessor{backend}")(**sizes)
    own = tokenizer.chat_template
    template = _FLATTEN + ((own.get("default") if isinstance(own, dict) else own) or _VICUNA)
    tokenizer.chat_template = None  # The processor's is the one that knows images.
    class_token = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return getattr(hf, f"{prefix}Processor")(
        image_processor, tokenizer, patch_size=vision.patch_size, chat_template=template, **class_token
    )
