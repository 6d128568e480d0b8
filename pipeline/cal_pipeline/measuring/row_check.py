"""Proves, at load, that a row's numbers are its own: not its neighbours', not of what stands behind a token."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from cal_pipeline.encoding.collate import Batch
from cal_pipeline.encoding.encoded import EncodedSample, token_aligned
from cal_pipeline.measuring.conditions import FirstPass, without_image
from cal_pipeline.measuring.contrast import (
    captured_position_ids,
    contrast_logits,
    innermost_decoder,
    label_logits,
    required_inputs,
)
from cal_pipeline.models.precision import watched
from cal_schemas.errors import CalError, ConfigError
from cal_schemas.spec import ANOTHER_IMAGE, IGNORE_INDEX, ContrastSpec

Collate: TypeAlias = Callable[[Sequence[EncodedSample]], Batch]
_FEW, _SHARE = 8, 0.02
_RECURRENT = re.compile("linear|mamba|conv|recurrent")
_BESIDE = "a row's logits differ by {:.3g} with another row beside it"
_ANOTHER = f"use --contrast {ANOTHER_IMAGE}"


class Dependence(NamedTuple):
    """The reason why rows must be measured one at a time."""

    reason: str
    fails: bool
    """True where the forward takes no batch of two at all."""


@torch.no_grad()
def dependence(
    model: Any, samples: Sequence[EncodedSample], collate: Collate, contrast: ContrastSpec, name: str
) -> Dependence | None:
    """Tells why rows must be measured one at a time, or None where a batch gives each row what it gets alone.

    Two rows with different images are measured in one batch, and each in a batch of its own: the first as it is, the
    second with other words at the end of its answer. Raises ConfigError naming the model when earlier logits change
    with those.
    """
    first, second = samples
    changed, earlier = _with_another_end(second)
    kind = type(model).__name__

    def passes(rows: Sequence[EncodedSample]) -> Tensor:
        batch = collate(rows)
        first_pass = (model, batch.inputs, batch.labels, batch.image_mask, contrast)
        return torch.stack(contrast_logits(*first_pass, batch.contrast_inputs if contrast.perturbs else None)).cpu()

    def apart(together: Tensor, alone: Tensor, chosen: Tensor) -> float:
        """The distance of two measurements of a row at the chosen tokens; 0 where precision explains it."""
        chosen = chosen & ~alone[0].isnan()
        beside, single = together[:, : len(chosen)][:, chosen], alone[:, chosen]
        size = precision.size(beside - single)
        return 0.0 if size <= precision.tolerance(single) else size

    first_alone, precision = watched(model, lambda: passes([first]))
    alone, other_end = first_alone[:, 0], passes([changed])[:, 0]
    dependent: Dependence | None = None
    try:
        # The row under test stands behind the other one: what counts or indexes over a batch begins with the first.
        both = passes([second, first])
    except (torch.OutOfMemoryError, torch.AcceleratorError, CalError):
        raise
    except Exception as error:  # A forward may raise anything for a batch that it does not expect.
        dependent = Dependence(f"its forward fails on two rows: {type(error).__name__}: {_line(error)}", fails=True)
    else:
        size = apart(both[:, 1], alone, torch.ones(first.num_tokens, dtype=torch.bool))
        if size:
            dependent = Dependence(_BESIDE.format(size), fails=False)
        if not (size := apart(both[:, 0], other_end, earlier)):
            return dependent
        dependent = dependent or Dependence(_BESIDE.format(size), fails=False)
    # The second row differs too, or was not seen: by its neighbour, or by what stands at its end?
    by_itself = passes([second])[:, 0]
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
    eager = "it cannot be measured" if attention == "eager" else "use --attn_implementation eager, which always masks"
    for number, (seen, out) in enumerate((("with", eager), ("without", _ANOTHER))):
        if size := apart(by_itself[number][None], other_end[number][None], earlier):
            raise ConfigError(
                f"{name}: logits {seen} the image differ by {size:.3g} with the words that stand behind them; {kind} "
                f"looks at what follows a token: {out}"
            )
    return dependent


@torch.no_grad()
def check_places(model: Any, batch: Batch, name: str) -> None:
    """ConfigError where layers of the decoder take position ids for places of keys: dropping tokens moves those.

    Positions out of place may be beyond the last key, which costs a device. So the layers are not told them here.
    """
    with _untold_positions(model) as layers:
        untold = label_logits(model, batch.inputs, batch.labels)
    if layers and not _equal(label_logits(model, batch.inputs, batch.labels), untold):
        raise ConfigError(
            f"{name}: layers of {type(model).__name__} take position ids for places of keys, which dropping an image's "
            f"tokens moves; {_ANOTHER}"
        )


@torch.no_grad()
def check_gap(model: Any, batch: Batch, name: str) -> None:
    """ConfigError where a decoder closes the gap that hidden tokens leave, paying no heed to position ids.

    Those that count the places of tokens by the attention mask (ALiBi as in BLOOM) close it under `mask` too.
    """
    with captured_position_ids(model) as seen:
        label_logits(model, batch.inputs, batch.labels)
    first = FirstPass(
        inputs=batch.inputs, labels=batch.labels, image_mask=batch.image_mask, position_ids=seen[0],
        text_config=model.config.get_text_config(), required=required_inputs(model),
    )  # fmt: skip
    second = without_image("drop", first)
    kept = label_logits(model, second.inputs, second.labels)
    positions = second.inputs["position_ids"]
    closed = torch.arange(positions.shape[-1], device=positions.device).expand(positions.shape)
    heeded = not _equal(kept, label_logits(model, {**second.inputs, "position_ids": closed}, second.labels))
    if not heeded and _counts_places(model, batch):
        raise ConfigError(
            f"{name}: {type(model).__name__} pays no heed to position ids: without an image's tokens, the words behind "
            f"it would move up to those before; {_ANOTHER}"
        )


def _with_another_end(sample: EncodedSample) -> tuple[EncodedSample, Tensor]:
    """The sample with other words in the last third of what is supervised, and which tokens stand before: [T] bool."""
    supervised = torch.nonzero(sample.labels != IGNORE_INDEX)[:, 0]
    count = max(1, len(supervised) // 3)
    ids, labels = sample.sequence_inputs["input_ids"].clone(), sample.labels.clone()
    ids[supervised[-count:]] = labels[supervised[-count:]] = ids[supervised[:count]]
    earlier = torch.arange(sample.num_tokens) < supervised[-count]
    return replace(sample, sequence_inputs={**sample.sequence_inputs, "input_ids": ids}, labels=labels), earlier


@contextmanager
def _untold_positions(model: Any) -> Iterator[list[nn.Module]]:
    """Hides the position ids, inside, from the decoder's layers; yields those that would have been given them."""
    deprived: list[nn.Module] = []

    def hide(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if not isinstance(kwargs.get("position_ids"), Tensor):
            return None
        deprived.append(module)
        return args, {**kwargs, "position_ids": torch.zeros_like(kwargs["position_ids"])}

    layers = getattr(innermost_decoder(model), "layers", [])
    handles = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers]
    try:
        yield deprived
    finally:
        for handle in handles:
            handle.remove()


