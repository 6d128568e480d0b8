"""Measures an epoch of TRL's SFTTrainer, of transformers' Trainer and of cal-train on the same model, data and labels.

    python benchmarks/peers.py --batch 2
    python benchmarks/peers.py --image_tokens 2880 --vocabulary 152000
    python benchmarks/peers.py --shape llava15-7b --device cuda --dtype bfloat16 --gradient_checkpointing

Each run is a process of its own; the trainers take turns, round after round, in an order drawn anew. All train every
parameter on the answers alone, with AdamW, in this precision. Every epoch must have as many steps and supervised
tokens, and the same loss a token where every token weighs 1 (`trl`, `trainer`, `uniform`). `trainer` is what a script
of one's own can do at best: the batches are ours, the loss is the model's. `step` is the median of an epoch's steps but
the first (forward, backward, optimizer), `epoch` all of its time with reading, decoding and tokenizing; memory is what
came on top of the loaded model at its highest: resident on CPU, allocated on a GPU.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from argparse import Namespace
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import AutoModelForImageTextToText, Trainer, TrainerCallback, TrainingArguments

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from cal_trainer.cli import parse
from cal_trainer.data.collator import ExampleCollator, StepBatch
from cal_trainer.data.factory import make_dataset
from cal_trainer.planning import plan_run
from cal_trainer.training import build_trainer
from measuring import give_back_freed_memory, in_own_process, resident_mb, synchronize
from reporting import add_device_flags, begin, make_parser, print_table, suffix_of, write_report
from shapes import Shape, add_shape_flags, shape_of
from workload import annotate, write_checkpoint, write_source

PEERS, OURS = ("trl", "trainer"), ("uniform", "cached", "online")
MAX_LENGTH = 8192
LEARNING_RATE = 1e-7
"""So little that an epoch's loss does not depend on the order of the rows, which every trainer draws in its own way."""
SAME_LOSS = 1e-3
"""Relative: TRL's rows lack the token that begins ours."""
QUANTITIES = ("step_s", "step_cpu_s", "epoch_s", "epoch_cpu_s", "peak_mb")
_MB = 2**20


