"""A measurement is compared with what is trained: settings, and the labels of rows of a few tokens."""

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec, label_spec
from cal_schemas.errors import STATUS_OK, AlignmentError, ConfigError, FormatError, ShardError
from cal_schemas.sample import Sample
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec, MeasurementSpec
from cal_trainer.data.alignment import RowEncoder, check_measurement, scatter_deltas
from conftest import Family
from examples_of import conversation, measurement_spec
from tiny_models import sample_image

NAN = float("nan")
MEASURED = [11, 12, 13]
DELTAS = np.array([0.5, NAN, -2.0], np.float32)


def encoded(*labels: int | None, truncated: bool = False) -> EncodedSample:
    found = torch.tensor([IGNORE_INDEX if label is None else label for label in labels])
    return EncodedSample(
        sequence_inputs={}, image_inputs={}, labels=found, image_mask=found == 0, truncated=truncated
    )  # fmt: skip


def scattered(row: EncodedSample, label_ids: Sequence[int] = MEASURED, deltas: np.ndarray = DELTAS) -> list[float]:
    return scatter_deltas("row-7", row, label_ids, deltas).tolist()


def test_deltas_lie_at_the_supervised_tokens_in_order_and_nan_elsewhere() -> None:
    found = scattered(encoded(None, 11, None, 12, 13))
    np.testing.assert_array_equal(found, [NAN, 0.5, NAN, NAN, -2.0])


def test_a_row_that_was_cut_takes_the_deltas_of_the_labels_that_it_kept() -> None:
    np.testing.assert_array_equal(scattered(encoded(None, 11, 12, truncated=True)), [NAN, 0.5, NAN])
    np.testing.assert_array_equal(scattered(encoded(None, None, truncated=True)), [NAN, NAN])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (encoded(None, 11, 12), r"row-7: 3 supervised tokens were measured, this encoding has 2\. Train with"),
        (encoded(None, None), r"3 supervised tokens were measured, this encoding has 0\. "),
        (encoded(11, 12, 13, 14), r"3 supervised tokens were measured, this encoding has 4\. "),
        (encoded(11, 12, 13, 14, truncated=True), r"measured, this encoding has 4\. "),
        (encoded(11, 9, 13), r"this encoding has 3; the first difference is label 1: 12 measured, 9 now\. Train"),
        (encoded(9, 12, truncated=True), r"has 2; the first difference is label 0: 11 measured, 9 now\. "),
        (encoded(12, 13, truncated=True), r"has 2; the first difference is label 0: 11 measured, 12 now\. "),
    ],
    ids=["fewer", "none", "more", "cut and more", "another", "cut and another", "cut at the start"],
)
def test_other_labels_than_were_measured_are_refused(row: EncodedSample, message: str) -> None:
    with pytest.raises(AlignmentError, match=message):
        scattered(row)


def spec_of(encoder: Encoder, *, label: dict[str, Any] | None = None, inputs: dict[str, Any] | None = None) -> Any:
    spec: MeasurementSpec = measurement_spec(
        label=replace(label_spec(encoder), **label or {}), input=replace(input_spec(encoder), **inputs or {})
    )
    return spec


def test_a_measurement_with_the_settings_of_training_is_taken_without_a_word(
    llava: Family, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert check_measurement(spec_of(llava.encoder), llava.encoder, "out") is True
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("label", "way_out"),
    [
        ({"tokenizer_digest": "d"}, "train a model with the tokenizer of tiny, or run cal-precompute with this one"),
        ({"chat_template_digest": "d"}, "give cal-precompute and cal-train the same --template (vicuna_v1, plain), or "
         "train a model with the chat template of tiny"),
        ({"template": "plain"}, "give --template plain, or run cal-precompute with --template auto"),
        ({"message_normalization": 0}, "run cal-precompute again with this version"),
        ({"date": "2020-02-02"}, "run cal-precompute again with this version"),
        ({"tokenizer_digest": "d", "message_normalization": 0}, "train a model with the tokenizer of tiny, or run "
         "cal-precompute with this one; run cal-precompute again with this version"),
    ],
)  # fmt: skip
def test_every_setting_that_decides_labels_is_refused_with_both_values_and_its_way_out(
    llava: Family, label: dict[str, Any], way_out: str
) -> None:
    mine = label_spec(llava.encoder)
    listed = "; ".join(f"{name} is {value!r} there and {getattr(mine, name)!r} here" for name, value in label.items())
    with pytest.raises(ConfigError) as error:
        check_measurement(spec_of(llava.encoder, label=label), llava.encoder, "out")
    assert str(error.value) == f"out was measured with other labels (tiny): {listed}. Way out: {way_out}"


def test_what_follows_from_another_template_is_not_listed(llava: Family) -> None:
    changed = {"template": "plain", "chat_template_digest": "d", "date": "2020-02-02"}
    with pytest.raises(ConfigError) as error:
        check_measurement(spec_of(llava.encoder, label=changed), llava.encoder, "out")
    assert "template is 'plain' there and 'auto' here. Way out: give --template plain, or" in str(error.value)
    assert "digest" not in str(error.value)
    assert "date" not in str(error.value)


