"""What annotating takes, as arithmetic that is shown: operations and bytes a sample, GPU-hours, storage.

    python benchmarks/estimate.py            # the tables of docs/performance.md
    python benchmarks/estimate.py --count    # also counts, with torch's counter, and compares with the prediction

Counting runs the real widths with one layer of decoder and tower and few tokens: operations are exactly linear in the
layers, and the model of cost says how they depend on the tokens.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

import torch

from baselines import plain_forward, released_passes
from cal_pipeline.reference import contrast_logits
from cost_model import SampleCost, num_weights, sample_bytes, sample_cost
from measuring import count_flops, load_average
from reporting import make_parser, print_table, write_report
from shapes import SHAPES, Shape, build_batch, build_model

NAMED = ("llava15-7b", "llavanext-7b", "qwen25vl-3b", "gemma-2b-vocab")
QWEN_72B = replace(
    SHAPES["qwen25vl-3b"], hidden=8192, layers=80, heads=64, kv_heads=8, intermediate=29568, vocabulary=152_064,
    tied=False,
)  # fmt: skip
REFERENCES = {"llava15-7b": SHAPES["llava15-7b"], "llavanext-7b": SHAPES["llavanext-7b"], "qwen25vl-72b": QWEN_72B}
SAMPLES = {"665k": 665_000, "100M": 100_000_000}
PEAK, MFU = 989e12, 0.4
"""H100 SXM: dense bfloat16 operations a second by its data sheet, and the share of them that is assumed."""


def count(shape: Shape) -> dict[str, tuple[float, float]]:
    """Predicted and counted operations of a batch of one: a plain forward, the released way, ours."""
    small = replace(
        shape, layers=1, vision_layers=1, tile_tokens=64, image_tokens=64, text_tokens=32, supervised_tokens=16, batch=1
    )
    model, batch = build_model(small), build_batch(small)
    passes = (model, batch.inputs, batch.labels, batch.image_mask)
    ways = {
        "plain": partial(plain_forward, model, batch.inputs),
        "released": partial(released_passes, *passes),
        "drop": partial(contrast_logits, *passes),
    }
    predicted = sample_cost(small)
    return {way: (getattr(predicted, way), float(count_flops(run))) for way, run in ways.items()}


def gpu_hours(cost: SampleCost, samples: int) -> float:
    return samples * cost.drop / (PEAK * MFU) / 3600


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--models", nargs="+", choices=NAMED, default=list(NAMED), help="that are counted")
    flags = parser.parse_args()
    load = load_average()
    shapes = {name: SHAPES[name] for name in NAMED} | {"qwen25vl-72b": QWEN_72B}
    costs = {name: sample_cost(shape) for name, shape in shapes.items()}
    size = {name: sample_bytes(shape) for name, shape in shapes.items()}
    print("Tera-operations of a sample (250 text tokens), and what the ways cost in F\n")
    print_table(
        ["model", "image tokens", "weights, G", "vision", "decoder", "head", "F", "released / F", "drop / F",
         "drop / released"],
        [[name, shapes[name].image_tokens, f"{num_weights(shapes[name]) / 1e9:.1f}", f"{cost.vision / 1e12:.2f}",
          f"{cost.decoder / 1e12:.2f}", f"{cost.head / 1e12:.2f}", f"{cost.plain / 1e12:.2f}",
          f"{cost.released / cost.plain:.2f}", f"{cost.drop / cost.plain:.2f}", f"{cost.drop / cost.released:.2f}"]
         for name, cost in costs.items()],
    )  # fmt: skip
    print(
        "MB of a sample: what the released way holds, what the label head makes, what goes to the device, what is "
        "stored\n"
    )
    print_table(
        ["model", "weights, GB", "float32 logits of two passes", "label rows", "pixels", "stored, kB"],
        [[name, f"{found.weights / 1e9:.0f}", f"{found.released_logits / 1e6:.0f}", f"{found.label_rows / 1e6:.1f}",
          f"{found.pixels / 1e6:.2f}", f"{found.stored / 1e3:.2f}"] for name, found in size.items()],
    )  # fmt: skip
    print(f"GPU-hours: samples x operations / ({PEAK / 1e12:.0f}e12 x {MFU} a second) / 3600\n")
    rows = []
    for name in REFERENCES:
        for label, samples in SAMPLES.items():
            tera = costs[name].drop / 1e12
            hours = gpu_hours(costs[name], samples)
            rows.append(
                [name, label, f"{samples:.3g} x {tera:.1f}e12 / {PEAK * MFU / 1e12:.0f}e12 / 3600", f"{hours:,.0f}",
                 f"{samples} x {size[name].stored:.0f} B", f"{samples * size[name].stored / 1e9:,.2f}"]
            )  # fmt: skip
    print_table(["reference", "samples", "arithmetic", "GPU-hours", "stored", "GB"], rows)
    counted = {name: count(SHAPES[name]) for name in flags.models} if flags.count else {}
    if counted:
        print("Predicted against counted, one layer at real width, 64 image and 32 text tokens, tera-operations\n")
        print_table(
            ["model", "way", "predicted", "counted", "predicted / counted"],
            [[name, way, f"{predicted / 1e12:.5f}", f"{found / 1e12:.5f}", f"{predicted / found:.4f}"]
             for name, ways in counted.items() for way, (predicted, found) in ways.items()],
        )  # fmt: skip
    ratios = {f"{name}_{way}/plain": getattr(cost, way) / cost.plain
              for name, cost in costs.items() for way in ("released", "drop")}  # fmt: skip
    ratios |= {f"{name}_{way}_predicted/counted": predicted / found
               for name, ways in counted.items() for way, (predicted, found) in ways.items()}  # fmt: skip
    write_report(
        "estimate", flags, settings={"peak_flops": PEAK, "mfu": MFU}, ratios=ratios, load_before=load,
        results={"flops": {name: asdict(cost) for name, cost in costs.items()}, "gpu_hours": rows, "counted": counted},
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
