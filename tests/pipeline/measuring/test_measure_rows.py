"""What a model's forward cannot take is the status of that row: its neighbours are measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.contrast import innermost_decoder
from cal_pipeline.measuring.measure import measure
from cal_pipeline.measuring.positions import learned_positions, longest_row
from cal_schemas.annotated import MeasuredSample
from cal_schemas.errors import ConfigError, NonFiniteError, OutOfMemoryError, SampleError, TooLongError
from cal_schemas.spec import ContrastSpec
from conftest import Family
from examples_of import conversation
from families import processors
from tiny_models import sample_image


@pytest.fixture(scope="module")
def blip_2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Encoder]:
    """Over OPT with 256 learned positions."""
    directory: Path = tmp_path_factory.mktemp("blip_2")
    processors.BUILDERS["blip_2"](directory)
    return processors.BY_NAME["blip_2"].load(directory)


def _measured(model: Any, encoder: Encoder, samples: list[EncodedSample]) -> list[MeasuredSample | SampleError]:
    return measure(samples, model=model, encoder=encoder, contrast=ContrastSpec(), tokens_per_batch=100_000)


def _same_as_alone(model: Any, encoder: Encoder, samples: list[EncodedSample], rows: list[int]) -> None:
    results = _measured(model, encoder, samples)
    for row in rows:
        together, (alone,) = results[row], _measured(model, encoder, [samples[row]])
        assert isinstance(together, MeasuredSample)
        assert isinstance(alone, MeasuredSample)
        np.testing.assert_allclose(together.delta_logits, alone.delta_logits, atol=1e-4)


def test_a_row_beyond_the_learned_positions_is_too_long_and_the_others_are_measured(
    blip_2: tuple[Any, Encoder],
) -> None:
    model, encoder = blip_2
    answers = ["A cat.", "A small dog sits next to a large white cat. " * 20, "A dog."]
    samples = [encoder(conversation("<image>\nWhat?", answer), [sample_image(1)]) for answer in answers]
    assert samples[1].num_tokens > 256
    problem = _measured(model, encoder, samples)[1]
    assert isinstance(problem, TooLongError)
    assert str(problem) == f"{samples[1].num_tokens} tokens, and the model has 256 learned positions"
    assert problem.num_tokens == samples[1].num_tokens
    _same_as_alone(model, encoder, samples, [0, 2])


def test_the_last_learned_position_can_be_used(blip_2: tuple[Any, Encoder]) -> None:
    model, encoder = blip_2
    long = encoder(conversation("<image>\nWhat?", "A small dog sits next to a cat. " * 20), [sample_image(1)])
    cut = {name: getattr(long, name)[:256] for name in ("labels", "image_mask")}
    ids = {key: value[:256] for key, value in long.sequence_inputs.items()}
    (row,) = _measured(model, encoder, [dataclasses.replace(long, sequence_inputs=ids, **cut)])
    assert isinstance(row, MeasuredSample)


def test_rotary_decoders_have_no_such_limit_and_gpt_2_has(family: Callable[[str], Family]) -> None:
    assert learned_positions(family("llava").model) is None
    assert learned_positions(family("gemma3").model) is None
    config = hf.GPT2Config(n_positions=48, n_embd=32, n_layer=1, n_head=2, vocab_size=50)
    assert learned_positions(hf.GPT2LMHeadModel(config)) == 48


def test_a_table_of_patches_is_no_limit_of_tokens() -> None:
    """Idefics' decoder holds its vision tower."""
    with torch.device("meta"):
        model = hf.IdeficsForVisionText2Text(hf.IdeficsConfig(num_hidden_layers=1))
    assert any("position_embedding" in name for name, _ in innermost_decoder(model).named_modules())
    assert learned_positions(model) is None


def test_training_on_learned_positions_lowers_the_longest_row_to_them(
    blip_2: tuple[Any, Encoder], family: Callable[[str], Family], caplog: pytest.LogCaptureFixture
) -> None:
    assert longest_row(blip_2[0], 256) == 256
    assert longest_row(family("llava").model, 4096) == 4096
    assert not caplog.text
    assert longest_row(blip_2[0], 257) == 256
    assert "--max_length 257 is lowered to 256: the model has no more learned positions" in caplog.text


def test_a_row_that_the_forward_refuses_says_so_and_the_others_are_measured(llava: Family) -> None:
    """Its image gives one vector more than the row has tokens for it."""
    encoder, model = llava.encoder, llava.model
    samples = [encoder(conversation("<image>\nWhat?", words), [sample_image(1)]) for words in ("A cat.", "No.", "Yes.")]
    broken = samples[1]
    kept = torch.arange(broken.num_tokens) != int(broken.image_mask.nonzero()[0])
    samples[1] = dataclasses.replace(
        broken,
        sequence_inputs={key: value[kept] for key, value in broken.sequence_inputs.items()},
        labels=broken.labels[kept],
        image_mask=broken.image_mask[kept],
    )
    problem = _measured(model, encoder, samples)[1]
    assert isinstance(problem, SampleError)
    assert problem.status == "encode_error"
    assert "the model cannot take this row: ValueError: Image features and image tokens do not match" in str(problem)
    _same_as_alone(model, encoder, samples, [0, 2])


