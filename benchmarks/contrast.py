"""Measures the two passes of one batch: ours (`drop`, `mask`), the released way, two full forwards, one plain one.

    python benchmarks/contrast.py --shape cpu --image_tokens 2880
    python benchmarks/contrast.py --shape llava15-7b --device cuda --dtype bfloat16

Time as ratios of medians of interleaved repeats; memory is that of tensors over what the model and batch take. On CUDA
also tokens/s and the share of the card's own matrix rate (MFU), measured here in the same dtype, that one pass with
the image through the label-only LM head reaches.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from baselines import plain_forward, released_passes, two_full_forwards
from cal_pipeline.measuring.contrast import contrast_logits, label_logits
from cal_schemas.spec import ContrastSpec
from measuring import count_flops, interleave, peak_memory, synchronize
from reporting import add_device_flags, begin, compare, dtype_of, make_parser, suffix_of, write_report
from shapes import LabelledBatch, Shape, add_shape_flags, build_batch, build_model, shape_of

VARIANTS = ("plain", "released", "two_full", "drop", "mask", "with_image")
RATIOS = (
    ("drop", "released"), ("drop", "plain"), ("mask", "released"), ("drop", "two_full"), ("released", "plain"),
    ("with_image", "plain"),
)  # fmt: skip


def variants(model: Any, batch: LabelledBatch) -> dict[str, Any]:
    """What is compared, by name; all without gradient."""
    ours = partial(contrast_logits, model, batch.inputs, batch.labels, batch.image_mask)
    return {
        "plain": partial(plain_forward, model, batch.inputs),
        "released": partial(released_passes, model, batch.inputs, batch.labels, batch.image_mask),
        "two_full": partial(two_full_forwards, model, batch.inputs, batch.labels, batch.image_mask),
        "drop": partial(ours, ContrastSpec(condition="drop")),
        "mask": partial(ours, ContrastSpec(condition="mask")),
        "with_image": partial(torch.no_grad()(label_logits), model, batch.inputs, batch.labels),
    }


def matrix_rate(device: str, dtype: torch.dtype, side: int) -> float:
    """Floating-point operations a second of a square matrix product."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = interleave({"product": lambda: left @ right}, 20, device)
    return 2 * side**3 / times["product"].median


def check_agreement(runs: dict[str, Any], tolerance: float) -> None:
    """All ways measure the same thing: a fast wrong answer is no result."""
    if "released" not in runs:
        return
    wanted = torch.stack(runs["released"]())
    for name in {"drop", "mask"} & set(runs):
        logits = torch.stack(runs[name]())
        worst = float((logits - wanted).nan_to_num().abs().max())
        assert worst < tolerance, f"{name} differs from the released way by {worst}"


def main() -> None:
    parser = make_parser(__doc__)
    add_shape_flags(parser)
    add_device_flags(parser)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    flags = begin(parser)
    name, shape = shape_of(flags)
    dtype = dtype_of(flags)
    model = build_model(shape, device=flags.device, dtype=dtype)
    runs = variants(model, build_batch(shape, device=flags.device, dtype=dtype))
    runs = {key: runs[key] for key in flags.variants}
    check_agreement(runs, 1e-3 if dtype == torch.float32 else 0.5)
    times = interleave(runs, flags.repeats, flags.device)
    memory = {key: peak_memory(run, flags.device) for key, run in runs.items()}
    flops = {key: count_flops(run) for key, run in runs.items()}
    compared = compare("way", RATIOS, times, memory, flops)
    settings = {"model": asdict(shape)}
    if flags.device == "cuda" and "with_image" in runs:
        settings |= rates(flags, shape, dtype, flops["with_image"], times["with_image"].median, compared["ratios"])
    write_report(f"contrast-{name}{suffix_of(flags)}", flags, settings=settings, **compared)


def rates(
    flags: Namespace, shape: Shape, dtype: torch.dtype, flops: int, seconds: float, ratios: dict[str, float]
) -> dict[str, float]:
    synchronize(flags.device)
    best = matrix_rate(flags.device, dtype, 8192)
    ratios["with_image_rate/matrix_rate"] = flops / seconds / best
    return {"matrix_tflops_per_s": best / 1e12, "with_image_tokens_per_s": shape.batch * shape.num_tokens / seconds}


if __name__ == "__main__":
    main()
