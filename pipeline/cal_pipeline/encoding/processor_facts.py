"""Finds out what is true of a processor whatever the row, by processing two small images."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cal_pipeline.encoding.encoded import EncodedSample, token_aligned
from cal_pipeline.encoding.spans import Processed, own_offsets
from cal_pipeline.encoding.templates import image_placeholder, special_tokens
from cal_pipeline.models.special_cases import PREFIX_PROCESSORS
from cal_schemas.errors import CalError, ConfigError
from cal_schemas.spec import IGNORE_INDEX

_WORDS = " What is in it? No words are like these."
_NO_INPUTS = {"labels", "offset_mapping", "text_replacement_offsets"}


class ProcessorFacts:
    """Calls one processor, and knows which of its outputs are of tokens and which of images.

    Args:
        processor: with a fast tokenizer and an `image_token`.
        takes_suffix: whether the answer is an argument of its own.
        images_kwargs: for its image processor.

    Raises ConfigError where it cannot process two small images, or rewrites the text around them: character offsets
    would point at the wrong words.
    """

    def __init__(self, processor: Any, *, takes_suffix: bool, images_kwargs: Mapping[str, Any]) -> None:
        self.processor = processor
        self.name = type(processor).__name__
        self.image_token = image_placeholder(processor)
        self.specials = special_tokens(processor.tokenizer)
        """The tokens that text is not normally made of."""
        self.prefix: int = processor.num_query_tokens if self.name in PREFIX_PROCESSORS else 0
        """Ids that stand for one image before the text; 0 where images have a place in the text."""
        self._images_kwargs = images_kwargs
        self._tokenizer = _with_all_offsets(processor.tokenizer)
        # Cosmos 3 Edge's names this among the model's inputs, and makes it only when asked.
        kinds = "mm_token_type_ids" in (getattr(processor, "model_input_names", None) or ())
        self._asked = {"return_mm_token_type_ids": True} if kinds else {}
        self._stripping = {
            number: token.content
            for number, token in processor.tokenizer.added_tokens_decoder.items()
            if token.lstrip or token.rstrip
        }
        self._writes_bos = False
        with _complete(processor):
            short, long = self._probe(takes_suffix)
            # Two texts of different lengths give these as many entries as tokens.
            self._token_inputs = (token_aligned(short) & token_aligned(long)) - _NO_INPUTS
            pixels = self._image_inputs(short)
            self.batch_first_inputs = frozenset(key for key, value in pixels.items() if value.shape[0] == 1)
            """Names of the pixel inputs that are batch-first: two images of one sample give them one row."""
        own = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
        several = [token for token in getattr(processor, "image_token_ids", None) or [] if token is not None]
        self.placeholders = torch.tensor(several or [getattr(processor, "image_token_id", own)])
        """Ids that stand for images, and for nothing else."""

    def _probe(self, takes_suffix: bool) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Outputs for two images beside few words and beside more."""
        images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
        text = self.image_token * 2
        if takes_suffix:
            return self.process(text, images, suffix="a").output, self.process(text, images, suffix=_WORDS).output
        if self.prefix:
            return self.process("a", images).output, self.process(_WORDS, images).output
        try:
            short = self.process(text, images, add_special_tokens=False)
        except ValueError:
            # HunYuan's takes placeholders only between the tokens that its chat template writes around them.
            ends = [getattr(self.processor, name, None) for name in ("image_start_token", "image_end_token")]
            if None in ends:
                raise
            text = 2 * self.image_token.join(map(str, ends))
            short = self.process(text, images, add_special_tokens=False)
        long = self.process(text + _WORDS, images, add_special_tokens=False)
        bos = self.processor.tokenizer.bos_token
        self._writes_bos = bool(bos) and bos in short.given
        expected = self.processor.tokenizer(short.expanded(text), add_special_tokens=False)["input_ids"]
        if short.output["input_ids"][0].tolist() != expected or short.in_front(text) not in ("", bos):
            raise ConfigError(
                f"{self.name} rewrites the text around its images, so labels cannot be located in it; this "
                "processor is not supported"
            )
        return short.output, long.output

    def process(
        self, text: str, images: Sequence[Image.Image], *, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> Processed:
        """Calls a copy of the processor with one text, a placeholder in it for each image, so that several threads may.

        `add_special_tokens` is the tokenizer's, None leaves its default; `kwargs` are the processor's own (`suffix`).
        """
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        watched = copy.copy(self.processor)
        watched.tokenizer = recorder = _Recorder(self._tokenizer)
        output = watched(
            # Left out, not empty, for text-only samples: an empty list means something else in every family.
            **({"images": [list(images)]} if images else {}),
            text=[text],
            return_text_replacement_offsets=True,
            **self._asked,
            text_kwargs={"return_offsets_mapping": True, "padding": False, "truncation": False, **options},
            # Tensors of the pixels only: PaliGemma's processor warns when asked for the text's too.
            images_kwargs={"return_tensors": "pt", **self._images_kwargs},
            **kwargs,
        )
        # Back from where the images were resized: rows wait in memory until their batch is full.
        tensors = {
            key: value if key == "text_replacement_offsets" else _tensor(value).cpu() for key, value in output.items()
        }
        given = recorder.texts[0] if recorder.texts else text
        return Processed(output=tensors, given=given, processor=self.processor, image_token=self.image_token)

    def process_rendered(self, text: str, images: Sequence[Image.Image]) -> Processed:
        """Calls the processor with a rendered text; a BOS that it (Mllama) or the template writes stays alone."""
        bos = self.processor.tokenizer.bos_token
        written = self._writes_bos or (bos and text.lstrip().startswith(bos))
        return self.process(text, images, add_special_tokens=not written)

    def offsets(self, processed: Processed) -> tuple[Tensor, Tensor]:
        """Starts and stops of each token's own characters, see `spans.own_offsets`."""
        output = processed.output
        return own_offsets(output["input_ids"][0], output["offset_mapping"][0], processed.given, self._stripping)

    def encoded(self, output: Mapping[str, Any], supervised: Tensor, image_mask: Tensor) -> EncodedSample:
        """The sample of which the processor made `output`; tokens of images [T] are never among the supervised [T]."""
        ids = output["input_ids"][0]
        return EncodedSample(
            sequence_inputs={key: output[key][0] for key in output if key in self._token_inputs},
            image_inputs=self._image_inputs(output),
            labels=torch.where(supervised & ~image_mask, ids, torch.tensor(IGNORE_INDEX)),
            image_mask=image_mask,
        )

    def _image_inputs(self, output: Mapping[str, Any]) -> dict[str, Tensor]:
        inputs = output.keys() - self._token_inputs - _NO_INPUTS
        # Llama 4's come in bfloat16: in float32 no value changes, and every model's precision can be had from it.
        return {
            key: value.float() if value.is_floating_point() else value for key, value in output.items() if key in inputs
        }


def _tensor(value: Any) -> Tensor:
    if isinstance(value, list) and (array := np.asarray(value)).dtype == np.int64:
        return torch.from_numpy(array)  # Ids and offsets, in a quarter of the time.
    return torch.as_tensor(value)


def _with_all_offsets(tokenizer: Any) -> Any:
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
def _complete(processor: Any) -> Iterator[None]:
    """Makes whatever is raised inside, where two images are processed, a ConfigError that names what is lacking.

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
