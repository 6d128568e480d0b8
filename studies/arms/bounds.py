"""The paper's Table 4, and the other settings that cost nothing to change: one measurement serves them all."""

from arm import Arm
from condition import MAIN_NOISE

_CACHED = {"noise": MAIN_NOISE, "weights": "cached", "reference": "initial"}
_UNIFORM = {"uniform": {"noise": MAIN_NOISE, "weights": "uniform"}}
_DEFAULT = {"default": _CACHED}
ARM = Arm(
    question="Which bounds, window, pool and normalization?",
    groups={
        "bounds": {
            **_UNIFORM,
            "[0.2, 1]": _CACHED,
            "[0, 1]": {**_CACHED, "alpha": "0"},
            "[0.2, inf]": {**_CACHED, "beta": "inf"},
            "[0, inf]": {**_CACHED, "alpha": "0", "beta": "inf"},
            "[1, 5]": {**_CACHED, "alpha": "1", "beta": "5"},
            "[0, 5]": {**_CACHED, "alpha": "0", "beta": "5"},
            "[1, inf]": {**_CACHED, "alpha": "1", "beta": "inf"},
        },
        "window": {**_DEFAULT, "1": {**_CACHED, "window": 1}, "5": {**_CACHED, "window": 5}},
        "pool": {**_DEFAULT, "joined": {**_CACHED, "pool": "joined"}},
        "normalization": {
            **_DEFAULT,
            "sample": {**_CACHED, "normalization": "sample"},
            "micro_batch": {**_CACHED, "normalization": "micro_batch"},
        },
        "online": {
            "mask, span": {"noise": MAIN_NOISE, "weights": "online", "contrast": "mask"},
            "mask, released": {"noise": MAIN_NOISE, "weights": "online", "contrast": "mask", "pool": "released"},
        },
    },
)
