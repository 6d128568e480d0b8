"""Finds the tokens that cover a span of the rendered text once images are expanded in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cal_schemas.errors import SampleError


@dataclass(frozen=True, kw_only=True, slots=True)
class Expansion:
    """Maps the characters of a rendered text to those of the text with its image placeholders expanded."""

    shifts: tuple[tuple[int, int], ...]
    """(position in the rendered text, by how much it and all behind it moved), ascending."""
    inserted: tuple[tuple[int, int], ...]
    """Spans [start, stop) of the expanded text that stand for images, in order."""

    def offset(self, position: int) -> int:
        """The place in the expanded text of a character of the rendered one."""
        return position + max((item for item in self.shifts if item[0] <= position), default=(0, 0))[1]


NOTHING_EXPANDED = Expansion(shifts=(), inserted=())


def reported_expansion(output: Mapping[str, Any], num_images: int, name: str) -> Expansion | None:
    """Takes the processor's own report of the text it inserted; None when it makes none.

    Raises SampleError when it expanded another number of images.
    """
    report = output.get("text_replacement_offsets")
    if report is None:
        return None
    if len(report[0]) != num_images:
        raise SampleError(f"{name} expanded {len(report[0])} placeholders for {num_images} images")
    shifts = tuple((item["span"][1], item["new_span"][1] - item["span"][1]) for item in report[0])
    return Expansion(shifts=shifts, inserted=tuple((item["new_span"][0], item["new_span"][1]) for item in report[0]))


def recovered_expansion(
    rendered: str, expanded: str, *, image_token: str, markers: Sequence[str], bos: str | None, name: str
) -> Expansion:
    """Compares the two texts, for processors that make no report (Idefics2, Mllama).

    Args:
        rendered: what the processor was given, one `image_token` for each image.
        expanded: what it handed to its tokenizer: the same words, and for each image a run of markers and image
            tokens, with a space behind it at most; a BOS may have been put in front or behind leading images.
        image_token: stands for one image in `rendered`, and may be repeated in `expanded`.
        markers: other tokens that may surround it.
        bos: beginning of sequence, never part of a run.
        name: of the processor, for the message.

    Raises SampleError when the words are not the same.
    """
    if expanded == rendered:
        width = len(image_token)
        inserted = tuple((m.start(), m.start() + width) for m in re.finditer(re.escape(image_token), rendered))
        return Expansion(shifts=(), inserted=inserted)
    alphabet = [image_token, *(marker for marker in markers if marker != bos)]
    run = f"((?:{'|'.join(map(re.escape, alphabet))})+ ?)"
    begin = f"(?:{re.escape(bos)})?" if bos else ""
    pattern, groups, position = begin, list[int | None](), 0
    for number, piece in enumerate(rendered.split(image_token)):
        # Adjacent images make one run: they may share a marker, and nothing tells where one ends.
        if number and (not groups or groups[-1] is not None):
            pattern += run
            groups.append(None)
        if piece:
            pattern += (begin if groups == [None] else "") + f"({re.escape(piece)})"
            groups.append(position)
        position += len(piece) + len(image_token)
    match = re.fullmatch(pattern, expanded)
    if match is None or any(at is None and image_token not in match[n] for n, at in enumerate(groups, start=1)):
        raise SampleError(f"{name} changes the text around its images, so labels cannot be located in it")
    shifts = tuple((at, match.start(n) - at) for n, at in enumerate(groups, start=1) if at is not None)
    inserted = tuple(match.span(n) for n, at in enumerate(groups, start=1) if at is None)
    return Expansion(shifts=shifts, inserted=inserted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Processed:
    """One sample as it comes out of a processor."""

    output: Mapping[str, Any]
    """Tensors, each with a leading dimension, and the processor's own report where it makes one."""
    given: str
    """The text that its tokenizer was given."""
    processor: Any
    image_token: str

    @property
    def _report(self) -> list[Any]:
        return list((self.output.get("text_replacement_offsets") or [[]])[0])

    def expanded(self, text: str) -> str:
        """What becomes of a text that the processor was given, by its report; what its tokenizer got if it makes none.

        Some put a BOS in front of a text first (Molmo 2), and report places in that.
        """
        if not self._report:
            return self.given
        text = self.in_front(text) + text
        for item in reversed(self._report):
            start, stop = item["span"]
            text = text[:start] + item["replacement"] + text[stop:]
        return text

    def in_front(self, text: str) -> str:
        """What the processor put in front of a text before it inserted anything, by its report."""
        if not self._report:
            return ""
        grown = sum(len(item["replacement"]) - (item["span"][1] - item["span"][0]) for item in self._report)
        return self.given[: max(0, len(self.given) - grown - len(text))]

    def expansion(self, rendered: str, num_images: int, specials: Sequence[str]) -> Expansion:
        """Locates what became of the placeholders of `rendered`: by the report, else from what the tokenizer was given.

        `specials` are the tokens that text is not normally made of. Raises SampleError when it cannot be told.
        """
        name = type(self.processor).__name__
        if num_images and (reported := reported_expansion(self.output, num_images, name)) is not None:
            ahead = len(self.in_front(rendered))
            if not ahead or self.expanded(rendered) != self.given:
                return reported
            shifts = tuple((at - ahead, by + ahead) for at, by in reported.shifts)
            return Expansion(shifts=((0, ahead), *shifts), inserted=reported.inserted)
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


def own_offsets(ids: Tensor, offsets: Tensor, text: str, stripping: Mapping[int, str]) -> tuple[Tensor, Tensor]:
    """Locates each token's own characters, [T] starts and stops, in the text that the tokenizer was given.

    Takes ids [T] and offsets [T, 2]. `stripping` has the added tokens that swallow the blanks beside them (`lstrip`,
    `rstrip`), with their text: a header does not reach into the answer behind it.
    """
    starts, stops = offsets.unbind(-1)
    if not stripping:
        return starts, stops
    starts, stops = starts.clone(), stops.clone()
    for at in torch.isin(ids, torch.tensor(list(stripping), dtype=ids.dtype)).nonzero()[:, 0].tolist():
        own = stripping[int(ids[at])]
        begin = text.find(own, int(starts[at]), int(stops[at]))
        if begin >= 0:
            starts[at], stops[at] = begin, begin + len(own)
    return starts, stops


def overlapping_tokens(starts: Tensor, stops: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """[T] bool: tokens that cover at least one character of a span.

    A token without characters (BOS, or blanks that offsets leave out) counts where it stands amid a span.
    """
    inside = torch.zeros_like(starts, dtype=torch.bool)
    for start, stop in spans:
        inside |= (starts < stop) & (stops > start)
    return inside
