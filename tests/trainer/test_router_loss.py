"""The auxiliary loss of a mixture's routers, on Qwen3-VL's through its own processor."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainingArguments

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.measure import measure
from cal_pipeline.models.loading import load_processor, load_reference
from cal_schemas.annotated import MeasuredSample
from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from cal_trainer.objective.delta_source import CachedDeltas, DeltaSource, OnlineDeltas, UniformWeights
from cal_trainer.objective.loss import auxiliary_loss
from cal_trainer.trainer import UNIFORM, CalTrainer, Weighting
from conftest import Family
from examples_of import conversation
from families.builders.qwen_moe import build_qwen3_vl_moe
from tiny_models import sample_image

FACTOR = 0.5


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moe")
    build_qwen3_vl_moe(folder, output_router_logits=True, router_aux_loss_coef=FACTOR)
    return folder


@pytest.fixture
def model(directory: Path) -> Any:
    return load_reference(directory, dtype="float32")


@pytest.fixture(scope="module")
def batches(directory: Path) -> list[dict[str, Tensor]]:
    """Two micro-batches of one row, with other numbers of tokens."""
    encoder = Encoder(load_processor(directory))
    rows = [
        (conversation("<image>\nWhat is this?", "A red cat on the table."), [sample_image(1, (60, 40))]),
        (conversation("<image>\nAnd this?", "A dog."), [sample_image(2, (40, 70))]),
    ]
    made = []
    for row, images in rows:
        batch = collate([encoder(row, images)], pad_token_id=encoder.pad_token_id)
        made.append({**batch.inputs, "labels": batch.labels, "image_mask": batch.image_mask})
    return made


def step(model: Any, folder: Path, source: DeltaSource, weighting: Weighting, given: list[dict[str, Tensor]]) -> Any:
    """The loss of one optimizer step, the gradients, and what is logged."""
    options = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], remove_unused_columns=False)
    trainer = CalTrainer(model=model.train(), args=options, delta_source=source, weighting=weighting)
    trainer.current_gradient_accumulation_steps = len(given)
    model.zero_grad()
    batches, denominator = trainer.get_batch_samples(iter(given), len(given), options.device)
    loss = sum(float(trainer.training_step(model, dict(batch), denominator)) for batch in batches)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss, gradients, trainer._metrics.take(lambda value: value)


def own(model: Any, batch: dict[str, Tensor]) -> Any:
    return model(**{key: value for key, value in batch.items() if key != "image_mask"}, use_cache=False)


def test_with_equal_weights_loss_and_gradients_are_those_of_transformers(
    model: Any, batches: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    loss, gradients, logged = step(model, tmp_path, UniformWeights(), UNIFORM, batches[:1])
    model.zero_grad()
    expected = own(model, batches[0])
    assert expected.aux_loss > 0.5
    expected.loss.backward()
    assert loss == pytest.approx(expected.loss.item(), abs=1e-5)
    assert logged["auxiliary_loss"] == pytest.approx(FACTOR * expected.aux_loss.item(), rel=1e-6)
    assert logged["unweighted_loss"] == pytest.approx(loss - logged["auxiliary_loss"], abs=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_over_micro_batches_tokens_are_summed_and_the_routers_loss_is_a_mean(
    model: Any, batches: list[dict[str, Tensor]], tmp_path: Path
) -> None:
    padding = {**batches[0], "labels": torch.full_like(batches[0]["labels"], IGNORE_INDEX)}
    loss, _, _ = step(model, tmp_path, UniformWeights(), UNIFORM, [*batches, padding])
    nll, tokens, auxiliary = 0.0, 0, 0.0
    for batch in batches:
        with torch.no_grad():
            output = own(model, batch)
        count = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        nll += float(output.loss - FACTOR * output.aux_loss) * count
        tokens += count
        auxiliary += FACTOR * float(output.aux_loss) / len(batches)
    assert loss == pytest.approx(nll / tokens + auxiliary, abs=1e-5)


def test_a_cached_step_equals_an_online_one(model: Any, directory: Path, tmp_path: Path) -> None:
    encoder = Encoder(load_processor(directory))
    encoded = encoder(conversation("<image>\nWhat is this?", "A red cat on the table."), [sample_image(1, (60, 40))])
    batch = collate([encoded], pad_token_id=encoder.pad_token_id)
    given = {**batch.inputs, "labels": batch.labels, "image_mask": batch.image_mask}
    deltas = torch.full(batch.labels.shape, torch.nan)
    (measured,) = measure([encoded], model=model.eval(), encoder=encoder, contrast=ContrastSpec(), tokens_per_batch=512)
    assert isinstance(measured, MeasuredSample)
    deltas[batch.labels != IGNORE_INDEX] = torch.as_tensor(measured.delta_logits)
    weighting = Weighting(normalization="step")
    online, cached = (
        step(model, tmp_path, source, weighting, [{**given, **more}])
        for source, more in ((OnlineDeltas(contrast=ContrastSpec()), {}), (CachedDeltas(), {"deltas": deltas}))
    )
    assert cached[0] == pytest.approx(online[0], abs=1e-6)
    assert cached[2]["auxiliary_loss"] == pytest.approx(online[2]["auxiliary_loss"], abs=1e-7)
    assert cached[2]["mean_weight"] != 1.0
    for name, gradient in online[1].items():
        torch.testing.assert_close(cached[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_a_config_that_leaves_it_out_has_none(model: Any, batches: list[dict[str, Tensor]], tmp_path: Path) -> None:
    model.config.get_text_config().output_router_logits = False
    _, _, logged = step(model, tmp_path, UniformWeights(), UNIFORM, batches[:1])
    assert "auxiliary_loss" not in logged


def test_one_without_its_factor_is_refused(llava: Family) -> None:
    with pytest.raises(ConfigError, match="LlavaForConditionalGeneration gives an auxiliary loss"):
        auxiliary_loss(llava.model, SimpleNamespace(aux_loss=torch.tensor(1.0)))
