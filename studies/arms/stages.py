"""The paper's Table 3: weights in pretraining, in finetuning, in both, in neither."""

from arm import Arm
from condition import MAIN_NOISE

ARM = Arm(
    question="In which stage do weights count?",
    groups={
        "online weights in": {
            "neither": {"noise": MAIN_NOISE, "weights": "uniform"},
            "pretraining": {"noise": MAIN_NOISE, "weights": "uniform", "pretraining": "online"},
            "finetuning": {"noise": MAIN_NOISE, "weights": "online"},
            "both": {"noise": MAIN_NOISE, "weights": "online", "pretraining": "online"},
        }
    },
)
