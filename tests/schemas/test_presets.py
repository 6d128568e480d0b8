"""Every preset against its paper's equations by hand, on one sample of five tokens, in numpy and in torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cal_schemas.maps import Map
from cal_schemas.presets import PRESETS, Preset
from cal_schemas.ragged import least_of_share, ragged_scores, ragged_weights
from cal_schemas.scores import SCORES
from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.objective.loss import known_denominator, normalized
from cal_trainer.objective.weighting import Weighting

WITH = [-0.10, -1.20, -0.40, -2.30, -0.05]
WITHOUT = [-0.12, -3.00, -0.35, -2.50, -1.05]
KL = [0.02, 1.50, 0.05, 0.40, 0.90]
JS = [0.01, 0.30, 0.02, 0.12, 0.20]
ENTROPY_WITH, ENTROPY_WITHOUT = [0.30, 1.60, 0.90, 2.10, 0.20], [0.35, 2.60, 0.85, 2.40, 1.30]
DELTA = [0.2, 6.3, 0.9, 2.5, 4.1]
NLL = [0.30, 1.00, 0.90, 2.60, 0.10]
"""Of the model in training."""
COLUMNS = {
    "logprobs_with_image": WITH, "logprobs_without_image": WITHOUT, "kl_with_without": KL, "js_with_without": JS,
    "entropy_with_image": ENTROPY_WITH, "entropy_without_image": ENTROPY_WITHOUT, "delta_logits": DELTA, "nll": NLL,
}  # fmt: skip
MEANS = [0.9, 0.594, 0.4, 0.2, 0.1, 0.05, 0.01, -0.1, -0.2, -0.5]
"""Of the scores of ten samples, ours the second: (0.02 + 1.80 - 0.05 + 0.20 + 1.00) / 5."""


def stretched(values: list[float]) -> list[float]:
    return [(value - min(values)) / (max(values) - min(values)) for value in values]


def largest(values: list[float], count: int) -> list[float]:
    kept = sorted(range(5), key=lambda j: -values[j])[:count]
    return [1.0 if j in kept else 0.0 for j in range(5)]


def cal() -> list[float]:
    clamped = [1, 5, 1, 2.5, 4.1]
    return [(1 + 5) / 2, (1 + 5 + 1) / 3, (5 + 1 + 2.5) / 3, (1 + 2.5 + 4.1) / 3, (clamped[3] + clamped[4]) / 2]


def vig() -> list[float]:
    """Seven of ten samples are kept, the last of them at 0.01; the first that is not has -0.1."""
    threshold = (0.01 - 0.1) / 2
    return [
        1.0 if with_image - without >= threshold else 0.0 for with_image, without in zip(WITH, WITHOUT, strict=True)
    ]


def pgpo() -> list[float]:
    gates = [i / 0.4 if i < 0.4 else 1 + 2 * (i - 0.4) / 0.6 for i in stretched([math.log(1 + s) for s in KL])]
    return [5 * gate / sum(gates) for gate in gates]


def vepo() -> list[float]:
    changes = [abs(without - shown) for without, shown in zip(ENTROPY_WITHOUT, ENTROPY_WITH, strict=True)]
    scores = [
        (1 - (1 - js) ** 0.7 * (1 - change) ** 0.3) * entropy
        for js, change, entropy in zip(stretched(JS), stretched(changes), stretched(ENTROPY_WITH), strict=True)
    ]
    return largest(scores, math.ceil(0.2 * 5))


def focal() -> list[float]:
    """The derivative of (1 - exp(-l))^2 l, by differences."""

    def loss(nll: float) -> float:
        return (1 - math.exp(-nll)) ** 2 * nll

    return [(loss(nll + 1e-6) - loss(nll - 1e-6)) / 2e-6 for nll in NLL]


def total(weights: list[float]) -> float:
    return sum(w * nll for w, nll in zip(weights, NLL, strict=True))


BY_HAND: dict[Preset, tuple[Callable[[], list[float]], float]] = {
    "cal": (cal, 12.7 / 14),
    "vig": (vig, 4.0 / 4),
    "visnec": (lambda: [0.0] * 5, 0.0),
    "pgpo": (pgpo, 0.936607),
    "vppo": (lambda: largest(KL, math.ceil(0.4 * 5)), (1.0 + 0.1) / 5),
    "vepo": (vepo, 1.0),
    "rho1": (lambda: largest([nll + lp for nll, lp in zip(NLL, WITH, strict=True)], 3), (0.3 + 0.9 + 2.6) / 3),
    "dft": (lambda: [math.exp(-nll) for nll in NLL], 0.247927),
    "focal": (focal, 0.182379 * 0.06 + 0.864665 * 0.2 + 0.786447 * 0.18 + 1.214506 * 0.52 + 0.026277 * 0.02),
}
"""Weights, and the loss of a step that is this sample. `released` is compared with the authors' own numbers, in
tests/goldens."""


def ready(preset: Preset) -> Weighting:
    """As cal-train makes it: where the data must be known first, of MEANS."""
    flags = {name: value for name, value in PRESETS[preset].flags.items() if name not in ("score", "contrast")}
    rule = Map.parse(flags["map"])
    if rule.needs == "samples":
        assert isinstance(rule.parameter, float)
        flags["map"] = f"{rule}@{least_of_share(np.array(MEANS, np.float32), rule.parameter)}"
    return Weighting(**flags)


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"released"}))
def test_a_preset_weighs_as_its_paper_does_by_hand(preset: Preset) -> None:
    by_hand, loss = BY_HAND[preset]
    columns = {name: torch.tensor([[9.0, *values]]) for name, values in COLUMNS.items()}
    columns = {name: values.where(torch.tensor([[False] + [True] * 5]), torch.nan) for name, values in columns.items()}
    labels = torch.tensor([[IGNORE_INDEX, 5, 6, 7, 8, 9]])
    weighting, score = ready(preset), PRESETS[preset].score
    weights = weighting(SCORES[score].compute(columns), labels)
    assert weights[0, 1:].tolist() == pytest.approx(by_hand(), abs=2e-6)
    counted, share = normalized(weights, labels, weighting.normalization)
    found = (counted * torch.tensor([[0.0, *NLL]])).sum() / share.where(share > 0, 1.0)
    assert float(found) == pytest.approx(loss, abs=2e-6)
    known = known_denominator(labels, SCORES[score].compute(columns), weighting)
    assert known is not None
    assert float(known) == float(share)


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"released"}))
def test_looking_weighs_as_training_does(preset: Preset) -> None:
    weighting, score = ready(preset), PRESETS[preset].score
    lengths, run = np.array([0, 5, 0]), np.zeros(5, int)
    if SCORES[score].of_training or Map.parse(weighting.map).definition.of_batch:
        assert preset in ("rho1", "dft", "focal")
        return
    flat = {name: np.array(values, np.float32) for name, values in COLUMNS.items()}
    bounds = {"alpha": weighting.alpha, "beta": weighting.beta, "window": weighting.window}
    found = ragged_weights(ragged_scores(score, flat, lengths), lengths, run, Map.parse(weighting.map), **bounds)  # type: ignore[arg-type]
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx(BY_HAND[preset][0](), abs=2e-6)


@pytest.mark.parametrize(
    ("means", "share", "kept"),
    [
        (MEANS, 0.7, 7),
        (MEANS, 0.15, 1),
        ([0.3] * 20, 0.15, 20),
        ([0.9, 0.5, 0.5, 0.1], 0.5, 3),
        ([1.0, 2.0, math.nan], 0.5, 1),
        ([2.0], 0.1, 1),
    ],
)
def test_a_share_of_samples_is_rounded_down_and_at_least_one(means: list[float], share: float, kept: int) -> None:
    values = np.array(means, np.float32)
    assert int((values >= least_of_share(values, share)).sum()) == kept


def test_every_preset_names_its_paper_what_is_literal_and_what_is_ours() -> None:
    for definition in PRESETS.values():
        said = (definition.paper, definition.original, definition.contrast, definition.literal, definition.reading)
        assert all(said)
        Map.parse(definition.map)
