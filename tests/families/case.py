"""One family of the coverage matrix: a tiny model and a few encoded samples, ragged on purpose.

Samples come from the family's own processor where it can be built without torchvision, else from `token_samples`,
which writes token ids as that processor would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from cal_pipeline.encoding.collate import Batch, collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_schemas.spec import IGNORE_INDEX

FIRST_WORD: Final = 16
"""Ids below are special tokens of the model-level families."""
VOCABULARY: Final = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """What one image is to a model: the ids that stand for it, markers included, and its pixel inputs."""

    ids: Sequence[int]
    inputs: dict[str, Tensor]
    before: Sequence[int] = ()
    """Text of the chat template that the model needs around an image (Qwen's vision start); never dropped."""
    after: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A model in float32 and samples for it."""

    model: Any
    samples: Sequence[EncodedSample]
    pad_token_id: int = 0
    batch_first: frozenset[str] = frozenset()
    two_images: str = "yes"
    """`yes`, or the reason why a sample holds one image only."""
    text_only: str = "yes"
    """`yes`, or the reason why every sample needs an image."""
    found_by: str = "ids"
    """How `image_mask` came about; docs/models.md explains the words."""
    uniform_shape_batches: str | None = None
    """Why samples that share a batch need pixel inputs of one shape, or None."""
    one_by_one: str | None = None
    """Why no two samples may share a batch, or None."""

    def batch(self, samples: Sequence[EncodedSample]) -> Batch:
        """Samples as the product collates them."""
        return collate(samples, pad_token_id=self.pad_token_id, batch_first=self.batch_first)

    @property
    def batch_first_inputs(self) -> frozenset[str]:
        """As an Encoder calls it: the collator and `measure` read nothing else of one."""
        return self.batch_first

    def groups(self) -> list[list[EncodedSample]]:
        """Samples that may share a batch; usually all of them."""
        if self.one_by_one:
            return [[sample] for sample in self.samples]
        if self.uniform_shape_batches is None:
            return [list(self.samples)]
        kinds: dict[tuple[int, ...], list[EncodedSample]] = {}
        for sample in self.samples:
            shape = sample.image_inputs["pixel_values"].shape if sample.image_inputs else ()
            kinds.setdefault(tuple(shape), []).append(sample)
        return list(kinds.values())

    def left_padded(self, samples: Sequence[EncodedSample]) -> Batch:
        """Their batch with its padding moved to the left."""
        right = self.batch(samples)
        empty = (right.inputs["attention_mask"] == 0).sum(-1).tolist()
        aligned = {key: value for key, value in right.inputs.items() if value.shape[:2] == right.labels.shape}

        def rolled(values: Tensor) -> Tensor:
            return torch.stack([row.roll(shift, 0) for row, shift in zip(values, empty, strict=True)])

        inputs = {key: rolled(value) if key in aligned else value for key, value in right.inputs.items()}
        return Batch(inputs=inputs, labels=rolled(right.labels), image_mask=rolled(right.image_mask))


def token_samples(
    image: Callable[[int], Image], *, type_ids: str = "", two_images: bool = True, text_only: bool = True,
    image_first: bool = False, seed: int = 3,
) -> list[EncodedSample]:  # fmt: skip
    """One image; words around an image and two answers; two images; words alone. Token 5 begins each.

    `type_ids` names the input that is 1 at image tokens; `image_first` puts images before the first word (BLIP-2).
    """
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(FIRST_WORD, VOCABULARY, (count,), generator=generator).tolist()

    # Strings of the plan: p an image, q a question, a an answer.
    plans = ["pqa", "pqaqa" if image_first else "qpqaqa", *["ppqa"] * two_images, *["qaqa"] * text_only]
    samples = []
    for row, plan in enumerate(plans):
        ids, labels, mask = ([], [], []) if image_first else ([5], [IGNORE_INDEX], [False])
        images = []
        for at, step in enumerate(plan):
            if step == "p":
                shown = image(10 * row + at)
                images.append(shown)
                new = [*shown.before, *shown.ids, *shown.after]
                mask += [False] * len(shown.before) + [True] * len(shown.ids) + [False] * len(shown.after)
            else:
                new = words(3 + row + at)
                mask += [False] * len(new)
            labels += new if step == "a" else [IGNORE_INDEX] * len(new)
            ids += new
        sequence = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), dtype=torch.long)}
        image_mask = torch.tensor(mask)
        if type_ids:
            sequence[type_ids] = image_mask.long()
        inputs = {
            key: torch.cat([shown.inputs[key] for shown in images]) for key in (images[0].inputs if images else ())
        }
        samples.append(
            EncodedSample(
                sequence_inputs=sequence, image_inputs=inputs, labels=torch.tensor(labels), image_mask=image_mask
            )
        )
    return samples


def pixels(seed: int, *shape: int) -> Tensor:
    """Standard normal, as normalised images are."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
