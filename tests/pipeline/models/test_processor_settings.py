import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from annotated_data import annotate
from cal_pipeline.arguments import parse_config
from cal_pipeline.encoding import identity
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec, rebuild_encoder
from cal_pipeline.models.loading import load_processor
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.runtime.plan import make_plan
from cal_schemas.errors import ConfigError
from cal_schemas.spec import MeasurementSpec
from cal_trainer.config import TrainConfig
from cal_trainer.data.alignment import check_measurement
from conftest import Family
from examples_of import conversation, measurement_spec
from families.builders.internvl import build as build_internvl
from families.builders.qwen import build_qwen2_5_vl
from tiny_data import write_llava_json
from tiny_models import sample_image

IMAGE = sample_image(1, (120, 40))
ASKED = conversation("<image>\nWhat?", "A cat.")


def encoder_with(directory: Path, **kwargs: Any) -> Encoder:
    return Encoder(load_processor(directory, kwargs=kwargs), processor_kwargs=kwargs)


def test_settings_change_what_the_model_sees_and_are_stored(family: Callable[[str], Family]) -> None:
    directory = family("idefics3").directory
    whole, split = encoder_with(directory, do_image_splitting=False), encoder_with(directory)
    tokens = {name: encoder(ASKED, [IMAGE]).image_mask.sum() for name, encoder in (("whole", whole), ("split", split))}
    assert tokens["whole"] < tokens["split"]
    stored = input_spec(whole)
    assert stored.processor_kwargs == '{"do_image_splitting": false}'
    assert stored.image_processor_digest != input_spec(split).image_processor_digest
    spec = measurement_spec(input=stored)
    assert MeasurementSpec.from_json(spec.to_json()) == spec
    again = rebuild_encoder(spec, directory)(ASKED, [IMAGE])
    assert all(torch.equal(value, again.image_inputs[key]) for key, value in whole(ASKED, [IMAGE]).image_inputs.items())
    assert "processor_kwargs" not in measurement_spec(input=input_spec(split)).to_json()


def test_a_count_of_the_processor_itself_is_a_setting_too(llava: Family) -> None:
    processor = load_processor(llava.directory, kwargs={"num_additional_image_tokens": 3})
    assert processor.num_additional_image_tokens == 3
    assert processor.chat_template == llava.encoder.processor.chat_template
    assert processor.tokenizer.get_vocab() == llava.encoder.processor.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_pixel": 3}, "max_pixel: LlavaImageProcessor"),
        ({"sise": 3}, "has no such setting; it has size"),
        ({"chat_template": "x"}, "has no such setting"),
        ({"return_tensors": "np"}, "has no such setting"),
        ({"size": "large"}, "Could not convert size"),
        ({"image_seq_length": 7, "default_to_square": True}, None),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(
    llava: Family, kwargs: dict[str, Any], message: str | None
) -> None:
    if message is None:
        assert encoder_with(llava.directory, **kwargs).processor_kwargs == kwargs
        return
    with pytest.raises(ConfigError, match=message):
        load_processor(llava.directory, kwargs=kwargs)


