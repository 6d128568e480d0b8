"""Trains the demo's student by every preset from one measurement of its captions, and examines each.

    python examples/shapes/scores.py --demo_dir demo

Reads what demo.py left in that directory; writes scores.md and scores.json there, the rest into scores/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.logging import disable_progress_bar

import world
from accuracy import Exam, Score, examine, make_exam
from cal_schemas.maps import Map
from cal_schemas.presets import PRESETS
from demo import HELD_OUT_SAMPLES, HELD_OUT_SEED, precompute, say, train

DEFAULT = "default"
ONLINE = ("released",)
"""Needs deltas of unsupervised tokens too, which no cache has."""
EXTRA_COLUMNS = "logprobs,kl,entropy"
FLAGS: dict[str, dict[str, Any]] = {name: preset.flags for name, preset in PRESETS.items()}
COUNTED = [name for name, flags in FLAGS.items() if flags["normalization"] == "count"]
HEADER = ("weights", "loss", "accuracy", "gain", "mean weight", "weight 0", "seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One student: what its weights were, and what it says of clean images."""

    name: str
    loss: float
    """Of the attribute words, in nats per token."""
    accuracy: float
    """Share of the attribute words that it would have said itself."""
    mean_weight: float
    """Over the supervised tokens of all steps."""
    share_of_zeros: float
    """Of these tokens, those that weighed 0."""
    seconds: float
    """That cal-train took, from its start to its end."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo_dir", type=Path, default=Path("demo"), help="that demo.py wrote")
    parser.add_argument("--seed", type=int, default=0, help="of the students and of the exam's images")
    parser.add_argument("--train_steps", type=int, default=150, help="training steps of each student")
    parser.add_argument("--jobs", type=int, default=2, help="students that train at once, on a thread each")
    parser.add_argument("--weights", nargs="+", choices=[DEFAULT, *PRESETS], default=[DEFAULT, *PRESETS],
                        help="to train by, beside uniform")  # fmt: skip
    options = parser.parse_args()
    shards, start, trained = (options.demo_dir / part for part in ("world/shards", "random_start", "reference"))
    for needed in (shards, start, trained):
        if not needed.is_dir():
            parser.error(f"{needed} is not there; demo.py makes it: python {Path(__file__).with_name('demo.py')} "
                         f"--output_dir {options.demo_dir}")  # fmt: skip
    output = options.demo_dir / "scores"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    began = time.monotonic()
    disable_progress_bar()
    os.environ["OMP_NUM_THREADS"] = "1"  # cal-train's: sums, and so students, do not depend on the number of cores

    say(began, f"1. cal-precompute, once, with the columns that {len(PRESETS) - len(ONLINE)} presets read")
    annotated = output / "annotated"
    precompute(trained, annotated, "--data_path", shards, "--reference_saw_data", "no",
               "--extra_columns", EXTRA_COLUMNS)  # fmt: skip
    measuring = time.monotonic() - began

    say(began, "2. cal-train: the same random start on the same captions in the same order, by other weights")
    images = world.generate(HELD_OUT_SAMPLES, seed=options.seed + HELD_OUT_SEED, wrong_share=0.0, prefix="held-out")
    exam = make_exam(AutoProcessor.from_pretrained(trained), images)

    def timed(name: str) -> float:
        before = time.monotonic()
        # One log, of all steps.
        train(start, output / name, annotated, options.train_steps, options.seed, *flags_of(name),
              "--logging_steps", options.train_steps)  # fmt: skip
        return time.monotonic() - before

    runs = []
    with ThreadPoolExecutor(options.jobs) as pool:
        seconds = {name: pool.submit(timed, name) for name in ("uniform", *options.weights)}
        for name, future in seconds.items():
            try:
                run = examined(name, output / name, exam, future.result())
            except subprocess.CalledProcessError as error:
                pool.shutdown(cancel_futures=True)
                *_, last = (output / f"{name}.log").read_text().splitlines() or [""]
                return failed(f"{name}: cal-train ended with {error.returncode}: {last}")
            if not math.isfinite(run.loss):
                pool.shutdown(cancel_futures=True)
                return failed(f"{name}: the student's loss on the exam is {run.loss}")
            runs.append(run)

    say(began, "Done")
    best = score_of(trained, exam)
    lines = [
        *table(runs),
        "",
        f"Loss (nats per token) and accuracy of attribute words, on {len(images)} clean images that nobody trained on;",
        f"the reference has {best.nll:.3f} and {best.accuracy:.3f}. Gain: accuracy above that of uniform. Seconds of",
        f"cal-train with its start, {options.jobs} at once. `{DEFAULT}`: CAL by cal-train's defaults. Online: "
        f"{', '.join(ONLINE)}; all others",
        f"but uniform share one measurement of {measuring:.0f} seconds.",
        f"{options.train_steps} steps on the same rows at one learning rate, tuned for none. Divided by count, so with "
        "gradients smaller",
        f"by the mean weight, most of which AdamW divides out: {', '.join(COUNTED)}.",
        "One seed, one toy world, an oracle as reference: a look, not a result. docs/study.md asks more seeds.",
    ]
    page = "\n".join(lines)
    print(page)
    (options.demo_dir / "scores.md").write_text(page + "\n")
    facts = {
        "seed": options.seed, "train_steps": options.train_steps, "exam_images": len(images),
        "measuring_seconds": measuring, "reference": {"loss": best.nll, "accuracy": best.accuracy},
        "runs": [asdict(run) for run in runs],
    }  # fmt: skip
    (options.demo_dir / "scores.json").write_text(json.dumps(facts, indent=1) + "\n")
    return 0


def flags_of(name: str) -> tuple[str, ...]:
    if name == "uniform":
        return ("--delta_source", "uniform")
    preset = () if name == DEFAULT else ("--preset", name)
    return (*preset, "--delta_source", "online" if name in ONLINE else "cached")


def examined(name: str, student: Path, exam: Exam, seconds: float) -> Run:
    history: list[dict[str, Any]] = json.loads((student / "trainer_state.json").read_text())["log_history"]
    (logged,) = (entry for entry in history if "mean_weight" in entry)
    score = score_of(student, exam)
    return Run(
        name=name, loss=score.nll, accuracy=score.accuracy, mean_weight=logged["mean_weight"],
        share_of_zeros=logged["share_at_alpha"] if least_weight(name) == 0 else 0.0, seconds=seconds,
    )  # fmt: skip


def least_weight(name: str) -> float:
    flags = FLAGS.get(name, {})
    return Map.parse(flags.get("map", "clamp")).settings(alpha=flags.get("alpha"), beta=None, window=None)["alpha"]


def score_of(directory: Path, exam: Exam) -> Score:
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    return examine(model, exam)


def table(runs: Sequence[Run]) -> list[str]:
    """In Markdown, aligned; gains are over the first run."""
    rows = [
        (f"`{run.name}`", f"{run.loss:.3f}", f"{run.accuracy:.3f}", f"{run.accuracy - runs[0].accuracy:+.3f}",
         f"{run.mean_weight:.3f}", f"{run.share_of_zeros:.1%}", f"{run.seconds:.0f}")
        for run in runs
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (HEADER, *rows)
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def failed(reason: str) -> int:
    print(f"FAILED: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
