from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.with_model.image_tokens import image_tokens
from cal_pipeline.inspect.with_model.visualization import image_attention, nameable_words, patch_words, query_mask
from cal_pipeline.models.loading import load_processor, load_reference
from cal_schemas.sample import IMAGE_MARK
from conftest import Family
from examples_of import conversation
from inspected_data import conversations, llava_directory, measured
from tiny_models import sample_image


def encode(encoder: Encoder, image: Image.Image) -> EncodedSample:
    return encoder(conversation(f"{IMAGE_MARK}\nWhat is it?", "A red car on the left."), [image])


@pytest.mark.parametrize("queries", ["answer", "text"])
def test_attention_is_the_models_own_summed_over_layers_and_averaged_over_heads_and_words(
    queries: str, llava: Family
) -> None:
    model = load_reference(llava.directory, dtype="float32", attn_implementation="eager", device="cpu")
    encoded = encode(llava.encoder, sample_image(1))
    found, share = image_attention(model, llava.encoder, encoded, queries)  # type: ignore[arg-type]
    batch = collate([encoded], pad_token_id=llava.encoder.pad_token_id)
    with torch.no_grad():
        output = model(**batch.inputs, output_attentions=True, use_cache=False)
    asked = query_mask(encoded, queries)  # type: ignore[arg-type]
    rows = torch.stack(output.attentions)[:, 0][:, :, asked]  # [layers, heads, queries, T]
    expected = rows[..., encoded.image_mask].mean(dim=(1, 2)).sum(0)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert share == pytest.approx(float(rows[..., encoded.image_mask].sum(-1).mean()), abs=1e-6)
    assert 0 < share < 1


def test_the_two_kinds_of_queries_are_the_answer_and_all_text_behind_the_image(llava: Family) -> None:
    encoded = encode(llava.encoder, sample_image(1))
    answer, text = query_mask(encoded, "answer"), query_mask(encoded, "text")
    assert bool((answer <= text).all())
    assert int(text.sum()) > int(answer.sum()) > 0
    first = int(torch.nonzero(encoded.image_mask)[0])
    assert not bool(text[:first].any())
    assert not bool((text & encoded.image_mask).any())


def test_the_grid_of_llava_is_the_image_row_by_row(llava: Family) -> None:
    # Black but for the patch in the second row and third column.
    image = Image.new("RGB", (42, 42), "black")
    image.paste("white", (28, 14, 42, 28))
    tokens = image_tokens(llava.model, llava.encoder.processor, encode(llava.encoder, image))
    assert tokens.grid_side == 3
    np.testing.assert_allclose(tokens.boxes[5], [1 / 3, 2 / 3, 2 / 3, 1])
    seen = np.asarray(tokens.image)
    assert seen.shape == (42, 42, 3)
    assert seen[14:28, 28:].min() > 250
    assert seen[:14].max() < 5
    values = np.arange(9.0)
    heat = tokens.heat(values, side=42)
    assert heat.sum() == pytest.approx(values.sum())
    np.testing.assert_allclose(heat[14:28, 28:42], 5 / 14**2)