def _counts_places(model: Any, batch: Batch) -> bool:
    """Says whether some layer of attention looks further or less far back for the place of a key.

    Given the same rows before it in another order, the last of a few rows comes out of a layer as before where it does
    not; so do decoders without positions, which leave order to their recurrent layers.
    """
    calls: list[tuple[Any, Any, dict[str, Any], Any]] = []

    def keep(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.append((module, args, kwargs, output))

    words = torch.nonzero(~batch.image_mask[0])[:_FEW, 0]
    inputs = {key: batch.inputs[key][:1, words] for key in token_aligned(batch.inputs)}
    layers = getattr(innermost_decoder(model), "layers", None)
    if layers is None:
        return True
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or [""] * len(layers)
    attention = [layer for layer, kind in zip(layers, kinds, strict=False) if not _RECURRENT.search(kind)]
    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in attention]
    try:
        model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    order = torch.tensor([*reversed(range(len(words) - 1)), len(words) - 1])
    for layer, args, kwargs, output in calls:
        hidden, *rest = args if args else (kwargs["hidden_states"],)
        options = {key: value for key, value in kwargs.items() if key != "hidden_states"}
        turned = layer(hidden[:, order], *rest, **options)
        before, after = (item[0] if isinstance(item, tuple) else item for item in (output, turned))
        added = (before - hidden)[:, -1].float()
        if bool((after - before)[:, -1].float().norm() > _SHARE * added.norm()):
            return True
    return False


def _equal(first: Tensor, second: Tensor) -> bool:
    """Compares bit by bit: the same operations on the same numbers."""
    chosen = ~first.isnan()
    return torch.equal(first[chosen], second[chosen])


@contextmanager
def config_error_with(what: str) -> Iterator[None]:
    """Makes a model's own complaint a ConfigError; running out of memory and lost devices stay what they are."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError, CalError):
        raise
    except Exception as error:  # Any model's forward may raise anything for inputs that it does not expect.
        raise ConfigError(f"{what} fails with {type(error).__name__}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
