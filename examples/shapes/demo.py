"""Runs the main job on a world where every word's truth is known: generate, train a reference, measure, look.

    python examples/shapes/demo.py --output_dir demo

Leaves everything it made in the output directory, and fails when the deltas do not tell true words from the others.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

import photos
import reference
import words
import world
from accuracy import word_accuracy
from cal_pipeline.inspect.commands.page import read_page_data

TRAIN_SAMPLES, DIRTY_SAMPLES, HELD_OUT_SAMPLES, SHARDS = 4000, 1500, 300, 6
HELD_OUT_SEED = 2000
WRONG_SHARE = 0.3
TARGET_AUC = 0.8
COLUMNS = ["sample_id", "status", "label_ids", "delta_logits"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_steps", type=int, default=400, help="training steps of the reference")
    parser.add_argument("--train_steps", type=int, default=150, help="training steps of each student")
    options = parser.parse_args()
    output: Path = options.output_dir
    marker = output / ".cal-demo"
    if output.exists() and not marker.exists() and any(output.iterdir()):
        parser.error(f"{output} holds something else than an earlier demo; choose another --output_dir")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    marker.touch()
    began = time.monotonic()
    disable_progress_bar()

    say(began, "1. A generated world")
    clean = world.generate(TRAIN_SAMPLES, seed=options.seed + 1000, wrong_share=0.0, prefix="train")
    dirty = world.generate(DIRTY_SAMPLES, seed=options.seed, wrong_share=WRONG_SHARE)
    shards = world.write_parquet_shards(dirty, output / "world" / "shards", num_shards=SHARDS)
    llava_json = world.write_llava_json(dirty, output / "world" / "llava")
    print(f"{len(dirty)} images with captions, {WRONG_SHARE:.0%} of which describe another image:")
    print(f"  {len(shards)} Parquet shards in {shards[0].parent}, the same as LLaVA JSON in {llava_json}")
    for sample in dirty[:3]:
        words_and_kinds = zip(sample.caption.split(), sample.word_kinds, strict=True)
        print(f"  {sample.sample_id}: " + " ".join(f"{word}[{kind[:3]}]" for word, kind in words_and_kinds))

    say(began, "2. A reference: a tiny LLaVA, trained on clean captions of other images of the same world")
    start, trained = output / "random_start", output / "reference"
    photos_json = photos.write_photographs(output / "photos")
    texts = [turn["content"] for sample in clean for turn in sample.messages]
    reference.build_reference(start, [*texts, *world.QUESTIONS], options.seed)
    losses = reference.train_reference(start, trained, clean, seed=options.seed, num_steps=options.num_steps)
    print(f"{len(losses)} steps, loss {losses[0]:.2f} -> {sum(losses[-20:]) / 20:.2f} nats per token")
    print("One sample in ten hid its image: a real reference's language model has read text without images too.")
    print("NOTE: it saw clean captions only. That makes it an oracle: a reference for real data has no such luck.")

    say(began, "3. cal-precompute with two Ray workers on the dirty shards")
    annotated = output / "annotated"
    precompute(trained, annotated, "--data_path", shards[0].parent, "--reference_saw_data", "no")

    say(began, "4. What the deltas say, in pandas")
    frame = pd.read_parquet(annotated, columns=[*COLUMNS, "label_positions", "messages", "word_kinds"])
    print(frame[COLUMNS].head(4).to_string(max_colwidth=44))
    tokens = words.token_frame(frame, AutoTokenizer.from_pretrained(trained))
    table = words.table(tokens)
    print("\nDelta (in logits) by kind of word; auc: chance that a correlated word's delta is above one of this kind")
    print(table.round(3).to_string(na_rep="-"))
    below = (tokens["delta"] < words.BETA).mean()
    print(f"share of all tokens below beta = 5: {below:.1%} (the paper finds about 90 % on LLaVA)")
    histogram = output / "deltas.png"
    words.histogram(tokens, histogram)
    table.to_csv(output / "deltas_by_kind.csv")
    print(f"histogram: {histogram}")

    say(began, "5. cal-inspect: is the cache right, is the reference fit for the data, and a page to look at")
    figures = output / "audit.json"
    call("cal-inspect", "audit", annotated, "--fraction", "0.1", "--swap", "512", "--json", figures)
    swap_auc = json.loads(figures.read_text())["swap"]["auc"]
    page = output / "report.html"
    call("cal-inspect", "page", annotated, "--output", page, "--title", "Deltas of the world of shapes")
    weights = words.mean_weights(read_page_data(page)["samples"], frame, AutoTokenizer.from_pretrained(trained))
    print("mean weight by kind of word, in the page's own data: "
          + ", ".join(f"{kind} {weights[kind]:.3f}" for kind in words.KINDS))  # fmt: skip

    say(began, "6. cal-train: the same random start on the dirty captions, without and with the cached deltas")
    held_out = world.generate(HELD_OUT_SAMPLES, seed=options.seed + HELD_OUT_SEED, wrong_share=0.0, prefix="held-out")
    accuracy = {}
    for source in ("uniform", "cached"):
        student = output / f"student_{source}"
        train(start, student, annotated, options.train_steps, options.seed, "--delta_source", source)
        accuracy[source] = word_accuracy(student, held_out)
    print(f"\nShare of attribute words that are right, on {len(held_out)} clean images that nobody trained on:")
    for source, share in accuracy.items():
        print(f"  {source:8} {share:.3f}")
    print(f"  {'oracle':8} {word_accuracy(trained, held_out):.3f}  (the reference, trained on clean captions)")
    print("One seed, one toy world, an oracle as reference: a look, not a result.")

    say(began, "7. The LLaVA JSON path, on real photographs")
    print("The tiny reference knows coloured shapes only; this shows the path, not meaningful deltas.")
    annotated_photos = output / "annotated_photos"
    precompute(trained, annotated_photos, "--data_path", photos_json, "--image_folder", photos_json.parent / "images")
    frame = pd.read_parquet(annotated_photos, columns=["sample_id", "status", "error", "label_ids"])
    frame["tokens"] = frame["label_ids"].map(len)
    print(frame[["sample_id", "status", "error", "tokens"]].to_string(index=False, max_colwidth=60, na_rep=""))

    say(began, "Done")
    low = table["auc"].drop("correlated")
    print(f"Everything is in {output}/. Read the deltas with: pd.read_parquet('{annotated}', columns={COLUMNS})")
    print(f"See the tokens: open {page.resolve()} in a browser")
    failures = []
    if (low < TARGET_AUC).any():
        failures.append(f"AUC {low.round(3).to_dict()} is below {TARGET_AUC}")
    if not weights["correlated"] > weights["irrelevant"] > weights["contradictory"]:
        failures.append(f"the page's weights do not follow the kinds of words: {weights.to_dict()}")
    if swap_auc < TARGET_AUC:
        failures.append(f"swap control {swap_auc:.3f} is below {TARGET_AUC}")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def call(program: str, *arguments: object, log: Path | None = None) -> None:
    """Runs a console program as a user would, and shows the command; its output goes to `log`, where one is given."""
    command = [program, *map(str, arguments)]
    print("$ " + shlex.join(command), flush=True)
    argv = [str(Path(sys.executable).parent / program), *command[1:]]
    if log is None:
        subprocess.run(argv, check=True)
        return
    with log.open("w") as file:
        subprocess.run(argv, check=True, stdout=file, stderr=file)


def precompute(model: Path, output: Path, *flags: object) -> None:
    call("cal-precompute", "--model_name_or_path", model, "--dtype", "float32", "--output_dir", output,
         "--num_workers", 2, "--gpus_per_worker", 0, *flags)  # fmt: skip


def train(start: Path, student: Path, annotated: Path, num_steps: int, seed: int, *flags: object) -> None:
    """One run of cal-train; its log goes to a file beside the model."""
    call("cal-train", "--model_name_or_path", start, "--data_path", annotated, "--output_dir", student,
         "--trainable", "all", "--max_steps", num_steps, "--learning_rate", "2e-3",
         "--per_device_train_batch_size", 32, "--warmup_steps", 0.1, "--lr_scheduler_type", "cosine", "--seed", seed,
         "--use_cpu", "true", "--save_strategy", "no", "--logging_steps", 50, "--disable_tqdm", "true",
         "--cache_dir", student.parent / "cache", *flags, log=student.with_suffix(".log"))  # fmt: skip


def say(began: float, title: str) -> None:
    print(f"\n== {title} [{time.monotonic() - began:.0f} s]", flush=True)


if __name__ == "__main__":
    sys.exit(main())
