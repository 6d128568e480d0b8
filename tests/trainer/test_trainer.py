"""The weighted step against the released code's losses and gradients, and against transformers' own."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import Tensor
from transformers import TrainingArguments

from cal_pipeline.encoding.collate import collate
from cal_pipeline.measuring.contrast import innermost_decoder, label_logits
from cal_pipeline.models.loading import load_reference
from cal_schemas.errors import ConfigError
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from cal_trainer.data.alignment import Example
from cal_trainer.data.collator import ExampleCollator, StepBatch
from cal_trainer.data.dummy import dummy_sample
from cal_trainer.objective.delta_source import CachedDeltas, DeltaSource, OnlineDeltas, UniformWeights
from cal_trainer.trainer import UNIFORM, CalTrainer, Weighting
from conftest import Family
from tiny_models import sample_image

GOLDENS = Path(__file__).parent.parent / "goldens" / "llava15"
PARTS = ("main", "edge", "plain")
MASK = OnlineDeltas(contrast=ContrastSpec(condition="mask"))


@pytest.fixture
def model() -> Any:
    return load_reference(GOLDENS, dtype="float32").train()


def golden_batch(part: str) -> dict[str, Tensor]:
    given = np.load(GOLDENS / f"{part}_inputs.npz")
    return {
        "input_ids": torch.tensor(given["input_ids"]),
        "attention_mask": torch.tensor(given["attention_mask"]).long(),
        "pixel_values": torch.tensor(given["pixel_values"]),
        "labels": torch.tensor(given["labels"]),
        "image_mask": torch.tensor(given["image_positions"]).bool(),
    }


def trainer_for(model: Any, folder: Path, source: DeltaSource, weighting: Weighting, **arguments: Any) -> CalTrainer:
    options = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], remove_unused_columns=False, **arguments
    )
    return CalTrainer(model=model, args=options, delta_source=source, weighting=weighting)


def gradients(trainer: CalTrainer, steps: list[dict[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one optimizer step over the micro-batches, through the Trainer's own hooks."""
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = len(steps)
    batches, denominator = trainer.get_batch_samples(iter(steps), len(steps), trainer.args.device)
    loss = sum(float(trainer.training_step(trainer.model, dict(batch), denominator)) for batch in batches)
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss, found


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("name", "pool", "normalization"),
    [("official", "released", "micro_batch"), ("paper_span", "span", "sample"), ("paper_concat", "joined", "sample")],
)
def test_loss_and_every_gradient_norm_equal_the_released_code(
    model: Any, tmp_path: Path, part: str, name: str, pool: Any, normalization: Any
) -> None:
    trainer = trainer_for(model, tmp_path, MASK, Weighting(pool=pool, normalization=normalization))
    loss, found = gradients(trainer, [golden_batch(part)])
    expected = np.load(GOLDENS / f"{part}_expected.npz")
    assert loss == pytest.approx(float(expected[f"loss_{name}"]), abs=1e-5 * abs(loss))
    norms = json.loads((GOLDENS / f"{part}_grad_norms.json").read_text())[name]
    for parameter, norm in norms.items():
        if parameter in found:
            assert float(found[parameter].norm()) == pytest.approx(norm, rel=1e-4, abs=1e-6), parameter
    assert len(set(norms) & set(found)) > 20


@pytest.mark.parametrize("part", PARTS)
def test_all_weights_equal_is_the_loss_of_transformers(model: Any, tmp_path: Path, part: str) -> None:
    batch = golden_batch(part)
    loss, found = gradients(trainer_for(model, tmp_path, UniformWeights(), UNIFORM), [batch])
    model.zero_grad()
    own = {key: value for key, value in batch.items() if key != "image_mask"}
    expected = model(**own, use_cache=False).loss
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-4)


def rows(batch: dict[str, Tensor], chosen: list[int], owner: list[int]) -> dict[str, Tensor]:
    images = [number for number, row in enumerate(owner) if row in chosen]
    cut = {key: value[chosen] for key, value in batch.items() if key != "pixel_values"}
    return {**cut, "pixel_values": batch["pixel_values"][images]}


