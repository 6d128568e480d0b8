"""Makes what runs need (data, starts, references, measurements) through the public commands, once and on demand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import adaptive
import backbones
import reference as tiny
import worlds
from cal_schemas.spec import PARAMETERS
from commands import call
from condition import IN_SAMPLE, SIZES, Measurement, Run, Weights, sizes_digest
from folders import exclusively, once

_DEPTH = {"num_layers": SIZES.num_layers, "patch_px": SIZES.patch_px}
STUDENT = tiny.Size(vision_width=SIZES.student_vision_width, text_width=SIZES.student_text_width, **_DEPTH)
LARGER = tiny.Size(vision_width=SIZES.larger_vision_width, text_width=SIZES.larger_text_width, **_DEPTH)
# Seeds of different data never meet: the study's own seed is added to these.
_TRAIN, _PRETRAIN, _OTHER, _CLEAN, HELD_OUT, _BACKBONE = 0, 10_000, 20_000, 30_000, 40_000, 50_000


class ArtifactCache:
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
        first, rows = {
            "train": (_TRAIN, SIZES.rows),
            "pretrain": (_PRETRAIN, SIZES.pretraining_rows),
            "other": (_OTHER, SIZES.reference_rows),
            "clean": (_CLEAN, SIZES.reference_rows),
        }[part]

        def make(path: Path) -> None:
            samples = worlds.draw(self.world, rows, seed=first + self.seed, noise=noise)
            texts = worlds.texts(self.world, round(text_share / (1 - text_share) * rows), seed=first + self.seed)
            earlier = worlds.earlier_answers(self.world, rows, seed=first + self.seed) if answers == 2 else ()
            worlds.write(samples, texts, path, earlier)

        return once(self.folder / f"data-{part}-{noise:g}-{text_share:g}{'' if answers == 1 else f'-{answers}'}", make)

    def backbone(self, size: tiny.Size = STUDENT) -> Path:
        """What starts are made of (backbones.py); of the world, for all its seeds."""
        target = self.folder.parent / f"parent-{self.world}{_suffix(size)}"  # a name on disk: scratch folders have it

        def make(path: Path) -> None:
            drawn = target.with_name(f"{target.name}-drawn")
            tiny.build_reference(drawn, worlds.words_of(self.world), _BACKBONE, size)
            self._train(drawn, path, SIZES.parent_steps, *_uniform(self._backbone_texts()), seed=_BACKBONE)
            backbones.train_tower(path, self.world, _BACKBONE)

        with exclusively(target):
            return once(target, make)

    def _backbone_texts(self) -> Path:
        """Shards without images, which the backbones of both sizes read."""
        target = self.folder.parent / f"texts-{self.world}"
        texts = worlds.texts(self.world, SIZES.parent_texts, seed=_BACKBONE)
        with exclusively(target):
            return once(target, lambda path: worlds.write([], texts, path))

    def start(self, size: tiny.Size = STUDENT) -> Path:
        """The backbones with a random projector."""
        return once(
            self.folder / f"start{_suffix(size)}",
            lambda path: backbones.with_new_projector(self.backbone(size), path, self.seed),
        )

    def base(self, weights: Weights = "uniform", size: tiny.Size = STUDENT) -> Path:
        """What finetuning starts from."""

        def make(path: Path) -> None:
            data = self.data("pretrain", SIZES.pretraining_noise)
            flags = _flags(Run(world="shapes", seed=0, noise=SIZES.pretraining_noise, weights=weights))
            self._train(self.start(size), path, SIZES.pretraining_steps, "--source_path", data, *flags)

        return once(self.folder / f"base-{weights}{_suffix(size)}", make)

    def student(self, run: Run) -> Path:
        """The trained model of a run."""
        if run == Run(world=run.world, seed=run.seed, noise=run.noise, weights="uniform"):
            return self._watched(self.data("train", run.noise))
        return once(self.folder / f"student-{run.key}", lambda path: self._finetune(run, path))

    def _finetune(self, run: Run, path: Path) -> None:
        base, data, flags = self.base(run.pretraining), self._data_flags(run), _flags(run)
        if not run.halves:
            self._train(base, path, SIZES.steps, *data, *flags)
            return
        steps, first_half = SIZES.steps // 2, replace(run, halves="kept").key
        half = once(self.folder / f"half-{first_half}", lambda target: self._train(base, target, steps, *data, *flags))
        if run.halves == "refreshed":
            data = ["--data_path", self.measured_by(half, self.data("train", run.noise), f"refreshed-{run.key}")]
        self._train(half, path, steps, *data, *flags)

    def _data_flags(self, run: Run) -> list[object]:
        if run.weights == "cached":
            measured = self.measured(run.measurement)
            if run.adapted:
                (one,) = measured
                adapted = self.folder / f"adapted-{run.adapted}-{run.measurement.key}"
                measured = (once(adapted, lambda path: adaptive.write(one, path, run.adapted)),)
            return ["--data_path", *measured, *(("--crossfit", "true") if len(measured) > 1 else ())]
        return ["--source_path", self.data("train", run.noise, run.text_share, run.answers)]

    def _train(self, start: Path, output: Path, steps: int, *flags: object, seed: int | None = None) -> None:
        call(
            "cal-train", "--model_name_or_path", start, "--output_dir", output, "--trainable", "all",
            "--max_steps", steps,
            "--learning_rate", SIZES.learning_rate, "--adam_beta2", SIZES.adam_beta2,
            "--warmup_steps", SIZES.warmup_share, "--lr_scheduler_type", SIZES.schedule, "--logging_steps", 50,
            "--seed", self.seed if seed is None else seed, "--use_cpu", "true", "--disable_tqdm", "true",
            "--cache_dir", self.folder / "arrow",
            *(() if "--save_strategy" in flags else ("--save_strategy", "no")), *flags, log=self.log,
        )  # fmt: skip

    def references(self, measurement: Measurement) -> tuple[Path, ...]:
        """The model that measures; of a cross-fit those that measure the first and the second shard."""
        kind, noise = measurement.reference, measurement.noise
        data = self.data("train", noise, measurement.text_share, measurement.answers)
        if kind == "initial":
            return (self.base(),)
        if kind in IN_SAMPLE:
            watched = self._watched(data)
            share = {"early": 0.1, "quarter": 0.25}.get(kind)
            return (watched if share is None else watched / f"checkpoint-{round(share * SIZES.steps)}",)
        if kind == "crossfit":
            return tuple(self._half_model(shard, data) for shard in sorted(data.iterdir(), reverse=True))
        size, part = LARGER if kind == "larger" else STUDENT, "clean" if kind == "oracle" else "other"
        own_noise = 0.0 if kind == "oracle" else noise

        def make(path: Path) -> None:
            own = self.data(part, own_noise)
            self._train(self.base(size=size), path, SIZES.reference_steps, *_uniform(own))

        return (once(self.folder / f"reference-{kind}-{own_noise:g}", make),)

    def _watched(self, data: Path) -> Path:
        """A uniform training that leaves checkpoints; references come of it, and it is the uniform run itself."""
        saving = ("--save_strategy", "steps", "--save_steps", SIZES.steps // 20, "--save_only_model", "true")
        return once(
            self.folder / f"watched-{data.name}",
            lambda path: self._train(self.base(), path, SIZES.steps, *_uniform(data), *saving),
        )

    def _half_model(self, shard: Path, data: Path) -> Path:
        """A uniform model of one shard, which it sees as often as the whole is seen."""
        return once(
            self.folder / f"half-{data.name}-{shard.stem}",
            lambda path: self._train(self.base(), path, SIZES.steps // 2, *_uniform(shard)),
        )

    def measured(self, measurement: Measurement) -> tuple[Path, ...]:
        """Directories of annotated shards: one for each of the references."""
        name = f"measured-{measurement.key}"
        data = self.data("train", measurement.noise, measurement.text_share, measurement.answers)
        models = self.references(measurement)
        saw = "yes" if measurement.reference in IN_SAMPLE else "no"
        flags = ["--dtype", measurement.dtype, *_contrast_flags(measurement.contrast), "--reference_saw_data", saw]
        flags += ["--extra_columns", measurement.columns] if measurement.columns else []
        if len(models) == 1:
            return (self.measured_by(models[0], data, name, *flags),)
        return tuple(
            self.measured_by(model, shard, f"{name}-{shard.stem}", *flags)
            for model, shard in zip(models, sorted(data.iterdir()), strict=True)
        )

    def measured_by(self, model: Path, data: Path, name: str, *flags: object) -> Path:
        """Of one reference."""
        return once(self.folder / name, lambda path: call(
            "cal-precompute", "--model_name_or_path", model, "--data_path", data, "--output_dir", path,
            "--num_workers", 1, "--gpus_per_worker", 0, "--ray_address", self._ray_address,
            "--encode_threads", 1, *(flags or ("--dtype", "float32")), log=self.log,
        ))  # fmt: skip

    def swap_control(self, measurement: Measurement) -> float:
        """AUC of `cal-inspect audit --swap`; of a cross-fit the mean over its two parts."""
        parts, models = self.measured(measurement), self.references(measurement)
        aucs = []
        for part, model in zip(parts, models, strict=True):
            figures = self.folder / f"audit-{part.name}.json"
            figures.unlink(missing_ok=True)
            call(
                "cal-inspect", "audit", part, "--model_name_or_path", model, "--fraction", 0.01,
                "--swap", SIZES.swap_rows // len(parts), "--encode_threads", 1, "--json", figures, log=self.log,
            )  # fmt: skip
            aucs.append(json.loads(figures.read_text())["swap"]["auc"])
        return float(sum(aucs) / len(aucs))


def _suffix(size: tiny.Size) -> str:
    return "" if size == STUDENT else "-larger"


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
        flags += ["--score", run.score, "--map", run.map]
    if run.weights == "online":
        flags += _contrast_flags(run.contrast)
    if run.drift:
        flags += ["--drift_every", SIZES.steps // 4]
    return flags
