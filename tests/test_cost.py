"""What noise cannot move: operations, decoder passes, rows through the head, bytes of tensors. Never wall time."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines import gathered, released_passes
from cal_pipeline.measuring.contrast import contrast_logits, innermost_decoder, without_padding_mask
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from contrast import variants
from cost_model import sample_bytes, sample_cost
from estimate import REFERENCES, gpu_hours
from measuring import count_flops, fitted_exponent, peak_memory
from shapes import SHAPES, LabelledBatch, Shape, build_batch, build_model
from train_step import VARIANTS, build_steps

LLAVA = SHAPES["tiny"]
QWEN = replace(LLAVA, decoder="qwen2_5_vl", kv_heads=1, tied=True)
GEMMA = replace(LLAVA, decoder="gemma", kv_heads=1, head_dim=64, tied=True)
TILED = replace(LLAVA, image_tokens=48)
WIDE_HEAD = replace(LLAVA, vocabulary=32_000)


def passes(shape: Shape) -> tuple[Any, LabelledBatch, dict[str, Any]]:
    model, batch = build_model(shape), build_batch(shape)
    return model, batch, variants(model, batch)


@pytest.mark.parametrize("shape", [LLAVA, TILED, QWEN, GEMMA], ids=["llava", "tiled", "qwen", "gemma"])
def test_the_model_of_cost_says_what_torch_counts(shape: Shape) -> None:
    _, _, runs = passes(shape)
    cost = sample_cost(shape)
    for way in ("plain", "released", "drop"):
        assert count_flops(runs[way]) / shape.batch == pytest.approx(getattr(cost, way), rel=1e-6), way


def test_our_passes_cost_at_most_a_third_of_the_released_ones_at_the_cpu_shape() -> None:
    narrow, wide = sample_cost(SHAPES["cpu"]), sample_cost(SHAPES["cpu"].with_image_tokens(2880))
    assert narrow.drop / narrow.released < 0.31
    assert wide.drop / wide.released < 0.36


def test_costs_of_the_named_models_are_those_of_the_design() -> None:
    llava, tiled = sample_cost(SHAPES["llava15-7b"]), sample_cost(SHAPES["llavanext-7b"])
    assert llava.released / llava.plain == pytest.approx(1.96, abs=0.01)
    assert llava.drop / llava.plain == pytest.approx(1.26, abs=0.01)
    assert tiled.drop / tiled.plain == pytest.approx(1.05, abs=0.01)


def test_gpu_hours_are_samples_times_operations_over_rate() -> None:
    cost = sample_cost(REFERENCES["llava15-7b"])
    # 14.72e12 operations at 0.4 of 989e12 a second: 0.0372 s a sample.
    assert gpu_hours(cost, 665_000) == pytest.approx(665_000 * 0.0372 / 3600, rel=0.01)
    assert sample_bytes(REFERENCES["llava15-7b"]).released_logits == 2 * 826 * 32_064 * 4


@contextmanager
def lengths_of(module: Any) -> Iterator[list[int]]:
    """Tokens that a module is called with, call by call."""
    seen: list[int] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["inputs_embeds"]
        seen.append(int(hidden.shape[0] * hidden.shape[1]))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def test_the_decoder_runs_twice_the_second_time_over_text_alone() -> None:
    model, _, runs = passes(LLAVA)
    with lengths_of(innermost_decoder(model)) as seen:
        runs["drop"]()
        assert seen == [2 * 64, 2 * 48]
        seen.clear()
        runs["released"]()
        assert seen == [2 * 64, 2 * 64]


def test_the_ways_agree_on_every_label() -> None:
    _, _, runs = passes(LLAVA)
    expected = runs["released"]()
    for way in ("two_full", "drop", "mask"):
        torch.testing.assert_close(runs[way](), expected, atol=1e-5, rtol=0, equal_nan=True)


def test_the_passes_need_a_quarter_of_the_released_memory() -> None:
    _, _, runs = passes(WIDE_HEAD)
    memory = {way: peak_memory(run) for way, run in runs.items()}
    assert memory["released"] > 2 * WIDE_HEAD.batch * WIDE_HEAD.num_tokens * WIDE_HEAD.vocabulary * 4
    assert memory["drop"] < 0.25 * memory["released"]
    assert memory["mask"] < 0.25 * memory["released"]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_a_cached_step_costs_what_a_uniform_one_costs_and_online_adds_the_text_pass(
    checkpointing: bool, tmp_path: Path
) -> None:
    model, batch = build_model(LLAVA), build_batch(LLAVA)
    flags = Namespace(gradient_checkpointing=checkpointing, device="cpu")
    steps = build_steps(VARIANTS[:-1], model, batch, flags, str(tmp_path))
    steps["cached"]()  # The first step also learns, on one token, what the model does to its logits.
    rows: list[int] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, logits: rows.append(logits.shape[:-1].numel()))
    steps["cached"]()
    steps["trainer"]()
    handle.remove()
    assert rows == [LLAVA.batch * LLAVA.supervised_tokens, LLAVA.batch * LLAVA.num_tokens]
    for step in steps.values():
        step()  # The first batch of online training also proves that its passes agree; that is no step's cost.
    flops = {name: count_flops(step) for name, step in steps.items()}
    assert flops["cached"] == flops["uniform"]
    cost = sample_cost(LLAVA)
    assert flops["online_drop"] - flops["uniform"] == pytest.approx(LLAVA.batch * cost.decoder_text, rel=1e-6)
    assert flops["online_mask"] - flops["uniform"] > LLAVA.batch * cost.decoder
    assert flops["online_released"] - flops["trainer"] == pytest.approx(
        LLAVA.batch * (cost.decoder + cost.head), rel=1e-6
    )
    memory = {}
    for name in ("uniform", "cached", "trainer"):
        model.zero_grad()
        memory[name] = peak_memory(steps[name])
    assert memory["cached"] < 1.02 * memory["uniform"] < 1.02 * memory["trainer"]


def ragged(batch: LabelledBatch) -> LabelledBatch:
    """The second row ends eight tokens earlier."""
    mask, labels = batch.inputs["attention_mask"].clone(), batch.labels.clone()
    mask[1, -8:], labels[1, -8:] = 0, IGNORE_INDEX
    return replace(batch, inputs={**batch.inputs, "attention_mask": mask}, labels=labels)


@pytest.mark.parametrize("condition", ["drop", "mask"])
def test_padding_costs_no_explicit_mask_and_changes_no_logit(condition: Any) -> None:
    model, batch = build_model(LLAVA), ragged(build_batch(LLAVA))
    seen = []
    attention = innermost_decoder(model).layers[0].self_attn
    handle = attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    passes = contrast_logits(model, batch.inputs, batch.labels, batch.image_mask, ContrastSpec(condition=condition))
    handle.remove()
    assert [mask is None for mask in seen] == [True, condition == "drop"]
    torch.testing.assert_close(
        passes, released_passes(model, batch.inputs, batch.labels, batch.image_mask), atol=1e-5, rtol=0, equal_nan=True
    )


def test_masks_that_hide_more_than_padding_behind_are_left_alone() -> None:
    model, batch = build_model(LLAVA), ragged(build_batch(LLAVA))
    front = {**batch.inputs, "attention_mask": batch.inputs["attention_mask"].flip(1)}
    looking_ahead = {**batch.inputs, "token_type_ids": batch.image_mask.long()}
    assert without_padding_mask(model, front) is front
    assert without_padding_mask(model, looking_ahead) is looking_ahead
    assert bool(without_padding_mask(model, batch.inputs)["attention_mask"].all())
    model.config.get_text_config()._attn_implementation = "eager"
    assert without_padding_mask(model, batch.inputs) is batch.inputs


def test_peak_memory_is_that_of_the_tensors_alive_at_once() -> None:
    def run() -> None:
        first = torch.zeros(1000)
        second = torch.zeros(2000)
        del first, second
        torch.zeros(500)

    assert peak_memory(run) == 3000 * 4


def test_an_exponent_is_the_slope_on_logarithmic_axes() -> None:
    assert fitted_exponent([1, 10, 100], [3, 300, 30_000]) == pytest.approx(2.0)


def test_gathered_logits_belong_to_the_token_they_predict() -> None:
    logits = torch.arange(12.0).view(1, 3, 4)
    labels = torch.tensor([[1, IGNORE_INDEX, 2]])
    torch.testing.assert_close(gathered(logits, labels), torch.tensor([[torch.nan, torch.nan, 6.0]]), equal_nan=True)
