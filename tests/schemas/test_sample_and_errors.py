import pickle

import pytest

from cal_schemas import errors
from cal_schemas.sample import ImageRef, sample_key
from examples_of import conversation


def test_key_of_an_embedded_image_depends_on_its_bytes_not_its_name() -> None:
    keys = {sample_key(conversation("<image>", "a", images=(ImageRef(data=b"x", path=path),))) for path in ("1", "2")}
    assert len(keys) == 1


def test_key_of_an_image_file_depends_on_its_path() -> None:
    keys = {sample_key(conversation("<image>", "a", images=(ImageRef(path=path),))) for path in ("1", "2")}
    assert len(keys) == 2


def test_key_separates_texts_that_concatenate_to_the_same() -> None:
    assert sample_key(conversation("ab", "c")) != sample_key(conversation("a", "bc"))


def test_key_does_not_depend_on_the_id() -> None:
    assert sample_key(conversation("a", "b", sample_id="1")) == sample_key(conversation("a", "b", sample_id="2"))


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.ImageError, errors.MissingDeltaError, errors.ShardError])
def test_errors_survive_pickling_with_message_and_status(kind: type[errors.CalError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what, both values, the way out")))
    assert type(error) is kind
    assert str(error) == "what, both values, the way out"
    assert getattr(error, "status", None) == getattr(kind, "status", None)


def test_every_status_is_listed_once() -> None:
    assert errors.STATUSES == (
        "ok", "encode_error", "image_error", "no_supervised_tokens", "too_long", "non_finite", "out_of_memory",
    )  # fmt: skip
