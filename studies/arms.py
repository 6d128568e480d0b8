"""The arms of the study, each one question as data: groups of named conditions, which are a few fields of a Run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cal_schemas.maps import Map
from cal_schemas.presets import PRESETS, Preset
from condition import GENERATED, MAIN_NOISE, REFERENCES, WORLDS, Measurement, Run, WorldName

NOISES = (0.0, 0.1, 0.2, 0.3)
NOISE_ARMS = ("noise", "noise_students", "noise_models", "reference")
"""What one table and one plot show together: every reference at every noise."""
Fields = Mapping[str, Any]
"""Of a Run or a Measurement, beside world and seed."""
Conditions = Mapping[str, Fields]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One question, as data."""

    question: str
    groups: Mapping[str, Conditions]
    """Title -> label -> fields of Run. Each group's first condition is what the others are compared with."""
    measurements: tuple[Fields, ...] = ()
    """Deltas that are judged by themselves."""
    gain_of: str = ""
    """The condition whose gain over the first is the whole that others recover a share of."""
    with_text: bool = False
    """Whether samples without an image are asked about too."""
    seeds: int = 8
    corrected: bool = False
    """Whether intervals are wide enough for all comparisons of a group together (Bonferroni)."""
    worlds: tuple[WorldName, ...] = GENERATED
    """In which the study runs it; `--world` runs it in another."""

    def runs(self, world: WorldName, seed: int, only: Collection[str] | None = None) -> list[Run]:
        """Of one pair of world and seed; of the conditions with these labels."""
        return [
            Run(world=world, seed=seed, **fields)
            for conditions in self.groups.values()
            for label, fields in conditions.items()
            if only is None or label in only
        ]

    @property
    def labels(self) -> set[str]:
        return {label for conditions in self.groups.values() for label in conditions}

    def measured(self, world: WorldName, seed: int) -> list[Measurement]:
        return [Measurement(world=world, seed=seed, **fields) for fields in self.measurements]


def uniform(**fields: Any) -> dict[str, Any]:
    return {"noise": MAIN_NOISE, "weights": "uniform"} | fields


def online(**fields: Any) -> dict[str, Any]:
    return uniform(weights="online") | fields


def cached(reference: str, **fields: Any) -> dict[str, Any]:
    return uniform(weights="cached", reference=reference) | fields


def at(noises: Sequence[float], references: Sequence[str]) -> dict[str, Conditions]:
    """A group for each noise: uniform and online weights, and caches of these references."""
    return {
        f"p = {noise:g}": {
            "uniform": uniform(noise=noise),
            "online": online(noise=noise),
            **{name: cached(name, noise=noise) for name in references},
        }
        for noise in noises
    }


def preset(name: Preset) -> dict[str, Any]:
    """What `--preset` means, with the bounds of its map: they are of weights, and not of the students' deltas."""
    definition = PRESETS[name]
    named = {key: getattr(definition, key) for key in ("alpha", "beta", "window")}
    settings = Map.parse(definition.map).settings(**named)
    return {
        "score": definition.score,
        "map": definition.map,
        "alpha": f"{settings['alpha']:g}",
        "beta": f"{settings['beta']:g}",
        "window": settings["window"],
        "normalization": definition.normalization,
    }


