"""Time and peak memory of one training step: uniform, cached and online weights, and transformers' own Trainer.

    python benchmarks/train_step.py --shape cpu

A step is what the Trainer does for one batch without the optimizer, which would only dilute the ratios: denominator,
forward, backward. The variants share one model and take turns, in an order that rotates with every repeat; a ratio is
one of medians. `uniform_again` is `uniform` a second time: how far its ratio is from 1 is the noise of this run. On
a CPU that others share, wall time is mostly theirs: `ratios_cpu_time` is the same from this process's CPU seconds.
Peak memory on CPU is VmHWM, the highest resident set, of a fresh process per variant; on CUDA it is torch's own count.
Prints a Markdown table, writes benchmarks/results/train_step-<shape>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers import Trainer, TrainingArguments

from cal_pipeline.encode import IGNORE_INDEX
from cal_schemas.spec import ContrastSpec
from cal_trainer.delta_source import CachedDeltas, OnlineDeltas, UniformWeights
from cal_trainer.trainer import UNIFORM, CalTrainer, Weighting

Step = Callable[[], float]
IMAGE_TOKEN = 3
BASELINE = "uniform"
VARIANTS = ("uniform", "cached", "online_drop", "online_mask", "transformers", "uniform_again")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Of the model and its batch."""

    hidden: int
    layers: int
    vocabulary: int
    image_tokens: int
    text_tokens: int
    supervised_tokens: int
    batch: int


SHAPES = {
    "tiny": Shape(
        hidden=64, layers=2, vocabulary=1_000, image_tokens=16, text_tokens=48, supervised_tokens=32, batch=2
    ),
    "cpu": Shape(
        hidden=512, layers=4, vocabulary=32_000, image_tokens=576, text_tokens=128, supervised_tokens=96, batch=1
    ),
}


def build_model(shape: Shape) -> Any:
    side = round(shape.image_tokens**0.5) * 14
    sizes = {"hidden_size": shape.hidden, "intermediate_size": 3 * shape.hidden, "num_hidden_layers": shape.layers}
    heads = {"num_attention_heads": max(2, shape.hidden // 64)}
    vision = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision, image_size=side, patch_size=14, projection_dim=64),
        text_config=hf.LlamaConfig(**sizes, **heads, vocab_size=shape.vocabulary, max_position_embeddings=4096),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=shape.image_tokens,
    )
    torch.manual_seed(0)
    return hf.LlavaForConditionalGeneration(config)


def build_batch(shape: Shape) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = shape.batch, shape.image_tokens + shape.text_tokens
    input_ids = torch.randint(IMAGE_TOKEN + 1, shape.vocabulary, size, generator=generator)
    image_mask = torch.zeros(size, dtype=torch.bool)
    image_mask[:, 8 : 8 + shape.image_tokens] = True
    input_ids[image_mask] = IMAGE_TOKEN
    labels = torch.full(size, IGNORE_INDEX)
    labels[:, -shape.supervised_tokens :] = input_ids[:, -shape.supervised_tokens :]
    side = round(shape.image_tokens**0.5) * 14
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.randn(shape.batch, 3, side, side, generator=generator),
        "labels": labels,
        "image_mask": image_mask,
        "deltas": torch.where(labels == IGNORE_INDEX, torch.nan, torch.randn(size, generator=generator) * 4),
    }


def build_step(variant: str, model: Any, batch: dict[str, Tensor], flags: argparse.Namespace, folder: str) -> Step:
    """A function that runs one step from scratch and returns its loss."""
    options = TrainingArguments(
        output_dir=folder,
        use_cpu=flags.device == "cpu",
        bf16=flags.bf16,
        report_to=[],
        remove_unused_columns=False,
    )
    own = {"labels", "image_mask", "deltas"}
    if variant == "transformers":
        trainer = Trainer(model=model, args=options)
        own = {"labels"}
    else:
        source: Any = {
            "cached": CachedDeltas(),
            "online_drop": OnlineDeltas(contrast=ContrastSpec(condition="drop")),
            "online_mask": OnlineDeltas(contrast=ContrastSpec(condition="mask")),
        }.get(variant, UniformWeights())
        weighting = UNIFORM if isinstance(source, UniformWeights) else Weighting()
        trainer = CalTrainer(model=model, args=options, delta_source=source, weighting=weighting)
    given = {key: value for key, value in batch.items() if key in own or key not in ("labels", "image_mask", "deltas")}
    trainer.current_gradient_accumulation_steps = 1

    def step() -> float:
        model.zero_grad()
        batches, denominator = trainer.get_batch_samples(iter([dict(given)]), 1, trainer.args.device)
        return float(trainer.training_step(model, batches[0], denominator))

    return step


