"""Mini-Gemini against the authors' released code on tiny weights (tests/goldens/mgm, see the README beside it)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor, load_reference
from cal_schemas.sample import Sample, Turn
from mini_gemini_data import GOLDENS, KINDS, build_mini_gemini

WITH_IMAGE = [0, 2]
RELEASED_IMAGE_ID = -200
ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    model: Any
    processor: Any
    arrays: dict[str, Tensor]
    conversations: list[dict[str, Any]]

    def expanded(self, row: int) -> list[int]:
        """The released token ids of a row, with 16 image tokens of ours for its placeholder."""
        ids = self.arrays["input_ids"][row][self.arrays["attention_mask"][row].bool()].tolist()
        image = [self.processor.image_token_id] * 16
        return [token for one in ids for token in (image if one == RELEASED_IMAGE_ID else [one])]

    def inputs(self, pixels: bool = True) -> dict[str, Tensor]:
        mask = self.arrays["merged_attention_mask"].long()
        ids = torch.zeros_like(mask)
        for row in range(len(mask)):
            expanded = torch.tensor(self.expanded(row))
            ids[row, : len(expanded)] = expanded
        pixel_inputs = {
            "pixel_values": self.arrays["images"][WITH_IMAGE],
            "high_res_pixel_values": self.arrays["images_aux"][WITH_IMAGE],
        }
        return {"input_ids": ids, "attention_mask": mask, **(pixel_inputs if pixels else {})}


@pytest.fixture(scope="module", params=KINDS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    directory = build_mini_gemini(tmp_path_factory.mktemp("mgm") / request.param, request.param)
    folder = GOLDENS / f"{request.param}_small"
    return Golden(
        model=load_reference(directory, dtype="float32"),
        processor=load_processor(directory),
        arrays=load_file(folder / "golden.safetensors"),
        conversations=json.loads((folder / "conversations.json").read_text()),
    )


def close(actual: Tensor, expected: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@torch.no_grad()
def test_features_of_every_stage(golden: Golden) -> None:
    model, arrays = golden.model, golden.arrays
    tower = model.model.vision_tower(arrays["images"], output_hidden_states=True)
    close(tower.hidden_states[-2][:, 1:], arrays["clip_features"])
    close(model.model.aux_map(arrays["images_aux"]), arrays["aux_raw"])
    features = model.get_image_features(arrays["images"], arrays["images_aux"])
    # The golden holds what a token found; ours is the token with it.
    close(features.last_hidden_state, arrays["clip_features"] + arrays["mined_0"])
    scale = getattr(model.get_input_embeddings(), "scalar_embed_scale", 1.0)
    close(torch.stack(features.pooler_output) / scale, arrays["image_features"])


@torch.no_grad()
def test_logits_and_loss_with_the_image(golden: Golden) -> None:
    labels = golden.arrays["merged_labels"]
    output = golden.model(**golden.inputs(), labels=labels)
    real = golden.arrays["merged_attention_mask"].bool()
    close(output.logits[real], golden.arrays["logits"][real])
    close(output.loss, golden.arrays["loss"][0], atol=1e-5)


@torch.no_grad()
def test_logits_with_the_image_masked(golden: Golden) -> None:
    inputs = golden.inputs()
    inputs["attention_mask"] = inputs["attention_mask"] * (1 - golden.arrays["visual_positions"].long())
    positions = torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"])
    kept = inputs["attention_mask"].bool()
    logits = golden.model(**inputs, position_ids=positions).logits
    close(logits[kept], golden.arrays["logits_image_masked"][kept])


@torch.no_grad()
def test_logits_of_the_text_alone(golden: Golden) -> None:
    for row in range(3):
        ids = golden.arrays[f"text_only_ids_{row}"]
        logits = golden.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        close(logits, golden.arrays[f"text_only_logits_{row}"])


@torch.no_grad()
def test_a_zero_image_without_tokens_changes_no_logit_of_a_text_only_row(golden: Golden) -> None:
    # Row 1 of the golden batch is text with a zero image beside it; ours has no image at all.
    length = int(golden.arrays["merged_attention_mask"][1].sum())
    ids = torch.tensor([golden.expanded(1)])
    logits = golden.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    close(logits[0], golden.arrays["logits"][1, :length])


def test_images_of_both_resolutions(golden: Golden) -> None:
    images = [Image.open(GOLDENS / "images" / name) for name in ("wide.png", "tall.png")]
    pixels = golden.processor.image_processor(images, return_tensors="pt")
    close(pixels["pixel_values"], golden.arrays["images"][WITH_IMAGE], atol=1e-5)
    close(pixels["high_res_pixel_values"], golden.arrays["images_aux"][WITH_IMAGE], atol=1e-5)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_token_ids_labels_and_image_tokens_of_the_conversations(golden: Golden, row: int) -> None:
    raw = golden.conversations[row]
    turns = tuple(Turn(role=ROLES[turn["from"]], content=turn["value"]) for turn in raw["conversations"])
    images = [Image.open(GOLDENS / "images" / raw["image"])] if "image" in raw else []
    encoded = Encoder(golden.processor)(Sample(sample_id="x", images=(), messages=turns), images)
    assert encoded.sequence_inputs["input_ids"].tolist() == golden.expanded(row)
    real = golden.arrays["merged_attention_mask"][row].bool()
    assert encoded.labels.tolist() == golden.arrays["merged_labels"][row][real].tolist()
    assert encoded.image_mask.tolist() == golden.arrays["visual_positions"][row][real].bool().tolist()


def test_template_vicuna_v1_is_the_same_text(tmp_path: Path) -> None:
    processor = load_processor(build_mini_gemini(tmp_path / "model"))
    turns = [("user", "What is it?\n<image>"), ("assistant", "A box."), ("user", "Why?"), ("assistant", "So.")]
    sample = Sample(sample_id="x", images=(), messages=tuple(Turn(role=role, content=text) for role, text in turns))
    images = [Image.new("RGB", (40, 30), "red")]
    ours, named = (Encoder(processor, template=name)(sample, images) for name in ("auto", "vicuna_v1"))
    assert torch.equal(ours.sequence_inputs["input_ids"], named.sequence_inputs["input_ids"])
    assert torch.equal(ours.labels, named.labels)


def test_plain_puts_the_leading_space_between_image_and_caption(tmp_path: Path) -> None:
    processor = load_processor(build_mini_gemini(tmp_path / "model"))
    messages = (Turn(role="user", content="<image>"), Turn(role="assistant", content="A red box"))
    encoded = Encoder(processor, template="plain")(
        Sample(sample_id="x", images=(), messages=messages), [Image.new("RGB", (40, 30), "red")]
    )
    tokens = processor.tokenizer.convert_ids_to_tokens(encoded.sequence_inputs["input_ids"])
    assert tokens[:17] == ["<s>", *["<image>"] * 16]
    assert tokens[17:19] == ["\N{LOWER ONE EIGHTH BLOCK}A", "\N{LOWER ONE EIGHTH BLOCK}re"]
    assert encoded.labels[:17].eq(-100).all()
    assert encoded.labels[17:].ne(-100).all()