@pytest.mark.parametrize("program", [PrecomputeConfig, TrainConfig])
def test_json_and_yaml_say_the_same(program: type[Any], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("processor_kwargs:\n  max_pixels: 401408\n  do_resize: false\n")
    given = ["--model_name_or_path", "m", "--data_path", "d"]
    given += ["--output_dir", "o"] if program is PrecomputeConfig else []
    written = '{"max_pixels": 401408, "do_resize": false}'
    typed = parse_config(program, [*given, "--processor_kwargs", written], program="x", description="")
    assert typed.processor_settings() == {"max_pixels": 401408, "do_resize": False}
    filed = parse_config(program, [*given, "--config", str(tmp_path / "c.yaml")], program="x", description="")
    assert filed.processor_settings() == typed.processor_settings()
    for wrong in ("{max_pixels: 3}", "[3]", "3", '{"size": null}'):
        with pytest.raises(ConfigError, match="--processor_kwargs"):
            parse_config(program, [*given, "--processor_kwargs", wrong], program="x", description="")


def config_of(directory: Path, source: Path, folder: Path, output: Path, **more: Any) -> PrecomputeConfig:
    return PrecomputeConfig(
        model_name_or_path=str(directory), data_path=[str(source)], image_folder=[str(folder)],
        output_dir=str(output), gpus_per_worker=0, dtype="float32", carry="images", **more,
    )  # fmt: skip


def test_a_run_measures_with_them_and_the_trainer_says_when_its_own_differ(
    family: Callable[[str], Family], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reference = family("idefics3")
    source, folder = write_llava_json(tmp_path / "data", 3)
    written = json.dumps({"do_image_splitting": False})
    plan = make_plan(config_of(reference.directory, source, folder, tmp_path / "out", processor_kwargs=written))
    spec = plan.settings.spec
    assert spec.input.processor_kwargs == written
    measuring = rebuild_encoder(spec, reference.directory)
    annotate(tmp_path / "out", plan.todo, measuring, reference.model)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert check_measurement(spec, encoder_with(reference.directory, do_image_splitting=False), "out") is True
        assert not caplog.records
        assert check_measurement(spec, encoder_with(reference.directory), "out") is False
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"processor_kwargs was {written!r}, is None" in line
    # The same settings out of the model's own directory make the same inputs.
    measuring.processor.save_pretrained(tmp_path / "saved")
    caplog.clear()
    assert check_measurement(spec, encoder_with(tmp_path / "saved"), "out") is True
    assert not caplog.records


def test_a_device_needs_workers_that_have_it(llava: Family, tmp_path: Path) -> None:
    source, folder = write_llava_json(tmp_path / "data", 1)
    config = config_of(llava.directory, source, folder, tmp_path / "out", processor_kwargs='{"device": "cuda"}')
    with pytest.raises(ConfigError, match="--processor_kwargs device cuda: workers have no GPU"):
        make_plan(config)
    with pytest.raises(ConfigError, match="of cal-precompute's workers"):
        TrainConfig(model_name_or_path="m", data_path=["d"], processor_kwargs={"device": "cuda"})


def test_a_backend_is_taken_as_asked_and_only_torchvision_has_another_device(llava: Family) -> None:
    for backend in ("pil", "torchvision"):
        assert load_processor(llava.directory, backend=backend).image_processor.backend == backend  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="device cuda: the pil backend works on the CPU alone"):
        load_processor(llava.directory, kwargs={"device": "cuda"}, backend="pil")


def test_qwens_pixels_decide_how_many_tokens_an_image_has(tmp_path: Path) -> None:
    build_qwen2_5_vl(tmp_path)  # patches of 4 x 4 pixels, 2 x 2 of them a token, at most 1024 pixels
    image = sample_image(1, (64, 64))
    tokens = {
        pixels: int(
            encoder_with(tmp_path, **({"max_pixels": pixels} if pixels else {}))(ASKED, [image]).image_mask.sum()
        )
        for pixels in (0, 4096, 256)
    }
    assert tokens == {0: 16, 4096: 64, 256: 4}
    assert encoder_with(tmp_path, max_pixels=256).processor.image_processor.size["longest_edge"] == 256
    with pytest.raises(ConfigError, match=r"max_pixel: .* has no such setting; it has max_pixels"):
        load_processor(tmp_path, kwargs={"max_pixel": 256})


def test_a_run_that_was_planned_with_pil_is_measured_with_pil_where_torchvision_is_installed(llava: Family) -> None:
    planned = Encoder(load_processor(llava.directory, backend="pil"))
    spec = measurement_spec(input=input_spec(planned))
    assert spec.input.image_processor_backend == "pil"
    here = Encoder(load_processor(llava.directory))
    assert input_spec(here).image_processor_backend == "torchvision"
    rebuilt = rebuild_encoder(spec, llava.directory)
    assert input_spec(rebuilt) == spec.input
    pixels = [encoder(ASKED, [IMAGE]).image_inputs["pixel_values"] for encoder in (planned, rebuilt, here)]
    assert torch.equal(pixels[0], pixels[1])
    assert not torch.equal(pixels[0], pixels[2])


def test_settings_that_a_saved_processor_has_already_are_taken_again(tmp_path: Path) -> None:
    build_qwen2_5_vl(tmp_path / "base")
    given = encoder_with(tmp_path / "base", max_pixels=256)
    given.processor.save_pretrained(tmp_path / "trained")
    spec = measurement_spec(input=input_spec(given))
    assert input_spec(rebuild_encoder(spec, tmp_path / "trained")) == spec.input
    # In this directory they are its own, too.
    assert encoder_with(tmp_path / "base", max_pixels=1024).processor.image_processor.size["longest_edge"] == 1024


def test_a_setting_that_is_taken_and_ignored_is_refused(llava: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    image_processor = type(llava.encoder.processor.image_processor)
    kept = image_processor.__init__

    def forgetful(self: Any, **kwargs: Any) -> None:
        kept(self, **{name: value for name, value in kwargs.items() if name != "do_resize"})

    monkeypatch.setattr(image_processor, "__init__", forgetful)
    with pytest.raises(ConfigError, match="do_resize False changes nothing of LlavaImageProcessor"):
        load_processor(llava.directory, kwargs={"do_resize": False, "do_convert_rgb": False})


def test_the_number_of_an_images_tokens_reaches_the_processor_that_writes_them(tmp_path: Path) -> None:
    build_internvl(tmp_path)
    four, five, six = (encoder_with(tmp_path, image_seq_length=count)(ASKED, [IMAGE]).num_tokens for count in (4, 5, 6))
    assert six - five == five - four > 0


def test_the_device_of_a_measurement_is_not_asked_of_a_machine_without_its_backend(
    llava: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    kwargs = {"device": "cuda"}
    spec = measurement_spec(input=input_spec(encoder_with(llava.directory, **kwargs)))
    monkeypatch.setattr(identity, "available_backend", lambda recorded: "pil")
    assert rebuild_encoder(spec, llava.directory).processor_kwargs == kwargs
