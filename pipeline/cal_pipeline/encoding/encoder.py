"""Encodes a Sample and its images into model inputs, labels and the mask of image tokens.

Measuring and training use this one encoder: that is what makes their labels agree.

Over 300 lines: three ways to labels (marked template, plain prefix, suffix of the processor) end in one type and share
what is known of the processor, its limits and the cut to `max_length`; apart, each would carry all of that state.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cal_pipeline.encoding import templates
from cal_pipeline.encoding.chat import ChatTemplate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.processing import Processed, complete, process, with_all_offsets
from cal_pipeline.encoding.spans import overlapping_tokens, own_offsets
from cal_pipeline.encoding.templates import Rendered
from cal_pipeline.models.special_cases import PREFIX_PROCESSORS, REFUSED_PROCESSORS, UNIFORM_SHAPE_BATCHES
from cal_schemas.errors import CalError, ConfigError, NoSupervisedTokensError, SampleError, TooLongError
from cal_schemas.sample import IMAGE_MARK, Sample, Turn
from cal_schemas.spec import IGNORE_INDEX, AspectRatio, Template, Truncation

_WORDS = " What is in it? No words are like these."
_NO_INPUTS = {"labels", "offset_mapping", "text_replacement_offsets"}
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
    ) -> None:
        if not getattr(processor, "image_token", None) or not hasattr(processor, "image_processor"):
            raise ConfigError(f"{type(processor).__name__} is no image-text processor (no image token)")
        if not getattr(processor.tokenizer, "is_fast", False):
            raise ConfigError(
                f"{type(processor.tokenizer).__name__} gives no character offsets, which labels are found by; "
                "save the model with a fast tokenizer (tokenizer.json)"
            )
        self._name = type(processor).__name__
        if reason := REFUSED_PROCESSORS.get(self._name):
            raise ConfigError(f"{self._name} is not supported: {reason}")
        if max_length < 1:
            raise ConfigError(f"max_length must be positive, got {max_length}")
        self.processor = processor
        self.template = template
        self.image_aspect_ratio = image_aspect_ratio
        self.max_length = max_length
        self.truncation = truncation
        # Prefix-LM processors (PaliGemma) take the answer as an argument and make the labels themselves.
        self._takes_suffix = template == "auto" and "suffix" in inspect.signature(type(processor).__call__).parameters
        if not self._takes_suffix:
            templates.check_template(template, processor)
        self._specials = templates.special_tokens(processor.tokenizer)
        takes_chat = template == "auto" and not self._takes_suffix
        self._chat = ChatTemplate(processor, self._specials, date) if takes_chat else None
        self.date = self._chat.date if self._chat else None
        """The date that every rendering of this encoder reads; None where the template reads none."""
        self._tokenizer = with_all_offsets(processor.tokenizer)
        self._stripping = {
            number: token.content
            for number, token in processor.tokenizer.added_tokens_decoder.items()
            if token.lstrip or token.rstrip
        }
        self._longest_text = max_length * max(map(len, processor.tokenizer.get_vocab()))
        self._image_token = str(processor.image_token)  # BLIP-2 keeps it as an AddedToken
        # Ids that stand for one image before the text; 0 where images have a place in the text.
        self._prefix: int = processor.num_query_tokens if self._name in PREFIX_PROCESSORS else 0
        self._images_kwargs: dict[str, Any] = {}
        if image_aspect_ratio == "square":
            if not getattr(processor.image_processor, "do_center_crop", False):
                raise ConfigError(
                    f"--image_aspect_ratio square is the resize and centre crop of CLIP's image processor, which "
                    f"{type(processor.image_processor).__name__} does not do; use native or pad"
                )
            if hasattr(processor.image_processor, "do_pad"):
                self._images_kwargs["do_pad"] = False
        self._writes_bos = False
        self._token_inputs: frozenset[str] = frozenset()
        with complete(processor):
            self.batch_first_inputs = self._probe()
        own = processor.tokenizer.convert_tokens_to_ids(self._image_token)
        known = [token for token in getattr(processor, "image_token_ids", None) or [] if token is not None]
        self._placeholders = torch.tensor(known or [getattr(processor, "image_token_id", own)])
        self.uniform_shape_batches = UNIFORM_SHAPE_BATCHES.get(self._name)
        """Why samples in one batch must have pixel inputs of one shape, or None where they need not."""
        self.one_by_one: str | None = None
        """Why no two samples may share a batch, or None; the self-check of the model finds it out."""
        pad = processor.tokenizer.pad_token_id
        # Padding is masked everywhere, so any id will do where a tokenizer (LLaVA's old ones) has none.
        self.pad_token_id: int = 0 if pad is None else int(pad)

    def _probe(self) -> frozenset[str]:
        """Names of the pixel inputs that are batch-first: two images of one sample give them one row.

        Also learns which inputs are of tokens: two texts of different lengths give them as many entries as tokens. And
        notices a processor that rewrites the text, where character offsets would point at the wrong words.
        """
        images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
        text = self._image_token * 2
        if self._takes_suffix:
            output, longer = (self._process(text, images, suffix=words).output for words in ("a", _WORDS))
        elif self._prefix:
            output, longer = (self._process(words, images).output for words in ("a", _WORDS))
        else:
            found = self._process(text, images, add_special_tokens=False)
            output, longer = found.output, self._process(text + _WORDS, images, add_special_tokens=False).output
            bos = self.processor.tokenizer.bos_token
            self._writes_bos = bool(bos) and bos in found.given
            expected = self.processor.tokenizer(found.inserted_text, add_special_tokens=False)["input_ids"]
            if output["input_ids"][0].tolist() != expected:
                raise ConfigError(
                    f"{self._name} rewrites the text around its images, so labels cannot be located in it; this "
                    "processor is not supported"
                )
        self._token_inputs = token_aligned(output) & token_aligned(longer)
        pixels = self._encoded(output, output["input_ids"][0], output["input_ids"][0]).image_inputs
        return frozenset(key for key, value in pixels.items() if value.shape[0] == 1)

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
                encoded = self._encode_suffix(sample.messages, images)
            else:
                encoded = self._encode_text(self.render(sample), images)
        except CalError:
            raise
        except Exception as error:
            # A processor may raise anything for text or images that it does not like (its own token in the words).
            raise SampleError(f"{type(self.processor).__name__}: {type(error).__name__}: {error}") from error
        stray = torch.isin(encoded.sequence_inputs["input_ids"], self._placeholders) & ~encoded.image_mask
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
        twin._chat = ChatTemplate(self.processor, self._specials, date)
        twin.date = date
        return twin

    def render(self, sample: Sample) -> Rendered:
        """The text of a sample that has messages, and the spans of it that are supervised; raises as `__call__`."""
        assert sample.messages is not None
        if self._chat:
            return self._chat.render(sample.messages, sample.tools)
        if self.template == "plain":
            return templates.render_plain(sample.messages, self._image_token)
        turns = [templates.image_first(turn) for turn in sample.messages]
        return templates.render_vicuna_v1(turns, self._image_token, str(self.processor.tokenizer.eos_token))

    def check(self, sample: Sample, num_images: int | None = None) -> None:
        """Whatever is wrong with the words alone, before an image is opened; raises as `__call__` does."""
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
                    f"--template {'auto of ' + self._name if self._takes_suffix else self.template}"
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

    def _encode_text(self, rendered: Rendered, images: Sequence[Image.Image]) -> EncodedSample:
        if self._prefix:
            return self._encode_prefixed(rendered, images)
        found = self._process(rendered.text, images, add_special_tokens=self._adds_bos(rendered.text))
        output, expansion = found.output, found.expansion(rendered.text, len(images), self._specials)
        spans = [(expansion.offset(start), expansion.offset(stop)) for start, stop in rendered.label_spans]
        starts, stops = self._offsets(found)
        image_mask = overlapping_tokens(starts, stops, expansion.inserted)
        labels = torch.where(
            overlapping_tokens(starts, stops, spans) & ~image_mask, output["input_ids"][0], torch.tensor(IGNORE_INDEX)
        )
        return self._encoded(output, labels, image_mask)

    def _adds_bos(self, text: str) -> bool:
        """A template or a processor (Mllama's) that writes the BOS must not get a second one from the tokenizer."""
        bos = self.processor.tokenizer.bos_token
        return not (self._writes_bos or (bos and text.lstrip().startswith(bos)))

    def _encode_prefixed(self, rendered: Rendered, images: Sequence[Image.Image]) -> EncodedSample:
        """The mark and a newline behind it leave the text; the processor puts the image's ids before all of it."""
        if len(images) != 1:
            raise SampleError(f"{self._name} takes exactly one image, got {len(images)}")
        at = rendered.text.index(self._image_token)
        after = at + len(self._image_token)
        after += rendered.text[after : after + 1] == "\n"
        text = rendered.text[:at] + rendered.text[after:]
        found = self._process(text, images, add_special_tokens=self._adds_bos(text))
        output = found.output
        ids = output["input_ids"][0]
        if not bool(torch.isin(ids[: self._prefix], self._placeholders).all()):
            raise SampleError(f"{self._name} did not put {self._prefix} image tokens before the text")
        image_mask = torch.arange(len(ids)) < self._prefix
        gone = after - at
        spans = [
            (start - gone * (start >= after), stop - gone * (stop >= after)) for start, stop in rendered.label_spans
        ]
        starts, stops = self._offsets(found)
        chosen = overlapping_tokens(starts, stops, spans) & ~image_mask
        return self._encoded(output, torch.where(chosen, ids, torch.tensor(IGNORE_INDEX)), image_mask)

    def _encode_suffix(self, messages: Sequence[Turn], images: Sequence[Image.Image]) -> EncodedSample:
        if [turn.role for turn in messages] != ["user", "assistant"]:
            raise SampleError(
                f"{type(self.processor).__name__} takes one question and one answer, got {[t.role for t in messages]}"
            )
        question = messages[0].content.replace(IMAGE_MARK, "").strip()
        if images:
            text = self._image_token * len(images) + question
            found = self._process(text, images, suffix=messages[1].content)
            output, inserted = found.output, found.expansion(text, len(images), self._specials).inserted
        else:
            # The processor insists on an image; without one its prompt is the same text with no image tokens.
            tokenizer = self.processor.tokenizer
            output = tokenizer(
                [f"{tokenizer.bos_token}{question}\n"], text_pair=[messages[1].content + tokenizer.eos_token],
                return_token_type_ids=True, return_offsets_mapping=True, return_tensors="pt",
            )  # fmt: skip
            inserted = ()
        starts, stops = output["offset_mapping"][0].unbind(-1)
        answer = output["token_type_ids"][0] == 1
        image_mask = overlapping_tokens(starts, stops, inserted) & ~answer
        labels = torch.where(answer & messages[1].supervised, output["input_ids"][0], torch.tensor(IGNORE_INDEX))
        return self._encoded(output, labels, image_mask)

    def _encoded(self, output: Mapping[str, Tensor], labels: Tensor, image_mask: Tensor) -> EncodedSample:
        given = {key: value for key, value in output.items() if key not in _NO_INPUTS}
        sequence = {key: value[0] for key, value in given.items() if key in self._token_inputs}
        pixels = {key: value for key, value in given.items() if key not in sequence}
        return EncodedSample(sequence_inputs=sequence, image_inputs=pixels, labels=labels, image_mask=image_mask)

    def _process(self, text: str, images: Sequence[Image.Image], **kwargs: Any) -> Processed:
        return process(
            self.processor, text, images, image_token=self._image_token, images_kwargs=self._images_kwargs,
            tokenizer=self._tokenizer, **kwargs,
        )  # fmt: skip

    def _offsets(self, found: Processed) -> tuple[Tensor, Tensor]:
        output = found.output
        return own_offsets(output["input_ids"][0], output["offset_mapping"][0], found.given, self._stripping)

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


def token_aligned(inputs: Mapping[str, Any]) -> frozenset[str]:
    """Names of a batch's inputs [B, T] that are of its tokens, by their shape; numbers of images are floating."""
    shape = inputs["input_ids"].shape
    tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    return frozenset(k for k, value in tensors.items() if value.shape == shape and not value.is_floating_point())
