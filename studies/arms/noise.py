"""The paper's Fig. 3: pictures exchanged between samples, and what each source of weights makes of it."""

from arm import Arm
from condition import MAIN_NOISE, REFERENCES

NOISES = (0.0, 0.1, 0.2, 0.3)
FEW = ("initial", "final", "crossfit", "oracle")
"""References at the other noises; `noise_others` has the rest, as all would take an arm an hour on two cores."""


def _conditions(noise: float) -> dict[str, dict[str, object]]:
    names = REFERENCES if noise == MAIN_NOISE else FEW
    cached = {name: {"noise": noise, "weights": "cached", "reference": name} for name in names}
    return {
        "uniform": {"noise": noise, "weights": "uniform"},
        "online": {"noise": noise, "weights": "online"},
        **cached,
    }


ARM = Arm(
    question="What do weights gain, by share of exchanged pictures and by whose deltas they are?",
    groups={f"p = {noise:g}": _conditions(noise) for noise in NOISES},
    gain_of="online",
)
