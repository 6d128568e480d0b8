"""A first look in under five minutes: does weighting help here, and does a cache of the student's own do as well?"""

from arm import Arm
from arms.noise import at
from condition import MAIN_NOISE

ARM = Arm(
    question="Four seeds of one noise in one world: a look, not a result; make study is the study.",
    groups={f"p = {MAIN_NOISE:g}": at(MAIN_NOISE, ("final",))},
    gain_of="online",
    seeds=4,
)
