"""One sample through a Mini-Gemini of real geometry, in a process of its own; prints what came out as JSON.

The towers have their published sizes, the language model is small: it is not what differs from LLaVA.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch
from transformers import AutoConfig

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.contrast import contrast_logits
from cal_pipeline.models.loading import load_processor
from cal_pipeline.models.mini_gemini.modeling import MiniGeminiForConditionalGeneration
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import ContrastSpec
from tiny_models import sample_image


def main(tiny: Path, *, hd: bool) -> None:
    """`tiny` lends the tokenizer and the language model's config."""
    config = AutoConfig.from_pretrained(tiny)
    clip = {"image_size": 336, "patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16}  # fmt: skip
    convnext = {"model_type": "convnext", "depths": [3, 3, 27, 3], "hidden_sizes": [192, 384, 768, 1536],
                "image_size": 1536 if hd else 768}  # fmt: skip
    values = {**config.to_dict(), "image_grid": 2 if hd else 1, "image_global": hd, "aux_vision_config": convnext}
    config = type(config)(**{**values, "vision_config": {"model_type": "clip_vision_model", **clip}})
    torch.manual_seed(0)
    model = MiniGeminiForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(50)  # The library's start is nearly flat: differences must show.
        model.model.multi_modal_projector.linear_2.weight.mul_(50)
    processor = load_processor(tiny)
    images = processor.image_processor
    side = convnext["image_size"]
    images.size, images.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
    images = type(images).from_dict(
        {**images.to_dict(), "size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side},
         "low_res_size": 336, "image_grid": config.image_grid, "image_global": hd}
    )  # fmt: skip
    processor.image_processor = images
    encoder = Encoder(processor, max_length=4096)
    messages = (Turn(role="user", content="<image>\nWhat is it?"), Turn(role="assistant", content="A red box."))
    sample = encoder(Sample(sample_id="x", images=(), messages=messages), [sample_image(1, (640, 400))])
    batch = collate([sample], pad_token_id=0)
    logits = {}
    with torch.no_grad():
        pixels = {name: batch.inputs[name] for name in ("pixel_values", "high_res_pixel_values")}
        features = model.model.get_image_features(**pixels)
        # The towers run once, which takes most of a minute on a CPU; every pass below puts these in its place.
        model.model.get_image_features = lambda *_, **__: features
        full = model(**batch.inputs, use_cache=False).logits[0]
        for condition in ("drop", "mask"):
            first_pass = (model, batch.inputs, batch.labels, batch.image_mask, ContrastSpec(condition=condition))
            logits[condition] = contrast_logits(*first_pass)
    supervised = batch.labels[0] != -100
    where = supervised.nonzero()[:, 0]
    by_full = full[where - 1].gather(1, batch.labels[0][where][:, None])[:, 0]
    (with_image, dropped), (_, masked) = logits["drop"], logits["mask"]
    print(json.dumps({  # noqa: T201
        "tokens": int(batch.image_mask.sum()),
        "head": float((with_image[0][where] - by_full).abs().max()),
        "drop_mask": float((dropped[0][where] - masked[0][where]).abs().max()),
        "delta": float((with_image[0][where] - dropped[0][where]).abs().max()),
        "logit": float(with_image[0][where].abs().max()),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), hd=sys.argv[2] == "hd")
