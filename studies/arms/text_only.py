"""What weights cost samples without an image, with batches grouped by modality and without."""

from arm import Arm
from condition import MAIN_NOISE

_MIX = {"noise": MAIN_NOISE, "text_share": 0.1}
ARM = Arm(
    question="Do text-only samples keep their loss within 1 % of uniform training?",
    groups={
        f"group_by {group}": {
            "uniform": {**_MIX, "weights": "uniform", "group_by": group},
            "online": {**_MIX, "weights": "online", "group_by": group},
            "initial": {**_MIX, "weights": "cached", "reference": "initial", "group_by": group},
        }
        for group in ("modality_length", "none")
    },
    with_text=True,
)
