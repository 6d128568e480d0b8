"""Deltas in bfloat16 against float32: how many weights flip, and whether the result does."""

from arm import Arm
from condition import MAIN_NOISE

_CACHED = {"noise": MAIN_NOISE, "weights": "cached", "reference": "initial"}
ARM = Arm(
    question="Does measuring in bfloat16 change the result?",
    groups={"dtype of the reference": {"float32": _CACHED, "bfloat16": {**_CACHED, "dtype": "bfloat16"}}},
    measurements=({"noise": MAIN_NOISE, "reference": "initial", "dtype": "bfloat16"},),
)
