"""A first look in under five minutes: does weighting help here, and does a cache of the student's own do as well?"""

from arm import Arm

ARM = Arm(
    question="Four seeds of one noise in one world: a look, not a result; make study is the study.",
    groups={
        "p = 0.3": {
            "uniform": {"noise": 0.3, "weights": "uniform"},
            "online": {"noise": 0.3, "weights": "online"},
            "initial": {"noise": 0.3, "weights": "cached", "reference": "initial"},
            "final": {"noise": 0.3, "weights": "cached", "reference": "final"},
        }
    },
    gain_of="online",
    seeds=4,
)
