"""Language models inside LLaVA that no family of the table has."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cal_pipeline.measuring.contrast import contrast_logits
from cal_pipeline.measuring.load_check import check_model
from cal_schemas.errors import ConfigError
from cal_schemas.spec import ContrastSpec
from examples_of import conversation
from families import other_decoders
from families.real import RealFamily
from tiny_models import sample_image


@pytest.mark.full
class TestGPTNeoX(RealFamily):
    FAMILY = other_decoders.GPT_NEOX


@pytest.mark.full
@pytest.mark.parametrize("condition", ["drop", "mask"])
def test_bloom_closes_the_gap_of_hidden_tokens_and_is_refused(condition: Any, tmp_path: Path) -> None:
    other_decoders.BLOOM.build(tmp_path)
    with pytest.raises(ConfigError, match=f"{other_decoders.BLOOM.says}.*use --contrast patch_mask"):
        other_decoders.BLOOM.check(tmp_path, ContrastSpec(condition=condition))
    other_decoders.BLOOM.check(tmp_path, ContrastSpec(condition="patch_mask", patch_mask_ratio=0.5))


@pytest.mark.full
def test_mpt_is_measured_by_masking_alone(tmp_path: Path) -> None:
    """Words keep their distance across the image: a forward without its rows, biases of the words' own places."""
    other_decoders.MPT.build(tmp_path)
    model, encoder = other_decoders.MPT.load(tmp_path)
    with pytest.raises(ConfigError, match="use --contrast mask"):
        check_model(model, encoder, ContrastSpec(), "mpt")
    mask = ContrastSpec(condition="mask")
    check_model(model, encoder, mask, "mpt")

    sample = encoder(conversation("Look: <image>\nWhat?", "A dog on the left."), [sample_image(3, (40, 60))])
    ids, labels = sample.sequence_inputs["input_ids"], sample.labels
    inputs = {key: value[None] for key, value in sample.sequence_inputs.items()} | sample.image_inputs
    measured = contrast_logits(model, inputs, labels[None], sample.image_mask[None], mask)[1][0]
    kept = torch.nonzero(~sample.image_mask)[:, 0]

    def own_places(module: Any, args: Any, given: dict[str, Any]) -> Any:
        bias = given["position_bias"]
        return args, {**given, "position_bias": bias[..., bias.shape[-1] - len(ids) + kept]}

    blocks = [block.attn for block in model.get_decoder().blocks]
    handles = [attention.register_forward_pre_hook(own_places, with_kwargs=True) for attention in blocks]
    with torch.no_grad():
        logits = model(input_ids=ids[None, kept], attention_mask=torch.ones(1, len(kept)), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    defined = torch.nonzero(~measured.isnan())[:, 0]
    wanted = logits[torch.searchsorted(kept, defined) - 1, ids[defined]]
    assert len(defined) > 5
    torch.testing.assert_close(measured[defined], wanted, atol=1e-4, rtol=0)
