"""Bounds what the figures should reach, on two cores of a CPU, by the name of the result they are in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A bound on one ratio."""

    ratio: str
    at_most: float | None = None
    at_least: float | None = None

    def met(self, value: float) -> bool:
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        return f"<= {self.at_most}" if self.at_least is None else f">= {self.at_least}"


_MEMORY = Target(ratio="drop_memory/released_memory", at_most=0.25)
_CACHED = Target(ratio="cached/uniform", at_most=1.02)
_BEST_PEER = [
    Target(ratio=f"{ours}_{what}/best_peer_{what}", at_most=1.0)
    for ours in ("uniform", "cached")
    for what in ("step_s", "epoch_s", "peak_mb")
]
_TARGETS: dict[str, list[Target]] = {
    "peers-cpu-batch2": _BEST_PEER,
    "peers-cpu-vocabulary152000-batch2": _BEST_PEER,
    "peers-cpu-image2880": _BEST_PEER,
    "peers-cpu-image2880-vocabulary152000": _BEST_PEER,
    "contrast-cpu": [Target(ratio="drop/released", at_most=0.45), _MEMORY],
    "contrast-cpu-image2880": [Target(ratio="drop/released", at_most=0.42), _MEMORY],
    "contrast-cpu-vocabulary152000": [Target(ratio="drop/released", at_most=0.25), _MEMORY],
    "train_step-cpu": [_CACHED],
    "train_step-cpu-checkpointing": [_CACHED, Target(ratio="online_drop/uniform", at_most=1.12)],
    "train_step-cpu-image2880-checkpointing": [Target(ratio="online_drop/uniform", at_most=1.05)],
    "train_step-cpu-vocabulary128000": [_CACHED, Target(ratio="uniform/trainer", at_most=0.6)],
    "precompute-cpu": [
        Target(ratio="one_worker/bare_loop", at_least=0.95),
        Target(ratio="two_workers/one_worker", at_least=1.8),
        Target(ratio="padding/tokens", at_most=0.08),
    ],
    "storage": [
        Target(ratio="float32_bytes/token", at_most=3.6),
        Target(ratio="float16_bytes/token", at_most=1.9),
    ],
    "contrast-llava15-7b-cuda-bfloat16": [Target(ratio="drop/plain", at_most=1.30)],
    "contrast-llavanext-7b-cuda-bfloat16": [Target(ratio="drop/plain", at_most=1.08)],
}


def targets_of(name: str) -> list[Target]:
    """Of a result's name, without `.json`."""
    return _TARGETS.get(name, [])
