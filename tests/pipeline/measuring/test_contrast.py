"""The two passes against the released code's numbers and, on five families, against slower ways to the same numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cal_pipeline.encoding.collate import Batch, collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.conditions import sliding_window
from cal_pipeline.measuring.contrast import contrast_logits, delta_logits, innermost_decoder, label_logits
from cal_pipeline.models.loading import load_processor, load_reference
from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX, Condition, ContrastSpec
from conftest import Family
from examples_of import conversation
from tiny_models import FAMILIES, build_gemma3, build_qwen2_5_vl_model, sample_image

GOLDENS = Path(__file__).parents[2] / "goldens" / "llava15"
CONDITIONS: tuple[Condition, ...] = ("drop", "mask")
QWEN = "qwen2_5_vl"


@pytest.fixture(scope="module")
def golden_model() -> Any:
    return load_reference(GOLDENS, dtype="float32")


def golden(part: str) -> tuple[dict[str, Tensor], Tensor, Tensor, Any]:
    given, expected = np.load(GOLDENS / f"{part}_inputs.npz"), np.load(GOLDENS / f"{part}_expected.npz")
    inputs = {
        "input_ids": torch.tensor(given["input_ids"]),
        "attention_mask": torch.tensor(given["attention_mask"]).long(),
        "pixel_values": torch.tensor(given["pixel_values"]),
    }
    return inputs, torch.tensor(given["labels"]), torch.tensor(given["image_positions"]).bool(), expected


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("part", ["main", "edge", "plain"])
def test_deltas_equal_the_released_code(golden_model: Any, part: str, condition: Condition) -> None:
    inputs, labels, image_mask, expected = golden(part)
    deltas = delta_logits(golden_model, inputs, labels, image_mask, ContrastSpec(condition=condition))
    measured = deltas[expected["sample"], expected["label_pos"]].numpy()
    after_image = expected["after_image"].astype(bool)
    compared = ~after_image if condition == "drop" else np.ones_like(after_image)
    np.testing.assert_allclose(measured[compared], expected["delta_raw"][compared], atol=1e-4)
    if condition == "drop" and after_image.any():
        # By definition: the released code reads these from an image position, drop from the last kept token.
        assert np.abs(measured[after_image] - expected["delta_raw"][after_image]).max() > 0.1
    unsupervised = torch.ones_like(labels, dtype=torch.bool)
    unsupervised[expected["sample"], expected["label_pos"]] = False
    assert bool(deltas[unsupervised].isnan().all())


def test_logits_with_image_equal_the_released_code(golden_model: Any) -> None:
    inputs, labels, image_mask, expected = golden("main")
    with_image, without = contrast_logits(golden_model, inputs, labels, image_mask, ContrastSpec(condition="mask"))
    at = (expected["sample"], expected["label_pos"])
    np.testing.assert_allclose(with_image[at].numpy(), expected["logit_with"], atol=1e-4)
    np.testing.assert_allclose(without[at].numpy(), expected["logit_without"], atol=1e-4)


def samples(encoder: Encoder, name: str) -> list[EncodedSample]:
    """Ragged on purpose: one image, two images, none, several turns."""
    given = [
        (conversation("<image>\nWhat is this?", "A red cat on the table."), [sample_image(1, (60, 40))]),
        (conversation("<image>\n<image>\nAnd these?", "The second shows a small dog, I think."),
         [sample_image(2, (50, 50)), sample_image(3, (80, 30))]),
        (conversation("How are you?", "Fine."), []),
    ]  # fmt: skip
    if name != "paligemma":
        given.append((conversation("<image>\nWhat?", "A dog.", "And?", "A cat."), [sample_image(4, (90, 90))]))
    return [encoder(*pair) for pair in given]


@pytest.fixture(scope="module")
def batch_of(family: Callable[[str], Family]) -> Callable[[str], tuple[Any, Batch, list[Batch]]]:
    """Model, ragged batch, and its rows one by one; Qwen at model level, because its processor needs torchvision."""
    made: dict[str, tuple[Any, Batch, list[Batch]]] = {}

    def get(name: str) -> tuple[Any, Batch, list[Batch]]:
        if name not in made:
            made[name] = _qwen() if name == QWEN else _through_processor(family(name))
        return made[name]

    return get


def _through_processor(reference: Family) -> tuple[Any, Batch, list[Batch]]:
    options = {"pad_token_id": reference.encoder.pad_token_id, "batch_first": reference.encoder.batch_first_inputs}
    encoded = samples(reference.encoder, reference.name)
    return reference.model, collate(encoded, **options), [collate([item], **options) for item in encoded]


def _qwen() -> tuple[Any, Batch, list[Batch]]:
    model, tiny = build_qwen2_5_vl_model()
    batch = Batch(inputs=tiny.inputs, labels=tiny.labels, image_mask=tiny.image_mask)
    patches = tiny.inputs["image_grid_thw"].prod(-1).tolist()
    rows, first, image = [], 0, 0
    for row in range(len(tiny.labels)):
        length = int(tiny.inputs["attention_mask"][row].sum())
        names = ("input_ids", "attention_mask", "mm_token_type_ids")
        inputs = {key: tiny.inputs[key][row : row + 1, :length] for key in names}
        if bool(tiny.image_mask[row].any()):
            inputs["pixel_values"] = tiny.inputs["pixel_values"][first : first + patches[image]]
            inputs["image_grid_thw"] = tiny.inputs["image_grid_thw"][image : image + 1]
            first, image = first + patches[image], image + 1
        chosen = (slice(row, row + 1), slice(length))
        rows.append(Batch(inputs=inputs, labels=tiny.labels[chosen], image_mask=tiny.image_mask[chosen]))
    return model, batch, rows


@pytest.mark.parametrize("name", [*FAMILIES, QWEN])
def test_the_label_only_head_equals_full_logits(batch_of: Callable[[str], Any], name: str) -> None:
    model, batch, _ = batch_of(name)
    with torch.no_grad():
        logits = label_logits(model, batch.inputs, batch.labels)
        full = model(**batch.inputs, use_cache=False).logits
    expected = full[:, :-1].gather(2, batch.labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    supervised = batch.labels[:, 1:] != IGNORE_INDEX
    torch.testing.assert_close(logits[:, 1:][supervised], expected[supervised], atol=1e-5, rtol=0)
    assert bool(logits[:, 1:][~supervised].isnan().all())


@pytest.mark.parametrize("name", [*FAMILIES, QWEN])
def test_drop_equals_mask_except_right_after_an_image(batch_of: Callable[[str], Any], name: str) -> None:
    model, batch, _ = batch_of(name)
    first_pass = (model, batch.inputs, batch.labels, batch.image_mask)
    dropped, masked = (contrast_logits(*first_pass, ContrastSpec(condition=c))[1] for c in CONDITIONS)
    after_image = torch.zeros_like(batch.image_mask)
    after_image[:, 1:] = batch.image_mask[:, :-1]
    compared = ~dropped.isnan() & ~after_image
    assert int(compared.sum()) > 10
    torch.testing.assert_close(dropped[compared], masked[compared], atol=1e-4, rtol=0)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", [*FAMILIES, QWEN])
def test_a_ragged_batch_equals_its_rows_one_by_one(
    batch_of: Callable[[str], Any], name: str, condition: Condition
) -> None:
    model, batch, rows = batch_of(name)
    contrast = ContrastSpec(condition=condition)
    together = contrast_logits(model, batch.inputs, batch.labels, batch.image_mask, contrast)
    for number, row in enumerate(rows):
        alone = contrast_logits(model, row.inputs, row.labels, row.image_mask, contrast)
        length = row.labels.shape[1]
        for beside, single in zip(together, alone, strict=True):
            torch.testing.assert_close(beside[number, :length], single[0], atol=1e-4, rtol=0, equal_nan=True)


@pytest.mark.parametrize("name", [*FAMILIES, QWEN])
def test_the_image_matters_and_text_only_rows_have_delta_zero(batch_of: Callable[[str], Any], name: str) -> None:
    model, batch, _ = batch_of(name)
    deltas = delta_logits(model, batch.inputs, batch.labels, batch.image_mask)
    has_image = batch.image_mask.any(-1)
    assert float(deltas[has_image][~deltas[has_image].isnan()].std()) > 0.3
    assert set(deltas[~has_image][~deltas[~has_image].isnan()].tolist()) == {0.0}


@pytest.mark.parametrize("window", [4, 8, 16])
def test_drop_equals_mask_when_the_sequence_outgrows_the_sliding_window(tmp_path: Path, window: int) -> None:
    build_gemma3(tmp_path / "model", sliding_window=window)
    model = load_reference(tmp_path / "model", dtype="float32")
    encoder = Encoder(load_processor(tmp_path / "model"))
    batch = collate(samples(encoder, "gemma3"), pad_token_id=encoder.pad_token_id)
    assert sliding_window(model.config.get_text_config()) == window
    assert batch.labels.shape[1] > window
    first_pass = (model, batch.inputs, batch.labels, batch.image_mask)
    dropped, masked = (contrast_logits(*first_pass, ContrastSpec(condition=c))[1] for c in CONDITIONS)
    compared = ~dropped.isnan()
    torch.testing.assert_close(dropped[compared], masked[compared], atol=1e-4, rtol=0)


def test_only_label_rows_meet_the_head_and_the_decoder_runs_twice(llava: Family) -> None:
    encoded = samples(llava.encoder, "llava")
    batch = collate(encoded, pad_token_id=llava.encoder.pad_token_id)
    calls: list[str] = []
    head = llava.model.get_output_embeddings()
    handles = [
        innermost_decoder(llava.model).register_forward_hook(lambda *_: calls.append("decoder")),
        head.register_forward_hook(lambda module, args, out: calls.append(f"head {tuple(out.shape)}")),
    ]
    delta_logits(llava.model, batch.inputs, batch.labels, batch.image_mask)
    for handle in handles:
        handle.remove()
    supervised = int((batch.labels != IGNORE_INDEX).sum())
    assert calls == ["decoder", f"head (1, {supervised}, 1)"] * 2


def test_the_head_is_left_as_it_was_even_after_an_error(llava: Family) -> None:
    head = llava.model.get_output_embeddings()
    with pytest.raises(RuntimeError):
        label_logits(llava.model, {"input_ids": torch.zeros(1, 2, 2, dtype=torch.long)}, torch.tensor([[1, 2]]))
    assert "forward" not in head.__dict__
    assert head(torch.zeros(1, head.in_features)).shape == (1, head.out_features)


def test_a_head_s_bias_and_replaced_forward_are_respected(llava: Family) -> None:
    encoded = samples(llava.encoder, "llava")[:1]
    batch = collate(encoded, pad_token_id=llava.encoder.pad_token_id)
    head = llava.model.get_output_embeddings()
    before = label_logits(llava.model, batch.inputs, batch.labels)

    def replaced(hidden: Tensor) -> Tensor:  # as accelerate's hooks do, on the instance
        return type(head).forward(head, hidden)

    head.forward = replaced
    head.bias = nn.Parameter(torch.arange(head.out_features).float())
    try:
        after = label_logits(llava.model, batch.inputs, batch.labels)
        assert head.forward is replaced
    finally:
        head.bias = None
        del head.forward
    supervised = ~before.isnan()
    torch.testing.assert_close((after - before)[supervised], batch.labels[supervised].float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_delta_without_any_token_before_it_is_undefined(llava: Family, condition: Condition) -> None:
    encoded = llava.encoder(conversation("<image>\nWhat?", "A cat."), [sample_image(1, (60, 40))])
    start = int(encoded.image_mask.nonzero()[0])
    cut = {key: value[start:] for key, value in encoded.sequence_inputs.items()}
    labels = cut["input_ids"].where(~encoded.image_mask[start:], IGNORE_INDEX)
    sample = EncodedSample(
        sequence_inputs=cut, image_inputs=encoded.image_inputs, labels=labels, image_mask=encoded.image_mask[start:]
    )
    batch = collate([sample], pad_token_id=0)
    deltas = delta_logits(llava.model, batch.inputs, batch.labels, batch.image_mask, ContrastSpec(condition=condition))[
        0
    ]
    supervised = (labels != IGNORE_INDEX).nonzero()[:, 0]
    assert bool(deltas[supervised[0]].isnan())
    assert bool(deltas[supervised[1:]].isfinite().all())


def test_contrast_inputs_are_refused_where_nothing_would_read_them(llava: Family) -> None:
    batch = collate(samples(llava.encoder, "llava"), pad_token_id=0)
    with pytest.raises(ConfigError, match="takes no contrast_inputs"):
        contrast_logits(llava.model, batch.inputs, batch.labels, batch.image_mask, contrast_inputs={})


def test_left_padding_gives_the_same_deltas(llava: Family) -> None:
    encoded = samples(llava.encoder, "llava")[:3]
    right = collate(encoded, pad_token_id=0)
    length = right.labels.shape[1]

    def left(values: Tensor, fill: int) -> Tensor:
        rows = [torch.nn.functional.pad(row[: e.num_tokens], (length - e.num_tokens, 0), value=fill)
                for row, e in zip(values, encoded, strict=True)]  # fmt: skip
        return torch.stack(rows)

    inputs = {**right.inputs, **{key: left(right.inputs[key], 0) for key in ("input_ids", "attention_mask")}}
    deltas = delta_logits(llava.model, inputs, left(right.labels, IGNORE_INDEX), left(right.image_mask, 0))
    expected = delta_logits(llava.model, right.inputs, right.labels, right.image_mask)
    torch.testing.assert_close(deltas[~deltas.isnan()], expected[~expected.isnan()], atol=1e-4, rtol=0)
