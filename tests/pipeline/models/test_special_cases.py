"""What is refused, with the reason, and what the general rules decide."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers as hf

from cal_pipeline.encoding.collate import batches_by_tokens
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.contrast import required_inputs
from cal_pipeline.models.loading import check_architecture
from cal_pipeline.models.special_cases import REFUSED_MODELS, REFUSED_PROCESSORS, mask_undefined
from cal_schemas.errors import ConfigError, SampleError
from conftest import Family
from examples_of import conversation
from families import processors
from tiny_models import sample_image


@pytest.mark.parametrize("model_type", REFUSED_MODELS)
def test_models_of_the_table_are_refused_with_the_reason(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ConfigError) as error:
        check_architecture(tmp_path)
    assert f"{model_type!r} model, which cannot be used: {REFUSED_MODELS[model_type]}" in str(error.value)


@pytest.mark.parametrize("model_type", ["florence2", "udop", "pix2struct", "t5gemma2", "vision-encoder-decoder"])
def test_encoder_decoders_are_refused(tmp_path: Path, model_type: str) -> None:
    config: dict[str, Any] = {"model_type": model_type}
    if model_type == "vision-encoder-decoder":
        config |= {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="encoder-decoder model"):
        check_architecture(tmp_path)


def test_blip_2_over_t5_is_refused_and_over_opt_is_not(tmp_path: Path) -> None:
    for name, text in (("t5", hf.T5Config(num_layers=1)), ("opt", hf.OPTConfig(num_hidden_layers=1))):
        hf.Blip2Config(text_config=text).save_pretrained(tmp_path / name)
    with pytest.raises(ConfigError, match="encoder-decoder model"):
        check_architecture(tmp_path / "t5")
    check_architecture(tmp_path / "opt")


def test_a_processor_of_the_table_is_refused_with_the_reason(llava: Family) -> None:
    real = llava.encoder.processor
    known = {"image_token": "<image>", "image_processor": real.image_processor, "tokenizer": real.tokenizer}
    processor = type("InstructBlipProcessor", (SimpleNamespace,), {})(**known)
    with pytest.raises(ConfigError, match=REFUSED_PROCESSORS["InstructBlipProcessor"][:30]):
        Encoder(processor)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"layer_types": ["full_attention", "sliding_attention", "chunked_attention"]}, None),
        ({}, None),
        ({"layer_types": ["linear_attention", "full_attention"]}, "linear_attention"),
        ({"layers_block_type": ["mamba", "attention"]}, "mamba"),
        ({"cross_attention_layers": [3]}, "cross-attention"),
    ],
)
def test_mask_is_undefined_where_layers_pass_it_by(config: dict[str, Any], reason: str | None) -> None:
    undefined = mask_undefined(SimpleNamespace(**config))
    assert undefined is None if reason is None else reason in str(undefined)


def test_inputs_that_a_forward_demands_are_found_by_its_signature(llava: Family) -> None:
    assert required_inputs(llava.model) == []

    class Demanding:
        def forward(self, pixel_values: object, input_ids: object, attention_mask: object = None) -> None: ...

    assert required_inputs(Demanding()) == ["pixel_values", "input_ids"]


@pytest.fixture(scope="module")
def blip_2(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    directory = tmp_path_factory.mktemp("blip_2")
    processors.BUILDERS["blip_2"](directory)
    return processors.BY_NAME["blip_2"].load(directory)[1]


@pytest.mark.parametrize(("marks", "images"), [(0, 0), (2, 2)])
def test_a_processor_that_puts_one_image_first_takes_exactly_one(blip_2: Encoder, marks: int, images: int) -> None:
    with pytest.raises(SampleError, match=f"takes exactly one image, got {images}"):
        blip_2(conversation("<image>" * marks + "What?", "A cat."), [sample_image(1)] * images)


@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
def test_blip_2_s_words_are_found_behind_its_ids(blip_2: Encoder, template: Any) -> None:
    encoder = Encoder(blip_2.processor, template=template)
    encoded = encoder(conversation("<image>\nWhat is this?", "A cat."), [sample_image(1)])
    ids, tokenizer = encoded.sequence_inputs["input_ids"], blip_2.processor.tokenizer
    assert encoded.image_mask.tolist() == [True] * 4 + [False] * (len(ids) - 4)
    assert "A cat." in tokenizer.decode(ids[encoded.labels != -100])
    assert "<image>" not in tokenizer.decode(ids[4:])
    assert int((ids == tokenizer.bos_token_id).sum()) == 1


@pytest.mark.parametrize("template", ["auto", "plain", "vicuna_v1"])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_mllama_s_bos_is_there_once_and_is_no_image(mllama: Encoder, template: Any, images: int) -> None:
    encoder = Encoder(mllama.processor, template=template)
    encoded = encoder(conversation("<image>\n" * images + "What?", "A cat."), [sample_image(n) for n in range(images)])
    ids, tokenizer = encoded.sequence_inputs["input_ids"], mllama.processor.tokenizer
    assert int((ids == tokenizer.bos_token_id).sum()) == 1
    assert set(ids[encoded.image_mask].tolist()) <= {mllama.processor.image_token_id}
    assert int(encoded.image_mask.sum()) == images
    assert "A cat." in tokenizer.decode(ids[encoded.labels != -100])


def test_batches_hold_samples_of_one_shape_where_a_neighbour_s_images_would_show(mllama: Encoder) -> None:
    counts = [1, 2, 0, 1, 0, 2]
    samples = [
        mllama(conversation("<image>" * n + "What?", "A cat."), [sample_image(i) for i in range(n)]) for n in counts
    ]
    for batch in batches_by_tokens(samples, 10_000, uniform_shape=True):
        assert len({counts[index] for index in batch}) == 1
    assert sorted(index for batch in batches_by_tokens(samples, 10_000, uniform_shape=True) for index in batch) == list(
        range(6)
    )
    assert len(batches_by_tokens(samples, 10_000)) == 2
    assert mllama.uniform_shape_batches is not None