@pytest.mark.parametrize("error", [AttributeError, IndexError, RuntimeError, ValueError])
def test_of_two_rows_the_one_that_fails_says_how_and_the_other_is_measured(
    llava: Family, error: type[Exception]
) -> None:
    samples = [llava.encoder(conversation("<image>\nWhat?", words), [sample_image(1)]) for words in ("A cat.", "No.")]
    refused = samples[0].num_tokens

    def fail(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] == refused:
            raise error("no such\n table")

    assert samples[1].num_tokens < refused
    handle = llava.model.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        problem, neighbour = _measured(llava.model, llava.encoder, samples)
    finally:
        handle.remove()
    assert str(problem) == f"the model cannot take this row: {error.__name__}: no such table"
    assert isinstance(neighbour, MeasuredSample)


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("CUDA error (simulated)"), KeyError("a fault of the code"), ConfigError("use --contrast")],
)
def test_a_lost_device_and_what_concerns_every_row_are_no_row_s_status(llava: Family, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    sample = llava.encoder(conversation("<image>\nWhat?", "A cat."), [sample_image(1)])
    handle = llava.model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(type(error)):
            _measured(llava.model, llava.encoder, [sample, sample])
    finally:
        handle.remove()


def test_a_batch_that_does_not_fit_is_halved_and_so_is_what_is_no_smaller(
    llava: Family, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, model = llava.encoder, llava.model
    answers = ["Yes."] * 5 + ["A small dog sits next to a large white cat. " * 8]
    samples = [encoder(conversation("<image>\nWhat?", words), [sample_image(1)]) for words in answers]
    short, long = samples[0].num_tokens, samples[-1].num_tokens
    limit = 2 * short
    assert long > limit
    seen: list[int] = []

    def fits(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if "pixel_values" in kwargs:
            seen.append(len(kwargs["input_ids"]))
        if kwargs["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    handle = model.register_forward_pre_hook(fits, with_kwargs=True)
    try:
        results = measure(
            samples, model=model, encoder=encoder, contrast=ContrastSpec(), tokens_per_batch=max(long, 5 * short)
        )
    finally:
        handle.remove()
    problem = results[-1]
    assert isinstance(problem, OutOfMemoryError)
    assert str(problem) == f"{long} tokens do not fit into the accelerator's memory"
    # The long one; all five, of which two fit; the other three are no smaller than what did not, and not tried.
    assert seen == [1, 5, 2, 1, 2]
    assert f"a batch of {5 * short} tokens does not fit" in caplog.text
    for sample, row in zip(samples[:-1], results[:-1], strict=True):
        (alone,) = _measured(model, encoder, [sample])
        assert isinstance(row, MeasuredSample)
        assert isinstance(alone, MeasuredSample)
        np.testing.assert_allclose(row.delta_logits, alone.delta_logits, atol=1e-4)


def test_tokens_beyond_the_embedding_are_that_row_s_problem_and_an_image_s_placeholders_are_not(llava: Family) -> None:
    encoder, model = llava.encoder, llava.model
    size = model.get_input_embeddings().weight.shape[0]
    sample = encoder(conversation("<image>\nWhat?", "A cat."), [sample_image(1)])
    for beyond, good in ((size, False), (size - 1, True)):
        ids = sample.sequence_inputs["input_ids"].clone()
        ids[-1] = beyond
        changed = dataclasses.replace(sample, sequence_inputs={**sample.sequence_inputs, "input_ids": ids})
        row, neighbour = _measured(model, encoder, [changed, sample])
        assert isinstance(neighbour, MeasuredSample)
        assert isinstance(row, MeasuredSample) == good
        if not good:
            assert str(row) == f"token id {size} is beyond the model's {size} embeddings"


def test_a_row_whose_logits_are_not_finite_says_how_many(llava: Family) -> None:
    encoder, model = llava.encoder, llava.model
    samples = [encoder(conversation("<image>\nWhat?", words), [sample_image(1)]) for words in ("A cat. " * 9, "Yes.")]
    only = set(samples[0].labels.tolist()) - set(samples[1].labels.tolist()) - {-100}
    head = model.get_output_embeddings().weight
    rows = sorted(only)[:1]
    kept = head[rows].clone()
    with torch.no_grad():
        head[rows] = torch.inf
    try:
        broken, good = _measured(model, encoder, samples)
    finally:
        with torch.no_grad():
            head[rows] = kept
    supervised = int((samples[0].labels != -100).sum())
    count = int(torch.isin(samples[0].labels, torch.tensor(rows)).sum())
    assert isinstance(broken, NonFiniteError)
    assert str(broken) == f"{count} of {supervised} supervised tokens have non-finite logits"
    assert isinstance(good, MeasuredSample)
