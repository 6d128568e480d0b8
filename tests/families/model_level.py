"""What holds of every family of docs/models.md at model level, against slower ways to the same numbers."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.measuring.contrast import contrast_logits, label_logits
from cal_pipeline.measuring.measure import measure
from cal_pipeline.models.special_cases import mask_undefined
from cal_schemas.annotated import MeasuredSample
from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX, Condition, ContrastSpec
from cal_trainer.data.alignment import Example, scatter_deltas
from cal_trainer.data.collator import ExampleCollator
from cal_trainer.objective import chunked_nll, label_losses
from cal_trainer.objective.delta_source import CachedDeltas, DeltaSource, OnlineDeltas
from cal_trainer.objective.label_rows import label_rows, supervised_ids
from cal_trainer.run.parameters import active_dropout, part_of_each, unused_parameters
from cal_trainer.trainer import CalTrainer, Weighting
from families import page
from families.case import Case
from families.checked_independently import CheckedIndependently
from families.family import AnyFamily

HEAD, PASSES = 1e-5, 1e-3


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest, over elements defined in both; they must be defined in the same places."""
    assert torch.equal(first.isnan(), second.isnan())
    assert not bool(first.isnan().all())
    return float((first - second)[~first.isnan()].abs().max())


def passes(case: Case, samples: Sequence[EncodedSample], condition: Condition = "drop") -> torch.Tensor:
    """[2, B, T]: logits with and without the image."""
    batch = case.batch(samples)
    contrast = ContrastSpec(condition=condition)
    return torch.stack(contrast_logits(case.model, batch.inputs, batch.labels, batch.image_mask, contrast))


