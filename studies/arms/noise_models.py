"""`noise` for references that are models of their own, beside `noise_students`."""

from arm import Arm
from arms.noise import LOWER, at

ARM = Arm(
    question="What do a longer trained, a larger and an all-knowing reference gain where less is wrong?",
    groups={f"p = {noise:g}": at(noise, ("longer", "larger", "oracle")) for noise in LOWER},
    gain_of="online",
)
