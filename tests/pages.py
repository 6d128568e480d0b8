"""What tests of pages share: captions that would leave their place, and weights computed apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.objective.weights import token_weights

HOSTILE = (
    "<script>window.hacked = 1</script> & </script><img src=x onerror='window.hacked = 2'>",
    '"><svg onload=window.hacked=3> <!-- <script>',
    "line\u2028separator\u2029 ${window.hacked = 4} `'\" %DATA% %SCRIPT%",
    "]]> \u202egnp.exe \x07 \U0001f600 é",
)


def python_weights(sample: dict[str, Any], alpha: float, beta: float, window: int) -> np.ndarray:
    """What training would give the sample's tokens, from the page's deltas and spans alone."""
    deltas, labels = [], []
    for token, delta in enumerate(sample["scores"]):
        if token in sample["spans"]:
            deltas.append(float("nan"))
            labels.append(IGNORE_INDEX)
        deltas.append(float("nan") if delta is None else delta)
        labels.append(1)
    weights = token_weights(
        torch.tensor([deltas]), torch.tensor([labels]), alpha=alpha, beta=beta, window=window, pool="span"
    )
    return weights[0][torch.tensor(labels) != IGNORE_INDEX].numpy()