def hide_after_image(logits: torch.Tensor, samples: Sequence[EncodedSample]) -> torch.Tensor:
    """[B, T] with NaN at tokens directly after an image: masked ones are read from an image's position there."""
    hidden = logits.clone()
    for row, sample in enumerate(samples):
        hidden[row, 1 : sample.num_tokens][sample.image_mask[:-1]] = torch.nan
    return hidden


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
class ModelLevel(CheckedIndependently):
    """Tests of a family's `Case`; a subclass names the family, or parametrises the fixture.

    All tests of one family run before the next is built.
    """

    FAMILY: ClassVar[AnyFamily]

    @pytest.fixture(scope="class")
    @classmethod
    def family(cls) -> AnyFamily:
        return cls.FAMILY

    @pytest.fixture(scope="class")
    @classmethod
    def directory(cls, family: AnyFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Of the family's checkpoint, where it has one."""
        return tmp_path_factory.mktemp(family.name)

    @pytest.fixture(scope="class")
    @classmethod
    def entry(cls, family: AnyFamily, directory: Path) -> tuple[str, Case]:
        """The family's name and its case."""
        return family.name, family.make(directory)

    def test_the_samples_are_ragged_and_show_what_the_family_can(self, entry: tuple[str, Case]) -> None:
        name, case = entry
        images = [int(sample.image_mask.any()) for sample in case.samples]
        assert len({sample.num_tokens for sample in case.samples}) > 1
        assert (0 in images) == (case.text_only == "yes")
        first = case.samples[0]
        config = case.model.config
        placeholder = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        tokens = first.sequence_inputs["input_ids"][first.image_mask]
        placeholders = int((tokens == placeholder).sum())
        assert placeholders > 0
        markers = len(tokens) - placeholders
        page.record(
            name,
            dropped=f"{len(tokens)} of {first.num_tokens}" + (f", {markers} of them markers" if markers else ""),
            two_images=case.two_images,
            text_only=case.text_only,
            found_by=case.found_by,
        )

    def test_every_parameter_belongs_to_a_part_that_can_be_trained(
        self, family: AnyFamily, entry: tuple[str, Case]
    ) -> None:
        of_part, unused = part_of_each(entry[1].model), unused_parameters(entry[1].model)
        assert {name for name, part in of_part.items() if part is None} <= unused, "only those of other modalities"
        assert set(of_part.values()) - {None} == set(family.parts)

    def test_the_label_only_head_equals_full_logits(self, entry: tuple[str, Case]) -> None:
        (name, case), sizes = entry, []
        for samples in case.groups():
            batch = case.batch(samples)
            if case.text_only != "yes" and not any(sample.image_inputs for sample in samples):
                continue
            supervised = batch.labels[:, 1:] != IGNORE_INDEX
            with torch.no_grad():
                by_head = label_logits(case.model, batch.inputs, batch.labels)
                full = case.model(**batch.inputs, use_cache=False).logits
                with label_rows(case.model, batch.labels):
                    rows = case.model(**batch.inputs, use_cache=False).logits[0]
            expected = full[:, :-1].gather(2, batch.labels[:, 1:].clamp(min=0)[..., None])[..., 0]
            sizes.append(float((by_head[:, 1:] - expected)[supervised].abs().max()))
            trained = rows.gather(1, supervised_ids(batch.labels)[:, None])[:, 0]
            sizes.append(float((trained - expected[supervised]).abs().max()))
            assert bool(by_head[:, 1:][~supervised].isnan().all())
        assert float(full.std()) > 0.5, "logits too small for a wrong one to show"
        assert max(sizes) <= HEAD
        page.record(name, head=page.figure(max(sizes)))

    def test_drop_equals_mask_or_mask_is_refused_with_the_reason(self, entry: tuple[str, Case]) -> None:
        name, case = entry
        shown = [sample for sample in case.groups()[0] if sample.image_inputs]
        reason = mask_undefined(case.model.config.get_text_config())
        if reason:
            with pytest.raises(ConfigError, match="use --contrast drop"):
                passes(case, shown, "mask")
            page.record(name, mask=f"no: {reason}", drop_mask="-")
            return
        conditions: tuple[Condition, ...] = ("drop", "mask")
        dropped, masked = (hide_after_image(passes(case, shown, condition)[1], shown) for condition in conditions)
        size = difference(dropped, masked)
        assert size <= PASSES
        page.record(name, mask="yes", drop_mask=page.figure(size))

    def test_a_ragged_batch_equals_its_rows_one_by_one(self, entry: tuple[str, Case]) -> None:
        (name, case), sizes = entry, []
        defined: tuple[Condition, ...] = ("drop", "mask")
        if mask_undefined(case.model.config.get_text_config()):
            defined = ("drop",)
        for samples, condition in itertools.product(case.groups(), defined):
            together = passes(case, samples, condition)
            for number, sample in enumerate(samples):
                if sample.image_inputs or case.text_only == "yes":
                    alone = passes(case, [sample], condition)[:, 0]
                    sizes.append(difference(together[:, number, : sample.num_tokens], alone))
        assert max(sizes) <= PASSES
        remark = " (uniform shapes)" if case.uniform_shape_batches else ""
        page.record(name, ragged="rows alone" if case.one_by_one else page.figure(max(sizes)) + remark)

    def test_left_padding_equals_right_padding(self, entry: tuple[str, Case]) -> None:
        name, case = entry
        samples = case.groups()[0]
        left = case.left_padded(samples)
        moved = torch.stack(contrast_logits(case.model, left.inputs, left.labels, left.image_mask))
        right = passes(case, samples)
        size = max(float((x[~x.isnan()] - y[~y.isnan()]).abs().max()) for x, y in zip(moved, right, strict=True))
        assert size <= PASSES
        page.record(name, left=page.figure(size))

    def test_other_pixels_give_other_logits_and_text_only_rows_have_delta_zero(self, entry: tuple[str, Case]) -> None:
        name, case = entry
        for samples in case.groups():
            with_image, without = passes(case, samples)
            for row, sample in enumerate(samples):
                if not sample.image_inputs:
                    assert difference(with_image[row], without[row]) == 0.0
        first = case.samples[0]
        changed = {
            key: value.flip(0, -1) * 0.5 + 0.2 if value.is_floating_point() else value
            for key, value in first.image_inputs.items()
        }
        other = dataclasses.replace(first, image_inputs=changed)
        seen, seen_other = passes(case, [first]), passes(case, [other])
        size = difference(seen[0], seen_other[0])
        assert size > 0.01, "the image changes nothing: a wrong pass would not show"
        assert difference(seen[1], seen_other[1]) == 0.0, "the pass without the image depends on its pixels"
        if not mask_undefined(case.model.config.get_text_config()):
            masked = [hide_after_image(passes(case, [sample], "mask")[1], [sample]) for sample in (first, other)]
            assert difference(*masked) <= HEAD, "masking the image's tokens does not hide its pixels"
        page.record(name, effect=f"{size:.1g}")

    @pytest.fixture
    def step_loss(self, tmp_path: Path) -> Callable[[Case, list[Example], DeltaSource], float]:
        """Loss of one optimizer step over all samples, through `CalTrainer.train()`, learning rate 0."""

        def run(case: Case, examples: list[Example], source: DeltaSource) -> float:
            first = case.samples[0]
            dummy = dataclasses.replace(first, labels=torch.full_like(first.labels, IGNORE_INDEX))
            size = 1 if case.uniform_shape_batches or case.one_by_one else len(examples)
            options = TrainingArguments(
                output_dir=str(tmp_path), use_cpu=True, report_to=[], remove_unused_columns=False, learning_rate=0.0,
                max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=len(examples) // size,
                logging_steps=1, save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant", seed=0,
            )  # fmt: skip
            encoder: Any = case
            trainer = CalTrainer(
                model=case.model, args=options, delta_source=source, weighting=Weighting(normalization="sample"),
                train_dataset=examples, data_collator=ExampleCollator(encoder=encoder, dummy=dummy),
            )  # fmt: skip
            try:
                trainer.train()
            finally:
                case.model.eval()
            gradient = trainer.state.log_history[0]["grad_norm"]
            assert math.isfinite(gradient)
            assert gradient > 0
            return float(trainer.state.log_history[0]["loss"])

        return run

    def test_a_cached_and_an_online_step_have_the_same_finite_loss_at_once_and_in_chunks(
        self,
        entry: tuple[str, Case],
        step_loss: Callable[[Case, list[Example], DeltaSource], float],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        name, case = entry
        assert active_dropout(case.model) == []
        contrast, encoder = ContrastSpec(), case
        measured = measure(
            case.samples, model=case.model, encoder=encoder, contrast=contrast, tokens_per_batch=128,  # type: ignore[arg-type]
        )  # fmt: skip
        examples = []
        for number, (sample, values) in enumerate(zip(case.samples, measured, strict=True)):
            assert isinstance(values, MeasuredSample)
            deltas = scatter_deltas(str(number), sample, values.label_ids.tolist(), values.delta_logits)
            examples.append(Example(encoded=sample, deltas=deltas))
        spread = np.concatenate([m.delta_logits for m in measured if isinstance(m, MeasuredSample)])
        assert np.nanstd(spread) > 0.1
        cached = step_loss(case, examples, CachedDeltas())
        online = step_loss(case, examples, OnlineDeltas(contrast=contrast))
        assert math.isfinite(cached)
        assert online == pytest.approx(cached, abs=1e-4)
        monkeypatch.setattr(label_losses, "CHUNKED_ABOVE", 0)
        monkeypatch.setattr(chunked_nll, "CHUNK_BYTES", 4 * 1000 * 5)
        caplog.clear()
        for source, at_once in ((CachedDeltas(), cached), (OnlineDeltas(contrast=contrast), online)):
            assert step_loss(case, examples, source) == pytest.approx(at_once, abs=2e-6 * max(1.0, at_once))
        assert "not computed in chunks" not in caplog.text
        page.record(name, loss=page.figure(abs(online - cached)))


class OfIds(ModelLevel):
    """The same of a family whose processor is not run."""

    def test_the_page_says_that_its_processor_was_not_run(self, family: AnyFamily) -> None:
        page.record(family.name, end_to_end=family.end_to_end)