@pytest.mark.parametrize("normalization", ["step", "sample"])
def test_accumulation_changes_nothing(model: Any, tmp_path: Path, normalization: Any) -> None:
    part = "edge"
    batch = golden_batch(part)
    owner = np.load(GOLDENS / f"{part}_inputs.npz")["image_owner_sample"].tolist()
    batch["deltas"] = torch.randn(batch["labels"].shape, generator=torch.Generator().manual_seed(0)) * 4
    trainer = trainer_for(model, tmp_path, CachedDeltas(), Weighting(normalization=normalization))
    results = []
    for size in (4, 2, 1):
        splits = [list(range(start, start + size)) for start in range(0, 4, size)]
        results.append(gradients(trainer, [rows(batch, split, owner) for split in splits]))
    for loss, found in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-5)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, results[0][1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("normalization", ["step", "sample", "micro_batch"])
def test_a_batch_without_supervised_tokens_gives_zero(model: Any, tmp_path: Path, normalization: Any) -> None:
    batch = golden_batch("main")
    batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
    batch["deltas"] = torch.full(batch["labels"].shape, torch.nan)
    trainer = trainer_for(model, tmp_path, CachedDeltas(), Weighting(normalization=normalization))
    loss, found = gradients(trainer, [batch])
    assert loss == 0.0
    assert all(bool((gradient == 0).all()) for gradient in found.values())


def test_alpha_zero_with_nothing_above_it_gives_loss_zero(model: Any, tmp_path: Path) -> None:
    batch = golden_batch("main")
    batch["deltas"] = torch.full(batch["labels"].shape, -2.0)
    trainer = trainer_for(model, tmp_path, CachedDeltas(), Weighting(alpha=0.0))
    assert gradients(trainer, [batch])[0] == 0.0


@pytest.mark.parametrize(
    ("source", "passes"),
    [(UniformWeights(), 1), (CachedDeltas(), 1), (MASK, 2), (OnlineDeltas(contrast=ContrastSpec()), 2)],
)
def test_online_runs_two_decoder_passes_and_the_others_one(
    model: Any, tmp_path: Path, source: DeltaSource, passes: int
) -> None:
    batch = {**golden_batch("main"), "deltas": torch.ones(golden_batch("main")["labels"].shape)}
    trainer = trainer_for(model, tmp_path, source, Weighting())
    gradients(trainer, [batch])  # The first batch of online training is also tried for noise.
    calls: list[int] = []
    handle = innermost_decoder(model).register_forward_hook(lambda *_: calls.append(1))
    gradients(trainer, [batch])
    handle.remove()
    assert len(calls) == passes


@pytest.mark.parametrize(
    ("source", "weighting", "steps", "reason"),
    [
        (CachedDeltas(), Weighting(pool="released"), 1, "which a cache does not hold"),
        (MASK, Weighting(), 2, "are not known in time"),
        (MASK, Weighting(normalization="sample", alpha=0.0), 2, "alpha = 0"),
    ],
)
def test_combinations_that_cannot_be_computed_are_refused_with_the_reason(
    model: Any, tmp_path: Path, source: DeltaSource, weighting: Weighting, steps: int, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        trainer_for(model, tmp_path, source, weighting, gradient_accumulation_steps=steps)


def test_micro_batches_of_padding_rows_do_not_scale_the_released_mean_down(model: Any, tmp_path: Path) -> None:
    batch = golden_batch("main")
    padding = {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)}
    trainer = trainer_for(model, tmp_path, MASK, Weighting(normalization="micro_batch"))
    alone, filled = gradients(trainer, [batch]), gradients(trainer, [batch, padding])
    assert filled[0] == pytest.approx(alone[0], abs=1e-5)
    for name, gradient in filled[1].items():
        torch.testing.assert_close(gradient, alone[1][name], atol=1e-5, rtol=1e-4)


def test_unweighted_loss_is_the_same_under_released_pooling(model: Any, tmp_path: Path) -> None:
    logged = []
    for pool in ("span", "released"):
        trainer = trainer_for(model, tmp_path, MASK, Weighting(pool=pool, normalization="micro_batch"))
        gradients(trainer, [golden_batch("main")])
        logged.append(trainer._metrics.take(lambda sums: sums)["unweighted_loss"])
    assert logged[1] == pytest.approx(logged[0], abs=1e-5)


def eight_rows(llava: Family) -> list[Example]:
    """Six with images and two without, answers of different lengths, deltas of any size."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(8):
        image = number not in (3, 6)
        turns = (
            Turn(role="user", content=("<image>\n" if image else "") + "What is it?"),
            Turn(role="assistant", content="A red cat sits. " * (1 + number % 4)),
        )
        sample = Sample(sample_id=str(number), images=(), messages=turns)
        encoded = llava.encoder(sample, [sample_image(number)] if image else [])
        deltas = torch.randn(encoded.num_tokens, generator=generator) * 4 * image
        found.append(Example(encoded=encoded, deltas=deltas.where(encoded.labels != IGNORE_INDEX, torch.nan)))
    return found


@pytest.mark.parametrize(
    ("source", "normalization"),
    [
        (CachedDeltas(), "step"),
        (CachedDeltas(), "sample"),
        (OnlineDeltas(contrast=ContrastSpec()), "sample"),
        (UniformWeights(), "step"),
    ],
    ids=["cached step", "cached sample", "online sample", "uniform"],
)
def test_one_by_eight_two_by_four_and_eight_by_one_give_the_same_gradients(
    llava: Family, tmp_path: Path, source: DeltaSource, normalization: Any
) -> None:
    rows = eight_rows(llava)
    batch_of = ExampleCollator(encoder=llava.encoder, dummy=dummy_sample(llava.encoder))
    weighting = UNIFORM if isinstance(source, UniformWeights) else Weighting(normalization=normalization)
    model = copy.deepcopy(llava.model).train()
    results = []
    for size in (8, 4, 2, 1):
        trainer = trainer_for(model, tmp_path, source, weighting, gradient_accumulation_steps=8 // size)
        results.append(gradients(trainer, [batch_of(rows[at : at + size]) for at in range(0, 8, size)]))
    for loss, found in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-5)
        for name, gradient in results[0][1].items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("normalization", ["step", "sample", "micro_batch"])
@pytest.mark.parametrize("source", [CachedDeltas(), OnlineDeltas(contrast=ContrastSpec())], ids=["cached", "online"])
def test_a_step_of_text_alone_is_plain_training_whatever_alpha_is(
    llava: Family, tmp_path: Path, source: DeltaSource, normalization: Any
) -> None:
    rows = [row for row in eight_rows(llava) if not row.encoded.image_inputs]
    rows = rows[:1] if normalization == "sample" else rows  # Eq. 5 means over samples, plain training over tokens
    batch = ExampleCollator(encoder=llava.encoder, dummy=dummy_sample(llava.encoder))(rows)
    model = copy.deepcopy(llava.model).train()
    weighting = Weighting(alpha=0.5, normalization=normalization)
    loss, found = gradients(trainer_for(model, tmp_path, source, weighting), [dict(batch)])
    model.zero_grad()
    plain = collate([row.encoded for row in rows], pad_token_id=llava.encoder.pad_token_id)
    expected = model(**plain.inputs, labels=plain.labels, use_cache=False).loss
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found.get(name, torch.zeros_like(parameter)), gradient, atol=1e-5, rtol=1e-4)


def test_released_pooling_trains_an_answer_that_only_an_image_precedes(llava: Family, tmp_path: Path) -> None:
    batch = ExampleCollator(encoder=llava.encoder, dummy=dummy_sample(llava.encoder))(eight_rows(llava)[:2])
    first = int(batch["image_mask"][0].float().argmax())
    # The text before the image is cut off, and supervision begins right behind it.
    cut = {
        key: value[:1, first:] if value.shape[:1] == (2,) and value.dim() == 2 else value
        for key, value in batch.items()
    }
    cut["pixel_values"] = batch["pixel_values"][:1]
    cut["labels"] = cut["input_ids"].where(~cut["image_mask"] & cut["attention_mask"].bool(), IGNORE_INDEX)
    model = copy.deepcopy(llava.model).train()
    trainer = trainer_for(model, tmp_path, MASK, Weighting(pool="released", normalization="micro_batch"))
    loss, found = gradients(trainer, [cut])
    assert 0 < loss < 100
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_under_autocast_both_passes_of_online_deltas_come_from_one_head(model: Any, tmp_path: Path, kind: str) -> None:
    # Logits of a trained model's size, which half precision rounds by hundredths.
    with torch.no_grad():
        model.get_output_embeddings().weight *= 20
    differences: list[float] = []

    class Compared(OnlineDeltas):
        def contrasted(
            self, with_image: Tensor, model: Any, batch: StepBatch, labels: Tensor, position_ids: Tensor | None
        ) -> Tensor:
            by_label_only_head = label_logits(model, batch.inputs, labels)
            compared = ~by_label_only_head.isnan()
            assert float(by_label_only_head[compared].abs().mean()) > 5
            differences.append(float((with_image - by_label_only_head)[compared].abs().max()))
            return super().contrasted(with_image, model, batch, labels, position_ids)

    trainer = trainer_for(model, tmp_path, Compared(contrast=ContrastSpec()), Weighting(normalization="sample"))
    dtype = torch.bfloat16 if kind == "bf16" else torch.float16
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=dtype)(model.forward))  # as accelerate does
    loss, _ = gradients(trainer, [golden_batch("main")])
    assert 0 < loss < 1000
    assert differences[0] < 1e-3
