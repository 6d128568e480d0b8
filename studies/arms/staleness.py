"""How far deltas move while the student learns, and what measuring again in mid-run brings."""

from arm import Arm
from condition import MAIN_NOISE, REFERENCES

_CACHED = {"noise": MAIN_NOISE, "weights": "cached"}
ARM = Arm(
    question="How stale does a cache become, and is it worth refreshing once?",
    groups={
        "drift": {name: {**_CACHED, "reference": name, "drift": True} for name in REFERENCES},
        "two halves": {
            "initial, kept": {**_CACHED, "reference": "initial", "halves": "kept"},
            "initial, refreshed": {**_CACHED, "reference": "initial", "halves": "refreshed"},
        },
    },
)
