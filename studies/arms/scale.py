"""Do references differ by what they know, or by the size of their deltas, which makes the same bounds weigh more?"""

from arm import Arm
from condition import MAIN_NOISE

_BOUNDS = {
    "initial": (("0.05", "0.25"), ("0.1", "0.5"), ("0.2", "1")),
    "final": (("0.2", "1"),),
    "crossfit": (("0.2", "1"),),
    "longer": (("0.2", "1"),),
    "larger": (("0.2", "1"), ("0.4", "2"), ("1", "5")),
}
ARM = Arm(
    question="Does a reference of small deltas do as well as one of large ones, with bounds of its own size?",
    groups={
        "bounds of one ratio": {
            "uniform": {"noise": MAIN_NOISE, "weights": "uniform"},
            **{
                f"online [{alpha}, {beta}]": {"noise": MAIN_NOISE, "weights": "online", "alpha": alpha, "beta": beta}
                for alpha, beta in (("0.1", "0.5"), ("0.2", "1"))
            },
            **{
                f"{name} [{alpha}, {beta}]": {
                    "noise": MAIN_NOISE, "weights": "cached", "reference": name, "alpha": alpha, "beta": beta,
                }
                for name, bounds in _BOUNDS.items()
                for alpha, beta in bounds
            },
        }
    },
    gain_of="online [0.1, 0.5]",
)  # fmt: skip
