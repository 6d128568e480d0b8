"""Does the cheap test, `cal-inspect audit --swap`, predict what a reference gains?"""

from dataclasses import replace

from arms.reference import ARM as REFERENCE

ARM = replace(REFERENCE, question="Does the swap control predict what a reference gains?")
