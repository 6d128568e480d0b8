"""Does the cheap test, `cal-inspect audit --swap`, predict what a reference gains?"""

from arms.reference import ARM as REFERENCE

ARM = REFERENCE
