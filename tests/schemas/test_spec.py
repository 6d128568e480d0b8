import pytest

from cal_schemas.errors import ConfigError, FormatError
from cal_schemas.spec import ContrastSpec, MeasurementSpec
from examples_of import measurement_spec


def test_json_gives_the_same_spec_back() -> None:
    spec = measurement_spec(revision="abc")
    assert MeasurementSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("changed", "value"), [("dtype", "bfloat16"), ("weights_digest", "other"), ("reference_saw_data", "yes")]
)
def test_fingerprint_changes_with_every_field(changed: str, value: str) -> None:
    assert measurement_spec().fingerprint() != measurement_spec(**{changed: value}).fingerprint()


def test_fingerprint_is_the_same_in_every_process() -> None:
    # Pinned: a fingerprint in a file must mean the same in a later version, or the format version must rise.
    assert measurement_spec().fingerprint() == "7fe5b8c69492867a58bf8214d74e21a1"


def test_differences_name_the_nested_field_and_both_values() -> None:
    one, other = measurement_spec(), measurement_spec(contrast=ContrastSpec(condition="mask"))
    assert one.differences(other) == [("contrast.condition", "drop", "mask")]


def test_unknown_contrast_is_refused() -> None:
    with pytest.raises(ConfigError, match="'drop' or 'mask', got 'blur'"):
        ContrastSpec(condition="blur")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"label": {"newer": 1}}'])
def test_text_that_is_no_spec_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError):
        MeasurementSpec.from_json(text)
