"""Mini-Gemini and its HD form as any model of transformers: saving, generating, both passes, ragged batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from cal_pipeline.encoding.collate import Batch, collate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.contrast import contrast_logits, label_logits
from cal_pipeline.measuring.self_check import check_reference
from cal_pipeline.models.loading import load_processor, load_reference
from cal_pipeline.models.mini_gemini.configuration import MiniGeminiConfig
from cal_pipeline.models.mini_gemini.processor import cut, low_res_views
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import ContrastSpec
from mini_gemini_data import build_mini_gemini, build_mini_gemini_hd
from tiny_models import sample_image

Built = Callable[[str], Path]
MODELS = ("llama", "gemma", "llama-hd", "gemma-hd")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("mgm")

    def get(name: str) -> Path:
        directory = folder / name
        if not directory.exists():
            kind, _, hd = name.partition("-")
            (build_mini_gemini_hd if hd else build_mini_gemini)(directory, kind)
        return directory

    return get


def encoded_samples(encoder: Encoder) -> list[Any]:
    """One image, two images, none."""
    questions = ["<image>\nWhat is it?", "<image><image>\nAre they the same?", "Hello?"]
    answers = ["A red box with blue text.", "No.", "Good day to all of you."]
    encodings = []
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        messages = (Turn(role="user", content=question), Turn(role="assistant", content=answer))
        images = [sample_image(10 * number + i, (50 + 30 * i, 60)) for i in range(question.count("<image>"))]
        encodings.append(encoder(Sample(sample_id=str(number), images=(), messages=messages), images))
    return encodings


def ragged(directory: Path) -> tuple[Any, Batch, list[Batch]]:
    encoder = Encoder(load_processor(directory))
    samples = encoded_samples(encoder)
    together = collate(samples, pad_token_id=encoder.pad_token_id)
    alone = [collate([sample], pad_token_id=encoder.pad_token_id) for sample in samples]
    return load_reference(directory, dtype="float32"), together, alone


@pytest.mark.parametrize("name", MODELS)
def test_drop_is_mask_and_the_label_only_head_gives_full_logits(built: Built, name: str) -> None:
    model, together, alone = ragged(built(name))
    check_reference(model, together, ContrastSpec(condition="drop"), name)
    with torch.no_grad():
        whole = label_logits(model, together.inputs, together.labels)
        for row, batch in enumerate(alone):
            one = label_logits(model, batch.inputs, batch.labels)
            torch.testing.assert_close(whole[row, : one.shape[1]], one[0], atol=1e-4, rtol=0, equal_nan=True)
        with_image, without = contrast_logits(model, together.inputs, together.labels, together.image_mask)
    delta = with_image - without
    assert float(delta[:2][~delta[:2].isnan()].abs().max()) > 0.01, "the image must matter"


@pytest.mark.parametrize(("name", "tokens"), [("llama", 16), ("llama-hd", 80)])
def test_an_image_takes_the_same_number_of_tokens_whatever_its_shape(built: Built, name: str, tokens: int) -> None:
    directory = built(name)
    assert AutoConfig.from_pretrained(directory).image_seq_length == tokens
    encoder = Encoder(load_processor(directory), template="plain")
    for size in ((20, 90), (64, 64), (300, 40)):
        messages = (Turn(role="user", content="<image>"), Turn(role="assistant", content="A box."))
        encoded = encoder(Sample(sample_id="x", images=(), messages=messages), [sample_image(1, size)])
        assert int(encoded.image_mask.sum()) == tokens


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_it_generates_the_same(built: Built, name: str, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(built(name))
    processor = AutoProcessor.from_pretrained(built(name))
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    conversation = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = AutoProcessor.from_pretrained(tmp_path / "again")(
        images=[sample_image(3)], text=[text], return_tensors="pt",
        text_kwargs={"add_special_tokens": "<bos>" not in text},
    )  # fmt: skip
    options = {"max_new_tokens": 6, "do_sample": False}
    first, cached, fresh = (
        model.generate(**inputs, **options),
        again.generate(**inputs, **options),
        again.generate(**inputs, **options, use_cache=False),
    )
    assert first.shape[1] > inputs["input_ids"].shape[1]
    assert torch.equal(first, cached)
    assert torch.equal(first, fresh), "without a cache the image is seen anew in each step"


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_in_bfloat16_it_takes_the_processor_s_float32_images_in_a_left_padded_batch(built: Built, name: str) -> None:
    processor = AutoProcessor.from_pretrained(built(name))
    processor.tokenizer.padding_side = "left"
    texts, images = [], [sample_image(seed, (60 + seed, 40)) for seed in range(3)]
    for question, count in (("What is in the image?", 1), ("Hello?", 0), ("Same?", 2)):
        content = [*[{"type": "image"}] * count, {"type": "text", "text": question}]
        texts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    options = {"return_tensors": "pt", "text_kwargs": {"add_special_tokens": "<bos>" not in texts[0]}}
    batch = processor(images=images, text=texts, padding=True, **options)
    model = AutoModelForImageTextToText.from_pretrained(built(name))
    together = model.generate(**batch, max_new_tokens=5, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for row, shown in enumerate((images[:1], None, images[1:])):
        alone = processor(images=shown, text=texts[row : row + 1], **options)
        expected = model.generate(**alone, max_new_tokens=5, do_sample=False)[0, alone["input_ids"].shape[1] :]
        assert together[row, : len(expected)].tolist() == expected.tolist()
    real = batch["attention_mask"].bool()
    exact = model(**batch).logits[real]
    half = model.to(torch.bfloat16)(**batch).logits[real].float()
    assert float((half - exact).square().mean().sqrt()) < 0.1


def test_crops_go_row_by_row_after_the_view_of_the_whole() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert cut(image, 2)[0, :, 0].flatten(1).tolist() == [
        [0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15],
    ]  # fmt: skip
    images = torch.rand(2, 3, 48, 48)
    views = low_res_views(images, 14, grid=2, with_global=True)
    assert views.shape == (2, 5, 3, 14, 14)
    enlarged = F.interpolate(images, (28, 28), mode="bilinear")
    torch.testing.assert_close(views[:, 2], enlarged[:, :, :14, 14:])
    # Halving bilinearly with corners not aligned is the mean of 2 x 2.
    torch.testing.assert_close(views[:, 0], F.avg_pool2d(enlarged, 2))


@torch.no_grad()
def test_hd_mines_each_view_from_its_own_part_of_the_map(built: Built) -> None:
    model = AutoModelForImageTextToText.from_pretrained(built("llama-hd")).model
    views, images = torch.randn(1, 5, 3, 56, 56), torch.randn(1, 3, 256, 256)
    whole = model.aux_map(images)
    assert whole.shape[-2:] == (64, 64)
    corners = [whole[..., :32, :32], whole[..., :32, 32:], whole[..., 32:, :32], whole[..., 32:, 32:]]
    parts = [F.avg_pool2d(whole, 2), *corners]
    tokens = model.vision_tower(views[0], output_hidden_states=True).hidden_states[-2][:, 1:]
    expected = [model.patch_info_mining(tokens[None, number], part) for number, part in enumerate(parts)]
    features = model.get_image_features(views, images)
    torch.testing.assert_close(features.last_hidden_state, torch.cat(expected, dim=1), atol=1e-5, rtol=1e-5)
    assert [feature.shape for feature in features.pooler_output] == [(80, 64)]


@torch.no_grad()
def test_a_token_sees_only_the_places_beneath_it(built: Built) -> None:
    mining = AutoModelForImageTextToText.from_pretrained(built("llama")).model.patch_info_mining
    tokens, places = torch.randn(1, 16, 32), torch.randn(1, 80, 32, 32)
    before = mining(tokens, places)
    places[..., 8:16, 16:24] += 1.0  # Beneath the token of row 1, column 2.
    moved = (mining(tokens, places) - before).abs().amax(-1)[0]
    assert moved.nonzero().flatten().tolist() == [6]


@torch.no_grad()
def test_wrong_inputs_are_named(built: Built) -> None:
    directory = built("llama")
    model = AutoModelForImageTextToText.from_pretrained(directory)
    ids = torch.full((1, 20), 5)
    with pytest.raises(ValueError, match="high_res_pixel_values"):
        model(input_ids=ids, pixel_values=torch.zeros(1, 3, 56, 56))
    pixels = {"pixel_values": torch.zeros(1, 3, 56, 56), "high_res_pixel_values": torch.zeros(1, 3, 128, 128)}
    with pytest.raises(ValueError, match="0 image tokens in input_ids for 16 image features"):
        model(input_ids=ids, **pixels)
    ids[:, :16] = model.config.image_token_id
    with pytest.raises(ValueError, match="16 image tokens in input_ids for 0 image features"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="5 views of an image came, the config has 1"):
        model(input_ids=ids, **{**pixels, "pixel_values": torch.zeros(1, 5, 3, 56, 56)})


def test_grids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        MiniGeminiConfig(aux_vision_config={"model_type": "convnext", "image_size": 760})
    with pytest.raises(ValueError, match="a global view belongs to a grid"):
        MiniGeminiConfig(image_global=True)
    assert MiniGeminiConfig().image_seq_length == 576
    large = {"model_type": "convnext", "image_size": 1536}
    assert MiniGeminiConfig(aux_vision_config=large, image_grid=2, image_global=True).image_seq_length == 2880
