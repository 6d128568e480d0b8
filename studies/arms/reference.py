"""Which reference: what share of online's gain over uniform does each recover, where a good deal is wrong."""

from arm import Arm
from arms.noise import at
from condition import MAIN_NOISE, REFERENCES

ARM = Arm(
    question="Which reference recovers at least 80 % of what online weights gain?",
    groups={f"p = {MAIN_NOISE:g}": at(MAIN_NOISE, REFERENCES)},
    measurements=tuple({"noise": MAIN_NOISE, "reference": name} for name in REFERENCES),
    gain_of="online",
)