class Watch(TrainerCallback):  # type: ignore[misc]
    """Collates as the trainer would, and notes what the batches held, how long steps took, and the memory."""

    def __init__(self, trainer: Any, device: str) -> None:
        self._collate, trainer.data_collator = trainer.data_collator, self
        self._device = device
        self._seconds: dict[str, list[float]] = {key: [] for key in ("step_s", "step_cpu_s", "epoch_s", "epoch_cpu_s")}
        self._tokens = self._positions = 0
        self.supervised: list[int] = []
        """Tokens of each batch."""
        self.peak_mb = 0.0
        trainer.add_callback(self)

    def __call__(self, rows: Any) -> Any:
        batch = self._collate(rows)
        self._tokens += int(batch["attention_mask"].sum())
        self._positions += batch["attention_mask"].numel()
        self.supervised.append(int((batch["labels"][:, 1:] >= 0).sum()))
        return batch

    def _now(self) -> tuple[float, float]:
        synchronize(self._device)
        return time.perf_counter(), time.process_time()

    def _note(self, name: str, begun: tuple[float, float]) -> None:
        for key, now, then in zip((f"{name}_s", f"{name}_cpu_s"), self._now(), begun, strict=True):
            self._seconds[key].append(now - then)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._memory_before = torch.cuda.memory_allocated() / _MB
        else:
            give_back_freed_memory()
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
            self._memory_before = resident_mb("VmRSS")
        self._epoch = self._now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("step", self._step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note("epoch", self._epoch)
        peak = torch.cuda.max_memory_allocated() / _MB if self._device == "cuda" else resident_mb()
        self.peak_mb = peak - self._memory_before

    def read(self) -> dict[str, Any]:
        return {
            **{key: statistics.median(all_of[1:] or all_of) for key, all_of in self._seconds.items()},
            "peak_mb": self.peak_mb,
            "padding": 1 - self._tokens / self._positions,
            "tokens": self._tokens,
            "supervised_tokens": sum(self.supervised),
        }


def settings(flags: Namespace, output: Path) -> dict[str, Any]:
    """Of transformers' arguments, alike for all."""
    return {
        "output_dir": str(output),
        "use_cpu": flags.device == "cpu",
        "per_device_train_batch_size": flags.batch,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "gradient_checkpointing": flags.gradient_checkpointing,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def build_trl(flags: Namespace, folder: Path, output: Path) -> Any:
    """As TRL's documentation has it for images: prompts, completions, its own collator."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    rows = [row for path in sorted((folder / "source").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    talk = [row.pop("messages") for row in rows]
    rows = [
        {
            "images": row["images"],
            # TRL puts the images' tokens in front of the words itself.
            "prompt": [{"role": "user", "content": turns[0]["content"].replace("<image>", "")}],
            "completion": [turns[1]],
        }
        for row, turns in zip(rows, talk, strict=True)
    ]
    given = settings(flags, output)
    return SFTTrainer(
        model=str(folder / "model"),
        args=SFTConfig(bf16=False, max_length=None, model_init_kwargs={"dtype": flags.dtype}, **given),
        train_dataset=datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image())),
    )


def build_plain(flags: Namespace, folder: Path, output: Path) -> Any:
    encoder = Encoder(load_processor(folder / "model"), max_length=MAX_LENGTH)
    examples = make_dataset(
        None, encoder, source_paths=[str(folder / "source")], use_deltas=False, cache_dir=output / "cache"
    )
    collator = ExampleCollator(encoder=encoder, dummy=examples.blank.encoded)

    def collate(rows: Any) -> dict[str, Any]:
        batch = StepBatch.of(collator(rows))
        return {**batch.inputs, "labels": batch.labels}

    return Trainer(
        model=AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=flags.dtype),
        args=TrainingArguments(remove_unused_columns=False, **settings(flags, output)),
        train_dataset=examples,
        data_collator=collate,
    )


def build_ours(flags: Namespace, folder: Path, output: Path, delta_source: str) -> Any:
    """What `cal-train` builds of its flags."""
    data = {"source_path": folder / "source"} if delta_source == "uniform" else {"data_path": folder / "annotated"}
    given = settings(flags, output) | {
        **data,
        "model_name_or_path": folder / "model",
        "delta_source": delta_source,
        "dtype": flags.dtype,
        "trainable": "all",
        "max_length": MAX_LENGTH,
        "cache_dir": output / "cache",
    }
    config, arguments = parse([text for key, value in given.items() for text in (f"--{key}", str(value))])
    return build_trainer(plan_run(config, arguments), config, arguments)


BUILDERS = {"trl": build_trl, "trainer": build_plain} | {
    name: partial(build_ours, delta_source=name) for name in OURS
}  # fmt: skip


def epoch(flags: Namespace, variant: str, folder: Path) -> dict[str, Any]:
    """What one epoch of this trainer took, in this process."""
    torch.set_num_threads(flags.threads)
    with tempfile.TemporaryDirectory() as output:
        trainer = BUILDERS[variant](flags, folder, Path(output))
        watch = Watch(trainer, flags.device)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    of_all = sum(loss * tokens for loss, tokens in zip(losses, watch.supervised, strict=True))
    return {**watch.read(), "steps": len(losses), "loss": of_all / sum(watch.supervised)}


def write_data(folder: Path, shape: Shape, rows: int) -> None:
    processor = write_checkpoint(folder / "model", shape)
    images = shape.image_tokens // shape.tile_tokens
    write_source(folder / "source", [rows], shape.text_tokens, images=images)
    annotate(folder / "source", folder / "annotated", folder / "model", Encoder(processor, max_length=MAX_LENGTH))


def main() -> None:
    parser = make_parser(__doc__)
    add_shape_flags(parser)
    add_device_flags(parser, repeats=3)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--rows", type=int, default=12, help="of an epoch")
    parser.add_argument("--variants", nargs="+", choices=[*BUILDERS], default=[*BUILDERS])
    flags = begin(parser)
    name, shape = shape_of(flags)
    flags.batch = shape.batch
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in flags.variants}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        in_own_process(write_data, folder, shape, flags.rows)
        orders = random.Random(0)
        for _ in range(flags.repeats):
            for variant in orders.sample(flags.variants, len(flags.variants)):
                runs[variant].append(found := in_own_process(epoch, flags, variant, folder))
                print_table(["", *found], [[variant, *found.values()]])
    check_alike(runs)
    medians = {
        variant: {key: statistics.median(run[key] for run in of_variant) for key in of_variant[0]}
        for variant, of_variant in runs.items()
    }
    shown = (*QUANTITIES, "padding")
    print_table(["", *shown], [[variant, *(row[key] for key in shown)] for variant, row in medians.items()])
    peers = [peer for peer in PEERS if peer in medians]
    ratios = {
        f"{variant}_{key}/best_peer_{key}": medians[variant][key] / min(medians[peer][key] for peer in peers)
        for variant in medians
        for key in QUANTITIES
        if variant in OURS and peers
    }
    write_report(
        f"peers-{name}{suffix_of(flags)}{'-checkpointing' if flags.gradient_checkpointing else ''}", flags,
        settings={"model": asdict(shape)}, results={key: {**medians[key], "runs": runs[key]} for key in runs},
        ratios={key: value for key, value in ratios.items() if "_cpu_s" not in key},
        cpu_time_ratios={key.replace("_cpu_s", "_s"): value for key, value in ratios.items() if "_cpu_s" in key},
    )  # fmt: skip


def check_alike(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Raises SystemExit where the trainers did not do the same: then their times say nothing."""
    uniform = [run for variant in (*PEERS, "uniform") for run in runs.get(variant, ())]
    everything = [run for of_variant in runs.values() for run in of_variant]
    for key in ("supervised_tokens", "steps"):
        if len(found := {run[key] for run in everything}) > 1:
            raise SystemExit(f"the trainers differ in {key}: {sorted(found)}")
    losses = [run["loss"] for run in uniform]
    if losses and max(losses) - min(losses) > SAME_LOSS * min(losses):
        raise SystemExit(f"the trainers differ in the loss: {sorted(losses)}")


if __name__ == "__main__":
    main()
