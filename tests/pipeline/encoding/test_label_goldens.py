"""Token ids and labels against the authors' released preprocessing (tests/goldens/README.md)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cal_pipeline.encoding.spans import overlapping_tokens
from cal_pipeline.encoding.templates import image_first, render_plain, render_vicuna_v1
from cal_schemas.sample import Turn
from cal_schemas.spec import IGNORE_INDEX

GOLDENS = Path(__file__).parents[2] / "goldens" / "labels"
CONVERSATIONS: list[dict[str, Any]] = json.loads((GOLDENS / "labels_legacy_true.json").read_text())
ROLES = {"human": "user", "gpt": "assistant"}
RELEASED_IMAGE_ID = -200

# The released code finds turns by splitting the text at "ASSISTANT: " and "</s>". When a conversation quotes one of
# them its count does not match, and it masks the whole sample ("tokenization mismatch, ignored"). Ours keeps it.
OTHER_LABELS = {
    "answer_contains_role": "the answer quotes 'ASSISTANT: '",
    "question_contains_role": "the question quotes 'ASSISTANT: '",
    "answer_contains_eos": "the answer quotes '</s>'",
}
# The released code merges two marks of one turn into one; ours keeps both, each with its image.
OTHER_NORMALIZATION = {"two_images_same_message"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(GOLDENS / "tokenizer.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        pad_token="<unk>", additional_special_tokens=["<image>"],
    )  # fmt: skip


def turns_of(items: list[dict[str, str]]) -> list[Turn]:
    return [Turn(role=ROLES[item["from"]], content=item["value"]) for item in items]


def encode(golden: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> tuple[str, list[int], list[int]]:
    turns = turns_of(golden["after_preprocess_multimodal"])
    rendered = (
        render_plain(turns, "<image>") if golden["template"] == "plain" else render_vicuna_v1(turns, "<image>", "</s>")
    )
    output = tokenizer(rendered.text, return_offsets_mapping=True, return_tensors="pt")
    ids = output["input_ids"][0]
    supervised = overlapping_tokens(*output["offset_mapping"][0].unbind(-1), rendered.label_spans)
    image = ids == tokenizer.convert_tokens_to_ids("<image>")
    labels = torch.where(supervised & ~image, ids, IGNORE_INDEX)
    return rendered.text, torch.where(image, RELEASED_IMAGE_ID, ids).tolist(), labels.tolist()


@pytest.mark.parametrize("golden", CONVERSATIONS, ids=lambda golden: f"{golden['template']}-{golden['name']}")
def test_ids_and_labels_equal_the_released_preprocessing(
    golden: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    text, ids, labels = encode(golden, tokenizer)
    assert ids == golden["input_ids"]
    if golden["template"] == "v1":
        assert text == golden["prompt"]
    if golden["name"] in OTHER_LABELS:
        assert golden["n_supervised"] == 0, "the released code masks the whole sample"
        assert sum(label != IGNORE_INDEX for label in labels) > 0
    else:
        assert labels == golden["labels"]


def test_token_ids_agree_on_all_29_and_labels_on_26(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = [(encode(golden, tokenizer), golden) for golden in CONVERSATIONS]
    assert len(encoded) == 29
    assert sum(ids == golden["input_ids"] for (_, ids, _), golden in encoded) == 29
    assert sum(labels == golden["labels"] for (_, _, labels), golden in encoded) == 29 - len(OTHER_LABELS)


@pytest.mark.parametrize(
    "golden",
    [g for g in CONVERSATIONS if g["template"] == "v1" and not g["name"].startswith("raw_")],
    ids=lambda golden: golden["name"],
)
def test_image_mark_moves_to_the_front_as_in_the_released_code(golden: dict[str, Any]) -> None:
    ours = [image_first(turn) for turn in turns_of(golden["raw"])]
    assert (ours == turns_of(golden["after_preprocess_multimodal"])) == (golden["name"] not in OTHER_NORMALIZATION)
