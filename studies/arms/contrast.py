"""The paper's Tables 8 and 9: what stands in the image's place."""

from arm import Arm
from condition import MAIN_NOISE

_CONTRASTS = ("drop", "mask", "patch_mask 0.5", "patch_mask 0.7", "patch_mask 0.9", "gaussian_blur 1",
              "gaussian_blur 10")  # fmt: skip
ARM = Arm(
    question="Which contrast?",
    groups={
        f"p = {MAIN_NOISE:g}": {
            "uniform": {"noise": MAIN_NOISE, "weights": "uniform"},
            **{
                name: {"noise": MAIN_NOISE, "weights": "cached", "reference": "initial", "contrast": name}
                for name in _CONTRASTS
            },
        }
    },
    measurements=tuple({"noise": MAIN_NOISE, "reference": "initial", "contrast": name} for name in _CONTRASTS),
)