def scored(noise: float) -> dict[str, Conditions]:
    """CAL's own weights and those of other scores, maps and papers, of two references: beside uniform, beside CAL."""
    soft = {"alpha": "0", "beta": "inf", "window": 1}
    others: Conditions = {
        "delta_logprob": {"score": "delta_logprob"},
        "kl": {"score": "kl"},
        "vppo": preset("vppo"),
    }
    of_larger: Conditions = {
        "inverse": {"map": "inverse"},
        "softmax=1": {"map": "softmax=1", **soft},
        "top_share=0.5, rest 0.2": {"map": "top_share=0.5", "window": 1},
        **{name: preset(name) for name in _OF_LARGER},
    }
    groups: dict[str, Conditions] = {}
    for reference in ("final", "larger"):
        cal = {"CAL": cached(reference, noise=noise)}
        chosen = {**others, **(of_larger if reference == "larger" else {})}
        rest = {label: cached(reference, noise=noise, **fields) for label, fields in chosen.items()}
        # These do not look at the reference.
        rest |= {name: cached("final", noise=noise, **preset(name)) for name in _OF_STUDENT}
        groups[f"uniform, p = {noise:g}, {reference}"] = {
            "uniform": uniform(noise=noise), "CAL, online": online(noise=noise), **cal, **rest,
        }  # fmt: skip
        groups[f"CAL, p = {noise:g}, {reference}"] = {**cal, **rest}
    return groups


def bounds(alpha_beta: str) -> dict[str, str]:
    """Of "alpha, beta"."""
    return dict(zip(("alpha", "beta"), alpha_beta.split(", "), strict=True))


_LOWER = tuple(noise for noise in NOISES if noise != MAIN_NOISE)
"""At the main noise the arm `reference` has every reference."""
_OF_LARGER: tuple[Preset, ...] = ("vig", "pgpo", "vepo", "rho1")
_OF_STUDENT: tuple[Preset, ...] = ("dft", "focal")
_SMALL, _DEFAULT, _LARGE = "0.1, 0.5", "0.2, 1", "0.4, 2"
"""Of one ratio, from alpha to beta."""
_ADAPTED = {
    "quantiles of the data": "data",
    "quantiles of the sample": "sample",
    "capped by entropy": "entropy",
}
_CONTRASTS = ("drop", "mask", "patch_mask 0.5", "patch_mask 0.7", "patch_mask 0.9", "gaussian_blur 1",
              "gaussian_blur 10")  # fmt: skip
_REFERENCE = Arm(
    question="Which reference recovers at least 80 % of what online weights gain?",
    groups=at([MAIN_NOISE], REFERENCES),
    measurements=tuple({"noise": MAIN_NOISE, "reference": name} for name in REFERENCES),
    gain_of="online",
)

