from dataclasses import asdict, dataclass, fields

import pytest

from cal_schemas.errors import ConfigError, FormatError
from cal_schemas.spec import ContrastSpec, LabelSpec, MeasurementSpec, own_fields_first
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
    label = LabelSpec(tokenizer_digest="t", chat_template_digest="c", template="auto", message_normalization=1)
    assert measurement_spec(label=label).fingerprint() == "7fe5b8c69492867a58bf8214d74e21a1"


def test_differences_name_the_nested_field_and_both_values() -> None:
    one, other = measurement_spec(), measurement_spec(contrast=ContrastSpec(condition="mask"))
    assert one.differences(other) == [("contrast.condition", "drop", "mask")]


def test_a_perturbing_contrast_goes_there_and_back_with_its_parameter() -> None:
    specs = [
        measurement_spec(contrast=ContrastSpec(condition="patch_mask", patch_mask_ratio=0.5)),
        measurement_spec(contrast=ContrastSpec(condition="patch_mask", patch_mask_ratio=0.7)),
        measurement_spec(contrast=ContrastSpec(condition="gaussian_blur", blur_sigma=1.0)),
    ]
    assert [MeasurementSpec.from_json(spec.to_json()) for spec in specs] == specs
    assert len({spec.fingerprint() for spec in specs}) == 3
    assert specs[0].differences(specs[1]) == [("contrast.patch_mask_ratio", 0.5, 0.7)]
    # Earlier readers refuse fields they do not know: a spec without perturbation has none of these.
    assert "patch_mask_ratio" not in measurement_spec().to_json()


def test_a_condition_of_a_later_version_is_a_format_error() -> None:
    with pytest.raises(FormatError, match="got 'rotate'"):
        MeasurementSpec.from_json(measurement_spec().to_json().replace('"drop"', '"rotate"', 1))


def test_unknown_contrast_is_refused() -> None:
    with pytest.raises(ConfigError, match="drop, mask, patch_mask, gaussian_blur, got 'blur'"):
        ContrastSpec(condition="blur")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"label": {"newer": 1}}'])
def test_text_that_is_no_spec_is_a_format_error(text: str) -> None:
    with pytest.raises(FormatError):
        MeasurementSpec.from_json(text)


def test_own_fields_come_before_those_of_the_nearest_base_and_these_before_what_that_inherits() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Far:
        far: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Near(Far):
        near: int = 2

    @own_fields_first
    @dataclass(frozen=True, kw_only=True)
    class Own(Near):
        own: int = 3

    assert [item.name for item in fields(Own)] == ["own", "near", "far"]
    assert asdict(Own(far=4)) == {"own": 3, "near": 2, "far": 4}
