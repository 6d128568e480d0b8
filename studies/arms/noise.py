"""The paper's Fig. 3: images exchanged between samples, and what each source of weights makes of it."""

from collections.abc import Sequence

from arm import Arm, Conditions
from condition import MAIN_NOISE

NOISES = (0.0, 0.1, 0.2, 0.3)
LOWER = tuple(noise for noise in NOISES if noise != MAIN_NOISE)
"""At the main noise the arm `reference` has every reference."""


def at(noise: float, references: Sequence[str]) -> Conditions:
    """Uniform and online weights, and caches of these references."""
    return {
        "uniform": {"noise": noise, "weights": "uniform"},
        "online": {"noise": noise, "weights": "online"},
        **{name: {"noise": noise, "weights": "cached", "reference": name} for name in references},
    }


ARM = Arm(
    question="What do weights gain, by share of exchanged pictures and by whose deltas they are?",
    groups={f"p = {noise:g}": at(noise, ("initial", "final")) for noise in NOISES},
    gain_of="online",
)
