"""What annotating takes, as arithmetic that is shown: operations and bytes a sample, GPU-hours, storage.

    python benchmarks/estimate.py            # the tables of docs/performance.md
    python benchmarks/estimate.py --count    # also counts, with torch's counter, and compares with the prediction

Counting runs the real widths with one layer of decoder and tower and few tokens: operations are exactly linear in the
layers, and the model of cost says how they depend on the tokens.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from contrast import variants
from cost_model import SampleCost, num_weights, sample_bytes, sample_cost
from measuring import count_flops
from reporting import begin, make_parser, markdown, write_report
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
    runs, predicted = variants(model, batch), sample_cost(small)
    return {way: (getattr(predicted, way), float(count_flops(runs[way]))) for way in ("plain", "released", "drop")}


def gpu_hours(cost: SampleCost, samples: int) -> float:
    return samples * cost.drop / (PEAK * MFU) / 3600


SHAPES_OF = {name: SHAPES[name] for name in NAMED} | {"qwen25vl-72b": QWEN_72B}


def operations() -> str:
    """Tera-operations of a sample, and what the ways cost in F."""
    header = ["model", "image tokens", "weights, G", "vision", "decoder", "head", "F", "released / F", "drop / F",
              "drop / released"]  # fmt: skip
    rows = []
    for name, shape in SHAPES_OF.items():
        cost = sample_cost(shape)
        tera = (cost.vision, cost.decoder, cost.head, cost.plain)
        shares = (cost.released / cost.plain, cost.drop / cost.plain, cost.drop / cost.released)
        rows.append([name, shape.image_tokens, f"{num_weights(shape) / 1e9:.1f}",
                     *(f"{value / 1e12:.2f}" for value in tera), *(f"{value:.2f}" for value in shares)])  # fmt: skip
    return markdown(header, rows)


def memory() -> str:
    """Bytes of a sample: what the ways hold, what goes to the device, what is stored."""
    rows = []
    for name, shape in SHAPES_OF.items():
        of_sample = sample_bytes(shape)
        rows.append([name, f"{of_sample.weights / 1e9:.0f} GB", f"{of_sample.released_logits / 1e6:.0f} MB",
                     f"{of_sample.label_rows / 1e6:.1f} MB", f"{of_sample.pixels / 1e6:.2f} MB",
                     f"{of_sample.stored / 1e3:.2f} kB"])  # fmt: skip
    header = ["model", "weights", "released: float32 logits", "ours: label rows", "pixels to the device", "stored"]
    return markdown(header, rows)


def hours() -> str:
    """GPU-hours and bytes of annotating, with the arithmetic."""
    rows = []
    for name, shape in REFERENCES.items():
        cost, stored = sample_cost(shape), sample_bytes(shape).stored
        for label, samples in SAMPLES.items():
            rows.append([name, label, f"{samples:.3g} x {cost.drop / 1e12:.1f}e12 / {PEAK * MFU / 1e12:.0f}e12 / 3600",
                         f"{gpu_hours(cost, samples):,.0f}", f"{samples:.3g} x {stored:.0f} B",
                         f"{samples * stored / 1e9:,.2f}"])  # fmt: skip
    return markdown(["reference", "samples", "arithmetic", "GPU-hours", "arithmetic", "GB"], rows)


def counted(operations: dict[str, dict[str, list[float]]]) -> str:
    """Predicted beside counted operations, one layer at real width, 64 image and 32 text tokens."""
    rows = [
        [name, way, f"{1e-9 * predicted:.3f}", f"{1e-9 * by_torch:.3f}", f"{predicted / by_torch:.5f}"]
        for name, ways in operations.items()
        for way, (predicted, by_torch) in ways.items()
    ]
    return markdown(["model", "way", "predicted, G", "counted, G", "predicted / counted"], rows)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--models", nargs="+", choices=NAMED, default=list(NAMED), help="that are counted")
    flags = begin(parser)
    for table in (operations, memory, hours):
        print(f"{table.__doc__}\n\n{table()}")
    by_model = {name: count(SHAPES[name]) for name in flags.models} if flags.count else {}
    if by_model:
        print(f"{counted.__doc__}\n\n{counted(by_model)}")
    costs = {name: sample_cost(shape) for name, shape in SHAPES_OF.items()}
    ratios = {f"{name}_{way}/plain": getattr(cost, way) / cost.plain
              for name, cost in costs.items() for way in ("released", "drop")}  # fmt: skip
    ratios |= {f"{name}_{way}_predicted/counted": predicted / by_torch
               for name, ways in by_model.items() for way, (predicted, by_torch) in ways.items()}  # fmt: skip
    write_report(
        "estimate", flags, settings={"peak_flops": PEAK, "mfu": MFU}, ratios=ratios,
        results={"flops": {name: asdict(cost) for name, cost in costs.items()}, "counted": by_model},
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
