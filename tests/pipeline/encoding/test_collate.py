import torch
from hypothesis import given
from hypothesis import strategies as st

from cal_pipeline.encoding.collate import batches_by_tokens, collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_schemas.spec import IGNORE_INDEX


def encoded(length: int, **image_inputs: torch.Tensor) -> EncodedSample:
    return EncodedSample(
        sequence_inputs={"input_ids": torch.arange(1, length + 1)},
        image_inputs=image_inputs,
        labels=torch.arange(1, length + 1),
        image_mask=torch.zeros(length, dtype=torch.bool),
    )


def test_tokens_are_padded_on_the_right_and_the_mask_is_always_there() -> None:
    batch = collate([encoded(2), encoded(3)], pad_token_id=9)
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 9], [1, 2, 3]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.labels.tolist() == [[1, 2, IGNORE_INDEX], [1, 2, 3]]


def test_pixels_are_concatenated_and_ragged_tiles_zero_padded() -> None:
    one, two = torch.ones(1, 2, 3), 2 * torch.ones(2, 3, 3)
    pixels = collate([encoded(1, pixel_values=one), encoded(1), encoded(1, pixel_values=two)], pad_token_id=0).inputs
    assert pixels["pixel_values"].shape == (3, 3, 3)
    assert pixels["pixel_values"].sum((1, 2)).tolist() == [6.0, 18.0, 18.0]


def test_batch_first_pixels_get_a_row_of_zeros_for_a_text_only_sample() -> None:
    one = torch.ones(1, 2, 3)
    batch = collate([encoded(1, p=one), encoded(1), encoded(1, p=one)], pad_token_id=0, batch_first={"p"})
    assert batch.inputs["p"].sum((1, 2)).tolist() == [6.0, 0.0, 6.0]


def test_a_text_only_batch_has_no_pixels() -> None:
    assert set(collate([encoded(1)], pad_token_id=0, batch_first={"p"}).inputs) == {"input_ids", "attention_mask"}


def test_pixels_are_cast_to_the_model_s_dtype_and_ids_are_not() -> None:
    batch = collate([encoded(1, p=torch.ones(1, 2))], pad_token_id=0).to(torch.device("cpu"), torch.bfloat16)
    assert batch.inputs["p"].dtype == torch.bfloat16
    assert batch.inputs["input_ids"].dtype == torch.int64


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=40), st.integers(1, 120))
def test_every_sample_is_in_one_batch_within_the_budget_and_modalities_do_not_mix(
    shapes: list[tuple[int, bool]], budget: int
) -> None:
    samples = [encoded(length, **({"p": torch.ones(1, 1)} if image else {})) for length, image in shapes]
    batches = batches_by_tokens(samples, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(shapes)))
    for batch in batches:
        lengths = [shapes[index][0] for index in batch]
        assert len(batch) == 1 or max(lengths) * len(batch) <= budget
        assert len({shapes[index][1] for index in batch}) == 1
        assert lengths == sorted(lengths, reverse=True)
