"""What single values of a source row say, one by one: emptiness, wide text, and the keys that say what is learned."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest

from cal_pipeline.sources.values import (
    RowError,
    is_empty,
    is_learning_key,
    is_null,
    is_wide_text,
    json_value,
    learned,
    parsed,
    words_of,
)


@pytest.mark.parametrize(
    ("head", "as_json", "as_text"),
    [
        (b"\xff\xfea\0", True, True), (b"\xfe\xff\0a", True, True), (b"\0\0\xfe\xff", True, True),
        (b"\0\0\xfe\xff\0\0\0{", True, True),
        (b"{\0\"\0", True, False), (b"\0{\0\"", True, False), (b"{\0\0\0", True, False), (b"\0\0\0{", True, False),
        (b"\0\0\0\0", False, False), (b"{\"a\"", False, False), (b"\xef\xbb\xbf{", False, False), (b"", False, False),
        (b"abcd\0", False, False), (b"\xff", False, False), (b"a\xff\xfe", False, False),
        (b"\0\0\xff\xfe", True, False),
    ],
)  # fmt: skip
def test_wide_text_is_known_by_its_mark_and_json_by_its_zeros(head: bytes, as_json: bool, as_text: bool) -> None:
    assert is_wide_text(head) is as_json
    assert is_wide_text(head, json=False) is as_text


@pytest.mark.parametrize("key", ["loss", "weight", "weights", "train", "trained", "trainable", "training", "learn",
                                 "learned", "learnable", "mask", "supervise", "supervised", "masked", "ignore",
                                 "ignored", "skip", "skipped", "exclude", "excluded", "unsupervised"])  # fmt: skip
def test_every_word_of_learning_makes_a_learning_key(key: str) -> None:
    assert is_learning_key(key)
    assert is_learning_key(f"is_{key}")
    assert is_learning_key(f"be{key.capitalize()}")
    assert is_learning_key(f"to-{key}")


@pytest.mark.parametrize("key", ["ignore_case", "skip_link", "is", "to_be", "content", "", "masks", "trainer"])
def test_a_word_that_leaves_out_beside_other_words_is_of_something_else(key: str) -> None:
    assert not is_learning_key(key)


def test_the_words_of_a_key_are_those_of_any_spelling() -> None:
    for key in ("loss_weight", "lossWeight", "loss-weight", "LOSS_WEIGHT", "LossWeight"):
        assert words_of(key) == {"loss", "weight"}
    assert words_of("w2") == {"w", "2"}


@pytest.mark.parametrize("value", [0, 0.0, False, Decimal(0)])
def test_a_learning_key_of_zero_leaves_its_turn_out_and_of_one_keeps_it(value: Any) -> None:
    assert learned("loss", value, "turn 1") is False
    assert learned("loss", type(value)(1), "turn 1") is True
    assert learned("mask", 1, "turn 1") is True


@pytest.mark.parametrize("key", ["masked", "is_ignored", "no_loss", "not_trained", "dontTrain", "without_loss"])
def test_a_key_that_leaves_out_is_refused_unless_it_says_nothing(key: str) -> None:
    for nothing in (None, False, 0, "", [], 0.0):
        assert learned(key, nothing, "turn 1") is True
    for value in (True, 1, "yes"):
        with pytest.raises(RowError, match=f"turn 1 has '{key}' .*layouts differ in whether that is learned"):
            learned(key, value, "turn 1")


@pytest.mark.parametrize("value", [True, False])
def test_a_mask_that_is_true_or_false_is_refused(value: bool) -> None:
    with pytest.raises(RowError, match="layouts differ"):
        learned("mask", value, "turn 1")


@pytest.mark.parametrize("value", [0.5, 2, -1, "1", "0", None, [1], math.nan])
def test_a_weight_between_or_beyond_is_refused(value: Any) -> None:
    with pytest.raises(RowError, match="only 0 and 1"):
        learned("weight", value, "turn 1")


def test_nothing_is_said_by_null_empty_text_and_lists_and_objects_of_such() -> None:
    nothing: list[Any] = [None, False, "", b"", [], (), {}, [None, ""], ("",), {"a": None, "b": [""]}, math.nan]
    assert all(map(is_empty, nothing))
    something: list[Any] = [0, 0.0, True, "a", b"a", [None, "a"], ("", 0), {"a": None, "b": 0}, [0], 1.5, Decimal(0)]
    assert not any(map(is_empty, something))


def test_null_is_none_or_what_pandas_writes_for_it() -> None:
    assert is_null(None)
    assert is_null(math.nan)
    for value in (0, 0.0, "", False, [], "nan"):
        assert not is_null(value)


def test_json_for_a_template_has_no_nulls_in_objects_and_keeps_those_of_lists() -> None:
    value = {"a": None, 1: [None, (True, 1.5)], "b": {"c": None, "d": "e", "f": 0}}
    assert json_value(value, "turn 1") == {"1": [None, [True, 1.5]], "b": {"d": "e", "f": 0}}
    assert json_value(None, "turn 1") is None
    for bad in (b"x", {1}, {"a": [b"x"]}, Decimal(1)):
        with pytest.raises(RowError, match=r"turn 1 holds (bytes|set|Decimal), which is no JSON value"):
            json_value(bad, "turn 1")


def test_text_that_is_no_json_is_refused_by_name() -> None:
    assert parsed('{"a": [1, null]}', "'tools'") == {"a": [1, None]}
    for text in ("{", "", "x", "[" * 100_000):
        with pytest.raises(RowError, match="'tools' is text, and no JSON"):
            parsed(text, "'tools'")
