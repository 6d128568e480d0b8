"""The paper's Table 4, and the other settings of the weights.

Pool `joined` differs from `span` where a sample has several answers, and normalization `micro_batch` from `step` where
a step has several micro-batches: each has such a group.
"""

from arm import Arm
from condition import MAIN_NOISE

_CACHED = {"noise": MAIN_NOISE, "weights": "cached", "reference": "initial"}
_SPLIT = {**_CACHED, "accumulation": 4}
_ANSWERS = {"noise": MAIN_NOISE, "answers": 2}
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
        "pool, two answers": {
            "uniform": {**_ANSWERS, "weights": "uniform"},
            "span": {**_CACHED, **_ANSWERS},
            "joined": {**_CACHED, **_ANSWERS, "pool": "joined"},
        },
        "normalization": {
            **_DEFAULT,
            "sample": {**_CACHED, "normalization": "sample"},
            "step, 4 x 8": _SPLIT,
            "sample, 4 x 8": {**_SPLIT, "normalization": "sample"},
            "micro_batch, 4 x 8": {**_SPLIT, "normalization": "micro_batch"},
        },
        "online": {
            "mask, span": {"noise": MAIN_NOISE, "weights": "online", "contrast": "mask"},
            "mask, released": {"noise": MAIN_NOISE, "weights": "online", "contrast": "mask", "pool": "released"},
        },
    },
)