def test_settings_that_decide_pixels_and_length_are_said_and_only_those_that_differ(
    llava: Family, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(llava.encoder, inputs={"max_length": 7, "truncation": "tail"})
    with caplog.at_level(logging.DEBUG):
        assert check_measurement(spec, llava.encoder, "out") is False
    assert [record.getMessage() for record in caplog.records] == [
        "out was measured with other inputs than the model in training gets: "
        "max_length was 7, is 2048; truncation was 'tail', is 'drop'"
    ]


def row_of(sample: Sample, **more: Any) -> dict[str, Any]:
    turns = [{"role": turn.role, "content": turn.content} for turn in sample.messages or ()]
    return {"sample_id": sample.sample_id, "images": [], "messages": turns, **more}


def test_rows_that_nobody_measured_train_without_deltas(llava: Family) -> None:
    sample = conversation("What?", "A cat.")
    example = RowEncoder(llava.encoder, None)(row_of(sample), None)
    assert torch.equal(example.encoded.labels, llava.encoder(sample, []).labels)
    assert bool(example.deltas.isnan().all())
    assert not example.unusable


def test_a_folder_of_images_that_is_gone_is_said_and_no_row_is_left_out_for_it(llava: Family, tmp_path: Path) -> None:
    row = row_of(conversation("<image>\nWhat?", "A cat.")) | {"images": [{"bytes": None, "path": "a.png"}]}
    with pytest.raises(ShardError, match="gone is gone or empty"):
        RowEncoder(llava.encoder, None)(row, tmp_path / "gone")
    measured = {"status": STATUS_OK, "label_ids": [1, 2], "delta_logits": [0.0, 1.0], "label_positions": [3, 4]}
    with pytest.raises(AlignmentError, match=r"gone is gone or empty .*say where they are now \(--image_folder"):
        RowEncoder(llava.encoder, spec_of(llava.encoder))(row | measured, tmp_path / "gone")


def test_a_row_that_says_it_was_measured_and_holds_nothing_does_not_train_with_weight_alpha(llava: Family) -> None:
    row = row_of(conversation("Who?", "Me."), status=STATUS_OK, label_ids=[], delta_logits=[])
    with pytest.raises(FormatError, match="is ok and has no labels: cal-precompute --verify lists"):
        RowEncoder(llava.encoder, spec_of(llava.encoder))(row, None)
    assert bool(RowEncoder(llava.encoder, spec_of(llava.encoder), use_deltas=False)(row, None).deltas.isnan().all())


@pytest.mark.parametrize(
    ("deltas", "problem"), [([1.0, float("inf")], "an infinite delta"), ([1.0], "2 labels and 1 deltas")]
)
def test_numbers_that_no_measurement_writes_are_not_trained_on(
    llava: Family, deltas: list[float], problem: str
) -> None:
    row = row_of(conversation("Who?", "Me."), status=STATUS_OK, label_ids=[1, 2], delta_logits=deltas)
    with pytest.raises(FormatError, match=f"is ok and has {problem}: cal-precompute --verify lists"):
        RowEncoder(llava.encoder, spec_of(llava.encoder))(row, None)


def test_what_is_wrong_with_the_words_is_said_before_a_image_is_opened(
    llava: Family, caplog: pytest.LogCaptureFixture
) -> None:
    row = row_of(conversation("<image>\nWhat?", " "), images=[{"path": "lost.png", "bytes": None}])
    assert RowEncoder(llava.encoder, None)(row, None).unusable
    assert "s trains nothing: no_supervised_tokens: " in caplog.text


def test_a_measured_row_whose_perturbed_image_gets_other_tokens_trains_nothing_and_is_said(
    family: Callable[[str], Family], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As by a processor that crops to content: the perturbed image comes out narrower, and tiles otherwise.
    monkeypatch.setattr(
        "cal_pipeline.encoding.perturbation.perturbed", lambda image, *_: image.crop((0, 0, 20, image.height))
    )
    encoder, sample, image = family("llava_next").encoder, conversation("<image>\nWhat?", "A cat."), io.BytesIO()
    sample_image(1, (90, 60)).save(image, "PNG")
    ids = [label for label in encoder(sample, [sample_image(1, (90, 60))]).labels.tolist() if label != IGNORE_INDEX]
    row = row_of(
        sample, images=[{"path": None, "bytes": image.getvalue()}], sample_key="k", label_ids=ids,
        delta_logits=[0.0] * len(ids),
    )  # fmt: skip
    rows = RowEncoder(encoder, spec_of(encoder))
    assert not rows(row, None).unusable
    blurred = rows.contrasted(ContrastSpec(condition="gaussian_blur", blur_sigma=2.0))
    assert blurred(row, None).unusable
    assert "s trains nothing: encode_error: contrast gaussian_blur: the processor makes other tokens" in caplog.text