def test_the_tiles_of_llava_next_lie_where_the_model_takes_them_from(family: Callable[[str], Family]) -> None:
    """A white field in the image changes the features of exactly the tokens whose boxes it covers."""
    reference = family("llava_next")
    for size, field in (((56, 56), (28, 0, 56, 28)), ((84, 28), (56, 0, 84, 28)), ((28, 84), (0, 0, 28, 28))):
        plain, changed = Image.new("RGB", size, "black"), Image.new("RGB", size, "black")
        changed.paste("white", field)
        encoded = [encode(reference.encoder, image) for image in (plain, changed)]
        tokens = image_tokens(reference.model, reference.encoder.processor, encoded[0])
        assert len(tokens.boxes) == int(encoded[0].image_mask.sum())
        fine = tokens.boxes[tokens.grid_side**2 :]
        placed = fine[~np.isnan(fine).any(axis=1)]
        assert len(fine) > len(placed) > 0  # line ends have no place
        areas = (placed[:, 2] - placed[:, 0]) * (placed[:, 3] - placed[:, 1])
        assert areas.sum() == pytest.approx(1.0)
        pixels = [item.image_inputs["pixel_values"][0] for item in encoded]
        differs = (pixels[0] != pixels[1]).flatten(1).any(1)
        assert bool(differs[0])  # the whole image, in small
        # The images are multiples of a tile: the field is one tile, the others are untouched.
        assert int(differs[1:].sum()) == 1
        left, top, right, bottom = np.array(field) / np.array([*size, *size])
        inside = [
            at
            for at, box in enumerate(tokens.boxes)
            if at >= tokens.grid_side**2 and not np.isnan(box).any()
            and top <= box[0] and box[2] <= bottom + 1e-9 and left <= box[1] and box[3] <= right + 1e-9
        ]  # fmt: skip
        with torch.no_grad():
            features = [
                reference.model.get_image_features(
                    pixel_values=item.image_inputs["pixel_values"], image_sizes=item.image_inputs["image_sizes"]
                ).pooler_output[0]
                for item in encoded
            ]
        moved = (features[0] - features[1]).abs().amax(-1) > 1e-6
        assert [at for at in np.flatnonzero(moved.numpy()).tolist() if at >= tokens.grid_side**2] == inside


def test_the_crops_of_mini_gemini_hd_lie_where_the_processor_takes_them_from(family: Callable[[str], Family]) -> None:
    """A white field in the top right quarter is in the view of the whole and in the second crop, and nowhere else."""
    reference = family("mini_gemini_hd")
    plain, changed = (Image.new("RGB", (256, 256), "black") for _ in range(2))
    changed.paste("white", (128, 0, 256, 128))
    encoded = [encode(reference.encoder, image) for image in (plain, changed)]
    tokens = image_tokens(reference.model, reference.encoder.processor, encoded[1])
    assert tokens.grid_side == 4
    views = [item.image_inputs["pixel_values"][0] for item in encoded]
    assert (views[0] != views[1]).flatten(1).any(1).tolist() == [True, False, True, False, False]
    top, left, bottom, right = tokens.boxes.T
    inside = np.flatnonzero((bottom <= 0.5) & (left >= 0.5))
    assert inside.tolist() == [2, 3, 6, 7, *range(32, 48)]
    np.testing.assert_allclose(tokens.boxes[[0, 16, 32, 79]], [
        [0, 0, 1 / 4, 1 / 4], [0, 0, 1 / 8, 1 / 8], [0, 1 / 2, 1 / 8, 5 / 8], [7 / 8, 7 / 8, 1, 1],
    ])  # fmt: skip
    areas = (bottom - top) * (right - left)
    assert [areas[:16].sum(), areas[16:].sum()] == pytest.approx([1.0, 1.0])
    assert np.asarray(tokens.image)[:28, 28:].min() > 250


