"""The two passes with another image in the second, on families with their real processors and on whole shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from annotated_data import annotate
from cal_pipeline.encoding.collate import Batch, collate
from cal_pipeline.encoding.perturbation import encode_with_contrast, perturbed
from cal_pipeline.measuring.contrast import contrast_logits, delta_logits, innermost_decoder, label_logits
from cal_pipeline.measuring.self_check import check_reference, encode_questions
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError
from cal_schemas.opened import open_annotated
from cal_schemas.spec import ContrastSpec
from conftest import Family
from examples_of import conversation
from tiny_data import BAD_ROWS, write_llava_json
from tiny_models import FAMILIES, build_qwen2_5_vl_model, sample_image

CONTRASTS = {
    "patch_mask": ContrastSpec(condition="patch_mask", patch_mask_ratio=0.7),
    "gaussian_blur": ContrastSpec(condition="gaussian_blur", blur_sigma=10.0),
}
GIVEN = [
    (conversation("<image>\nWhat is this?", "A red cat on the table."), [sample_image(1, (60, 40))]),
    (conversation("<image>\n<image>\nAnd these?", "The second shows a small dog."),
     [sample_image(2, (50, 50)), sample_image(3, (80, 30))]),
    (conversation("How are you?", "Fine."), []),
]  # fmt: skip


def batch_of(reference: Family, contrast: ContrastSpec) -> Batch:
    encoded = [encode_with_contrast(reference.encoder, contrast, *pair, f"k{i}") for i, pair in enumerate(GIVEN)]
    return collate(
        encoded, pad_token_id=reference.encoder.pad_token_id, batch_first=reference.encoder.batch_first_inputs
    )


@pytest.mark.parametrize("condition", CONTRASTS)
@pytest.mark.parametrize(
    "name", [name if name in ("llava", "gemma3") else pytest.param(name, marks=pytest.mark.full) for name in FAMILIES]
)
def test_the_second_pass_is_the_model_on_the_perturbed_image(
    family: Callable[[str], Family], name: str, condition: str
) -> None:
    reference, contrast = family(name), CONTRASTS[condition]
    batch = batch_of(reference, contrast)
    with_image, without = contrast_logits(
        reference.model, batch.inputs, batch.labels, batch.image_mask, contrast, batch.contrast_inputs
    )
    # The same by the long way: the perturbed images are encoded as if they were the data.
    shown = [
        reference.encoder(sample, [perturbed(image, contrast, f"k{i}", n) for n, image in enumerate(images)])
        for i, (sample, images) in enumerate(GIVEN)
    ]
    long_way = collate(
        shown, pad_token_id=reference.encoder.pad_token_id, batch_first=reference.encoder.batch_first_inputs
    )
    assert long_way.inputs["input_ids"].equal(batch.inputs["input_ids"])
    with torch.no_grad():
        expected = label_logits(reference.model, long_way.inputs, batch.labels)
    torch.testing.assert_close(without, expected, atol=1e-4, rtol=0, equal_nan=True)
    shown = (batch.labels != -100) & batch.image_mask.any(-1, keepdim=True)
    assert float((with_image - without)[shown].abs().mean()) > 0.01
    text = (batch.labels != -100) & ~batch.image_mask.any(-1, keepdim=True)
    assert set((with_image - without)[text].tolist()) == {0.0}


@pytest.mark.parametrize("condition", CONTRASTS)
def test_the_model_and_encoder_that_a_worker_loads_pass_the_self_check(
    family: Callable[[str], Family], condition: str
) -> None:
    reference, contrast = family("llava_next"), CONTRASTS[condition]
    encoded = encode_questions(reference.encoder, reference.name, contrast)
    batch = collate(encoded, pad_token_id=reference.encoder.pad_token_id)
    check_reference(reference.model, batch, contrast, reference.name)
    blind = Batch(
        inputs=batch.inputs, labels=batch.labels, image_mask=batch.image_mask,
        contrast_inputs={key: batch.inputs[key] for key in batch.contrast_inputs},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="does not see the perturbed image"):
        check_reference(reference.model, blind, contrast, reference.name)


def test_two_passes_of_the_decoder_and_two_of_the_vision_tower(llava: Family) -> None:
    batch, calls = batch_of(llava, CONTRASTS["patch_mask"]), []
    tower = next(module for name, module in llava.model.named_modules() if name.endswith("vision_tower"))
    handles = [
        innermost_decoder(llava.model).register_forward_hook(lambda *_: calls.append("decoder")),
        tower.register_forward_hook(lambda *_: calls.append("tower")),
    ]
    delta_logits(
        llava.model, batch.inputs, batch.labels, batch.image_mask, CONTRASTS["patch_mask"], batch.contrast_inputs
    )
    for handle in handles:
        handle.remove()
    assert calls == ["tower", "decoder"] * 2


def test_at_model_level_with_rotary_sections() -> None:
    model, tiny = build_qwen2_5_vl_model()
    first_pass = (model, tiny.inputs, tiny.labels, tiny.image_mask, CONTRASTS["gaussian_blur"])
    same = delta_logits(*first_pass, {"pixel_values": tiny.inputs["pixel_values"]})
    assert float(same[~same.isnan()].abs().max()) < 1e-5
    changed = delta_logits(*first_pass, {"pixel_values": tiny.inputs["pixel_values"] * 0.1})
    shown = tiny.image_mask.any(-1, keepdim=True) & ~changed.isnan()
    assert float(changed[shown].abs().mean()) > 0.05


def test_a_token_right_behind_the_first_image_has_a_delta_where_another_image_is_shown(llava: Family) -> None:
    contrast = CONTRASTS["patch_mask"]
    encoded = encode_with_contrast(llava.encoder, contrast, *GIVEN[0], "k")
    start = int(encoded.image_mask.nonzero()[0])
    batch = collate([encoded], pad_token_id=0)
    cut = {key: value[:, start:] if key in ("input_ids", "attention_mask") else value
           for key, value in batch.inputs.items()}  # fmt: skip
    mask = batch.image_mask[:, start:]
    labels = cut["input_ids"].where(~mask, -100)
    after = int(mask.sum())
    deltas = delta_logits(llava.model, cut, labels, mask, contrast, batch.contrast_inputs)[0]
    assert bool(deltas[after:].isfinite().all())
    dropped = delta_logits(llava.model, cut, labels, mask)[0]
    assert bool(dropped[after].isnan())


def test_contrast_inputs_are_required_and_must_fit(llava: Family) -> None:
    contrast = CONTRASTS["patch_mask"]
    batch = batch_of(llava, contrast)
    first_pass = (llava.model, batch.inputs, batch.labels, batch.image_mask)
    with pytest.raises(ConfigError, match="'patch_mask' needs contrast_inputs"):
        contrast_logits(*first_pass, contrast)
    with pytest.raises(
        ConfigError, match=r"has 'pixels', which is no image input of the first pass \(\['pixel_values'"
    ):
        contrast_logits(*first_pass, contrast, {"pixels": torch.zeros(1)})
    with pytest.raises(ConfigError, match="has 'input_ids', which is no image input"):
        contrast_logits(*first_pass, contrast, {"input_ids": batch.inputs["input_ids"]})
    with pytest.raises(ConfigError, match=r"has the shape \[1, 3, 28, 28\], the image itself \[3,"):
        contrast_logits(*first_pass, contrast, {"pixel_values": torch.zeros(1, 3, 28, 28)})
    for condition in ("drop", "mask"):
        with pytest.raises(ConfigError, match=f"'{condition}' removes the image and takes no contrast_inputs"):
            contrast_logits(*first_pass, ContrastSpec(condition=condition), batch.contrast_inputs)


def deltas(folder: Path) -> list[list[float]]:
    rows = pq.read_table(folder).to_pylist()
    return [row["delta_logits"] for row in rows]


@pytest.mark.parametrize("condition", CONTRASTS)
def test_a_shard_is_measured_with_it_and_a_rerun_gives_the_same(llava: Family, tmp_path: Path, condition: str) -> None:
    data, images = write_llava_json(tmp_path, 20)
    shards, contrast = plan_shards([str(data)], [str(images)]), CONTRASTS[condition]
    folders = [
        annotate(tmp_path / name, shards, llava.encoder, llava.model, contrast=spec)
        for name, spec in (("one", contrast), ("two", contrast), ("drop", ContrastSpec()))
    ]
    one, two, dropped = map(deltas, folders)
    assert one == two
    assert one != dropped
    rows: list[dict[str, Any]] = pq.read_table(folders[0]).to_pylist()
    assert [row["status"] for row in rows] == [BAD_ROWS.get(number, ("ok",))[0] for number in range(20)]
    for row in rows:
        if row["status"] == "ok":
            assert np.any(row["delta_logits"]) == bool(row["images"])
    spec = open_annotated(folders[0]).spec
    assert spec.contrast == contrast
    assert spec.fingerprint() != open_annotated(folders[2]).spec.fingerprint()
    name = "contrast.patch_mask_ratio" if condition == "patch_mask" else "contrast.blur_sigma"
    assert name in [item[0] for item in spec.differences(open_annotated(folders[2]).spec)]
