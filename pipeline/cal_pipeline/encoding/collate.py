"""Collates encoded samples into padded batches, and chooses which samples share one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cal_pipeline.encoding.encoded import EncodedSample
from cal_schemas.spec import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B samples padded on the right to T tokens."""

    inputs: dict[str, Tensor]
    """The forward's: input_ids, attention_mask [B, T], …, pixel inputs. No labels."""
    labels: Tensor
    """[B, T] int64, not shifted, IGNORE_INDEX where unsupervised."""
    image_mask: Tensor
    """[B, T] bool."""
    contrast_inputs: dict[str, Tensor] = field(default_factory=dict)
    """Pixel inputs of the perturbed images, in the shapes of `inputs`; empty unless the samples have any."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Moves everything to `device`; floating inputs (pixels) also to the model's `dtype`."""

        def placed(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                key: value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
                for key, value in inputs.items()
            }

        return Batch(
            inputs=placed(self.inputs),
            labels=self.labels.to(device),
            image_mask=self.image_mask.to(device),
            contrast_inputs=placed(self.contrast_inputs),
        )


def collate(samples: Sequence[EncodedSample], *, pad_token_id: int, batch_first: Collection[str] = ()) -> Batch:
    """Pads and stacks samples.

    Token-aligned inputs are padded on the right, whatever the processor would do: pad_token_id for input_ids, 0 for
    the rest. Pixel inputs are zero-padded in all but their leading dimension and concatenated in it. Those named in
    `batch_first` have the batch as that dimension (idefics): a text-only sample beside images gets a row of zeros.
    """
    length = max(sample.num_tokens for sample in samples)
    names = list(dict.fromkeys(key for sample in samples for key in sample.sequence_inputs))
    inputs = {}
    for key in names:
        fill = pad_token_id if key == "input_ids" else 0
        inputs[key] = torch.stack([_padded(sample.sequence_inputs[key], length, fill) for sample in samples])
    real = torch.tensor([sample.num_tokens for sample in samples])
    # Always a 2-D mask, even all ones: with gapped positions and no mask transformers infers packed samples.
    inputs["attention_mask"] = (torch.arange(length)[None] < real[:, None]).long()
    inputs.update(_collate_images([sample.image_inputs for sample in samples], batch_first))
    return Batch(
        inputs=inputs,
        labels=torch.stack([_padded(sample.labels, length, IGNORE_INDEX) for sample in samples]),
        image_mask=torch.stack([_padded(sample.image_mask, length, 0) for sample in samples]),
        contrast_inputs=_collate_images([sample.contrast_inputs for sample in samples], batch_first),
    )


def _padded(values: Tensor, length: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - len(values)), value=fill)


def _collate_images(samples: Sequence[Mapping[str, Tensor]], batch_first: Collection[str]) -> dict[str, Tensor]:
    collated = {}
    for key in dict.fromkeys(key for sample in samples for key in sample):
        present = [sample[key] for sample in samples if key in sample]
        if key in batch_first:
            absent = torch.zeros_like(present[0])
            present = [sample.get(key, absent) for sample in samples]
        shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in present), strict=True)]
        padded = []
        for value in present:
            grown = value.new_zeros((value.shape[0], *shape))
            grown[tuple(slice(size) for size in value.shape)] = value
            padded.append(grown)
        collated[key] = torch.cat(padded)
    return collated


def batches_by_tokens(
    samples: Sequence[EncodedSample], tokens_per_batch: int, *, uniform_shape: bool = False
) -> list[list[int]]:
    """Indices of samples, grouped so that a padded batch holds at most `tokens_per_batch` tokens.

    Longest first, so padding is small and memory peaks at once or never. Samples with images and text-only samples do
    not mix: the latter need no second pass. `uniform_shape` also keeps pixel inputs of other shapes apart
    (special_cases tells for whom). A sample over the budget has a batch of its own. Depends on the lengths and shapes
    alone.
    """
    kinds: dict[tuple[object, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        shapes = tuple(sample.image_inputs["pixel_values"].shape) if uniform_shape and sample.image_inputs else ()
        kinds.setdefault((not sample.image_inputs, *shapes), []).append(index)
    groups: list[list[int]] = []
    for kind in sorted(kinds, key=str):
        chosen = sorted(kinds[kind], key=lambda i: -samples[i].num_tokens)
        while chosen:
            count = max(1, tokens_per_batch // samples[chosen[0]].num_tokens)
            groups.append(chosen[:count])
            chosen = chosen[count:]
    return groups
