"""The references that `noise` leaves out at the lower noises: an arm of its own, as both together take an hour."""

from arm import Arm
from arms.noise import FEW, NOISES
from condition import MAIN_NOISE, REFERENCES


def _conditions(noise: float) -> dict[str, dict[str, object]]:
    others = [name for name in REFERENCES if name not in FEW]
    return {
        "uniform": {"noise": noise, "weights": "uniform"},
        "online": {"noise": noise, "weights": "online"},
        **{name: {"noise": noise, "weights": "cached", "reference": name} for name in others},
    }


ARM = Arm(
    question="What do the other references gain where less is wrong?",
    groups={f"p = {noise:g}": _conditions(noise) for noise in NOISES if noise != MAIN_NOISE},
    gain_of="online",
)