def prepared_model(flags: argparse.Namespace) -> Any:
    torch.set_num_threads(flags.threads)
    model = build_model(SHAPES[flags.shape]).to(flags.device)
    if flags.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    return model


def measure_times(flags: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and CPU seconds of each repeat, by variant."""
    model, batch = prepared_model(flags), build_batch(SHAPES[flags.shape])
    wall: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    cpu: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        steps = {variant: build_step(variant, model, batch, flags, folder) for variant in VARIANTS}
        losses = {variant: step() for variant, step in steps.items()}
        assert abs(losses["uniform"] - losses["transformers"]) < 1e-2, losses
        for repeat in range(flags.repeats):
            turn = repeat % len(VARIANTS)
            for variant in (*VARIANTS[turn:], *VARIANTS[:turn]):
                synchronize(flags.device)
                started, cpu_started = time.perf_counter(), time.process_time()
                steps[variant]()
                synchronize(flags.device)
                wall[variant].append(time.perf_counter() - started)
                cpu[variant].append(time.process_time() - cpu_started)
    return wall, cpu


def ratios_of_medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    median = {variant: statistics.median(values) for variant, values in seconds.items()}
    ratios = {f"{variant}/{BASELINE}": median[variant] / median[BASELINE] for variant in VARIANTS[1:]}
    return {**ratios, "uniform/transformers": median[BASELINE] / median["transformers"]}


def measure_memory(variant: str, flags: argparse.Namespace) -> tuple[float, float]:
    """MB before the first step, and at its peak."""
    model, batch = prepared_model(flags), build_batch(SHAPES[flags.shape])
    with tempfile.TemporaryDirectory() as folder:
        step = build_step(variant, model, batch, flags, folder)
        before = resident_mb("VmRSS") if flags.device == "cpu" else torch.cuda.memory_allocated() / 2**20
        step()
    peak = resident_mb("VmHWM") if flags.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    return before, peak


def resident_mb(field: str) -> float:
    # Not getrusage: its maximum outlives exec, so a child would report its parent's.
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def machine(device: str) -> dict[str, Any]:
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "platform": platform.platform(),
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="cpu")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="autocast, as in training with --bf16")
    parser.add_argument("--repeats", type=int, default=11, help="timed steps of each variant, at least 7")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--measure_memory", choices=VARIANTS, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure_memory:
        print("memory", *measure_memory(flags.measure_memory, flags))
        return
    if flags.repeats < 7:
        parser.error("a median of fewer than 7 repeats says little")
    before = machine(flags.device)
    seconds, cpu_seconds = measure_times(flags)
    rows: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure_memory", variant],
                              capture_output=True, text=True, check=True)  # fmt: skip
        start, peak = (float(word) for word in done.stdout.split("memory")[-1].split())
        low, median, high = statistics.quantiles(seconds[variant], n=4)
        rows[variant] = {
            "median_s": median,
            "quartiles_s": [low, high],
            "min_s": min(seconds[variant]),
            "seconds": seconds[variant],
            "cpu_seconds": cpu_seconds[variant],
            "memory_before_mb": start,
            "peak_memory_mb": peak,
            "peak_above_start_mb": peak - start,
        }
    ratios, cpu_ratios = ratios_of_medians(seconds), ratios_of_medians(cpu_seconds)
    print("| variant | median ms | quartiles ms | / uniform | / uniform, CPU time | peak MB | above start, MB |")
    print("|---|---|---|---|---|---|---|")
    for variant, row in rows.items():
        low, high = (f"{1000 * value:.1f}" for value in row["quartiles_s"])
        memory = f"{row['peak_memory_mb']:.0f} | {row['peak_above_start_mb']:.0f}"
        ratio, cpu_ratio = (found.get(f"{variant}/{BASELINE}", 1.0) for found in (ratios, cpu_ratios))
        print(
            f"| {variant} | {1000 * row['median_s']:.1f} | {low} to {high} | {ratio:.3f} | {cpu_ratio:.3f} | {memory} |"
        )
    result = {
        "benchmark": "train_step",
        "machine": {**before, "load_average_after": list(os.getloadavg())},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": hf.__version__},
        "settings": {
            **{key: value for key, value in vars(flags).items() if key not in ("output_dir", "measure_memory")},
            **asdict(SHAPES[flags.shape]),
            "memory": "VmHWM of a fresh process" if flags.device == "cpu" else "torch.cuda.max_memory_allocated",
        },
        "results": rows,
        "ratios": ratios,
        "ratios_cpu_time": cpu_ratios,
    }
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    path = flags.output_dir / f"train_step-{flags.shape}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