class KnownProjector(torch.nn.Module):
    """Gives each patch the embedding of a known token, scaled: the cosine does not see length."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (self.rows * 3.0).expand(features.shape[0], -1, -1)


@pytest.mark.parametrize("name", ["llava", "llava_next", "mini_gemini", "mini_gemini_hd"])
def test_a_patch_that_equals_a_words_embedding_is_named_by_it(name: str, family: Callable[[str], Family]) -> None:
    reference = family(name)
    model = load_reference(reference.directory, dtype="float32", device="cpu")
    encoded = encode(reference.encoder, sample_image(2, (56, 56)))
    patches = image_tokens(model, reference.encoder.processor, encoded).grid_side ** 2
    vocabulary = nameable_words(model, reference.encoder.processor.tokenizer)
    wanted = vocabulary[torch.randperm(len(vocabulary), generator=torch.Generator().manual_seed(0))[:patches]]
    model.model.multi_modal_projector = KnownProjector(model.get_input_embeddings().weight[wanted].detach())
    ids, cosines = patch_words(model, encoded, vocabulary=vocabulary, top=2)
    assert ids[:, 0].tolist() == wanted.tolist()
    np.testing.assert_allclose(cosines[:, 0], 1.0, atol=1e-5)
    assert (cosines[:, 1] < 1.0).all()


def test_only_words_that_spell_something_are_named(llava: Family) -> None:
    tokenizer = llava.encoder.processor.tokenizer
    words = nameable_words(llava.model, tokenizer)
    assert not set(words.tolist()) & set(tokenizer.all_special_ids)
    assert all(tokenizer.decode([token]).strip().isprintable() for token in words.tolist())
    assert len(words) > 100


def one_image(family: Family, folder: Path) -> Path:
    data = conversations(folder / "data", ["A red car on the left.", "A dog."])
    return measured(family, folder / "annotated", [data], folder / "data" / "images", carry="paths")


@pytest.mark.full
def test_both_figures_are_drawn_for_two_checkpoints_side_by_side(
    llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = one_image(llava, tmp_path)
    after = tmp_path / "after"
    model = load_reference(llava.directory, dtype="float32", device="cpu")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.zero_()
        word = llava.encoder.processor.tokenizer("cat", add_special_tokens=False)["input_ids"][0]
        model.model.multi_modal_projector.linear_2.bias.copy_(model.get_input_embeddings().weight[word])
    model.save_pretrained(after)
    load_processor(llava.directory).save_pretrained(after)
    both = ["--sample", "#0", "--model_name_or_path", str(llava.directory), str(after), "--device", "cpu"]
    assert (
        run(["attention", str(path), *both, "--output", str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json")])
        == 0
    )
    found = json.loads((tmp_path / "a.json").read_text())
    assert [item["name"] for item in found] == ["llava", "after"]
    for item in found:
        values = [patch["attention"] for patch in item["patches"]]
        assert len(values) == 9
        assert sum(values) / 2 == pytest.approx(item["share"])  # two layers
    assert (
        run(["patch-words", str(path), *both, "--output", str(tmp_path / "w.png"), "--csv", str(tmp_path / "w.csv")])
        == 0
    )
    with (tmp_path / "w.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 9 * 3
    named = {row["word"] for row in rows if row["checkpoint"] == "after" and row["rank"] == "1"}
    assert named == {llava.encoder.processor.tokenizer.decode([word]).strip()}
    for name in ("a.png", "w.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > image.height
    assert "different words for 9 patches" in capsys.readouterr().out


@pytest.mark.full
def test_without_a_model_named_the_reference_is_shown(llava: Family, tmp_path: Path) -> None:
    path = one_image(llava, tmp_path)
    assert (
        run(["attention", str(path), "--sample", "row-1", "--output", str(tmp_path / "a.svg"), "--device", "cpu"]) == 0
    )
    assert "<svg" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize("name", ["gemma3", "idefics3", "paligemma"])
@pytest.mark.parametrize("command", ["attention", "patch-words"])
def test_other_models_are_refused_with_the_reason(
    command: str, name: str, family: Callable[[str], Family], llava: Family, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = one_image(llava, tmp_path)
    flags = [
        "--sample",
        "row-0",
        "--model_name_or_path",
        str(family(name).directory),
        "--output",
        str(tmp_path / "a.png"),
    ]
    assert run([command, str(path), *flags]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert "no token is one place in the image" in error


def test_samples_without_a_image_and_a_third_checkpoint_are_refused(
    llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = llava_directory(llava, tmp_path, count=5)
    output = ["--output", str(tmp_path / "a.png")]
    assert run(["attention", str(path), "--sample", "3", *output]) == 2
    assert "has 0 images" in capsys.readouterr().err
    models = ["--model_name_or_path", *[str(llava.directory)] * 3]
    assert run(["patch-words", str(path), "--sample", "#0", *models, *output]) == 2
    assert "two checkpoints at most" in capsys.readouterr().err
    assert run(["patch-words", str(path), "--sample", "#99", *output]) == 2
    assert "no row #99: there are #0 to #4" in capsys.readouterr().err