ARMS = {  # in the order in which each finds most already done
    "reference": _REFERENCE,
    "swap": replace(_REFERENCE, question="Does the swap control predict what a reference gains?"),
    "noise": Arm(  # the paper's Fig. 3
        question="What do weights gain, by share of exchanged images and by whose deltas they are?",
        groups=at(NOISES, ["initial", "final"]),
        gain_of="online",
    ),
    "noise_students": Arm(  # `noise` for the student's other models; all references together take over half an hour
        question="What do the student's checkpoints and its cross-fit gain where less is wrong?",
        groups=at(_LOWER, ["early", "quarter", "crossfit"]),
        gain_of="online",
    ),
    "noise_models": Arm(
        question="What do a longer trained, a larger and an all-knowing reference gain where less is wrong?",
        groups=at(_LOWER, ["longer", "larger", "oracle"]),
        gain_of="online",
    ),
    "scale": Arm(
        question="Does a reference of small deltas do as well as one of large ones, with bounds of its own size?",
        groups={
            "bounds of one ratio": {
                "uniform": uniform(),
                **{f"online [{size}]": online(**bounds(size)) for size in (_SMALL, _DEFAULT)},
                **{
                    f"{name} [{size}]": cached(name, **bounds(size))
                    for name, sizes in {
                        "initial": ("0.05, 0.25", _SMALL, _DEFAULT),
                        **dict.fromkeys(("final", "crossfit", "longer"), (_DEFAULT,)),
                        "larger": (_DEFAULT, _LARGE, "1, 5"),
                    }.items()
                    for size in sizes
                },
            }
        },
        gain_of="online [0.1, 0.5]",
    ),
    "staleness": Arm(
        question="How stale does a cache become, and is it worth refreshing once?",
        groups={
            "drift": {name: cached(name, drift=True) for name in REFERENCES},
            "two halves": {f"initial, {halves}": cached("initial", halves=halves) for halves in ("kept", "refreshed")},
        },
    ),
    "stages": Arm(  # the paper's Table 3
        question="In which stage do weights count?",
        groups={
            "online weights in": {
                "neither": uniform(),
                "pretraining": uniform(pretraining="online"),
                "finetuning": online(),
                "both": online(pretraining="online"),
            }
        },
    ),
    # The paper's Table 4. Pool `joined` differs from `span` where a sample has several answers, and normalization
    # `micro_batch` from `step` where a step has several micro-batches: each has such a group.
    "bounds": Arm(
        question="Which bounds, window, pool and normalization?",
        groups={
            "bounds": {
                "uniform": uniform(),
                **{
                    f"[{size}]": cached("initial", **bounds(size))
                    for size in ("0.2, 1", "0, 1", "0.2, inf", "0, inf", "1, 5", "0, 5", "1, inf")
                },
            },
            "window": {
                "default": cached("initial"),
                "1": cached("initial", window=1),
                "5": cached("initial", window=5),
            },
            "pool, two answers": {
                "uniform": uniform(answers=2),
                **{pool: cached("initial", answers=2, pool=pool) for pool in ("span", "joined")},
            },
            "normalization": {
                "default": cached("initial"),
                "sample": cached("initial", normalization="sample"),
                **{
                    f"{name}, 4 x 8": cached("initial", normalization=name, accumulation=4)
                    for name in ("step", "sample", "micro_batch")
                },
            },
            "online": {f"mask, {pool}": online(contrast="mask", pool=pool) for pool in ("span", "released")},
        },
    ),
    "contrast": Arm(  # the paper's Tables 8 and 9
        question="Which contrast?",
        groups={
            f"p = {MAIN_NOISE:g}": {
                "uniform": uniform(),
                **{name: cached("initial", contrast=name) for name in _CONTRASTS},
            }
        },
        measurements=tuple({"noise": MAIN_NOISE, "reference": "initial", "contrast": name} for name in _CONTRASTS),
    ),
    "text_only": Arm(
        question="Do text-only samples keep their loss within 1 % of uniform training?",
        groups={
            f"group_by {group}": {
                "uniform": uniform(text_share=0.1, group_by=group),
                "online": online(text_share=0.1, group_by=group),
                "initial": cached("initial", text_share=0.1, group_by=group),
            }
            for group in ("modality_length", "none")
        },
        with_text=True,
    ),
    "precision": Arm(
        question="Does measuring in bfloat16 change the result?",
        groups={"dtype of the reference": {name: cached("initial", dtype=name) for name in ("float32", "bfloat16")}},
        measurements=({"noise": MAIN_NOISE, "reference": "initial", "dtype": "bfloat16"},),
    ),
    "scores": Arm(
        question="Which score and map gains most where captions are wrong, and which does no harm where none is?",
        groups=scored(0.0) | scored(MAIN_NOISE),
        corrected=True,
        worlds=WORLDS,
    ),
    "adaptive": Arm(
        question="Do bounds that follow the sample, or the model's uncertainty, do better than two numbers for all?",
        groups={
            f"p = {noise:g}": {
                "uniform": uniform(noise=noise),
                "[0.2, 1]": cached("larger", noise=noise),
                **{
                    label: cached("larger", noise=noise, adapted=adapted, alpha="0", beta="inf")
                    for label, adapted in _ADAPTED.items()
                },
            }
            for noise in (0.0, MAIN_NOISE)
        },
        corrected=True,
    ),
    "quick": Arm(  # a first look in under five minutes
        question="Four seeds of one noise in one world: a look, not a result; make study is the study.",
        groups=at([MAIN_NOISE], ["final"]),
        gain_of="online",
        seeds=4,
    ),
}
