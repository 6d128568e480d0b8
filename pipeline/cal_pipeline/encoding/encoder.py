"""Encodes a Sample and its images into model inputs, labels and the mask of image tokens.

Measuring and training use this one encoder: that is what makes their labels agree.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from cal_pipeline.encoding import templates
from cal_pipeline.encoding.chat import ChatTemplate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.labels import encode_prefixed, encode_rendered, encode_suffix
from cal_pipeline.encoding.processor_facts import ProcessorFacts
from cal_pipeline.encoding.templates import Rendered
from cal_pipeline.models.special_cases import REFUSED_PROCESSORS, UNIFORM_SHAPE_BATCHES
from cal_pipeline.sources.reading import is_surroundings
from cal_schemas.choices import check_choice
from cal_schemas.errors import (
    CalError,
    ConfigError,
    NoSupervisedTokensError,
    SampleError,
    SurroundingsError,
    TooLongError,
)
from cal_schemas.sample import IMAGE_MARK, Sample
from cal_schemas.spec import IGNORE_INDEX, AspectRatio, Template, Truncation

_LONGEST_CUT_TEXT = 2**20
"""Characters of a row that `--truncation tail` still cuts; a longer one costs gigabytes to encode."""


class Encoder:
    """Encodes samples with a model's own processor. Safe to call from several threads.

    Args:
        processor: with a fast tokenizer (offsets are needed) and an `image_token`.
        template: `auto` is the processor's chat template, or the prefix and suffix of a PaliGemma-like processor.
        image_aspect_ratio: `native` leaves the image to the processor; `pad` extends it to a square with the
            processor's mean colour first; `square` insists on the processor's resize and centre crop.
        max_length: longest encoding, in tokens.
        date: that a chat template gets which asks for it (YYYY-MM-DD); None is today's.
        truncation: `drop` makes a longer row `too_long`; `tail` cuts its end, as the released code does.
        processor_kwargs: the settings that `processor` was loaded with, to be recorded.

    Raises ConfigError for combinations that cannot work.
    """

    def __init__(
        self,
        processor: Any,
        *,
        template: Template = "auto",
        image_aspect_ratio: AspectRatio = "native",
        max_length: int = 2048,
        truncation: Truncation = "drop",
        date: str | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not getattr(processor, "image_token", None) or not hasattr(processor, "image_processor"):
            raise ConfigError(f"{type(processor).__name__} is no image-text processor (no image token)")
        if not getattr(processor.tokenizer, "is_fast", False):
            raise ConfigError(
                f"{type(processor.tokenizer).__name__} gives no character offsets, which labels are found by; "
                "save the model with a fast tokenizer (tokenizer.json)"
            )
        name = type(processor).__name__
        if reason := REFUSED_PROCESSORS.get(name):
            raise ConfigError(f"{name} is not supported: {reason}")
        check_choice("template", template, Template)
        check_choice("image_aspect_ratio", image_aspect_ratio, AspectRatio)
        check_choice("truncation", truncation, Truncation)
        if max_length < 1:
            raise ConfigError(f"max_length must be positive, got {max_length}")
        self.processor = processor
        self.template = template
        self.image_aspect_ratio = image_aspect_ratio
        self.max_length = max_length
        self.truncation = truncation
        self.processor_kwargs = dict(processor_kwargs or {})
        # Prefix-LM processors (PaliGemma) take the answer as an argument and make the labels themselves.
        self._takes_suffix = template == "auto" and "suffix" in inspect.signature(type(processor).__call__).parameters
        if not self._takes_suffix:
            templates.check_template(template, processor)
        images_kwargs: dict[str, Any] = {}
        if image_aspect_ratio == "square":
            if not getattr(processor.image_processor, "do_center_crop", False):
                raise ConfigError(
                    f"--image_aspect_ratio square is the resize and centre crop of CLIP's image processor, which "
                    f"{type(processor.image_processor).__name__} does not do; use native or pad"
                )
            if hasattr(processor.image_processor, "do_pad"):
                images_kwargs["do_pad"] = False
        self._facts = ProcessorFacts(processor, takes_suffix=self._takes_suffix, images_kwargs=images_kwargs)
        takes_chat = template == "auto" and not self._takes_suffix
        self._chat = ChatTemplate(processor, self._facts.specials, date) if takes_chat else None
        self.date = self._chat.date if self._chat else None
        """The date that every rendering of this encoder reads; None where the template reads none."""
        self._longest_text = max_length * max(map(len, processor.tokenizer.get_vocab()))
        self.batch_first_inputs = self._facts.batch_first_inputs
        self.uniform_shape_batches = UNIFORM_SHAPE_BATCHES.get(name)
        """Why samples in one batch must have pixel inputs of one shape, or None where they need not."""
        self.one_by_one: str | None = None
        """Why no two samples may share a batch, or None; the self-check of the model finds it out."""
        pad = processor.tokenizer.pad_token_id
        # Padding is masked everywhere, so any id will do where a tokenizer (LLaVA's old ones) has none.
        self.pad_token_id: int = 0 if pad is None else int(pad)

    def __call__(self, sample: Sample, images: Sequence[Image.Image]) -> EncodedSample:
        """Encodes one sample with its decoded images, in the order of the marks.

        Raises SampleError (or a subclass that names the status) when this sample cannot be used.
        """
        self.check(sample, len(images))
        assert sample.messages is not None
        if self.image_aspect_ratio == "pad":
            images = [pad_to_square(image, self.processor.image_processor.image_mean) for image in images]
        try:
            if self._takes_suffix:
                encoded = encode_suffix(self._facts, sample.messages, images)
            else:
                encode = encode_prefixed if self._facts.prefix else encode_rendered
                encoded = encode(self._facts, self.render(sample), images)
        except CalError:
            raise
        except Exception as error:
            # A processor may raise anything for text or images that it does not like (its own token in the words).
            if is_surroundings(error):
                raise SurroundingsError(f"{self._facts.name} cannot encode now: {error!r}") from error
            raise SampleError(f"{self._facts.name}: {type(error).__name__}: {error}") from error
        stray = torch.isin(encoded.sequence_inputs["input_ids"], self._facts.placeholders) & ~encoded.image_mask
        if bool(stray.any()):
            token = self.processor.tokenizer.decode(encoded.sequence_inputs["input_ids"][stray][:1])
            raise SampleError(f"the text itself holds the model's image token {token!r}")
        return self._fit(encoded)

    def pad_within(self, num_embeddings: int) -> None:
        """Pads with an id that a model of so many embeddings has: not all were resized for a new pad token."""
        if self.pad_token_id >= num_embeddings:
            self.pad_token_id = 0

    def dated(self, date: str | None) -> Encoder:
        """This encoder, or its like whose template reads another date; None leaves it."""
        if self._chat is None or self.date is None or date in (None, self.date):
            return self
        twin = copy.copy(self)
        twin._chat = ChatTemplate(self.processor, self._facts.specials, date)
        twin.date = date
        return twin

    def render(self, sample: Sample) -> Rendered:
        """The text of a sample that has messages, and the spans of it that are supervised; raises as `__call__`."""
        assert sample.messages is not None
        if self._chat:
            return self._chat.render(sample.messages, sample.tools)
        if self.template == "plain":
            return templates.render_plain(sample.messages, self._facts.image_token)
        turns = [templates.image_first(turn) for turn in sample.messages]
        return templates.render_vicuna_v1(turns, self._facts.image_token, str(self.processor.tokenizer.eos_token))

    def check(self, sample: Sample, num_images: int | None = None) -> None:
        """Raises as `__call__` does for what is wrong with the words alone, before an image is opened."""
        if sample.messages is None:
            raise SampleError(sample.problem or "the row could not be parsed")
        num_images = len(sample.images) if num_images is None else num_images
        marks = sum(turn.content.count(IMAGE_MARK) for turn in sample.messages)
        if marks != num_images:
            raise SampleError(f"{marks} {IMAGE_MARK} marks for {num_images} images")
        if not any(
            turn.role == "assistant" and turn.supervised and (turn.content.strip() or turn.extra)
            for turn in sample.messages
        ):
            raise NoSupervisedTokensError("the conversation has no assistant turn with words to be learned")
        if not self._chat:
            keys = {key for turn in sample.messages for key in turn.extra} | ({"tools"} if sample.tools else set())
            if keys:
                raise SampleError(
                    f"only chat templates take {', '.join(f'`{key}`' for key in sorted(keys))}, and this is "
                    f"--template {'auto of ' + self._facts.name if self._takes_suffix else self.template}"
                )
        if num_images > self.max_length:
            raise TooLongError(f"{num_images} images are more than the {self.max_length} tokens of --max_length")
        # No token spells more characters than the longest, so this needs no encoding of, say, a whole book.
        characters = sum(len(turn.content) for turn in sample.messages)
        if self.truncation == "drop" and characters > self._longest_text:
            raise TooLongError(
                f"{characters} characters are more than {self.max_length} tokens (--max_length) can spell: the "
                f"longest token has {self._longest_text // self.max_length} characters"
            )
        if characters > max(self._longest_text, _LONGEST_CUT_TEXT):
            raise TooLongError(f"{characters} characters; at most {_LONGEST_CUT_TEXT} are encoded to be cut")

    def _fit(self, encoded: EncodedSample) -> EncodedSample:
        if not bool((encoded.labels != IGNORE_INDEX).any()):
            raise NoSupervisedTokensError("no token of this encoding is supervised")
        excess = encoded.num_tokens - self.max_length
        if excess <= 0:
            return encoded
        problem = None
        if self.truncation == "drop":
            problem = "; --truncation tail would cut the end"
        elif bool(encoded.image_mask[self.max_length :].any()):
            problem = ", and cutting the end would cut an image"
        elif not bool((encoded.labels[: self.max_length] != IGNORE_INDEX).any()):
            problem = ", and no supervised token would remain"
        if problem:
            error = TooLongError(f"{encoded.num_tokens} tokens, --max_length {self.max_length}{problem}")
            error.num_tokens = encoded.num_tokens
            raise error
        return EncodedSample(
            sequence_inputs={key: value[: self.max_length] for key, value in encoded.sequence_inputs.items()},
            image_inputs=encoded.image_inputs,
            labels=encoded.labels[: self.max_length],
            image_mask=encoded.image_mask[: self.max_length],
            truncated=True,
        )


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The image centred on a square of its longer side in colour int(255 * mean), as the released code does."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
