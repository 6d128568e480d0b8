"""`noise` for the student's other models; an arm of its own, as all references together take over half an hour."""

from arm import Arm
from arms.noise import LOWER, at

ARM = Arm(
    question="What do the student's checkpoints and its cross-fit gain where less is wrong?",
    groups={f"p = {noise:g}": at(noise, ("early", "quarter", "crossfit")) for noise in LOWER},
    gain_of="online",
)
