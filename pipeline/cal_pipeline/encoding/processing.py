"""Calls a model's processor, and accounts for what became of the text."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from cal_pipeline.encoding.spans import NOTHING_EXPANDED, Expansion, recovered_expansion, reported_expansion
from cal_schemas.errors import CalError, ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Processed:
    """What came out for one sample."""

    output: Mapping[str, Any]
    """Tensors, each with a leading dimension, and the processor's own report where it makes one."""
    given: str
    """The text that its tokenizer was given."""
    processor: Any
    image_token: str

    @property
    def inserted_text(self) -> str:
        """What stands for the images of a text made of placeholders alone."""
        report = self.output.get("text_replacement_offsets")
        return "".join(item["replacement"] for item in report[0]) if report else self.given

    def expansion(self, rendered: str, num_images: int, specials: Sequence[str]) -> Expansion:
        """What became of the placeholders of `rendered`: by the report, else from what the tokenizer was given.

        `specials` are the tokens that text is not normally made of. Raises SampleError when it cannot be told.
        """
        name = type(self.processor).__name__
        if num_images and (reported := reported_expansion(self.output, num_images, name)) is not None:
            return reported
        if not num_images and self.given == rendered:
            return NOTHING_EXPANDED
        tokenizer = self.processor.tokenizer
        ends = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
        return recovered_expansion(
            rendered,
            self.given,
            image_token=self.image_token,
            markers=[token for token in specials if token not in ends],
            bos=tokenizer.bos_token,
            name=name,
        )


def process(
    processor: Any,
    text: str,
    images: Sequence[Image.Image],
    *,
    image_token: str,
    images_kwargs: Mapping[str, Any],
    tokenizer: Any,
    add_special_tokens: bool | None = None,
    **kwargs: Any,
) -> Processed:
    """Calls the processor with one text and its images; a copy of it, so that several threads may.

    Args:
        processor: with a `tokenizer` attribute.
        tokenizer: to be called in place of the processor's own: `with_all_offsets` of it.
        text: with a placeholder for each image.
        images: decoded, in the order of the placeholders.
        image_token: the placeholder.
        images_kwargs: for the image processor.
        add_special_tokens: of the tokenizer; None leaves its default.
        kwargs: the processor's own (`suffix`).
    """
    options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
    watched = copy.copy(processor)
    watched.tokenizer = recorder = _Recorder(tokenizer)
    output = watched(
        # Left out, not empty, for text-only samples: an empty list means something else in every family.
        **({"images": [list(images)]} if images else {}),
        text=[text],
        return_text_replacement_offsets=True,
        text_kwargs={"return_offsets_mapping": True, "padding": False, "truncation": False, **options},
        # Tensors of the pixels only: PaliGemma's processor warns when asked for the text's too.
        images_kwargs={"return_tensors": "pt", **images_kwargs},
        **kwargs,
    )
    tensors = {
        key: value if key == "text_replacement_offsets" else torch.as_tensor(value) for key, value in output.items()
    }
    given = recorder.texts[0] if recorder.texts else text
    return Processed(output=tensors, given=given, processor=processor, image_token=image_token)


def with_all_offsets(tokenizer: Any) -> Any:
    """The tokenizer, or a copy that makes the same ids where its offsets leave out the blanks of a token.

    `trim_offsets` (the default of ByteLevel and RoBERTa post-processors) gives a token of blanks no characters at all.
    """
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    if '"trim_offsets": true' not in json.dumps(state["post_processor"]):
        return tokenizer
    kept = json.dumps(state["post_processor"]).replace('"trim_offsets": true', '"trim_offsets": false')
    state["post_processor"] = json.loads(kept)
    twin = copy.deepcopy(tokenizer)
    twin.backend_tokenizer.post_processor = type(backend).from_str(json.dumps(state)).post_processor
    return twin


class _Recorder:
    """Stands in for a tokenizer and keeps the texts that it is called with."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        self.texts += [text] if isinstance(text, str) else list(text)
        return self._tokenizer(text, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@contextmanager
def complete(processor: Any) -> Iterator[None]:
    """Within it two images are processed: whatever comes of it is a ConfigError that names what the processor lacks.

    Checkpoints converted long ago lack what their processors were given by the model in older versions of transformers.
    """
    name = type(processor).__name__
    unset = [
        parameter.name
        for parameter in inspect.signature(type(processor).__init__).parameters.values()
        if parameter.default is None and getattr(processor, parameter.name, None) is None
    ]
    way_out = "write it into processor_config.json beside the model's weights; the model's config.json has the values"
    # Without the second of these there are wrong numbers of image tokens, and no error.
    if needed := [setting for setting in unset if setting in ("patch_size", "vision_feature_select_strategy")]:
        raise ConfigError(f"{name} lacks {' and '.join(needed)}, from which the image tokens are counted: {way_out}")
    try:
        yield
    except CalError:
        raise
    except Exception as error:
        lacking = [setting for setting in unset if setting != "chat_template"]
        hint = f". It lacks {', '.join(lacking)}: {way_out}" if lacking else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise ConfigError(f"{name} cannot process two small images: {reason}{hint}") from error
