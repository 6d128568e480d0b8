"""Makes what runs need (data, starts, references, measurements), through the public commands, once and on demand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import parents
import reference as tiny
import worlds
from cal_schemas.spec import PARAMETERS
from commands import call
from condition import IN_SAMPLE, SIZES, Measurement, Run, Weights, sizes_digest
from folders import exclusively, made

_DEPTH = {"num_layers": SIZES.num_layers, "patch_px": SIZES.patch_px}
STUDENT = tiny.Size(vision_width=SIZES.student_vision_width, text_width=SIZES.student_text_width, **_DEPTH)
LARGER = tiny.Size(vision_width=SIZES.larger_vision_width, text_width=SIZES.larger_text_width, **_DEPTH)
# Seeds of different data never meet: the study's own seed is added to these.
_TRAIN, _PRETRAIN, _OTHER, _CLEAN, HELD_OUT, _PARENT = 0, 10_000, 20_000, 30_000, 40_000, 50_000


class Workshop:
    """Of one world and seed.

    Args:
        world: its name.
        seed: of data, initial weights and order.
        scratch: where everything is kept, by the sizes that it was made with; what is there is not made again.
        ray_address: of the running Ray that measurements use; needed for cached weights only.
    """

    def __init__(self, world: str, seed: int, scratch: Path, ray_address: str = "") -> None:
        self.world, self.seed, self._ray_address = world, seed, ray_address
        self.folder = scratch / f"sizes-{sizes_digest()}" / f"{world}-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "commands.log"

    def data(self, part: str, noise: float, text_share: float = 0.0, answers: int = 1) -> Path:
        """Raw shards, two of them: `train`, `pretrain`, `other` (of `longer` and `larger`), `clean` (of the oracle)."""
        target = self.folder / f"data-{part}-{noise:g}-{text_share:g}{'' if answers == 1 else f'-{answers}'}"
        if target.exists():
            return target
        first, rows = {
            "train": (_TRAIN, SIZES.rows),
            "pretrain": (_PRETRAIN, SIZES.pretraining_rows),
            "other": (_OTHER, SIZES.reference_rows),
            "clean": (_CLEAN, SIZES.reference_rows),
        }[part]
        samples = worlds.draw(self.world, rows, seed=first + self.seed, noise=noise)
        texts = worlds.texts(self.world, round(text_share / (1 - text_share) * rows), seed=first + self.seed)
        earlier = worlds.earlier_answers(self.world, rows, seed=first + self.seed) if answers == 2 else ()
        with made(target) as path:
            worlds.write(samples, texts, path, earlier)
        return target

    def parent(self, size: tiny.Size = STUDENT) -> Path:
        """What starts are made of (parents.py); of the world, for all its seeds."""
        target = self.folder.parent / f"parent-{self.world}{'' if size == STUDENT else '-larger'}"
        with exclusively(target):
            if not target.exists():
                texts = self._parent_texts()
                with made(target) as path:
                    drawn = target.with_name(f"{target.name}-drawn")
                    tiny.build_reference(drawn, worlds.words_of(self.world), _PARENT, size)
                    self._train(drawn, path, SIZES.parent_steps, *_uniform(texts), seed=_PARENT)
                    parents.train_tower(path, self.world, _PARENT)
        return target

    def _parent_texts(self) -> Path:
        """Shards without images, which both sizes of parents read."""
        target = self.folder.parent / f"texts-{self.world}"
        with exclusively(target):
            if not target.exists():
                with made(target) as path:
                    worlds.write([], worlds.texts(self.world, SIZES.parent_texts, seed=_PARENT), path)
        return target

    def start(self, size: tiny.Size = STUDENT) -> Path:
        """The parents with a random projector."""
        target = self.folder / ("start" if size == STUDENT else "start-larger")
        if not target.exists():
            with made(target) as path:
                parents.with_new_projector(self.parent(size), path, self.seed)
        return target

    def base(self, weights: Weights = "uniform", size: tiny.Size = STUDENT) -> Path:
        """What finetuning starts from."""
        target = self.folder / f"base-{weights}{'' if size == STUDENT else '-larger'}"
        if not target.exists():
            data = self.data("pretrain", SIZES.pretraining_noise)
            flags = _flags(Run(world="shapes", seed=0, noise=SIZES.pretraining_noise, weights=weights))
            self._train(self.start(size), target, SIZES.pretraining_steps, "--source_path", data, *flags)
        return target

    def student(self, run: Run) -> Path:
        """The trained model of a run."""
        target = self.folder / f"student-{run.key}"
        if run == Run(world=run.world, seed=run.seed, noise=run.noise, weights="uniform"):
            return self._watched(self.data("train", run.noise))
        if target.exists():
            return target
        start, steps = self.base(run.pretraining), SIZES.steps
        flags = _flags(run)
        if run.halves:
            steps //= 2
            first, half = replace(run, halves="kept"), self.folder / f"half-{replace(run, halves='kept').key}"
            if not half.exists():
                self._train(start, half, steps, *self._data_flags(first), *flags)
            start = half
        data = self._data_flags(run)
        if run.halves == "refreshed":
            data = ["--data_path", self.measured_by(start, self.data("train", run.noise), f"refreshed-{run.key}")]
        self._train(start, target, steps, *data, *flags)
        return target

    def _data_flags(self, run: Run) -> list[object]:
        if run.weights == "cached":
            measured = self.measured(run.measurement)
            return ["--data_path", *measured, *(("--crossfit", "true") if len(measured) > 1 else ())]
        return ["--source_path", self.data("train", run.noise, run.text_share, run.answers)]

    def _train(self, start: Path, target: Path, steps: int, *flags: object, seed: int | None = None) -> None:
        with made(target) as path:
            call(
                "cal-train", "--model_name_or_path", start, "--output_dir", path, "--trainable", "all",
                "--max_steps", steps,
                "--learning_rate", SIZES.learning_rate, "--adam_beta2", SIZES.adam_beta2,
                "--warmup_steps", SIZES.warmup_share, "--lr_scheduler_type", SIZES.schedule, "--logging_steps", 50,
                "--seed", self.seed if seed is None else seed, "--use_cpu", "true", "--disable_tqdm", "true",
                "--cache_dir", self.folder / "arrow",
                *(() if "--save_strategy" in flags else ("--save_strategy", "no")), *flags, log=self.log,
            )  # fmt: skip

    def references(self, asked: Measurement) -> tuple[Path, ...]:
        """The model that measures; of a cross-fit those that measure the first and the second shard."""
        noise, steps = asked.noise, SIZES.steps
        data = self.data("train", noise, asked.text_share, asked.answers)
        kind = asked.reference
        if kind == "initial":
            return (self.base(),)
        if kind in IN_SAMPLE:
            watched = self._watched(data)
            share = {"early": 0.1, "quarter": 0.25}.get(kind)
            return (watched if share is None else watched / f"checkpoint-{round(share * steps)}",)
        if kind == "crossfit":
            return tuple(self._half_model(shard, data) for shard in sorted(data.iterdir(), reverse=True))
        size, part = LARGER if kind == "larger" else STUDENT, "clean" if kind == "oracle" else "other"
        target = self.folder / f"reference-{kind}-{0 if kind == 'oracle' else noise:g}"
        if not target.exists():
            own = self.data(part, 0.0 if kind == "oracle" else noise)
            self._train(self.base(size=size), target, SIZES.reference_steps, *_uniform(own))
        return (target,)

    def _watched(self, data: Path) -> Path:
        """A uniform training that leaves checkpoints; references come of it, and it is the uniform run itself."""
        target = self.folder / f"watched-{data.name}"
        if not target.exists():
            saving = ("--save_strategy", "steps", "--save_steps", SIZES.steps // 20, "--save_only_model", "true")
            self._train(self.base(), target, SIZES.steps, *_uniform(data), *saving)
        return target

    def _half_model(self, shard: Path, data: Path) -> Path:
        """A uniform model of one shard, which it sees as often as the whole is seen."""
        target = self.folder / f"half-{data.name}-{shard.stem}"
        if not target.exists():
            self._train(self.base(), target, SIZES.steps // 2, *_uniform(shard))
        return target

    def measured(self, asked: Measurement) -> tuple[Path, ...]:
        """Directories of annotated shards: one for each of the references."""
        name = f"measured-{asked.key}"
        data = self.data("train", asked.noise, asked.text_share, asked.answers)
        models = self.references(asked)
        flags = ["--dtype", asked.dtype, *_contrast_flags(asked.contrast)]
        saw = "yes" if asked.reference in IN_SAMPLE else "no"
        flags += ["--reference_saw_data", saw]
        if len(models) == 1:
            return (self.measured_by(models[0], data, name, *flags),)
        return tuple(
            self.measured_by(model, shard, f"{name}-{shard.stem}", *flags)
            for model, shard in zip(models, sorted(data.iterdir()), strict=True)
        )

    def measured_by(self, model: Path, data: Path, name: str, *flags: object) -> Path:
        """Of one reference."""
        target = self.folder / name
        if not target.exists():
            with made(target) as path:
                call(
                    "cal-precompute", "--model_name_or_path", model, "--data_path", data, "--output_dir", path,
                    "--num_workers", 1, "--gpus_per_worker", 0, "--ray_address", self._ray_address,
                    "--encode_threads", 1, *(flags or ("--dtype", "float32")), log=self.log,
                )  # fmt: skip
        return target

    def swap_control(self, asked: Measurement) -> float:
        """AUC of `cal-inspect audit --swap`; of a cross-fit the mean over its two parts."""
        parts, models = self.measured(asked), self.references(asked)
        found = []
        for part, model in zip(parts, models, strict=True):
            figures = self.folder / f"audit-{part.name}.json"
            figures.unlink(missing_ok=True)
            call(
                "cal-inspect", "audit", part, "--model_name_or_path", model, "--fraction", 0.01,
                "--swap", SIZES.swap_rows // len(parts), "--encode_threads", 1, "--json", figures, log=self.log,
            )  # fmt: skip
            found.append(json.loads(figures.read_text())["swap"]["auc"])
        return float(sum(found) / len(found))


def _uniform(data: Path) -> tuple[object, ...]:
    return ("--source_path", data, "--delta_source", "uniform", *_batches(1))


def _batches(accumulation: int) -> list[object]:
    """Of one size of step, whatever it is split into."""
    size = SIZES.batch_size // accumulation
    return ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", accumulation]


def _contrast_flags(contrast: str) -> list[str]:
    name, _, parameter = contrast.partition(" ")
    flags = [part for flag, item in PARAMETERS.items() if item.condition == name for part in (f"--{flag}", parameter)]
    return ["--contrast", name, *flags]


def _flags(run: Run) -> list[object]:
    flags: list[object] = ["--delta_source", run.weights, "--normalization", run.normalization,
                           "--group_by", run.group_by, *_batches(run.accumulation)]  # fmt: skip
    if run.weights != "uniform":
        flags += ["--alpha", run.alpha, "--beta", run.beta, "--window", run.window, "--pool", run.pool]
    if run.weights == "online":
        flags += _contrast_flags(run.contrast)
    if run.drift:
        flags += ["--drift_every", SIZES.steps // 4]
    return flags
