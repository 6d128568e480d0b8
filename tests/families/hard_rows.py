"""Rows on which a wrong pass shows: made of a family's own rows, by its processor or by cutting and joining tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from cal_schemas.spec import IGNORE_INDEX
from examples_of import conversation
from families.case import FIRST_WORD, Case
from families.family import AnyFamily, Family
from tiny_models import sample_image

SIZES: Final = ((60, 40), (40, 70), (90, 50))
ROWS: Final = (
    "three images of different sizes", "an image in the second turn", "an image at the very start",
    "an answer directly after an image", "an image at the very end", "answers of one token",
    "longer than every window", "no image",
)  # fmt: skip


def hard_rows(family: AnyFamily, case: Case, directory: Path) -> dict[str, EncodedSample]:
    """Those of ROWS that the family can have."""
    made = _by_processor(family, directory) if isinstance(family, Family) else _by_tokens(case)
    one, second = made["one"], made.get(ROWS[1])
    rows = {key: row for key, row in made.items() if key in ROWS}
    runs = _runs(one.image_mask)
    rows[ROWS[2]] = supervised(cut(one, runs[0][0], None), lambda at: True)
    rows[ROWS[3]] = supervised(one, lambda at: at >= runs[-1][1])
    if second is not None:
        # A mark that the template writes behind an image stays: some models count images by them.
        rows[ROWS[4]] = cut(second, 0, _runs(second.image_mask)[-1][1] + bool(getattr(family, "around", ())))
    several = second or one
    first_tokens = {start for start, _ in _runs(several.labels != IGNORE_INDEX)}
    rows[ROWS[5]] = supervised(several, lambda at: at in first_tokens)
    rows[ROWS[6]] = supervised(longer_than(several, max(windows(case.model), default=0) + 24), lambda at: at > 0)
    if case.text_only == "yes":
        rows[ROWS[7]] = case.samples[-1]
    return {name: rows[name] for name in ROWS if name in rows}


def windows(model: Any) -> list[int]:
    """Numbers of tokens that some layer of the decoder looks back over at most."""
    config = model.config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "index_topk", "indexer_budget")
    return [int(size) for name in names if (size := getattr(config, name, None))]


def _by_processor(family: Family, directory: Path) -> dict[str, EncodedSample]:
    encoder = Encoder(load_processor(directory), template=family.template)

    def row(*turns: str) -> EncodedSample:
        images = "".join(turns).count("<image>")
        return encoder(conversation(*turns), [sample_image(n, size) for n, size in enumerate(SIZES[:images])])

    made = {"one": row("<image>\nWhat is this?", "A red cat on the table.")}
    if not family.one_image:
        made[ROWS[0]] = row("<image>\n<image>\n<image>\nAnd these?", "The second shows a small dog.")
    if not family.one_turn:
        made[ROWS[1]] = row("How are you?", "Fine, I think.", "Look: <image>\nWhat?", "A dog on the left.")
    return made


def _by_tokens(case: Case) -> dict[str, EncodedSample]:
    """Of the rows that `token_samples` makes."""
    one, turns, *others = case.samples
    if case.two_images != "yes":
        return {"one": one}
    two, text = others
    ids = one.sequence_inputs["input_ids"]
    words = torch.nonzero((ids >= FIRST_WORD) & ~one.image_mask)[:, 0]
    return {
        "one": one,
        ROWS[0]: joined(cut(one, 0, int(words[0])), cut(two, 1, None)),
        ROWS[1]: joined(text, turns),
    }


def cut(sample: EncodedSample, start: int, stop: int | None) -> EncodedSample:
    """Tokens start to stop, which hold all of its images."""
    rows = slice(start, stop)
    assert int(sample.image_mask[rows].sum()) == int(sample.image_mask.sum())
    return _chosen(sample, torch.arange(sample.num_tokens)[rows])


def joined(first: EncodedSample, second: EncodedSample) -> EncodedSample:
    """One row, the second behind the first."""

    def both(one: Any, other: Any) -> dict[str, Tensor]:
        names = [*one, *(name for name in other if name not in one)]
        return {name: torch.cat([values[name] for values in (one, other) if name in values]) for name in names}

    return dataclasses.replace(
        first, sequence_inputs=both(first.sequence_inputs, second.sequence_inputs),
        image_inputs=both(first.image_inputs, second.image_inputs), labels=torch.cat([first.labels, second.labels]),
        image_mask=torch.cat([first.image_mask, second.image_mask]),
    )  # fmt: skip


def longer_than(sample: EncodedSample, length: int) -> EncodedSample:
    """Its answers repeated: that many tokens before the image, where an answer stands there, and as many behind it."""
    index, image = [], int(torch.nonzero(sample.image_mask)[0])
    answers = _runs(sample.labels != IGNORE_INDEX)
    before = [run for run in answers if run[1] <= image][:1]
    behind = [run for run in answers if run[0] > image][-1:]
    at = 0
    for start, stop in before + behind:
        index += list(range(at, start))
        index += list(range(start, stop)) * (length // (stop - start) + 1)
        at = stop
    return _chosen(sample, torch.tensor(index + list(range(at, sample.num_tokens))))


def supervised(sample: EncodedSample, chosen: Callable[[int], bool]) -> EncodedSample:
    """The chosen places made labels, images aside, and no others."""
    wanted = torch.tensor([chosen(at) for at in range(sample.num_tokens)]) & ~sample.image_mask
    labels = torch.where(wanted, sample.sequence_inputs["input_ids"], IGNORE_INDEX)
    return dataclasses.replace(sample, labels=labels)


def _chosen(sample: EncodedSample, index: Tensor) -> EncodedSample:
    aligned = {  # Mllama's: which tiles a token sees
        name: values[:, index] if values.shape[:2] == (1, sample.num_tokens) else values
        for name, values in sample.image_inputs.items()
    }
    return dataclasses.replace(
        sample, sequence_inputs={name: values[index] for name, values in sample.sequence_inputs.items()},
        image_inputs=aligned, labels=sample.labels[index], image_mask=sample.image_mask[index],
    )  # fmt: skip


def _runs(chosen: Tensor) -> list[tuple[int, int]]:
    """Start and stop of every stretch of true values."""
    edges = torch.nonzero(torch.diff(torch.nn.functional.pad(chosen.long(), (1, 1))))[:, 0].tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
