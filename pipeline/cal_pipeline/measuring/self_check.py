"""Proves, on one batch of plain questions, that a loaded model's two passes are what they claim to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal

import torch
from PIL import Image, ImageDraw

from cal_pipeline.encoding.collate import Batch
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.perturbation import encode_with_contrast
from cal_pipeline.measuring.conditions import defined_tokens
from cal_pipeline.measuring.contrast import contrast_logits, label_logits, without_padding_mask
from cal_pipeline.measuring.row_check import check_gap, check_places, config_error_with
from cal_pipeline.models.precision import Precision, watched
from cal_pipeline.models.special_cases import mask_undefined
from cal_schemas.errors import CalError, ConfigError
from cal_schemas.sample import IMAGE_MARK, Sample, Turn
from cal_schemas.spec import ANOTHER_IMAGE, IGNORE_INDEX, Condition, ContrastSpec

_QUESTIONS: Final = (("A red disc on a white ground.", (96, 64), "red"), ("A blue egg.", (64, 96), "blue"))


def encode_questions(encoder: Encoder, model_id: str, contrast: ContrastSpec) -> list[EncodedSample]:
    """Two plain questions about two images; ConfigError naming the model when it cannot encode even these.

    Under a contrast that perturbs, the perturbed images have all their cells masked.
    """
    return [encode_question(encoder, model_id, contrast, number) for number in range(2)]


def encode_question(
    encoder: Encoder, model_id: str, contrast: ContrastSpec, number: int, times: int = 1
) -> EncodedSample:
    """A plain question with its answer, said several times; see `encode_questions`."""
    # The strongest one, whatever the run's: the self-check wants to see that the model sees it.
    contrast = ContrastSpec(condition="patch_mask", patch_mask_ratio=1.0) if contrast.perturbs else contrast
    answer, size, colour = _QUESTIONS[number]
    size = _QUESTIONS[0][1] if encoder.uniform_shape_batches else size
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((20, 10, size[0] - 20, size[1] - 10), fill=colour)
    turns = (
        Turn(role="user", content=f"{IMAGE_MARK}\nWhat is in the image?"),
        Turn(role="assistant", content=" ".join([answer] * times)),
    )
    try:
        sample = Sample(sample_id="self-check", images=(), messages=turns)
        return encode_with_contrast(encoder, contrast, sample, [image], "self-check")
    except CalError as error:
        raise ConfigError(
            f"{model_id}: its processor cannot encode a plain question about one image ({error})"
        ) from error


def check_reference(model: Any, batch: Batch, contrast: ContrastSpec, name: str) -> None:
    """Measures one batch in more than one way; ConfigError naming the model when the ways disagree.

    The label-only LM head must give what full logits give, also where padding is not masked (`without_padding_mask`);
    with contrast `drop`, dropping must give what masking gives on every token that does not directly follow an image
    (there the two differ by definition, docs/method.md); with `mask`, the logits of those tokens must not change with
    the image; with either, words must stay where they were (`check_gap`); with a contrast that perturbs, the image
    itself as perturbed image must give delta 0, and the batch's perturbed images must not. All within what the
    forward's own precision explains (`precision`). A decoder whose mask is undefined must keep its words where they
    were beside the image.
    """
    kind = type(model).__name__
    undefined = mask_undefined(model.config.get_text_config())
    if contrast.condition == "mask" and undefined:
        raise ConfigError(f"{name}: contrast 'mask' is not defined for {kind}: {undefined}; use --contrast drop")
    supervised = batch.labels[:, 1:] != IGNORE_INDEX
    with torch.no_grad():
        with config_error_with(f"{name}: {kind} cannot measure a plain question: its forward"):
            output, precision = watched(model, lambda: model(**batch.inputs, use_cache=False))
        full = output.logits[:, :-1]
        rows = full[supervised.to(full.device)].float().to(batch.labels.device)
        by_full = rows.gather(1, batch.labels[:, 1:][supervised][:, None])[:, 0]
        with config_error_with(
            f"{name}: {kind} uses its output head in a way that is not supported: one logit for each label"
        ):
            by_head = label_logits(model, batch.inputs, batch.labels)[:, 1:]
            unmasked = label_logits(model, without_padding_mask(model, batch.inputs), batch.labels)[:, 1:]
    disagreement = partial(_disagreement, precision)
    size, wrong = disagreement(by_head[supervised], by_full, "head")
    if wrong:
        raise ConfigError(
            f"{name}: the logit of a label differs by {size:.3g} between the label-only LM head and full logits; this "
            f"architecture ({kind}) uses its output head in a way that is not supported"
        )
    size, wrong = disagreement(unmasked[supervised], by_head[supervised])
    if wrong:
        raise ConfigError(
            f"{name}: logits differ by {size:.3g} with and without a mask over the padding behind a row's tokens, so "
            f"{kind} looks at what follows a token; use --attn_implementation eager, which always masks"
        )
    if contrast.perturbs:
        _check_perturbed(model, batch, contrast, name, disagreement)
        return
    if undefined:  # `drop` defines the deltas: there is nothing to compare it with.
        check_places(model, batch, name)
        check_gap(model, batch, name)
        return
    if _check_without_image(model, batch, contrast, name, disagreement):
        check_gap(model, batch, name)


def check_long(model: Any, batch: Batch, contrast: ContrastSpec, name: str) -> None:
    """Checks the pass without the image as `check_reference` does, and no full logits: rows may be long."""
    if contrast.perturbs or mask_undefined(model.config.get_text_config()):
        return
    _, precision = watched(model, lambda: label_logits(model, batch.inputs, batch.labels))
    _check_without_image(model, batch, contrast, name, partial(_disagreement, precision))


def _check_without_image(
    model: Any, batch: Batch, contrast: ContrastSpec, name: str, disagreement: Callable[..., tuple[float, bool]]
) -> bool:
    """Says whether masking gives what dropping gives."""
    kind = type(model).__name__
    after_image = torch.zeros_like(batch.image_mask)
    after_image[:, 1:] = batch.image_mask[:, :-1]
    compared = defined_tokens(batch.labels, batch.inputs["attention_mask"], batch.image_mask) & ~after_image

    def without(condition: Condition, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        first_pass = (model, inputs, batch.labels, batch.image_mask, ContrastSpec(condition=condition))
        return contrast_logits(*first_pass)[1][compared]

    def changes_with_image(masked: torch.Tensor) -> tuple[float, bool]:
        """The size of what masked logits change with the image, here its negative; and whether that is too much."""
        pixels = {key for key, value in batch.inputs.items() if value.is_floating_point()}
        negative = {key: -value if key in pixels else value for key, value in batch.inputs.items()}
        return disagreement(masked, without("mask", negative))

    masked = without("mask", batch.inputs)
    if contrast.condition == "mask":
        size, wrong = changes_with_image(masked)
        if wrong:
            raise ConfigError(
                f"{name}: with the image's tokens masked, logits still differ by {size:.3g} between two images; "
                f"masking does not hide the image from this model ({kind}), use another --contrast"
            )
        with suppress(ConfigError), config_error_with("dropping"):  # Not what was asked for: it may fail.
            return not disagreement(without("drop", batch.inputs), masked)[1]
        return False
    with config_error_with(
        f"{name}: use --contrast mask with this model ({kind}): a pass with the image's tokens dropped"
    ):
        dropped = without("drop", batch.inputs)
    size, wrong = disagreement(dropped, masked)
    if not wrong:
        return True
    problem = f"{name}: without-image logits differ by {size:.3g} between dropping the image's tokens and masking them"
    leak, leaks = changes_with_image(masked)
    if leaks:
        raise ConfigError(
            f"{problem}, and masked ones by {leak:.3g} between two images: what this model ({kind}) says without an "
            f"image cannot be measured by either; use --contrast {ANOTHER_IMAGE}"
        )
    raise ConfigError(f"{problem}; use --contrast mask with this model ({kind})")


def _disagreement(
    precision: Precision, logits: torch.Tensor, expected: torch.Tensor, what: Literal["head", "passes"] = "passes"
) -> tuple[float, bool]:
    """The size of the difference (`Precision.size`), and whether it is too much; nothing compared is too much."""
    if not len(logits):
        return float("nan"), True
    size = precision.size(logits - expected)
    # Negated, because NaN compares false with everything.
    return size, not size <= precision.tolerance(expected, what)


def _check_perturbed(
    model: Any,
    batch: Batch,
    contrast: ContrastSpec,
    name: str,
    disagreement: Callable[[torch.Tensor, torch.Tensor], tuple[float, bool]],
) -> None:
    first_pass = (model, batch.inputs, batch.labels, batch.image_mask, contrast)
    itself = {key: batch.inputs[key] for key in batch.contrast_inputs}
    with_image, same = contrast_logits(*first_pass, itself)
    compared = ~with_image.isnan()
    size, wrong = disagreement(with_image[compared], same[compared])
    if wrong:
        raise ConfigError(
            f"{name}: two passes over the same image differ by {size:.3g}; this architecture "
            f"({type(model).__name__}) cannot be contrasted with a perturbed image, use --contrast drop or mask"
        )
    changed = contrast_logits(*first_pass, batch.contrast_inputs)[1]
    if bool((changed[compared] == same[compared]).all()):
        raise ConfigError(
            f"{name}: no logit changes when all of the image is masked; {type(model).__name__} does not see the "
            f"perturbed image, use --contrast drop or mask"
        )
