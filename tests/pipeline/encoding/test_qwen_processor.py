"""Qwen2.5-VL through its real processor: labels, image tokens and both contrasts agree."""

from pathlib import Path

import pytest
import torch
import transformers as hf

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.contrast import contrast_logits
from cal_pipeline.models.loading import load_processor, load_reference
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from examples_of import conversation
from tiny_models import HIDDEN, sample_image, train_tokenizer

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}{% if p['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("qwen")
    tokenizer = train_tokenizer(
        bos="<|endoftext|>",
        eos="<|im_end|>",
        pad="<pad>",
        add_bos=False,
        special=[s for s in SPECIAL if s != "<|im_end|>"],
    )
    pixels = {"patch_size": 4, "size": {"shortest_edge": 8 * 8, "longest_edge": 64 * 64}}
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**pixels), tokenizer=tokenizer,
        video_processor=hf.Qwen2VLVideoProcessor(), chat_template=TEMPLATE,
    )  # fmt: skip
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    torch.manual_seed(0)
    config = hf.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": len(tokenizer), "initializer_range": 0.3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2, "hidden_size": HIDDEN, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": HIDDEN,
            "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    hf.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def test_labels_image_tokens_and_both_contrasts_agree(directory: Path) -> None:
    encoder, model = Encoder(load_processor(directory)), load_reference(directory, dtype="float32")
    encoded = [
        encoder(conversation("<image>\nWhat?", "A red cat."), [sample_image(1, (40, 24))]),
        encoder(conversation("<image> or <image>?", "A dog.", "Sure?", "Yes."), [sample_image(2, (24, 24))] * 2),
        encoder(conversation("Hello?", "Hi."), []),
    ]
    tokenizer = encoder.processor.tokenizer
    for item, words in zip(
        encoded, ("A red cat.<|im_end|>", "A dog.<|im_end|>Yes.<|im_end|>", "Hi.<|im_end|>"), strict=True
    ):
        ids = item.sequence_inputs["input_ids"]
        assert tokenizer.decode(ids[item.labels != IGNORE_INDEX]) == words
        assert torch.equal(ids == tokenizer.convert_tokens_to_ids("<|image_pad|>"), item.image_mask)
        assert torch.equal(item.sequence_inputs["mm_token_type_ids"].bool(), item.image_mask)
    assert encoder.batch_first_inputs == frozenset()
    batch = collate(encoded, pad_token_id=encoder.pad_token_id)
    first_pass = (model, batch.inputs, batch.labels, batch.image_mask)
    dropped, masked = (contrast_logits(*first_pass, ContrastSpec(condition=c))[1] for c in ("drop", "mask"))  # type: ignore[arg-type]
    torch.testing.assert_close(dropped, masked, atol=1e-4, rtol=0, equal_nan=True)
