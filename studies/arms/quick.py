"""A first look in under five minutes: does weighting help here, and does a cache of the student's own do as well?"""

from arm import Arm

ARM = Arm(
    question="Three seeds of one noise: a look, not a result.",
    groups={
        "p = 0.3": {
            "uniform": {"noise": 0.3, "weights": "uniform"},
            "online": {"noise": 0.3, "weights": "online"},
            "initial": {"noise": 0.3, "weights": "cached", "reference": "initial"},
            "oracle": {"noise": 0.3, "weights": "cached", "reference": "oracle"},
        }
    },
    gain_of="online",
    seeds=3,
)
